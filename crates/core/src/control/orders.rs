//! What operators want of workers and data planes, and what there is of them to look at.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    DataPlaneId, Duty, FunctionId, RequestId, SandboxId, Whom, WorkerId, WriteToken,
    control::{
        Answer, Control, DataPlaneSummary, Effect, Outcome, REWRITE, Refusal, WorkerDescription,
        WorkerSandbox,
        cluster::Author,
        levels::Level,
        lifecycle::worker_lost,
        peers::Peer,
        posting::{Settled, To},
        timers::Timer,
    },
    frame::ToDataPlane,
};

/// Sandboxes in one answer at most.
const MAX_SHOWN: usize = 1000;

impl Control {
    pub(super) fn order(&mut self, request: RequestId, whom: Whom, duty: Duty) {
        match whom {
            Whom::Worker(name) => {
                self.cluster.fleet.order(self.cluster.now, request, &name, duty);
            }
            Whom::DataPlane(name) => {
                if let Some(result) = self.order_data_plane(request, name, duty) {
                    self.cluster.reply(request, result);
                }
            }
        }
    }

    pub(super) fn remove(&mut self, request: RequestId, whom: Whom, force: bool) {
        match whom {
            Whom::Worker(name) => {
                self.cluster.fleet.remove(self.cluster.now, request, &name, force);
            }
            Whom::DataPlane(name) => {
                if let Err(refusal) = self.remove_data_plane(request, &name) {
                    self.cluster.reply(request, Err(refusal));
                }
            }
        }
    }

    // ------------------------------------------------------------------------ workers

    /// Workers of these sandboxes are drained from now on, or no longer. All of a function at once:
    /// half of them is no state to decide from.
    pub(super) fn leaving(&mut self, sandboxes: &[SandboxId], leaving: bool) {
        let mut by_home: BTreeMap<FunctionId, Vec<SandboxId>> = BTreeMap::new();
        for &sandbox in sandboxes {
            if let Some(home) = self.cluster.fleet.home(sandbox) {
                by_home.entry(home).or_default().push(sandbox);
            }
        }
        for (home, sandboxes) in by_home {
            self.with(home, |f, c| f.mark_leaving(c, &sandboxes, leaving));
        }
    }

    /// A worker is forgotten. What it had is gone: somebody has said so who can know.
    pub(super) fn worker_removed(&mut self, worker: WorkerId, sandboxes: BTreeSet<SandboxId>) {
        for sandbox in sandboxes {
            if let Some(home) = self.cluster.fleet.home(sandbox) {
                self.with(home, |f, c| f.gone(c, sandbox, worker_lost()));
            }
        }
        self.cluster.worker_removed(worker);
        self.cluster.reclaim = true;
        self.recovered_if_all_attached();
        self.deny_claims();
    }

    pub(super) fn describe_worker(&self, name: &Arc<str>) -> Result<Answer, Refusal> {
        let whom = || Whom::Worker(Arc::clone(name));
        let summary = self.cluster.fleet.summary(name);
        let summary = summary.ok_or_else(|| Refusal::NoPeer { whom: whom() })?;
        let sandboxes = self.cluster.fleet.on(summary.id).take(MAX_SHOWN);
        let sandboxes = sandboxes.filter_map(|id| {
            let function = self.functions.get(&self.cluster.fleet.home(id)?)?;
            let entry = function.active.as_ref()?.sandboxes.get(&id)?;
            let holder = |id: &DataPlaneId| Some(Arc::clone(&self.cluster.peers.get(*id)?.name));
            Some(WorkerSandbox {
                id,
                function: function.record.name.clone(),
                revision: entry.number,
                state: entry.stage.name().to_owned(),
                holders: entry.holders.iter().filter_map(|(id, _)| holder(id)).collect(),
            })
        });
        let sandboxes = sandboxes.collect();
        Ok(Answer::Worker(Box::new(WorkerDescription { summary, sandboxes })))
    }

    // ------------------------------------------------------------------------ data planes

    /// The answer, if it can be given now.
    fn order_data_plane(
        &mut self,
        request: RequestId,
        name: Arc<str>,
        duty: Duty,
    ) -> Option<Result<Answer, Refusal>> {
        let peers = &mut self.cluster.peers;
        let id = peers.id_of(&name);
        let whom = Whom::DataPlane(name);
        let Some((id, peer)) = id.and_then(|id| Some((id, peers.get_mut(id)?))) else {
            return Some(Err(Refusal::NoPeer { whom }));
        };
        if duty != Duty::InUse && peer.stream.is_some() && !peer.takes_orders {
            return Some(Err(Refusal::Deaf { whom }));
        }
        match peer.posting.begin(request, To::Duty(duty)) {
            Err(refusal) => Some(Err(refusal)),
            Ok(false) => Some(Ok(Answer::Ordered { whom, duty, changed: false })),
            Ok(true) => {
                self.record_data_plane(id);
                None
            }
        }
    }

    fn remove_data_plane(&mut self, request: RequestId, name: &Arc<str>) -> Result<(), Refusal> {
        let id = self.cluster.peers.id_of(name);
        let unknown = || Refusal::NoPeer { whom: Whom::DataPlane(Arc::clone(name)) };
        let id = id.ok_or_else(unknown)?;
        if let Some(message) = self.why_kept(id) {
            return Err(Refusal::InUse { message });
        }
        let peer = self.cluster.peers.get_mut(id).ok_or_else(unknown)?;
        peer.posting.begin(request, To::Removed)?;
        self.record_data_plane(id);
        Ok(())
    }

    /// Why a data plane's record is not forgotten. There is no way around it: what it holds is free
    /// when its sandboxes' workers have made sure, and before that nobody can say so.
    fn why_kept(&self, id: DataPlaneId) -> Option<String> {
        let peer = self.cluster.peers.get(id)?;
        let name = &peer.name;
        if peer.stream.is_some() {
            return Some(format!(
                "data plane {name} is attached: `dirigent drain {name}` first, or end it on its \
                 machine"
            ));
        }
        if let Some(worker) = self.cluster.fleet.awaited().filter(|_| !peer.heard) {
            return Some(format!(
                "data plane {name} has not attached since this leader took office, and may hold slots \
                 on worker {worker}, which has not either: start one of them, or, if the worker's \
                 machine is gone for good, `dirigent remove {worker} --force`"
            ));
        }
        let (slots, unknown) = (self.slots_of(id), self.is_unknown(peer));
        (slots > 0 || unknown).then(|| {
            let slots = if unknown { "slots".to_owned() } else { format!("{slots} slots") };
            format!(
                "data plane {name} is gone and may hold {slots} still: they come free by \
                 themselves, after the longest time-out of a call at the latest; try again then"
            )
        })
    }

    /// It may hold slots of which nobody has said anything yet.
    fn is_unknown(&self, peer: &Peer) -> bool {
        !peer.heard && (self.cluster.recovering || !self.cluster.unsure.is_empty())
    }

    /// What it wants and uses of each function.
    fn levels_of(&self, id: DataPlaneId) -> impl Iterator<Item = &Level> {
        let functions = self.cluster.peers.get(id).into_iter().flat_map(|peer| &peer.functions);
        functions.filter_map(move |function| {
            self.functions.get(function)?.active.as_ref()?.levels.get(id)
        })
    }

    fn slots_of(&self, id: DataPlaneId) -> u32 {
        let claims = self.cluster.claims.values().flatten().filter(|claim| claim.by == id).count();
        let claims = u32::try_from(claims).unwrap_or(u32::MAX);
        self.levels_of(id).map(|level| level.books).fold(claims, u32::saturating_add)
    }

    /// Writes, or writes again, what is wanted of a data plane; later, if a change of that is on its
    /// way.
    pub(super) fn record_data_plane(&mut self, id: DataPlaneId) {
        if self.cluster.peers.get(id).is_some_and(|peer| peer.posting.is_on_its_way()) {
            return self.write_again(id);
        }
        let Some(write) = self.cluster.peers.record(id) else { return };
        let token = self.cluster.persist(Author::DataPlane(id), write);
        if let Some(peer) = self.cluster.peers.get_mut(id) {
            peer.posting.written_by(token);
        }
    }

    /// The store answered that a data plane exists.
    fn data_plane_exists(&mut self, id: DataPlaneId, outcome: Outcome) {
        if matches!(outcome, Outcome::Ok { .. }) {
            self.data_plane_recorded(id);
        } else {
            self.write_again(id);
        }
    }

    fn write_again(&mut self, id: DataPlaneId) {
        let at = self.cluster.now.after(REWRITE);
        self.cluster.timers.set(Timer::RewritePeer(id), at);
    }

    /// The store answered a write of a data plane's record.
    pub(super) fn data_plane_written(
        &mut self,
        id: DataPlaneId,
        token: WriteToken,
        outcome: Outcome,
    ) {
        let Some(peer) = self.cluster.peers.get_mut(id) else { return };
        let whom = Whom::DataPlane(Arc::clone(&peer.name));
        let (asker, result) = match peer.posting.written(token, outcome) {
            Settled::Nothing => return self.data_plane_exists(id, outcome),
            Settled::Done { to: To::Duty(duty), asker } => {
                self.data_plane_recorded(id);
                self.tell_duty(id);
                (asker, Ok(Answer::Ordered { whom, duty, changed: true }))
            }
            Settled::Done { to: To::Removed, asker } => {
                self.strike_data_plane(id);
                (asker, Ok(Answer::Removed { whom }))
            }
            Settled::Refused { asker } => {
                if self.cluster.peers.get(id).is_some_and(|peer| !peer.recorded) {
                    self.write_again(id);
                }
                (asker, Err(Refusal::StoreUnavailable))
            }
            Settled::Again { asker } => {
                self.write_again(id);
                (asker, Err(Refusal::InDoubt))
            }
        };
        if let Some(asker) = asker {
            self.cluster.reply(asker, result);
        }
    }

    /// Tells a data plane what is wanted of it; one that does not take orders is told nothing, one
    /// that attaches serves unless it is told otherwise.
    pub(super) fn tell_duty(&mut self, id: DataPlaneId) {
        let Some(peer) = self.cluster.peers.get(id).filter(|peer| peer.takes_orders) else {
            return;
        };
        let duty = peer.posting.duty();
        self.cluster.tell(id, ToDataPlane::Duty { duty });
    }

    /// Forgets a data plane.
    fn strike_data_plane(&mut self, id: DataPlaneId) {
        self.cluster.timers.cancel(Timer::RewritePeer(id));
        let Some(peer) = self.cluster.peers.strike(id) else { return };
        if let Some(stream) = peer.stream {
            let reason = format!("data plane {} was removed", peer.name);
            self.cluster.effects.push_back(Effect::Close { stream, reason });
        }
        for function in peer.functions {
            self.cluster.timers.cancel(Timer::Silent(function, id));
            self.with(function, |f, c| f.forget_data_plane(c, id));
        }
        self.sure_if_all_heard();
        self.recovered_if_all_attached();
    }

    pub(super) fn data_planes(&self) -> Vec<DataPlaneSummary> {
        let peers = self.cluster.peers.iter();
        peers.map(|(id, peer)| self.data_plane_summary(id, peer)).collect()
    }

    fn data_plane_summary(&self, id: DataPlaneId, peer: &Peer) -> DataPlaneSummary {
        let (busy, queued) = self.levels_of(id).fold((0_u32, 0_u32), |(busy, queued), level| {
            let demand = &level.demand;
            (busy.saturating_add(demand.busy), queued.saturating_add(demand.queued))
        });
        let (slots, duty) = (self.slots_of(id), peer.posting.duty());
        let state = match (peer.stream.is_some(), duty) {
            (true, Duty::InUse) => "ready",
            (true, Duty::Cordoned) => "cordoned",
            (true, Duty::Draining) => "draining",
            (false, _) if !peer.heard && self.cluster.recovering => "joining",
            (false, _) if slots > 0 || self.is_unknown(peer) => "silent",
            (false, _) => "gone",
        };
        let (name, state) = (Arc::clone(&peer.name), state.to_owned());
        DataPlaneSummary { id, name, state, duty, slots, busy, queued }
    }
}
