//! The switch between hosts: one thread that reads frames from each host's device, decides by the
//! links what becomes of them, and writes them to where they go.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::write,
};
use tun_rs::SyncDevice;

use crate::wire::{Fate, Link, Wire};

/// The largest frame of a device whose MTU is 1500.
const FRAME: usize = 1514;
/// Frames that are read of one device before the others' turn.
const TURN: usize = 64;

/// A link for each pair of hosts and direction.
#[derive(Clone, Debug)]
pub(crate) struct Wires(Arc<Mutex<Vec<Vec<Wire>>>>);

impl Wires {
    pub(crate) fn new(hosts: usize, seed: u64) -> Self {
        let wire = |from: usize, to: usize| Wire::new(seed ^ ((from as u64) << 32 | to as u64));
        let all = (0..hosts).map(|from| (0..hosts).map(|to| wire(from, to)).collect()).collect();
        Self(Arc::new(Mutex::new(all)))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<Wire>>> {
        self.0.lock().expect("no holder panics")
    }

    pub(crate) fn set(&self, from: usize, to: usize, link: Link) {
        if let Some(wire) = self.lock().get_mut(from).and_then(|row| row.get_mut(to)) {
            wire.set(link);
        }
    }
}

/// It runs until it is dropped.
#[derive(Debug)]
pub(crate) struct Switch {
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Switch {
    /// Between devices, whose place is the last byte of their host's address, less one.
    pub(crate) fn start(devices: Vec<SyncDevice>, wires: Wires) -> Result<Self> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC).context("cannot make an eventfd")?;
        let told = stop.try_clone()?;
        let running =
            Running { devices, wires, begun: Instant::now(), waiting: BinaryHeap::new(), taken: 0 };
        let thread = std::thread::Builder::new()
            .name("switch".to_owned())
            .spawn(move || running.run(&told))
            .context("cannot start the switch")?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        // It can fail only where the counter is full, and then it is told already.
        write(&self.stop, &1_u64.to_ne_bytes()).unwrap_or_default();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// A frame under way. In the order of time, and of arrival for the same time.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    at: Duration,
    serial: u64,
    from: usize,
    to: usize,
    frame: Vec<u8>,
}

struct Running {
    devices: Vec<SyncDevice>,
    wires: Wires,
    begun: Instant,
    waiting: BinaryHeap<Reverse<Waiting>>,
    taken: u64,
}

impl Running {
    fn run(mut self, stop: &OwnedFd) {
        loop {
            let readable = self.readable(stop);
            let Some(readable) = readable else { return };
            for from in readable {
                self.read(from);
            }
            self.deliver();
        }
    }

    /// Waits; which devices have frames, or `None` at the end.
    fn readable(&self, stop: &OwnedFd) -> Option<Vec<usize>> {
        let mut all: Vec<PollFd<'_>> =
            self.devices.iter().map(|device| PollFd::new(device, PollFlags::IN)).collect();
        all.push(PollFd::new(stop, PollFlags::IN));
        let next = self.waiting.peek().map(|Reverse(next)| next.at);
        let left = next.map(|at| at.saturating_sub(self.begun.elapsed()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut all, left.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Some(Vec::new()),
            // Nothing can be waited for any more: as if all links were cut, which every case sees.
            Err(_unusable) => return None,
        }
        let ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        if all.pop().is_some_and(|stop| ready(&stop)) {
            return None;
        }
        Some((0..self.devices.len()).filter(|n| all.get(*n).is_some_and(ready)).collect())
    }

    fn read(&mut self, from: usize) {
        let mut buffer = [0; FRAME];
        for _ in 0..TURN {
            let Some(Ok(length)) = self.devices.get(from).map(|device| device.recv(&mut buffer))
            else {
                return;
            };
            let Some(frame) = buffer.get(..length) else { return };
            for to in receivers(frame, from, self.devices.len()) {
                let now = self.begun.elapsed();
                let fate = self.wires.lock()[from][to].take(now, length);
                match fate {
                    Fate::Dropped => {}
                    Fate::Now => self.send(to, frame),
                    Fate::At(at) => {
                        self.taken += 1;
                        let (serial, frame) = (self.taken, frame.to_vec());
                        self.waiting.push(Reverse(Waiting { at, serial, from, to, frame }));
                    }
                }
            }
        }
    }

    fn deliver(&mut self) {
        while self.waiting.peek().is_some_and(|Reverse(next)| next.at <= self.begun.elapsed()) {
            let Some(Reverse(Waiting { from, to, frame, .. })) = self.waiting.pop() else { return };
            if self.wires.lock()[from][to].arrived() {
                self.send(to, &frame);
            }
        }
    }

    fn send(&self, to: usize, frame: &[u8]) {
        // One that the host does not take is lost, as on any wire.
        let lost: Option<io::Result<usize>> = self.devices.get(to).map(|device| device.send(frame));
        drop(lost);
    }
}

/// Where a frame goes, by its destination: one host, or all others.
fn receivers(frame: &[u8], from: usize, hosts: usize) -> Vec<usize> {
    match frame.get(..6) {
        Some([first, .., last]) if first & 1 == 0 => {
            let to = usize::from(*last).wrapping_sub(1);
            if to < hosts && to != from { vec![to] } else { Vec::new() }
        }
        Some(_) => (0..hosts).filter(|to| *to != from).collect(),
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_go_to_their_host_and_broadcasts_to_all_others() {
        let to = |last| [2, 0, 0, 0, 0, last, 2, 0, 0, 0, 0, 1];
        assert_eq!(receivers(&to(3), 0, 3), [2]);
        assert_eq!(receivers(&to(1), 0, 3), [0; 0], "its own");
        assert_eq!(receivers(&to(9), 0, 3), [0; 0], "nobody's");
        assert_eq!(receivers(&[0xff; 14], 1, 3), [0, 2]);
        assert_eq!(receivers(&[2, 0], 1, 3), [0; 0]);
    }
}
