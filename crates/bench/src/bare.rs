//! The program behind a function, started without Dirigent: the floor of every figure.

use std::{
    collections::VecDeque,
    net::{Ipv4Addr, SocketAddr},
    ops::Range,
    os::fd::OwnedFd,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context as _, Result, bail};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};

/// A program while it runs; it ends with the value, also if the measurement is interrupted.
#[derive(Debug)]
pub(crate) struct Running(pub(crate) Child);

/// Executes it with what a function has of these in its environment, silent.
pub(crate) fn spawn(program: &Path, args: &[String], port: &Port) -> Result<Running> {
    Command::new(program)
        .args(args)
        .env_clear()
        .env("PORT", port.number().to_string())
        .env("PATH", "/usr/bin:/bin")
        .env("TMPDIR", std::env::temp_dir())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map(Running)
        .with_context(|| format!("cannot execute {}", program.display()))
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; there is nobody left to tell.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Below the ports that the kernel gives to outgoing connections and those of sandboxes. Who
/// connects again and again to an ephemeral port on which nobody listens yet may be given that very
/// port, and be connected to itself.
const PORTS: Range<u16> = 10_000..20_000;

/// A port kept for a program while it runs, from everyone who asks for one in this way, in other
/// processes too. A socket that is bound to it and never listens keeps it: Linux lets a program that
/// sets `SO_REUSEADDR`, as servers do, listen beside such a socket. Merely having seen that nobody
/// listens would keep nothing; and seen by listening, a child that another thread is about to
/// execute would go on to listen for a moment, and answer the program's client by a reset.
#[derive(Debug)]
pub struct Port {
    number: u16,
    /// Always there, but in `drop`.
    socket: Option<OwnedFd>,
}

/// Given back: kept for the next one who asks. The one that was used longest ago comes first.
static FREE: Mutex<VecDeque<(u16, OwnedFd)>> = Mutex::new(VecDeque::new());

impl Port {
    /// One that nobody listens on or keeps.
    ///
    /// # Errors
    /// If there is none.
    pub fn keep() -> Result<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        if let Some((number, socket)) = FREE.lock().expect("no holder panics").pop_front() {
            return Ok(Self { number, socket: Some(socket) });
        }
        // Processes that measure at once begin elsewhere.
        let begin = std::process::id() as usize * 997;
        for _ in PORTS {
            let place = begin + NEXT.fetch_add(1, Ordering::Relaxed);
            let number = PORTS.start + u16::try_from(place % PORTS.len())?;
            if let Ok(socket) = bound(number) {
                return Ok(Self { number, socket: Some(socket) });
            }
        }
        bail!("no port of {PORTS:?} is free")
    }

    /// Its number.
    #[must_use]
    pub const fn number(&self) -> u16 {
        self.number
    }

    /// Where a program that listens on it is found.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.number).into()
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        let socket = self.socket.take();
        let kept = socket.map(|socket| (self.number, socket));
        FREE.lock().expect("no holder panics").extend(kept);
    }
}

/// Alone at first: what has the port in any way is in the way. From then on beside a program.
fn bound(number: u16) -> rustix::io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, number)))?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_port_is_kept_from_others_and_not_from_its_program() {
        let ports: Vec<Port> = (0..50).map(|_| Port::keep().unwrap()).collect();
        let mut numbers: Vec<u16> = ports.iter().map(Port::number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 50);
        assert!(numbers.iter().all(|number| PORTS.contains(number)));
        for port in &ports {
            assert!(bound(port.number()).is_err(), "another process would take it as well");
            let program = TcpListener::bind(port.address()).unwrap();
            assert!(bound(port.number()).is_err());
            drop(program);
            // The next program with it.
            TcpListener::bind(port.address()).unwrap();
        }
    }

    #[test]
    fn a_port_that_is_listened_on_is_not_kept() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert!(bound(listener.local_addr().unwrap().port()).is_err());
    }
}
