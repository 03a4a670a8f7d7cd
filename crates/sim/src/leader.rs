//! The control planes: one leads, the others stand by.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use dirigent_core::{
    ClusterId, Epoch, Office, StreamId, Time,
    control::{Config, Control, Effect, Event, Outcome},
    frame::{FromWorker, ToDataPlane, ToWorker},
    office::{self, Candidate},
};

use crate::{
    agenda::{Clockwork, Host, StoreAnswer, StoreAsk, What},
    net::Packet,
    world::World,
};

pub(crate) const CLUSTER: ClusterId = ClusterId(7);
/// How often a leader beats and a standby looks.
const LOOK: Duration = Duration::from_millis(200);

/// A control plane's process.
#[derive(Debug)]
pub(crate) struct ControlHost {
    pub(crate) up: bool,
    pub(crate) life: u64,
    pub(crate) paused: Time,
    pub(crate) last_ask: Time,
    /// The store answers a leader in the order of its questions.
    pub(crate) last_answer: Time,
    /// Its last beat that the store has told of.
    beat: u64,
    /// The revision of its last write that the store has told of, or of what it began with.
    pub(crate) knows: u64,
    candidate: Candidate,
    pub(crate) leads: Option<Control>,
    armed: Option<Time>,
    /// Streams that broke while the machine carried out something else.
    broken: BTreeSet<StreamId>,
}

impl ControlHost {
    pub(crate) fn new(now: Time) -> Self {
        Self {
            up: true,
            life: 1,
            paused: now,
            last_ask: now,
            last_answer: now,
            beat: 0,
            knows: 0,
            candidate: Candidate::new(now),
            leads: None,
            armed: None,
            broken: BTreeSet::new(),
        }
    }
}

impl World {
    pub(crate) fn epoch_of(&self, control: usize) -> Option<Epoch> {
        self.controls.get(control).and_then(|c| c.leads.as_ref()).map(Control::epoch)
    }

    /// The one in office by the store, if its process leads.
    pub(crate) fn leader(&self) -> Option<usize> {
        let epoch = self.store.state.seat.epoch;
        (0..self.controls.len()).find(|&c| self.epoch_of(c) == Some(epoch))
    }

    /// A control plane looks after the office: it beats, or looks whether somebody does.
    pub(crate) fn look_after_office(&mut self, control: usize, life: u64) {
        let host = Host::Control(control);
        let Some(c) = self.controls.get(control) else { return };
        if !c.up || c.life != life {
            return;
        }
        self.after(LOOK, What::Office { control, life });
        if self.paused_until(host).is_some() {
            return;
        }
        if let Some(epoch) = self.epoch_of(control) {
            self.ask_store(control, epoch, StoreAsk::Beat);
            return;
        }
        let holder = usize::try_from(self.store.state.seat.holder).unwrap_or(usize::MAX);
        let event = if self.epoch_of(holder).is_none() || holder == control {
            office::Event::Refused
        } else if self.net.joined(host, Host::Control(holder)) {
            office::Event::Connected
        } else {
            office::Event::Silent
        };
        let now = self.now;
        if let Some(c) = self.controls.get_mut(control) {
            c.candidate.handle(now, event);
        }
        self.ask_store(control, Epoch(0), StoreAsk::Read);
        self.follow_candidate(control);
    }

    fn follow_candidate(&mut self, control: usize) {
        while let Some(effect) =
            self.controls.get_mut(control).and_then(|c| c.candidate.poll_effect())
        {
            match effect {
                office::Effect::Take { over, above } => {
                    self.ask_store(control, Epoch(0), StoreAsk::Take { over, above });
                }
                office::Effect::Lead { epoch } => self.lead(control, epoch),
            }
        }
    }

    fn lead(&mut self, control: usize, epoch: Epoch) {
        // A linearizable read made after taking office; who was deposed meanwhile reads in vain.
        if self.store.state.seat.epoch != epoch {
            return;
        }
        let office = Office { cluster: CLUSTER, epoch };
        let config = Config { office, seed: self.seed ^ epoch.0, own_token: None };
        let mut records = self.store.state.records();
        self.forget_cordons(&mut records);
        let machine = Control::new(self.now, config, records);
        let knows = self.store.state.revision();
        let Some(c) = self.controls.get_mut(control) else { return };
        self.operators.led_since = self.now;
        c.leads = Some(machine);
        c.beat = 0;
        c.knows = knows;
        c.armed = None;
        self.obey_control(control);
        self.ignore_other_leader(control);
    }

    /// It leads no more: its streams close, and it stands by. What it was shown the next term is to be
    /// above.
    pub(crate) fn resign(&mut self, control: usize, shown: Epoch) {
        let now = self.now;
        let Some(c) = self.controls.get_mut(control) else { return };
        if c.leads.take().is_some() {
            c.candidate = Candidate::new(now);
            c.candidate.handle(now, office::Event::Shown(shown));
            self.counts.resignations += 1;
            self.drop_streams(Host::Control(control), false);
        }
    }

    /// The store answers.
    pub(crate) fn store_said(&mut self, to: usize, life: u64, epoch: Epoch, answer: StoreAnswer) {
        let now = self.now;
        let Some(c) = self.controls.get_mut(to) else { return };
        if !c.up || c.life != life {
            return;
        }
        if c.paused > now {
            let at = c.paused;
            self.agenda.put(at, What::Answer { to, life, epoch, answer });
            return;
        }
        let leads = c.leads.as_ref().is_some_and(|machine| machine.epoch() == epoch);
        match answer {
            StoreAnswer::Wrote(token, outcome) if leads => {
                if let Outcome::Ok { revision } = outcome {
                    c.knows = c.knows.max(revision);
                }
                self.tell_control(to, Event::Persisted { token, outcome });
            }
            StoreAnswer::Deposed(_) if leads => self.resign(to, epoch),
            // A beat that goes back is another store's: an older copy of the one it took office in.
            StoreAnswer::Seat(seat) if leads && seat.epoch == epoch && seat.beat <= c.beat => {
                self.resign(to, epoch);
            }
            StoreAnswer::Seat(seat) if leads && seat.epoch == epoch => c.beat = seat.beat,
            StoreAnswer::Seat(seat) if c.leads.is_none() => {
                c.candidate.handle(now, office::Event::Read(seat));
                self.follow_candidate(to);
            }
            StoreAnswer::Took(seat) if c.leads.is_none() => {
                c.candidate.handle(now, office::Event::Took(seat));
                self.follow_candidate(to);
            }
            StoreAnswer::Wrote(..)
            | StoreAnswer::Deposed(_)
            | StoreAnswer::Seat(_)
            | StoreAnswer::Took(_) => {}
        }
    }

    /// Tells a leader's machine and does what it orders.
    pub(crate) fn tell_control(&mut self, control: usize, event: Event) {
        let now = self.now;
        self.trace.note(now, &event);
        if let Some(machine) = self.controls.get_mut(control).and_then(|c| c.leads.as_mut()) {
            machine.handle(now, event);
            self.obey_control(control);
        }
    }

    pub(crate) fn expire_control(&mut self, control: usize) {
        let now = self.now;
        let host = self.controls.get_mut(control);
        if let Some(c) = host.filter(|c| c.armed == Some(now)) {
            c.armed = None;
            if c.paused > now {
                let (at, life) = (c.paused, c.life);
                c.armed = Some(at);
                self.agenda.put(at, What::Expire { of: Clockwork::Control(control), life });
            } else if let Some(machine) = c.leads.as_mut() {
                machine.expire(now);
                self.obey_control(control);
            }
        }
    }

    fn obey_control(&mut self, control: usize) {
        loop {
            let host = self.controls.get_mut(control);
            let Some(effect) = host.and_then(|c| c.leads.as_mut()).and_then(Control::poll_effect)
            else {
                break;
            };
            self.trace.note(self.now, &effect);
            match effect {
                Effect::Persist { token, write } => {
                    let epoch = self.epoch_of(control).unwrap_or_default();
                    self.ask_store(control, epoch, StoreAsk::Write(token, write));
                }
                Effect::Reply { to, result } => self.replied(to, result),
                Effect::ToWorker { stream, frame } => {
                    let to = self.net.streams.get(&stream).map(|s| s.peer);
                    self.check_cordoned(control, to, &frame);
                    if let ToWorker::Welcome { .. } = frame {
                        self.welcomed(stream);
                    }
                    self.send(stream, false, Packet::ToWorker(frame));
                }
                Effect::ToDataPlane { stream, frame } => {
                    let grants = matches!(frame, ToDataPlane::Grant(_));
                    if let ToDataPlane::Welcome { .. } = frame {
                        self.welcomed(stream);
                    }
                    self.send(stream, false, Packet::ToPlane(frame));
                    if grants {
                        self.check_leaders();
                    }
                }
                Effect::Close { stream, .. } => {
                    if let Some(c) = self.controls.get_mut(control) {
                        c.broken.insert(stream);
                    }
                }
                Effect::Resign { shown } => {
                    self.resign(control, shown);
                    return;
                }
                Effect::Admit { .. } | Effect::DiscardArtifacts { .. } | Effect::Measure(_) => {}
            }
        }
        let broken = self
            .controls
            .get_mut(control)
            .map(|c| std::mem::take(&mut c.broken))
            .unwrap_or_default();
        for stream in broken {
            self.close_end(stream, true);
        }
        self.arm_control(control);
    }

    fn arm_control(&mut self, control: usize) {
        let Some(c) = self.controls.get_mut(control) else { return };
        let Some(at) = c.leads.as_ref().and_then(Control::deadline) else { return };
        if c.armed.is_none_or(|armed| at < armed) {
            let at = at.max(self.now);
            c.armed = Some(at);
            let life = c.life;
            self.agenda.put(at, What::Expire { of: Clockwork::Control(control), life });
        }
    }

    /// A packet arrives at a control plane.
    pub(crate) fn control_hears(&mut self, stream: StreamId, packet: Packet) {
        let Some(s) = self.net.streams.get(&stream) else { return };
        let (control, peer, is_twin) = (s.control, s.peer, s.is_twin);
        if self.epoch_of(control).is_none() {
            self.close_end(stream, true);
            return;
        }
        let rival = if is_twin { self.rival(stream) } else { None };
        if is_twin && rival.is_none() {
            // Nothing is promised to one that may be dead.
            self.close_end(stream, true);
            return;
        }
        let name: Arc<str> = format!("{peer:?}").into();
        let event = match packet {
            Packet::Opened => match peer {
                Host::Plane(_) => Event::DataPlaneAttached { stream, name },
                Host::Worker(_) | Host::Control(_) | Host::Store => {
                    Event::WorkerAttached { stream, name }
                }
            },
            Packet::FromPlane(frame) => {
                Event::DataPlaneSaid { stream, frame, waited: Duration::ZERO }
            }
            Packet::FromWorker(frame) => {
                if let FromWorker::SandboxGone { sandbox, .. } = frame {
                    self.gone_planted(control, sandbox);
                }
                self.heard(stream);
                Event::WorkerSaid { stream, frame }
            }
            Packet::Closed => return self.close_end(stream, true),
            Packet::ToPlane(_) | Packet::ToWorker(_) => return,
        };
        let says_hello = matches!(event, Event::WorkerSaid { .. } | Event::DataPlaneSaid { .. });
        self.tell_control(control, event);
        if let Some(rival) = rival.filter(|_| says_hello) {
            self.check_name(stream, rival);
        }
    }

    /// A control plane's end of a stream is over.
    pub(crate) fn control_lost(&mut self, control: usize, stream: StreamId) {
        self.tell_control(control, Event::Detached { stream });
        self.silence_planted(control, stream);
    }

    pub(crate) fn crash_control(&mut self, control: usize, silently: bool) {
        let now = self.now;
        let Some(c) = self.controls.get_mut(control) else { return };
        let life = c.life + 1;
        *c = ControlHost { up: false, life, ..ControlHost::new(now) };
        self.drop_streams(Host::Control(control), silently);
        self.forget_requests(control);
    }

    pub(crate) fn start_control(&mut self, control: usize) {
        let Some(c) = self.controls.get_mut(control) else { return };
        c.up = true;
        c.candidate = Candidate::new(self.now);
        let life = c.life;
        self.after(Duration::from_millis(10), What::Office { control, life });
    }
}
