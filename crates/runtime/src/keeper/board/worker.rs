//! The keeper's side of the connection to its worker: one at a time, the newest counts.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use dirigent_core::{StartFailure, worker::Adopted};
use rustix::event::epoll;

use super::{Board, Cell, Source};
use crate::keeper::protocol::{
    Ended, FromKeeper, Greeting, Inbox, ToKeeper, VERSION, Welcome, check_version, encode,
};

/// What may wait for a worker that does not read; then it must attach anew, and asks for everything.
const MAX_BACKLOG: usize = 64 << 20;

/// Ends that are kept for the next worker, with their last lines: what `describe` shows is far less.
const MAX_UNTOLD: usize = 256;

/// A worker.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    inbox: Inbox,
    outbox: Vec<u8>,
    greeted: bool,
}

impl Board {
    pub(super) fn accept(&mut self) {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => return tracing::debug!(%error, "nobody to accept"),
        };
        let registered = stream.set_nonblocking(true).is_ok() && {
            // The former worker is dead, or this would not be its state directory's new one. What
            // it said before its death still counts.
            self.hear_worker(epoll::EventFlags::IN);
            self.lose_worker();
            let data = epoll::EventData::new_u64(Source::Worker.token());
            epoll::add(&self.poll, &stream, data, epoll::EventFlags::IN).is_ok()
        };
        if registered {
            let (inbox, outbox) = (Inbox::default(), Vec::new());
            self.worker = Some(Connection { stream, inbox, outbox, greeted: false });
            self.alone_since = None;
        }
    }

    pub(super) fn hear_worker(&mut self, flags: epoll::EventFlags) {
        if flags.contains(epoll::EventFlags::OUT) {
            self.flush();
        }
        let open = loop {
            let Some(worker) = &mut self.worker else { return };
            match worker.stream.read(&mut self.buffer) {
                Ok(0) => break false,
                Ok(length) => worker.inbox.push(&self.buffer[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break true,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::debug!(%error, "the worker is gone");
                    break false;
                }
            }
        };
        // Its last words came with its end: they are obeyed all the same.
        if let Err(error) = self.obey_all() {
            tracing::warn!(%error, "the worker is not understood");
            return self.lose_worker();
        }
        if !open {
            self.lose_worker();
        }
    }

    fn obey_all(&mut self) -> std::io::Result<()> {
        while let Some(worker) = &mut self.worker {
            if worker.greeted {
                let Some(message) = worker.inbox.next::<ToKeeper>()? else { return Ok(()) };
                self.obey(message);
            } else {
                let Some(greeting) = worker.inbox.next::<Greeting>()? else { return Ok(()) };
                worker.greeted = true;
                let welcome = Welcome {
                    version: VERSION,
                    abilities: self.abilities.clone(),
                    sandboxes: self.cells.values().filter_map(Cell::adopted).collect(),
                    ended: self.untold.iter().cloned().collect(),
                    lent: self.networks.loans.values().map(|loan| loan.lent.clone()).collect(),
                    bundles: self.bundles.list(),
                };
                self.send(&encode(&welcome)?);
                check_version(greeting.version)?;
            }
        }
        Ok(())
    }

    fn obey(&mut self, message: ToKeeper) {
        match message {
            ToKeeper::Start(start) => self.start(*start),
            ToKeeper::Stop { sandbox, grace_ms } => {
                self.stop(sandbox, Duration::from_millis(grace_ms));
            }
            ToKeeper::Network(network) => self.configure(network),
            ToKeeper::Listening { sandbox, address } => self.listening(sandbox, address),
            ToKeeper::Heard { sandboxes } => {
                self.untold.retain(|one| !sandboxes.contains(&one.adopted.report.sandbox));
            }
            ToKeeper::Lend { sandbox, outbound, port, inside } => {
                self.lend(sandbox, &outbound, (port, inside));
            }
            ToKeeper::Expose { sandbox, port } => self.expose(sandbox, port),
            ToKeeper::GiveBack { sandbox } => self.give_back(sandbox),
            ToKeeper::Execute { question, execute } => self.execute(question, &execute),
            ToKeeper::Await { question, bundle } => self.await_end(question, &bundle),
            ToKeeper::Release { question, bundle } => self.release(question, &bundle),
            ToKeeper::Exit => self.exit(),
        }
    }

    /// Tell the worker, if there is one; else it will ask.
    pub(super) fn tell(&mut self, message: &FromKeeper) {
        match encode(message) {
            Ok(frame) => self.send(&frame),
            Err(error) => tracing::error!(%error, "a message cannot be sent"),
        }
    }

    /// Tell of an end, and keep it until it was heard of: a worker may die with it unread.
    pub(super) fn tell_gone(&mut self, adopted: Adopted, failure: StartFailure) {
        let sandbox = adopted.report.sandbox;
        self.tell(&FromKeeper::Gone { sandbox, failure: failure.clone() });
        if self.untold.len() == MAX_UNTOLD {
            self.untold.pop_front();
        }
        self.untold.push_back(Ended { adopted, failure });
    }

    fn send(&mut self, frame: &[u8]) {
        let Some(worker) = self.worker.as_mut().filter(|w| w.greeted) else { return };
        worker.outbox.extend_from_slice(frame);
        if worker.outbox.len() > MAX_BACKLOG {
            return self.lose_worker();
        }
        self.flush();
    }

    fn flush(&mut self) {
        let Some(worker) = &mut self.worker else { return };
        while !worker.outbox.is_empty() {
            match worker.stream.write(&worker.outbox) {
                Ok(length) => drop(worker.outbox.drain(..length)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::debug!(%error, "the worker is gone");
                    return self.lose_worker();
                }
            }
        }
        let mut wanted = epoll::EventFlags::IN;
        if !worker.outbox.is_empty() {
            wanted |= epoll::EventFlags::OUT;
        }
        let data = epoll::EventData::new_u64(Source::Worker.token());
        if let Err(error) = epoll::modify(&self.poll, &worker.stream, data, wanted) {
            tracing::debug!(%error, "the worker cannot be waited for");
        }
    }

    fn lose_worker(&mut self) {
        if let Some(worker) = self.worker.take()
            && let Err(error) = epoll::delete(&self.poll, &worker.stream)
        {
            tracing::debug!(%error, "was not waited for");
        }
        let now = Instant::now();
        self.bundles.forget_questions();
        let nothing_left = self.has_nothing();
        // Not at the next look, which may be half of the time away.
        self.idle_since = nothing_left.then_some(now);
        self.alone_since = Some(now);
    }
}
