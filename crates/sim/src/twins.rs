//! A second process with the name of a worker or data plane, as of a machine that was copied: it comes
//! while the first one lives, and is to be turned away.

use std::time::Duration;

use dirigent_core::{
    Epoch, StreamId, Time,
    frame::{DataPlaneHello, FromDataPlane, FromWorker, Hello, WorkerHello},
};

use crate::{
    agenda::Host,
    net::{Packet, Stream},
    plant::Plant,
    world::World,
};

/// A worker that was heard so lately lives without a doubt: less than what loses one.
const LIVES: Duration = Duration::from_millis(2500);

impl World {
    /// It calls the leader that the first one is attached to.
    pub(crate) fn twin(&mut self) -> Option<&'static str> {
        let number = self.random.below(self.workers.len() + self.planes.len());
        let (peer, stream, hello) = match number.checked_sub(self.workers.len()) {
            None => {
                let of = self.workers.get(number)?;
                (Host::Worker(number), of.stream?, of.durable.hello())
            }
            Some(plane) => {
                let of = self.planes.get(plane)?;
                (Host::Plane(plane), of.stream?, of.durable.hello())
            }
        };
        let control = self.net.streams.get(&stream)?.control;
        // Who does not lead takes no streams, also where the peer has not noticed.
        self.epoch_of(control)?;
        if self.is_older(peer, Host::Control(control)) {
            // That version tells two lives apart by their starts only.
            return None;
        }
        // Neither cluster nor epoch are a reason to turn it away, or for the leader to resign.
        let mut hello = Hello { cluster: None, highest_epoch: Epoch(0), ..hello };
        if self.plant != Some(Plant::LifeCopied) {
            hello.incarnation.life += 1 << 32;
        }
        let packet = if let Host::Worker(worker) = peer {
            let capacity = self.workers.get(worker)?.capacity();
            let (sandboxes, artifacts) = (Vec::new(), Vec::new());
            let hello = WorkerHello { hello, capacity, sandboxes, artifacts };
            Packet::FromWorker(FromWorker::Hello(Box::new(hello)))
        } else {
            let (holdings, names, demands) = (Vec::new(), Vec::new(), Vec::new());
            let hello = DataPlaneHello { hello, holdings, names, demands };
            Packet::FromPlane(FromDataPlane::Hello(Box::new(hello)))
        };
        let stream = self.open(peer, control);
        self.net.streams.get_mut(&stream)?.is_twin = true;
        self.send(stream, true, packet);
        Some(match peer {
            Host::Worker(_) => "two workers of one name",
            _ => "two data planes of one name",
        })
    }

    /// A peer is welcome: from then on its name is its own.
    pub(crate) fn welcomed(&mut self, stream: StreamId) {
        let now = self.now;
        if let Some(s) = self.net.streams.get_mut(&stream) {
            s.heard = Some(now);
        }
    }

    /// A worker was heard.
    pub(crate) fn heard(&mut self, stream: StreamId) {
        if self.net.streams.get(&stream).is_some_and(|s| s.heard.is_some()) {
            self.welcomed(stream);
        }
    }

    /// The stream of the peer whose name this twin has, if it lives beyond doubt: a data plane says
    /// nothing now and then, it lives as long as it is attached.
    pub(crate) fn rival(&self, twin: StreamId) -> Option<StreamId> {
        let Stream { peer, control, .. } = self.net.streams.get(&twin)?;
        if self.is_older(*peer, Host::Control(*control)) {
            return None;
        }
        let lives = |s: &Stream| {
            let is_late =
                |heard: Time| matches!(peer, Host::Worker(_)) && self.now.since(heard) >= LIVES;
            let lately = s.heard.is_some_and(|heard| !is_late(heard));
            !s.is_twin && s.control_open && lately
        };
        let mut all = self.net.streams.iter();
        let found = all.find(|(_, s)| s.peer == *peer && s.control == *control && lives(s));
        found.map(|(stream, _)| *stream)
    }
}
