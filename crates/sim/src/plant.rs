//! Faults planted on purpose: each breaks one contract between the machines and the world, so that
//! the invariant which guards it must complain. They live here, never in the product.

use dirigent_core::{
    DataPlaneId, Duty, Epoch, FunctionId, Records, SandboxId, StreamId, Time,
    control::Event,
    frame::{
        DataPlaneHello, FromDataPlane, FromWorker, Holding, Returned, Share, ToDataPlane, ToWorker,
        WhyReturned,
    },
    gate,
};

use crate::{agenda::Host, net::Packet, plane::Durable, versions, world::World};

/// When sandboxes end unseen: nobody calls any more.
const EXIT_UNSEEN: Time = Time(150_000_000_000);

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Plant {
    /// A data plane that falls silent is taken to hold nothing: its slots are granted again.
    RegrantOnSilence,
    /// What a data plane says that it holds is not told to the next leader.
    GrantUnclaimed,
    /// A slot counts as free when its caller leaves.
    FreedAtDisconnect,
    /// `Kept` is taken for `Returned`.
    KeptAsReturned,
    /// A worker's snapshot to a new leader lacks what it runs.
    SnapshotBelieved,
    /// Peers obey any epoch.
    OldEpochObeyed,
    /// A sandbox that starts is told to be refused: its reservation is forgotten.
    ReservationForgotten,
    /// Invocations queued at a redeploy are dropped.
    DroppedAtRedeploy,
    /// An address is released although data planes may still use it.
    AddressReused,
    /// An order to start arrives again after the sandbox was stopped.
    StartAfterStop,
    /// A grant is applied twice.
    FrameTwice,
    /// A retry although it was sent and may not be sent again.
    SentTwice,
    /// Now and then a caller is never answered.
    AnswerForgotten,
    /// The store takes writes of a deposed leader.
    WriteAfterDeposition,
    /// The store acknowledges a deploy and forgets it.
    DeployForgotten,
    /// Data planes' `Returned` get lost.
    ReturnLost,
    /// Workers offer more than they have.
    CapacityInvented,
    /// Recalls by number get lost: idle slots stay where they are.
    RecallLost,
    /// Orders to stop get lost.
    StopLost,
    /// Workers say at once that nothing of a silent data plane is left, and bar nobody.
    SettledAtOnce,
    /// Workers never say that nothing of a silent data plane is left.
    SettledLost,
    /// A data plane goes on using what it gave back.
    ReturnedUsed,
    /// That a sandbox is gone gets lost.
    GoneLost,
    /// The store never answers some writes.
    StoreSilent,
    /// Data planes keep the gates of functions that were deleted.
    GatesKept,
    /// Now and then nobody hears that a sandbox is ready.
    ReadyLost,
    /// A sandbox ends and nobody notices.
    ExitUnseen,
    /// The next epoch is the last one of the store and one.
    EpochsCounted,
    /// The store acknowledges what is on one of its disks only.
    AcknowledgedEarly,
    /// Whoever takes office takes those who are attached to another leader to hold nothing.
    OtherLeaderIgnored,
    /// Whoever takes office does not know which workers are cordoned.
    CordonForgotten,
    /// An order to drain a worker arrives as one to cordon it.
    DrainAsCordon,
    /// A second process with a worker's or data plane's name says that it is the same life.
    LifeCopied,
    /// Data planes of the version before say that they can what those of today can.
    FeaturesInvented,
}

impl Plant {
    /// All of them.
    pub const ALL: [Self; 34] = [
        Self::RegrantOnSilence,
        Self::GrantUnclaimed,
        Self::FreedAtDisconnect,
        Self::KeptAsReturned,
        Self::SnapshotBelieved,
        Self::OldEpochObeyed,
        Self::ReservationForgotten,
        Self::DroppedAtRedeploy,
        Self::AddressReused,
        Self::StartAfterStop,
        Self::FrameTwice,
        Self::SentTwice,
        Self::AnswerForgotten,
        Self::WriteAfterDeposition,
        Self::DeployForgotten,
        Self::ReturnLost,
        Self::CapacityInvented,
        Self::RecallLost,
        Self::StopLost,
        Self::SettledAtOnce,
        Self::SettledLost,
        Self::ReturnedUsed,
        Self::GoneLost,
        Self::StoreSilent,
        Self::GatesKept,
        Self::ReadyLost,
        Self::ExitUnseen,
        Self::EpochsCounted,
        Self::AcknowledgedEarly,
        Self::OtherLeaderIgnored,
        Self::CordonForgotten,
        Self::DrainAsCordon,
        Self::LifeCopied,
        Self::FeaturesInvented,
    ];

    /// The invariant that must notice it.
    #[must_use]
    pub const fn caught_by(self) -> &'static str {
        match self {
            Self::RegrantOnSilence
            | Self::KeptAsReturned
            | Self::FrameTwice
            | Self::SettledAtOnce => "books_within_concurrency",
            Self::GrantUnclaimed | Self::FreedAtDisconnect => "concurrency",
            Self::SnapshotBelieved | Self::ReservationForgotten | Self::StopLost => "to_zero",
            Self::OldEpochObeyed => "epochs_only_grow",
            Self::DroppedAtRedeploy | Self::AnswerForgotten => "answered",
            Self::AddressReused => "right_sandbox",
            Self::StartAfterStop => "started_once",
            Self::SentTwice => "at_most_once",
            Self::WriteAfterDeposition => "deposed_writes_nothing",
            Self::OtherLeaderIgnored => "one_leader_per_slot",
            Self::DeployForgotten | Self::AcknowledgedEarly => "acknowledged_deploys_last",
            Self::ReturnLost | Self::SettledLost => "slot_leak",
            Self::CapacityInvented => "capacity",
            Self::RecallLost => "idle_beside_queue",
            Self::ReturnedUsed => "no_bind_after_return",
            Self::GoneLost => "reservations",
            Self::StoreSilent | Self::GatesKept => "bounded",
            Self::ReadyLost => "rollouts_end",
            Self::ExitUnseen => "min_and_max",
            Self::EpochsCounted => "epoch_given_once",
            Self::CordonForgotten => "cordoned_gets_nothing",
            Self::DrainAsCordon => "drains_end",
            Self::LifeCopied => "name_of_one_life",
            Self::FeaturesInvented => "understood",
        }
    }
}

impl World {
    /// What is really sent instead of a packet.
    pub(crate) fn tamper(&mut self, stream: StreamId, up: bool, packet: Packet) -> Vec<Packet> {
        let Some(plant) = self.plant else { return vec![packet] };
        let peer = self.net.streams.get(&stream).map(|s| s.peer);
        if up { self.tamper_up(plant, peer, packet) } else { self.tamper_down(plant, peer, packet) }
    }

    fn tamper_up(&mut self, plant: Plant, peer: Option<Host>, packet: Packet) -> Vec<Packet> {
        match (plant, packet) {
            (Plant::GrantUnclaimed, Packet::FromPlane(FromDataPlane::Hello(mut hello))) => {
                hello.holdings.clear();
                vec![Packet::FromPlane(FromDataPlane::Hello(hello))]
            }
            (Plant::FeaturesInvented, Packet::FromPlane(FromDataPlane::Hello(mut hello))) => {
                hello.hello.features = versions::features();
                vec![Packet::FromPlane(FromDataPlane::Hello(hello))]
            }
            (Plant::OldEpochObeyed, Packet::FromPlane(FromDataPlane::Hello(mut hello))) => {
                hello.hello.highest_epoch = Epoch(0);
                vec![Packet::FromPlane(FromDataPlane::Hello(hello))]
            }
            (Plant::OldEpochObeyed, Packet::FromWorker(FromWorker::Hello(mut hello))) => {
                hello.hello.highest_epoch = Epoch(0);
                vec![Packet::FromWorker(FromWorker::Hello(hello))]
            }
            (Plant::SnapshotBelieved, Packet::FromWorker(FromWorker::Hello(mut hello))) => {
                hello.sandboxes.clear();
                vec![Packet::FromWorker(FromWorker::Hello(hello))]
            }
            (
                Plant::ReservationForgotten,
                Packet::FromWorker(FromWorker::SandboxReady { sandbox, .. }),
            ) if self.random.draw().is_multiple_of(10) => {
                let message = "planted".to_owned();
                vec![Packet::FromWorker(FromWorker::Refused { sandbox, message })]
            }
            (Plant::KeptAsReturned, Packet::FromPlane(FromDataPlane::Kept { function, n })) => {
                let returned = self.as_returned(peer, function, n);
                let kept = FromDataPlane::Kept { function, n };
                vec![Packet::FromPlane(returned.map_or(kept, FromDataPlane::Returned))]
            }
            (Plant::ReadyLost, Packet::FromWorker(FromWorker::SandboxReady { .. }))
                if self.random.draw().is_multiple_of(4) =>
            {
                Vec::new()
            }
            (Plant::SettledLost, Packet::FromWorker(FromWorker::Settled { .. })) => Vec::new(),
            (Plant::GoneLost, Packet::FromWorker(FromWorker::SandboxGone { .. }))
                if self.random.draw().is_multiple_of(4) =>
            {
                Vec::new()
            }
            (Plant::ReturnLost, Packet::FromPlane(FromDataPlane::Returned(_)))
                if self.random.draw().is_multiple_of(4) =>
            {
                Vec::new()
            }
            (_, packet) => vec![packet],
        }
    }

    fn tamper_down(&mut self, plant: Plant, peer: Option<Host>, packet: Packet) -> Vec<Packet> {
        match (plant, packet) {
            (Plant::FrameTwice, Packet::ToPlane(frame @ ToDataPlane::Grant(_))) => {
                vec![Packet::ToPlane(frame.clone()), Packet::ToPlane(frame)]
            }
            (Plant::RecallLost, Packet::ToPlane(ToDataPlane::Recall { .. }))
            | (Plant::StopLost, Packet::ToWorker(ToWorker::StopSandbox { .. })) => Vec::new(),
            (Plant::OldEpochObeyed, Packet::ToPlane(ToDataPlane::Welcome { mut welcome, you })) => {
                welcome.epoch = welcome.epoch.max(self.durable_of(peer).epoch);
                vec![Packet::ToPlane(ToDataPlane::Welcome { welcome, you })]
            }
            (Plant::OldEpochObeyed, Packet::ToWorker(ToWorker::Welcome { mut welcome, you })) => {
                welcome.epoch = welcome.epoch.max(self.durable_of(peer).epoch);
                vec![Packet::ToWorker(ToWorker::Welcome { welcome, you })]
            }
            (Plant::StartAfterStop, Packet::ToWorker(frame)) => {
                let mut frames = vec![Packet::ToWorker(frame.clone())];
                match frame {
                    ToWorker::StartSandbox(order) => self.planted_order = Some(order),
                    ToWorker::ReleaseAddress { .. } => {
                        let order = self.planted_order.take();
                        frames.extend(order.map(|o| Packet::ToWorker(ToWorker::StartSandbox(o))));
                    }
                    _ => {}
                }
                frames
            }
            (_, packet) => vec![packet],
        }
    }

    fn durable_of(&self, peer: Option<Host>) -> Durable {
        match peer {
            Some(Host::Plane(plane)) => self.planes.get(plane).map(|p| p.durable),
            Some(Host::Worker(worker)) => self.workers.get(worker).map(|w| w.durable),
            Some(Host::Control(_) | Host::Store) | None => None,
        }
        .unwrap_or_default()
    }

    fn as_returned(&self, peer: Option<Host>, function: FunctionId, n: u32) -> Option<Returned> {
        let Some(Host::Plane(plane)) = peer else { return None };
        let gate = &self.planes.get(plane)?.gates.get(&function)?.gate;
        let held = gate.holdings().into_iter().find(|held| held.share != Share::Open)?;
        let (sandbox, share) = (held.sandbox, Share::Slots(n));
        let serial = dirigent_core::Serial(1);
        Some(Returned { sandbox, share, serial, why: WhyReturned::Idle })
    }

    /// The machine hears that a data plane which fell silent holds nothing.
    pub(crate) fn silence_planted(&mut self, control: usize, stream: StreamId) {
        let peer = self.net.streams.get(&stream).map(|s| s.peer);
        if let (Some(Plant::RegrantOnSilence), Some(Host::Plane(plane))) = (self.plant, peer) {
            self.speak_for(control, plane, Vec::new());
        }
    }

    /// A new leader hears that those who are attached to another one hold nothing.
    pub(crate) fn ignore_other_leader(&mut self, control: usize) {
        if self.plant != Some(Plant::OtherLeaderIgnored) {
            return;
        }
        for plane in 0..self.planes.len() {
            if self.planes.get(plane).is_some_and(|p| p.up && p.attached) {
                self.speak_for(control, plane, Vec::new());
            }
        }
    }

    /// Whoever takes office reads records that do not say what is wanted of workers.
    pub(crate) fn forget_cordons(&self, records: &mut Records) {
        if self.plant == Some(Plant::CordonForgotten) {
            for record in &mut records.workers {
                *record = record.on(Duty::InUse);
            }
        }
    }

    /// The machine hears that nobody holds slots of a sandbox that is gone.
    pub(crate) fn gone_planted(&mut self, control: usize, sandbox: SandboxId) {
        if self.plant != Some(Plant::AddressReused) {
            return;
        }
        for plane in 0..self.planes.len() {
            let Some(p) = self.planes.get(plane).filter(|p| p.up) else { continue };
            let mut holdings: Vec<Holding> =
                p.gates.values().flat_map(|f| f.gate.claims()).collect();
            let all = holdings.len();
            holdings.retain(|held| held.sandbox != sandbox);
            if holdings.len() == all && p.attached {
                continue;
            }
            self.speak_for(control, plane, holdings);
        }
    }

    /// A data plane attaches, as it seems, and is silent again.
    fn speak_for(&mut self, control: usize, plane: usize, holdings: Vec<Holding>) {
        self.planted_streams += 1;
        let stream = StreamId(1_000_000_000 + self.planted_streams);
        let Some(durable) = self.planes.get(plane).map(|p| p.durable) else { return };
        let hello = DataPlaneHello {
            hello: Durable { epoch: Epoch(0), ..durable }.hello(),
            holdings,
            names: Vec::new(),
            demands: Vec::new(),
        };
        let name = format!("{:?}", Host::Plane(plane)).into();
        self.tell_control(control, Event::DataPlaneAttached { stream, name });
        let frame = FromDataPlane::Hello(Box::new(hello));
        self.tell_control(
            control,
            Event::DataPlaneSaid { stream, frame, waited: Default::default() },
        );
        self.tell_control(control, Event::Detached { stream });
    }

    /// What was given back is used on.
    pub(crate) fn use_returned(&mut self, plane: usize, frame: &FromDataPlane) {
        let (Some(Plant::ReturnedUsed), FromDataPlane::Returned(returned)) = (self.plant, frame)
        else {
            return;
        };
        let grant = self.planted_grants.get(&(plane, returned.sandbox)).cloned();
        if let Some(grant) = grant.filter(|_| returned.why == WhyReturned::Idle) {
            self.tell_gate(plane, grant.revision.function, gate::Event::Granted(grant));
        }
    }

    /// A sandbox ends, and its worker does not see it.
    pub(crate) fn exit_unseen(&mut self) {
        if self.plant == Some(Plant::ExitUnseen) && self.now > EXIT_UNSEEN {
            for w in &mut self.workers {
                w.sandboxes.clear();
            }
        }
    }

    /// Drops those who wait when a new revision is configured.
    pub(crate) fn drop_at_redeploy(&mut self, plane: usize, function: FunctionId) {
        if self.plant != Some(Plant::DroppedAtRedeploy) {
            return;
        }
        let Some(p) = self.planes.get_mut(plane) else { return };
        let mut dropped = Vec::new();
        for (&invocation, call) in &mut p.calls {
            if call.function == Some(function) && call.stage == crate::calls::Stage::Queued {
                call.queue_until = Time(u64::MAX);
                dropped.push(invocation);
            }
        }
        for invocation in dropped {
            self.tell_gate(plane, function, gate::Event::Left { invocation });
        }
    }

    /// Whom a leader calls by this id. After a store was restored from an older copy two leaders may
    /// not mean the same one.
    pub(crate) fn plane_of(&self, control: usize, id: DataPlaneId) -> Option<usize> {
        let name = self.controls.get(control)?.leads.as_ref()?.data_plane(id)?;
        name.strip_prefix("plane")?.parse().ok()
    }

    /// The worker that is recorded by this name.
    pub(crate) fn worker_named(&self, name: &str) -> Option<usize> {
        let worker = name.strip_prefix("worker")?.parse().ok()?;
        (worker < self.workers.len()).then_some(worker)
    }
}
