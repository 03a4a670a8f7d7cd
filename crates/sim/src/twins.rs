//! A second process with the name of a worker, as of a machine that was copied: it comes while the
//! worker lives, and is to be turned away.

use std::time::Duration;

use dirigent_core::{
    Epoch, StreamId, Time,
    frame::{FromWorker, Hello, WorkerHello},
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
    /// It calls the leader that the worker is attached to.
    pub(crate) fn twin(&mut self) -> Option<&'static str> {
        let worker = self.random.below(self.workers.len());
        let of = self.workers.get(worker)?;
        let control = self.net.streams.get(&of.stream?)?.control;
        // Who does not lead takes no streams, also where the worker has not noticed.
        self.epoch_of(control)?;
        if self.is_older(Host::Worker(worker), Host::Control(control)) {
            // That version tells two lives apart by their starts only.
            return None;
        }
        // Neither cluster nor epoch are a reason to turn it away, or for the leader to resign.
        let mut hello = Hello { cluster: None, highest_epoch: Epoch(0), ..of.durable.hello() };
        if self.plant != Some(Plant::LifeCopied) {
            hello.incarnation.life += 1 << 32;
        }
        let capacity = of.capacity();
        let hello = WorkerHello { hello, capacity, sandboxes: Vec::new(), artifacts: Vec::new() };
        let stream = self.open(Host::Worker(worker), control);
        self.net.streams.get_mut(&stream)?.is_twin = true;
        self.send(stream, true, Packet::FromWorker(FromWorker::Hello(Box::new(hello))));
        Some("two workers of one name")
    }

    /// A worker is welcome: from then on its name is its own.
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

    /// The stream of the worker whose name this twin has, if it lives beyond doubt.
    pub(crate) fn rival(&self, twin: StreamId) -> Option<StreamId> {
        let Stream { peer, control, .. } = self.net.streams.get(&twin)?;
        if self.is_older(*peer, Host::Control(*control)) {
            return None;
        }
        let lives = |s: &Stream| {
            let lately = s.heard.is_some_and(|heard: Time| self.now.since(heard) < LIVES);
            !s.is_twin && s.control_open && lately
        };
        let mut all = self.net.streams.iter();
        let found = all.find(|(_, s)| s.peer == *peer && s.control == *control && lives(s));
        found.map(|(stream, _)| *stream)
    }
}
