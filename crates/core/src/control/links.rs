//! What workers and data planes say, led to the functions that it concerns.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    Auth, DataPlaneId, FunctionId, FunctionName, SandboxId, StreamId, Time, WorkerId, Write,
    control::{
        Control, Effect, Measure,
        cluster::{Author, Claim, Cluster},
        fleet::Output,
        function::Function,
        lifecycle::worker_lost,
        peers::{Line, MAX_NAMES},
        slots::nothing,
        timers::Timer,
    },
    frame::{
        DataPlaneHello, Demand, FromDataPlane, FromWorker, Hello, PROTOCOL, Returned,
        SandboxReport, Share, TAKEN, ToDataPlane, Welcome, WhyReturned,
    },
};

impl Control {
    // ------------------------------------------------------------------------ data planes

    pub(super) fn data_plane_said(&mut self, stream: StreamId, frame: FromDataPlane) {
        if let FromDataPlane::Hello(hello) = frame {
            self.data_plane_hello(stream, *hello);
            return;
        }
        // Frames of a stream that was closed meanwhile are nobody's.
        let Some(from) = self.cluster.peers.on(stream) else { return };
        match frame {
            FromDataPlane::Hello(_) | FromDataPlane::Unsupported { .. } => {}
            FromDataPlane::Resolve { name } => self.resolve(from, &name),
            FromDataPlane::Forget { name } => {
                if let Some(peer) = self.cluster.peers.get_mut(from) {
                    peer.names.remove(&name);
                }
            }
            FromDataPlane::Applied { function, version } => {
                self.with(function, |f, c| f.applied(c, from, Some(version)));
            }
            FromDataPlane::Demand(demand) => {
                self.with(demand.function, |f, c| f.demanded(c, from, &demand, false));
            }
            FromDataPlane::Returned(returned) => self.returned(from, &returned),
            FromDataPlane::Kept { function, n } => self.with(function, |f, c| f.kept(c, from, n)),
        }
    }

    fn returned(&mut self, from: DataPlaneId, returned: &Returned) {
        let sandbox = returned.sandbox;
        if let Some(home) = self.cluster.fleet.home(sandbox) {
            self.with(home, |f, c| f.returned(c, from, returned));
        } else if let Some(claims) = self.cluster.claims.get_mut(&sandbox) {
            // Nobody has it, or its worker has not attached: dropped on the holder's evidence.
            let mut of = None;
            claims.retain_mut(|claim| {
                if claim.by != from {
                    return true;
                }
                of = Some(claim.revision.function);
                // Of several slots some may be in use still.
                match (&mut claim.share, returned.share) {
                    (Share::Slots(held), Share::Slots(back)) if back < *held => {
                        *held -= back;
                    }
                    (Share::Slots(_) | Share::Open, Share::Slots(_) | Share::Open) => return false,
                }
                true
            });
            if claims.is_empty() {
                self.cluster.claims.remove(&sandbox);
            }
            let spoilt = matches!(returned.why, WhyReturned::Unreachable | WhyReturned::Closing);
            if spoilt && !self.cluster.fleet.all_recorded_attached() {
                // Its worker may still report it: then it is not to be used again.
                self.cluster.condemned.insert(sandbox);
            }
            if let Some(function) = of {
                let slots = match returned.share {
                    Share::Slots(slots) => slots,
                    Share::Open => 1,
                };
                self.with(function, |f, c| f.answered(c, from, slots));
            }
        }
    }

    fn resolve(&mut self, from: DataPlaneId, name: &FunctionName) {
        if let Some(peer) = self.cluster.peers.get_mut(from)
            && peer.names.len() < MAX_NAMES
        {
            peer.names.insert(name.clone());
        }
        self.tell_resolved(from, name);
        // Sandboxes that nobody holds, those of `min` for instance, are better there than here.
        if let Some(&id) = self.names.get(name)
            && self.functions.get(&id).is_some_and(|f| f.active.is_some())
        {
            self.with(id, Function::offer_unheld);
        }
    }

    fn tell_resolved(&mut self, to: DataPlaneId, name: &FunctionName) {
        let known = self
            .names
            .get(name)
            .and_then(|id| self.functions.get(id))
            .filter(|f| f.active.as_ref().is_none_or(|active| !active.unborn));
        let may_serve = |auth| self.cluster.peers.may_serve(to, auth);
        let shown = known.filter(|f| may_serve(f.record.settings.auth));
        let newest = self.cluster.version();
        let frame = ToDataPlane::Resolved {
            name: name.clone(),
            version: known.map_or(newest, |function| function.version),
            function: shown.map(Function::view),
        };
        self.cluster.tell(to, frame);
        let shown = shown.map(Function::id);
        if let Some(function) = shown.and_then(|id| self.functions.get_mut(&id)) {
            function.show(to);
        }
    }

    /// Whether a peer may attach; else its stream is closed.
    fn greets(&mut self, stream: StreamId, hello: &Hello) -> bool {
        let office = self.cluster.office;
        let reason = if office.epoch.is_over_by(hello.highest_epoch) {
            self.cluster.resign(hello.highest_epoch);
            format!("it obeyed epoch {} and this leader's is {}", hello.highest_epoch, office.epoch)
        } else if hello.cluster.is_some_and(|cluster| cluster != office.cluster) {
            "it belongs to another cluster: its state directory is not of this one".to_owned()
        } else if !(hello.protocol.0..=hello.protocol.1).contains(&PROTOCOL) {
            let (oldest, newest) = hello.protocol;
            format!("it speaks protocol {oldest} to {newest}, this leader {PROTOCOL}")
        } else {
            return true;
        };
        self.cluster.effects.push_back(Effect::Close { stream, reason });
        false
    }

    fn data_plane_hello(&mut self, stream: StreamId, hello: DataPlaneHello) {
        let Some(Line::Open { name }) = self.cluster.peers.line(stream).cloned() else {
            let reason = "a second hello on one stream".to_owned();
            self.cluster.effects.push_back(Effect::Close { stream, reason });
            return;
        };
        if !self.greets(stream, &hello.hello) {
            self.cluster.peers.close(stream);
            return;
        }
        if self.cluster.peers.is_taken(&name, &hello.hello) {
            if hello.hello.has(TAKEN) {
                let frame = ToDataPlane::Taken;
                self.cluster.effects.push_back(Effect::ToDataPlane { stream, frame });
            }
            self.turn_away(stream, format!("another data plane {name} is attached"));
            return;
        }
        let (id, is_new) = self.cluster.peers.named(&name);
        if self.cluster.peers.get(id).is_some_and(|peer| peer.posting.wanted().is_none()) {
            self.turn_away(stream, format!("data plane {name} is being removed"));
            return;
        }
        if is_new {
            self.record_data_plane(id);
            for tombstone in self.cluster.peers.take_tombstones() {
                // The newer one's record keeps its number from being given again.
                let write = Write::DeleteDataPlane(tombstone);
                self.cluster.persist(Author::DataPlane(tombstone), write);
            }
        }
        if let Some(before) = self.cluster.peers.attach(id, stream, &hello.hello) {
            let reason = "the data plane attached anew".to_owned();
            self.cluster.effects.push_back(Effect::Close { stream: before, reason });
        }
        let office = self.cluster.office;
        let welcome = Welcome { cluster: office.cluster, epoch: office.epoch };
        self.cluster.tell(id, ToDataPlane::Welcome { welcome, you: id });
        if self.cluster.peers.may_serve(id, Auth::Token) {
            self.tell_tokens(id);
        }
        self.tell_duty(id);
        self.recall_lost_history(id, &hello.holdings);
        self.subscribe(id, hello.names);
        let functions = self.cluster.peers.get(id).map(|peer| peer.functions.clone());
        for function in functions.into_iter().flatten() {
            if let Some(f) = self.functions.get_mut(&function) {
                f.spoke_again(&mut self.cluster, id);
            }
        }
        let mut touched = self.claim(id, &hello.holdings);
        touched.append(&mut self.hear_all(id, hello.demands));
        for function in touched {
            self.settle(function);
        }
        self.offer_unheld_to(id);
        self.cluster.reclaim = true;
        self.sure_if_all_heard();
        self.recovered_if_all_attached();
        self.deny_claims();
    }

    /// It said who it is, and is not let in.
    fn turn_away(&mut self, stream: StreamId, reason: String) {
        self.cluster.effects.push_back(Effect::Close { stream, reason });
        self.cluster.peers.close(stream);
    }

    /// From now on slots may be granted to it.
    pub(super) fn data_plane_recorded(&mut self, id: DataPlaneId) {
        let Some(peer) = self.cluster.peers.get_mut(id) else { return };
        peer.recorded = true;
        for function in peer.functions.clone() {
            self.settle(function);
        }
        self.offer_unheld_to(id);
    }

    /// The names of a `Hello`.
    fn subscribe(&mut self, id: DataPlaneId, names: Vec<FunctionName>) {
        let names: BTreeSet<FunctionName> = names.into_iter().take(MAX_NAMES).collect();
        for name in &names {
            self.tell_resolved(id, name);
        }
        if let Some(peer) = self.cluster.peers.get_mut(id) {
            peer.names = names;
        }
    }

    /// Sandboxes that nobody holds are offered to a data plane that is new.
    fn offer_unheld_to(&mut self, id: DataPlaneId) {
        let Some(peer) = self.cluster.peers.get(id) else { return };
        let known = peer.names.iter().filter_map(|name| self.names.get(name));
        let unheld: Vec<FunctionId> = known
            .filter(|id| {
                let active = self.functions.get(*id).and_then(|f| f.active.as_deref());
                active.is_some_and(|active| !active.books.unheld.is_empty())
            })
            .copied()
            .collect();
        for function in unheld {
            self.with(function, Function::offer_unheld);
        }
    }

    /// What a data plane holds of a history that the store has lost is called back, before it is told
    /// what the numbers of its revisions mean now.
    fn recall_lost_history(&mut self, by: DataPlaneId, holdings: &[crate::frame::Holding]) {
        for holding in holdings {
            let (sandbox, revision) = (holding.sandbox, holding.revision);
            let function = self.functions.get(&revision.function);
            let lost = function.map_or_else(
                || self.cluster.is_lost_history(sandbox.epoch),
                |f| f.is_of_lost_history(&self.cluster, sandbox, revision.number),
            );
            if lost {
                self.cluster.tell(by, ToDataPlane::RecallSandbox { sandbox, gone: false });
            }
        }
    }

    /// The holdings of a `Hello` replace what the books say of this data plane.
    fn claim(
        &mut self,
        by: DataPlaneId,
        holdings: &[crate::frame::Holding],
    ) -> BTreeSet<FunctionId> {
        let mut touched = BTreeSet::new();
        let mut pinned = BTreeSet::new();
        let Some(peer) = self.cluster.peers.get(by) else { return touched };
        let mut freed: BTreeMap<FunctionId, BTreeSet<SandboxId>> = BTreeMap::new();
        for home in peer.functions.clone() {
            let Some(function) = self.functions.get_mut(&home) else { continue };
            let held = function.held_by(by);
            for &sandbox in &held {
                function.take_back(by, sandbox, None);
            }
            if !held.is_empty() {
                freed.insert(home, held.into_iter().collect());
            }
        }
        for claims in self.cluster.claims.values_mut() {
            claims.retain(|claim| claim.by != by);
        }
        for holding in holdings {
            let sandbox = holding.sandbox;
            let claim = Claim {
                by,
                revision: holding.revision,
                share: holding.share,
                pinned: holding.pinned,
            };
            match self.cluster.fleet.home(sandbox) {
                Some(home) => {
                    if let Some(freed) = freed.get_mut(&home) {
                        freed.remove(&sandbox);
                    }
                    if let Some(function) = self.functions.get_mut(&home) {
                        function.claim(&mut self.cluster, sandbox, claim);
                    }
                    touched.insert(home);
                    if holding.pinned {
                        pinned.insert(home);
                    }
                }
                None => {
                    self.cluster.saw_sandbox(sandbox);
                    self.cluster.claims.entry(sandbox).or_default().push(claim);
                }
            }
        }
        self.cluster.claims.retain(|_, claims| !claims.is_empty());
        // All of a function at once: half of them freed is no state to decide from.
        for (home, sandboxes) in freed {
            self.with(home, |f, c| {
                sandboxes.into_iter().for_each(|sandbox| f.freed(c, sandbox, by));
            });
        }
        if !self.cluster.recovering {
            // `min` may have been lowered while it was away.
            for home in pinned {
                self.with(home, Function::unpin);
            }
        }
        touched
    }

    /// The demands of a `Hello` replace what was heard before.
    fn hear_all(&mut self, from: DataPlaneId, demands: Vec<Demand>) -> BTreeSet<FunctionId> {
        let mut touched =
            self.cluster.peers.get(from).map(|peer| peer.functions.clone()).unwrap_or_default();
        for function in &touched {
            if let Some(f) = self.functions.get_mut(function) {
                f.hear_anew(&mut self.cluster, from);
            }
        }
        for demand in demands {
            if let Some(function) = self.functions.get_mut(&demand.function) {
                function.demanded(&mut self.cluster, from, &demand, true);
                touched.insert(demand.function);
            }
        }
        touched
    }

    /// Everybody who may hold slots of adopted sandboxes has said so.
    pub(super) fn sure_if_all_heard(&mut self) {
        if !self.cluster.unsure.is_empty() && self.cluster.peers.all_heard() {
            for sandbox in std::mem::take(&mut self.cluster.unsure) {
                if let Some(home) = self.cluster.fleet.home(sandbox) {
                    self.with(home, |f, c| f.sure(c, sandbox));
                }
            }
        }
    }

    /// A stream broke.
    pub(super) fn detached(&mut self, stream: StreamId) {
        if self.cluster.fleet.detached(self.cluster.now, stream) {
            return;
        }
        let Some(id) = self.cluster.peers.close(stream) else { return };
        let functions =
            self.cluster.peers.get(id).map(|peer| peer.functions.clone()).unwrap_or_default();
        for function in functions {
            self.with(function, |f, c| {
                f.hush(c, id);
                f.fell_silent(c, id);
                f.applied(c, id, None);
            });
        }
        self.deny_claims();
    }

    // ------------------------------------------------------------------------ workers

    pub(super) fn worker_said(&mut self, stream: StreamId, frame: FromWorker) {
        let now = self.cluster.now;
        // Whatever it says, it lives.
        let worker = self.cluster.fleet.heard(now, stream);
        match frame {
            FromWorker::Hello(hello) => {
                if self.greets(stream, &hello.hello) {
                    let mut unused = hello.artifacts.clone();
                    unused.retain(|digest| !self.cluster.artifacts.is_used(*digest));
                    self.cluster.fleet.hello(now, stream, *hello);
                    self.cluster.fleet.discard(&unused);
                }
            }
            FromWorker::Beat(load) => self.cluster.fleet.beat(now, stream, load),
            FromWorker::Artifact { digest, held } => {
                self.cluster.fleet.artifact(stream, digest, held);
            }
            FromWorker::Fetching { digest, fetched, all } => {
                self.cluster.fleet.fetching(stream, digest, fetched, all);
            }
            FromWorker::SandboxReady { sandbox, address, phases } => {
                self.with_sandbox(worker, sandbox, |f, c| f.ready(c, sandbox, address, phases));
            }
            FromWorker::SandboxGone { sandbox, failure } => {
                self.with_sandbox(worker, sandbox, |f, c| f.gone(c, sandbox, failure));
            }
            FromWorker::Refused { sandbox, message } => {
                self.with_sandbox(worker, sandbox, |f, c| f.refused(c, sandbox, message));
            }
            FromWorker::ImageResolved { sandbox, digest } => {
                self.with_sandbox(worker, sandbox, |f, c| f.image_resolved(c, sandbox, digest));
            }
            FromWorker::Settled { sandbox, data_plane } => {
                self.with_sandbox(worker, sandbox, |f, c| f.settled(c, sandbox, data_plane));
            }
            FromWorker::Unsupported { .. } => {}
        }
    }

    /// Calls the function of a sandbox, if the worker that speaks is the one that has it.
    fn with_sandbox(
        &mut self,
        worker: Option<WorkerId>,
        sandbox: SandboxId,
        call: impl FnOnce(&mut Function, &mut Cluster),
    ) {
        let home = worker.and_then(|worker| self.cluster.fleet.home_on(worker, sandbox));
        if let Some(home) = home {
            self.with(home, call);
        }
    }

    /// What the fleet has to say, until it has nothing left.
    pub(super) fn drain_fleet(&mut self) {
        while let Some(output) = self.cluster.fleet.poll() {
            match output {
                Output::Send { stream, frame } => {
                    self.cluster.effects.push_back(Effect::ToWorker { stream, frame });
                }
                Output::Persist { token, write } => {
                    self.cluster.effects.push_back(Effect::Persist { token, write });
                }
                Output::Close { stream, reason } => {
                    self.cluster.effects.push_back(Effect::Close { stream, reason });
                }
                Output::Placed { sandbox, worker, waited } => {
                    if let Some(home) = self.cluster.fleet.home(sandbox)
                        && let Some(function) = self.functions.get_mut(&home)
                    {
                        function.placed(sandbox, worker, waited);
                    }
                }
                Output::NoRoom { function, .. } => {
                    self.cluster.starved.insert(function);
                    self.cluster.reclaim = true;
                    self.with(function, |f, c| {
                        f.activate().no_room = true;
                        f.roll_out(c);
                    });
                }
                Output::RoomAgain { function } => {
                    self.cluster.starved.remove(&function);
                    self.with(function, |f, _| f.room_again());
                }
                Output::Joined { worker, sandboxes, missing, is_stranger } => {
                    self.joined(worker, sandboxes, missing, is_stranger);
                }
                Output::Lost { sandboxes, .. } => self.lost(sandboxes),
                Output::Leaving { sandboxes, leaving } => self.leaving(&sandboxes, leaving),
                Output::Removed { worker, sandboxes } => self.worker_removed(worker, sandboxes),
                Output::Reply { to, result } => self.cluster.reply(to, result),
            }
        }
    }

    /// A worker said everything that it has.
    fn joined(
        &mut self,
        worker: WorkerId,
        reports: Vec<SandboxReport>,
        missing: BTreeSet<SandboxId>,
        is_stranger: bool,
    ) {
        // Before anything else is put to use there.
        for &sandbox in &missing {
            let home = self.cluster.fleet.home(sandbox);
            if let Some(function) = home.and_then(|home| self.functions.get(&home)) {
                function.rest_address(&mut self.cluster, sandbox);
            }
        }
        for report in reports {
            let home = report.revision.function;
            let function = self.functions.entry(home).or_insert_with(|| Function::ghost(home));
            if function.has(report.sandbox) {
                self.with(home, |f, c| f.found(c, report.sandbox, &report));
            } else {
                self.with(home, |f, c| f.adopt(c, worker, &report, is_stranger));
            }
        }
        for sandbox in missing {
            if let Some(home) = self.cluster.fleet.home(sandbox) {
                self.with(home, |f, c| f.missed(c, sandbox));
            }
        }
        self.cluster.left_behind.remove(&worker);
        self.recovered_if_all_attached();
        self.deny_claims();
    }

    fn lost(&mut self, sandboxes: Vec<SandboxId>) {
        self.cluster.measure(Measure::WorkerLost);
        for sandbox in sandboxes {
            if let Some(home) = self.cluster.fleet.home(sandbox) {
                self.with(home, |f, c| f.lost(c, sandbox));
            }
        }
    }

    // ------------------------------------------------------------------------ recovery

    pub(super) fn recovered_if_all_attached(&mut self) {
        if self.cluster.recovering
            && self.cluster.peers.all_heard()
            && self.cluster.fleet.all_recorded_attached()
        {
            self.recovered();
        }
    }

    /// Everybody has attached, or was waited for long enough.
    pub(super) fn recovered(&mut self) {
        if !std::mem::take(&mut self.cluster.recovering) {
            return;
        }
        self.cluster.timers.cancel(Timer::Recovered);
        self.cluster.measure(Measure::Recovered);
        // Nothing was called back for those that wait for room.
        self.cluster.reclaim = true;
        if !self.cluster.attention.is_empty() {
            self.cluster.timers.set(Timer::Attention, self.cluster.now);
        }
        self.deny_claims();
    }

    /// What is claimed and no worker has is gone, once every worker has said what it has.
    pub(super) fn deny_claims(&mut self) {
        if self.cluster.recovering || !self.cluster.fleet.all_recorded_attached() {
            return;
        }
        self.cluster.condemned.clear();
        let claims: Vec<(SandboxId, DataPlaneId)> = self
            .cluster
            .claims
            .iter()
            .flat_map(|(sandbox, claims)| claims.iter().map(|claim| (*sandbox, claim.by)))
            .collect();
        for (sandbox, by) in claims {
            if self.cluster.peers.is_attached(by) {
                self.cluster.tell(by, ToDataPlane::RecallSandbox { sandbox, gone: true });
            } else {
                // Should it come back, it says so anew.
                self.drop_claim(sandbox, by);
            }
        }
    }

    fn drop_claim(&mut self, sandbox: SandboxId, by: DataPlaneId) {
        if let Some(claims) = self.cluster.claims.get_mut(&sandbox) {
            claims.retain(|claim| claim.by != by);
            if claims.is_empty() {
                self.cluster.claims.remove(&sandbox);
            }
        }
    }

    /// Looks at some of the functions that need it; the rest comes with the next deadline.
    pub(super) fn attend(&mut self) {
        const AT_ONCE: usize = 256;
        if self.cluster.recovering {
            // The end of the recovery sets the deadline anew.
            return;
        }
        for _ in 0..AT_ONCE {
            let Some(function) = self.cluster.attention.pop_first() else { return };
            self.with(function, Function::judge);
        }
        if !self.cluster.attention.is_empty() {
            self.cluster.timers.set(Timer::Attention, self.cluster.now);
        }
    }

    /// Functions wait for room: those with sandboxes to spare give some, the longest idle first.
    pub(super) fn reclaim(&mut self) {
        if !std::mem::take(&mut self.cluster.reclaim) || self.cluster.recovering {
            return;
        }
        const LOOKED_AT: usize = 16;
        let (mut wanted, mut memory) = (0_u64, 0_u64);
        for id in self.cluster.starved.iter().take(LOOKED_AT) {
            let Some(function) = self.functions.get(id) else { continue };
            let waiting = function.active.as_ref().map_or(0, |active| active.books.wanted.len());
            let waiting = u64::try_from(waiting).unwrap_or(u64::MAX);
            wanted += waiting;
            memory = memory.saturating_add(waiting.saturating_mul(function.weight()));
        }
        // What is leaving already counts like one of those that wait.
        let coming = u64::from(self.cluster.stopping.saturating_add(self.cluster.lent));
        let mut missing = memory / wanted.max(1) * wanted.saturating_sub(coming);
        let lenders: Vec<(Time, FunctionId)> =
            self.cluster.spare.iter().take(LOOKED_AT).copied().collect();
        for (_, lender) in lenders {
            if missing == 0 {
                break;
            }
            if let Some(function) = self.functions.get_mut(&lender) {
                let weight = function.weight();
                let n = u32::try_from(missing.div_ceil(weight)).unwrap_or(u32::MAX);
                let lent = u64::from(function.lend(&mut self.cluster, n));
                missing = missing.saturating_sub(lent.saturating_mul(weight));
            }
        }
        if missing > 0 {
            let starved: Vec<FunctionId> =
                self.cluster.starved.iter().take(LOOKED_AT).copied().collect();
            for id in starved {
                if let Some(function) = self.functions.get_mut(&id) {
                    function.make_room(&mut self.cluster);
                }
            }
            self.give_way();
        }
        self.cluster.reclaim = false;
    }
}

impl Function {
    /// A data plane detached: what it asked for counts no more, what it holds does.
    fn hush(&mut self, c: &mut Cluster, data_plane: DataPlaneId) {
        let now = c.now;
        let Some(active) = self.active.as_deref_mut() else { return };
        active.levels.change(data_plane, |level| {
            level.demand.queued = 0;
            // What it holds cannot be called back, so nothing of it is to spare.
            level.demand.idle = 0;
            level.recalling = 0;
            level.hoped = 0;
            level.sought = false;
            level.owed = 0;
            level.told = None;
            level.at = now;
        });
        if let Some(kpa) = active.kpa.as_mut() {
            kpa.forget(now, data_plane);
        }
        self.settle_lent(c);
    }

    /// A data plane is forgotten that holds nothing.
    pub(crate) fn forget_data_plane(&mut self, c: &mut Cluster, data_plane: DataPlaneId) {
        self.hush(c, data_plane);
        if let Some(active) = self.active.as_deref_mut() {
            active.levels.remove(data_plane);
        }
    }

    /// A data plane attached: only what it says now counts.
    fn hear_anew(&mut self, c: &mut Cluster, data_plane: DataPlaneId) {
        self.hush(c, data_plane);
        let serves = c.peers.may_serve(data_plane, self.record.settings.auth);
        if let Some(active) = self.active.as_deref_mut() {
            active.levels.change(data_plane, |level| {
                level.demand = nothing(level.demand.function);
                level.counts_from = if serves { 0 } else { u64::MAX };
            });
        }
    }

    /// For this data plane there is no such function: what it asked for it has refused by now.
    pub(crate) fn hide(&mut self, c: &mut Cluster, data_plane: DataPlaneId) {
        self.level(c, data_plane, |_| ());
        self.hear_anew(c, data_plane);
    }

    /// A data plane that was told again has applied it: only what it says from now on counts.
    pub(crate) fn counts_again(&mut self, c: &mut Cluster, by: DataPlaneId, heard: Option<u64>) {
        let level = self.active.as_deref().and_then(|active| active.levels.get(by));
        let from = level.map_or(0, |level| level.counts_from);
        if from > 0 && heard.is_some_and(|heard| heard >= from) {
            self.hear_anew(c, by);
        }
    }

    /// It is told of the function, perhaps again.
    pub(crate) fn show(&mut self, data_plane: DataPlaneId) {
        let version = self.version;
        if let Some(active) = self.active.as_deref_mut() {
            active.levels.change(data_plane, |level| {
                if level.counts_from == u64::MAX {
                    level.counts_from = version;
                }
            });
        }
    }

    /// A data plane attached without slots that the books say it holds: they are free.
    fn freed(&mut self, c: &mut Cluster, sandbox: SandboxId, by: DataPlaneId) {
        let ready = self.active.as_ref().is_some_and(|a| a.books.unheld.contains(&sandbox));
        if ready {
            // It was not idle for its keep-alive: it is of use to somebody still.
            self.serve(c);
            self.offer(c, sandbox);
        } else {
            self.after_return(c, sandbox, Some(by), false);
        }
    }

    /// Its worker attached without it.
    fn missed(&mut self, c: &mut Cluster, sandbox: SandboxId) {
        use super::sandbox::Stage;
        let stage = self.active.as_ref().and_then(|a| a.sandboxes.get(&sandbox)).map(|s| s.stage);
        match stage {
            // The order was lost with the stream: another start is decided if it is wanted.
            Some(Stage::Starting) => self.not_started(c, sandbox),
            Some(_) => self.gone(c, sandbox, worker_lost()),
            None => {}
        }
    }

    fn room_again(&mut self) {
        if let Some(active) = self.active.as_deref_mut() {
            active.no_room = false;
        }
    }
}
