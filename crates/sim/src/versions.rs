//! Machines one version older, as they are in a cluster while it is upgraded.
//!
//! The machines are those of today. A process of the version before is one whose frames do not carry
//! what that version did not know, in either direction: it neither says nor hears it.

use std::time::Duration;

use dirigent_core::{
    Auth, StreamId,
    frame::{CHECKS_TOKENS, DUTY, FromDataPlane, FromWorker, TAKEN, ToDataPlane, ToWorker},
};

use crate::{
    agenda::{Host, What},
    net::{Packet, Stream},
    world::World,
};

/// What a peer of today can do, and one of the version before cannot.
pub(crate) fn features() -> Vec<String> {
    vec![DUTY.to_owned(), CHECKS_TOKENS.to_owned(), TAKEN.to_owned()]
}

impl World {
    /// The cluster begins in the middle of an upgrade, or of going back.
    pub(crate) fn begin_mixed(&mut self) {
        if self.random.draw().is_multiple_of(3) {
            for host in self.hosts() {
                self.install_some_version(host);
            }
        }
    }

    pub(crate) fn install_some_version(&mut self, host: Host) {
        if self.random.draw().is_multiple_of(2) {
            self.older.insert(host);
        }
    }

    /// A process ends and starts again as the other version.
    pub(crate) fn replace_program(&mut self) -> Option<&'static str> {
        let host = self.any_host();
        if !self.is_up(host) {
            return None;
        }
        let word = if self.older.remove(&host) {
            "program upgraded"
        } else {
            self.older.insert(host);
            "program downgraded"
        };
        self.kill(host, false);
        let pause = 20 + u64::from(self.random.draw() % 1000);
        self.after(Duration::from_millis(pause), What::Restart { host });
        Some(word)
    }

    /// Whether either of these is of the version before.
    pub(crate) fn is_older(&self, a: Host, b: Host) -> bool {
        self.older.contains(&a) || self.older.contains(&b)
    }

    /// What of a packet arrives between these versions.
    pub(crate) fn as_understood(
        &mut self,
        stream: StreamId,
        (from, to): (Host, Host),
        mut packet: Packet,
    ) -> Option<Packet> {
        // What is said to somebody who is gone was said to the program that was there before.
        let lives = |s: &Stream| s.control_open && s.peer_open;
        let lives = self.net.streams.get(&stream).is_some_and(lives);
        if !lives || !self.is_older(from, to) {
            return Some(packet);
        }
        match &mut packet {
            Packet::FromWorker(FromWorker::Hello(hello)) => {
                hello.hello.features.clear();
                hello.hello.incarnation.life = 0;
            }
            Packet::ToWorker(frame) => {
                let known = *frame != ToWorker::Taken;
                self.check_understood(stream, known, frame);
                return known.then_some(packet);
            }
            Packet::FromPlane(FromDataPlane::Hello(hello)) => {
                hello.hello.features.clear();
                hello.hello.incarnation.life = 0;
                hello.demands.iter_mut().for_each(|demand| demand.expected = 0);
            }
            Packet::FromPlane(FromDataPlane::Demand(demand)) => demand.expected = 0,
            Packet::ToPlane(frame) => {
                let known = is_known_to_older(frame);
                self.check_understood(stream, known, frame);
                return known.then_some(packet);
            }
            _ => {}
        }
        Some(packet)
    }
}

/// To the version before a function whose callers show tokens would be one that everybody may call.
fn is_known_to_older(frame: &ToDataPlane) -> bool {
    match frame {
        ToDataPlane::Duty { .. } | ToDataPlane::Tokens { .. } | ToDataPlane::Taken => false,
        ToDataPlane::Resolved { function: Some(view), .. } => view.settings.auth == Auth::None,
        _ => true,
    }
}
