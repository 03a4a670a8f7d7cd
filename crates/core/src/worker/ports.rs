//! The ports of one worker's sandboxes.
//!
//! A port is used again only when nobody can still send to the sandbox that had it: when the
//! control plane says that all its slots are back, or 15 minutes after it was gone. Among the
//! ports that may be used, the one that has rested longest is next.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use crate::{SandboxId, Time};

/// How long a port rests if nobody says that it may be used again.
const REST: Duration = Duration::from_secs(15 * 60);

/// How long a port is left to another program of the host.
const FOREIGN: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub(super) struct Ports {
    /// Longest unused first.
    free: VecDeque<u16>,
    /// Ports that rest, by the end of their rest, and the sandbox that had them.
    resting: BTreeMap<(Time, u16), Option<SandboxId>>,
    /// Those of sandboxes.
    owners: BTreeMap<SandboxId, (Time, u16)>,
    /// Ports of sandboxes that are not gone, all within the range.
    taken: BTreeSet<u16>,
    size: usize,
}

impl Ports {
    /// The ports from `first` to `last`, some of them in use already.
    pub(super) fn new((first, last): (u16, u16), in_use: &BTreeSet<u16>) -> Self {
        let range = first..=last;
        let taken: BTreeSet<u16> = in_use.iter().copied().filter(|p| range.contains(p)).collect();
        let free: VecDeque<u16> = range.filter(|port| !in_use.contains(port)).collect();
        let size = free.len() + taken.len();
        Self { free, resting: BTreeMap::new(), owners: BTreeMap::new(), taken, size }
    }

    /// It rested in an earlier life of the worker, and goes on for all of the time. Whether it is one
    /// of today's.
    pub(super) fn rest_again(&mut self, now: Time, sandbox: SandboxId, port: u16) -> bool {
        let Some(at) = self.free.iter().position(|free| *free == port) else { return false };
        self.free.remove(at);
        self.taken.insert(port);
        self.rest(now, sandbox, port);
        true
    }

    /// Begins elsewhere: what rested in an earlier life of the worker may be forgotten, as when the
    /// power failed, so each life begins at other ports.
    pub(super) fn rotate(&mut self, by: u64) {
        if let Some(by) = by.checked_rem(self.free.len() as u64) {
            self.free.rotate_left(usize::try_from(by).unwrap_or(0));
        }
    }

    /// The next port.
    pub(super) fn take(&mut self) -> Option<u16> {
        let port = self.free.pop_front()?;
        self.taken.insert(port);
        Some(port)
    }

    /// Nobody was ever told of it: it may be used again.
    pub(super) fn put_back(&mut self, port: u16) {
        if self.taken.remove(&port) {
            self.free.push_back(port);
        }
    }

    /// Its sandbox is gone, but data planes may still hold slots of it.
    pub(super) fn rest(&mut self, now: Time, sandbox: SandboxId, port: u16) {
        // One that was adopted from an earlier life may lie outside of today's range.
        if self.taken.remove(&port) {
            self.resting.insert((now + REST, port), Some(sandbox));
            self.owners.insert(sandbox, (now + REST, port));
        }
    }

    /// Another program of the host has it.
    pub(super) fn leave_alone(&mut self, now: Time, port: u16) {
        if self.taken.remove(&port) {
            self.resting.insert((now + FOREIGN, port), None);
        }
    }

    /// Nobody sends to it any more; its port, which is free now.
    pub(super) fn release(&mut self, sandbox: SandboxId) -> Option<u16> {
        let key = self.owners.remove(&sandbox)?;
        self.resting.remove(&key);
        self.free.push_back(key.1);
        Some(key.1)
    }

    /// When the next rest ends.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.resting.first_key_value().map(|(&(until, _), _)| until)
    }

    /// Ends the rests that are over; the ports of sandboxes that are free now.
    pub(super) fn expire(&mut self, now: Time) -> Vec<u16> {
        let mut rested = Vec::new();
        while let Some(first) = self.resting.first_entry()
            && first.key().0 <= now
        {
            let ((_, port), owner) = first.remove_entry();
            if let Some(sandbox) = owner {
                self.owners.remove(&sandbox);
                rested.push(port);
            }
            self.free.push_back(port);
        }
        rested
    }

    /// Each port is at one place.
    pub(super) fn check(&self) {
        let owned = self.resting.values().flatten().count();
        assert_eq!(owned, self.owners.len(), "every resting port is found by its sandbox");
        let sum = self.free.len() + self.resting.len() + self.taken.len();
        assert_eq!(sum, self.size, "no port is lost or doubled");
    }
}
