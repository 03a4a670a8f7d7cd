//! The control plane's decisions: functions, scale, placement, slots, peers. One per cluster.
//!
//! [`Control`] leads events to the [`Function`] that they concern; all that functions share is in
//! the [`Cluster`], of which the fleet (workers and placement) is a part. After each event the
//! function it touched is settled: decisions are made from levels, so that deciding again changes
//! nothing.
//!
//! Refused: parsing, storing, sending, waiting. No event costs more than its own size and what
//! is active of the function that it touches; what is longer is done some at a time.

mod api;
mod audit;
mod cluster;
mod deploy;
mod describe;
mod event;
mod fairness;
mod fleet;
mod function;
mod ids;
mod levels;
mod lifecycle;
mod links;
mod moving;
mod orders;
mod peers;
mod posting;
mod record;
mod sandbox;
mod scale;
mod sharing;
mod silent;
mod slots;
mod timers;
mod tokens;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, time::Duration};

pub use audit::{Booked, Remembered};
pub use event::{
    Answer, Call, DataPlaneSummary, Decision, Effect, Event, FailureDescription, FetchDescription,
    FunctionDescription, FunctionSummary, Measure, Outcome, Refusal, RevisionDescription,
    SandboxDescription, WorkerDescription, WorkerSandbox, WorkerSummary,
};

use crate::{
    Digest, FunctionId, FunctionName, FunctionRecord, Office, Records, Settings, Spec, Time, Write,
    WriteToken,
};
use cluster::{Author, Cluster, Interner};
use fleet::Fleet;
use function::Function;
use ids::IdMap;
use peers::Peers;
use timers::Timer;
use tokens::Tokens;

/// Recorded peers are waited for so long after taking office.
const RECOVERY: Duration = Duration::from_secs(3);
/// What the store did not take is written again after this.
const REWRITE: Duration = Duration::from_secs(1);

/// What a control machine is made with.
#[derive(Clone, Debug)]
pub struct Config {
    /// The right to lead.
    pub office: Office,
    /// Seeds the machine's own random source (placement).
    pub seed: u64,
    /// The hash of the token in this leader's state directory, which is an admin's: no record has it.
    pub own_token: Option<Digest>,
}

/// See the module.
#[derive(Debug)]
pub struct Control {
    functions: IdMap<FunctionId, Function>,
    names: BTreeMap<FunctionName, FunctionId>,
    cluster: Cluster,
    specs: Interner<Spec>,
    settings: Interner<Settings>,
    next_function: u64,
    tokens: Tokens,
}

impl Control {
    /// A leader that has just taken office over these records; it is recovering until the recorded
    /// peers have attached, or 3 s.
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "a configuration belongs to its machine")]
    pub fn new(now: Time, config: Config, records: Records) -> Self {
        let Config { office, seed, own_token } = config;
        let Records { functions, workers, data_planes, terms, tokens } = records;
        let fleet = Fleet::new(now, seed, office, workers);
        let mut control = Self {
            functions: IdMap::with_capacity_and_hasher(functions.len(), Default::default()),
            names: BTreeMap::new(),
            cluster: Cluster::new(now, office, fleet, Peers::new(data_planes)),
            specs: Interner::default(),
            settings: Interner::default(),
            next_function: 0,
            tokens: Tokens::new(tokens, own_token),
        };
        control.cluster.terms = terms;
        control.load(functions);
        control.cluster.timers.set(Timer::Recovered, now.after(RECOVERY));
        control.recovered_if_all_attached();
        control
    }

    fn load(&mut self, records: Vec<std::sync::Arc<FunctionRecord>>) {
        let version = self.cluster.version();
        for mut record in records {
            if let Some(&other) = self.names.get(&record.name) {
                let older = other.min(record.id);
                self.delete_namesake(older);
                if older == record.id {
                    continue;
                }
            }
            if record.id.epoch == self.cluster.epoch() {
                self.next_function = self.next_function.max(record.id.counter);
            }
            // Most functions are like others: what is equal is kept once.
            let shared = std::sync::Arc::make_mut(&mut record);
            shared.settings = self.settings.intern(&shared.settings);
            for revision in &mut shared.revisions {
                revision.spec = self.specs.intern(&revision.spec);
            }
            self.cluster.artifacts.hold_all(&record);
            let going = record.revisions.iter().any(|r| r.state.is_going());
            if going || record.settings.min > 0 {
                self.cluster.attention.insert(record.id);
            }
            self.names.insert(record.name.clone(), record.id);
            self.functions.insert(record.id, Function::new(record, version));
        }
    }

    /// A store that was restored under a leader that went on writing may have two functions of one
    /// name: the newer one is meant.
    fn delete_namesake(&mut self, older: FunctionId) {
        if let Some(function) = self.functions.swap_remove(&older) {
            self.cluster.artifacts.release_all(&function.record);
            self.cluster.attention.remove(&older);
        }
        self.cluster.persist(Author::Function(older), Write::DeleteFunction(older));
    }

    /// The world, or a user, says something.
    pub fn handle(&mut self, now: Time, event: Event) {
        self.cluster.now = now;
        match event {
            Event::Asked { request, call, wall_ms } => self.asked(request, call, wall_ms),
            Event::AskerLeft { request } => self.asker_left(request),
            Event::Persisted { token, outcome } => self.persisted(token, outcome),
            Event::WorkerAttached { stream, name } => {
                self.cluster.fleet.attached(now, stream, name);
            }
            Event::WorkerSaid { stream, frame } => self.worker_said(stream, frame),
            Event::DataPlaneAttached { stream, name } => self.cluster.peers.open(stream, name),
            Event::DataPlaneSaid { stream, frame, waited } => {
                self.cluster.heard = now.before(waited);
                self.data_plane_said(stream, frame);
            }
            Event::Detached { stream } => self.detached(stream),
        }
        self.follow_up();
    }

    /// A deadline may have passed.
    pub fn expire(&mut self, now: Time) {
        self.cluster.now = now;
        self.cluster.fleet.expire(now);
        self.drain_fleet();
        while let Some(timer) = self.cluster.timers.pop_due(now) {
            self.fire(timer);
            if timer == Timer::Attention {
                // One portion at a time: what else came up meanwhile is not kept waiting.
                break;
            }
        }
        self.follow_up();
    }

    /// When to call `expire`.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        self.cluster.timers.next().into_iter().chain(self.cluster.fleet.deadline()).min()
    }

    /// What to do, in order.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.cluster.effects.pop_front()
    }

    fn fire(&mut self, timer: Timer) {
        match timer {
            Timer::Recovered => self.recovered(),
            Timer::Doubted(id) => self.with(id, Function::doubt),
            Timer::Attention => self.attend(),
            Timer::Windows(id) => self.with(id, Function::read_windows),
            // Settling is all that these want.
            Timer::Probe(id) | Timer::Restart(id) => self.settle(id),
            Timer::Rested(id) => {
                // While they rested they were of no use to those that wait for room either.
                self.cluster.reclaim = true;
                self.with(id, Function::time_rests);
            }
            Timer::Rollout(id) => self.with(id, Function::rollout_late),
            Timer::Rewrite(id) => self.with(id, Function::write),
            Timer::Quiet(id) => self.with(id, Function::quiet),
            Timer::Drained(sandbox) => {
                if let Some(home) = self.cluster.fleet.home(sandbox) {
                    self.with(home, |f, c| f.stop(c, sandbox));
                }
            }
            Timer::Idle(sandbox) => {
                if let Some(home) = self.cluster.fleet.home(sandbox) {
                    self.with(home, |f, c| f.idled(c, sandbox));
                }
            }
            Timer::RewritePeer(id) => self.record_data_plane(id),
            Timer::RewriteTokens => self.rewrite_tokens(),
            Timer::Moving(id) => self.settle(id),
            Timer::Silent(id, peer) => self.with(id, |f, c| f.silent_for_long(c, peer)),
        }
    }

    fn persisted(&mut self, token: WriteToken, outcome: Outcome) {
        if let Outcome::Ok { revision } = outcome {
            self.cluster.store_is_at(revision);
        }
        if self.cluster.fleet.persisted(self.cluster.now, token, outcome) {
            return;
        }
        match self.cluster.writes.remove(&token) {
            Some(Author::Function(id)) => self.with(id, |f, c| f.written(c, token, outcome)),
            Some(Author::DataPlane(id)) => self.data_plane_written(id, token, outcome),
            Some(Author::Tokens) => self.tokens_written(token, outcome),
            None => {}
        }
    }

    /// Calls a function, if there is such a one, and brings it in line with what is known now.
    fn with(&mut self, id: FunctionId, call: impl FnOnce(&mut Function, &mut Cluster)) {
        let Some(function) = self.functions.get_mut(&id) else { return };
        call(function, &mut self.cluster);
        function.settle(&mut self.cluster);
        #[cfg(any(test, debug_assertions))]
        function.check();
        if function.active.as_ref().is_some_and(|active| active.deleted || active.unborn) {
            self.part_with(id);
        }
    }

    /// Settles a function that was touched.
    fn settle(&mut self, id: FunctionId) {
        self.with(id, |_, _| {});
    }

    /// A function that was deleted, or is not recorded yet: what is left of it goes.
    fn part_with(&mut self, id: FunctionId) {
        let Some(function) = self.functions.get_mut(&id) else { return };
        let name = function.record.name.clone();
        if function.is_deleted() && self.names.get(&name) == Some(&id) {
            self.names.remove(&name);
            let ops = function.take_ops();
            self.pass_on(&name, ops);
        }
        let Some(function) = self.functions.get_mut(&id).filter(|f| f.is_over()) else { return };
        function.forget(&mut self.cluster);
        if self.names.get(&name) == Some(&id) {
            self.names.remove(&name);
        }
        self.functions.swap_remove(&id);
    }

    /// After any event: what the fleet decided meanwhile, and room for those that wait for it.
    fn follow_up(&mut self) {
        self.drain_fleet();
        if self.cluster.reclaim && !self.cluster.starved.is_empty() {
            self.reclaim();
            self.drain_fleet();
        }
        self.cluster.reclaim = false;
    }
}
