//! A line to etcd that fails as it is told to.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex},
    thread,
};

/// What becomes of bytes on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Pass,
    /// They are kept until the line is mended.
    Hold,
    /// They are gone.
    Lose,
}

#[derive(Debug)]
struct Connection {
    asked: Fate,
    answered: Fate,
}

#[derive(Debug, Default)]
struct State {
    connections: Vec<Connection>,
    mute: bool,
}

/// See the module. Whoever connects gets a connection to the other end.
#[derive(Debug)]
pub(super) struct Line {
    address: SocketAddr,
    shared: Arc<(Mutex<State>, Condvar)>,
}

impl Line {
    pub(super) fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared: Arc<(Mutex<State>, Condvar)> = Arc::default();
        let line = Self { address, shared: Arc::clone(&shared) };
        thread::spawn(move || {
            for near in listener.incoming() {
                let near = near.unwrap();
                let mut state = shared.0.lock().unwrap();
                let far = TcpStream::connect(target).unwrap();
                let clone = |stream: &TcpStream| stream.try_clone().unwrap();
                let answered = if state.mute { Fate::Lose } else { Fate::Pass };
                state.connections.push(Connection { asked: Fate::Pass, answered });
                let number = state.connections.len() - 1;
                let (asking, answering) = (Arc::clone(&shared), Arc::clone(&shared));
                let pair = (clone(&near), clone(&far));
                thread::spawn(move || pump(near, far, number, &asking, |c| c.asked));
                thread::spawn(move || pump(pair.1, pair.0, number, &answering, |c| c.answered));
            }
        });
        line
    }

    pub(super) fn address(&self) -> String {
        format!("http://{}", self.address)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.shared.0.lock().unwrap());
        self.shared.1.notify_all();
    }

    /// What is asked on the connections that there are arrives, but no answer.
    pub(super) fn lose_answers(&self) {
        self.change(|state| state.connections.iter_mut().for_each(|c| c.answered = Fate::Lose));
    }

    /// The same, also on those that are made until the line is mended.
    pub(super) fn mute(&self) {
        self.change(|state| state.mute = true);
        self.lose_answers();
    }

    /// What is asked on the connections that there are is on its way until it is delivered.
    pub(super) fn hold_questions(&self) {
        self.change(|state| state.connections.iter_mut().for_each(|c| c.asked = Fate::Hold));
    }

    /// All that was held arrives.
    pub(super) fn deliver(&self) {
        self.change(|state| state.connections.iter_mut().for_each(|c| c.asked = Fate::Pass));
    }

    /// New connections are as good as any.
    pub(super) fn mend(&self) {
        self.change(|state| state.mute = false);
    }
}

fn pump(
    mut from: TcpStream,
    mut to: TcpStream,
    number: usize,
    shared: &(Mutex<State>, Condvar),
    fate: impl Fn(&Connection) -> Fate,
) {
    let mut bytes = [0; 64 << 10];
    while let Ok(count) = from.read(&mut bytes)
        && count > 0
    {
        let mut state = shared.0.lock().unwrap();
        while fate(&state.connections[number]) == Fate::Hold {
            state = shared.1.wait(state).unwrap();
        }
        let fate = fate(&state.connections[number]);
        drop(state);
        if fate == Fate::Pass && to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    // Its end is told too, unless it is on its way still.
    drop(to.shutdown(Shutdown::Write));
}
