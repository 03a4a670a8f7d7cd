//! Random events, with every rule of the books checked after each.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{
    tests::{OFFICE, drain, function, hello, ms, spec, want},
    waiting::Why,
    worker::Used,
    *,
};
use crate::{Duty, control::Outcome, frame::Load};

const WORKERS: u64 = 4;

#[derive(Clone, Copy, Debug)]
enum Step {
    Join { worker: u64, forgetful: bool },
    Break { worker: u64 },
    Beat,
    Pass { ms: u64 },
    Want { of: u64, revision: u32, urgent: bool },
    Withdraw { pick: usize },
    Ready { pick: usize },
    Failed { pick: usize, fault: Option<Fault> },
    Gone { pick: usize },
    Stop { pick: usize },
    Order { worker: u64, duty: Duty },
    Remove { worker: u64, force: bool },
    Store { outcome: Outcome },
}

fn step() -> impl Strategy<Value = Step> {
    let fault = prop_oneof![
        1 => Just(None),
        1 => Just(Some(Fault::Function)),
        2 => Just(Some(Fault::Worker)),
    ];
    prop_oneof![
        2 => (1..=WORKERS, any::<bool>()).prop_map(|(worker, forgetful)| Step::Join { worker, forgetful }),
        1 => (1..=WORKERS).prop_map(|worker| Step::Break { worker }),
        4 => Just(Step::Beat),
        4 => prop_oneof![Just(50), Just(400), Just(1100), Just(4000)].prop_map(|ms| Step::Pass { ms }),
        10 => (1..6_u64, 1..3_u32, any::<bool>())
            .prop_map(|(of, revision, urgent)| Step::Want { of, revision, urgent }),
        2 => any::<usize>().prop_map(|pick| Step::Withdraw { pick }),
        6 => any::<usize>().prop_map(|pick| Step::Ready { pick }),
        2 => (any::<usize>(), fault).prop_map(|(pick, fault)| Step::Failed { pick, fault }),
        4 => any::<usize>().prop_map(|pick| Step::Gone { pick }),
        1 => any::<usize>().prop_map(|pick| Step::Stop { pick }),
        1 => (1..=WORKERS, prop_oneof![
            2 => Just(Duty::InUse),
            1 => Just(Duty::Cordoned),
            1 => Just(Duty::Draining),
        ]).prop_map(|(worker, duty)| Step::Order { worker, duty }),
        1 => (1..=WORKERS, any::<bool>())
            .prop_map(|(worker, force)| Step::Remove { worker, force }),
        4 => prop_oneof![
            3 => Just(Outcome::Ok { revision: 1 }),
            1 => Just(Outcome::Refused),
            1 => Just(Outcome::Unknown),
        ].prop_map(|outcome| Step::Store { outcome }),
    ]
}

/// The other side: the workers, and what the control machine knows.
#[derive(Debug)]
struct World {
    fleet: Fleet,
    now: u64,
    streams: u64,
    sandboxes: u64,
    /// Open streams by worker.
    attached: BTreeMap<u64, StreamId>,
    waiting: BTreeSet<SandboxId>,
    placed: BTreeMap<SandboxId, (WorkerId, SandboxReport)>,
    wanted: BTreeMap<SandboxId, Want>,
    roomless: BTreeSet<FunctionId>,
    writes: Vec<WriteToken>,
}

impl World {
    fn new() -> Self {
        Self {
            fleet: Fleet::new(ms(0), 5, OFFICE, Vec::new()),
            now: 0,
            streams: 0,
            sandboxes: 0,
            attached: BTreeMap::new(),
            waiting: BTreeSet::new(),
            placed: BTreeMap::new(),
            wanted: BTreeMap::new(),
            roomless: BTreeSet::new(),
            writes: Vec::new(),
        }
    }

    fn nth(&self, pick: usize) -> Option<SandboxId> {
        self.placed.keys().nth(pick % self.placed.len().max(1)).copied()
    }

    fn take(&mut self, step: Step) {
        let now = ms(self.now);
        match step {
            Step::Join { worker, forgetful } => self.join(worker, forgetful),
            Step::Break { worker } => {
                if let Some(stream) = self.attached.remove(&worker) {
                    self.fleet.detached(now, stream);
                }
            }
            Step::Beat => self.beat(),
            Step::Pass { ms: passed } => {
                self.now += passed;
                self.settle();
            }
            Step::Want { of, revision, urgent } => {
                self.sandboxes += 1;
                let base = want(self.sandboxes, of);
                let revision = RevisionId { function: function(of), number: revision };
                // One revision always needs the same.
                let memory = if revision.number == 1 { 300 } else { of * 200 };
                let wanted = Want { revision, urgent, spec: Arc::new(spec(memory)), ..base };
                self.waiting.insert(wanted.sandbox);
                self.wanted.insert(wanted.sandbox, wanted.clone());
                self.fleet.want(now, wanted);
            }
            Step::Withdraw { pick } => {
                let some = self.waiting.iter().nth(pick % self.waiting.len().max(1)).copied();
                if let Some(sandbox) = some {
                    assert!(self.fleet.withdraw(sandbox));
                    self.waiting.remove(&sandbox);
                }
            }
            Step::Ready { pick } => {
                if let Some(sandbox) = self.nth(pick) {
                    self.fleet.ready(now, sandbox);
                }
            }
            Step::Failed { pick, fault } => {
                if let Some(sandbox) = self.nth(pick) {
                    self.placed.remove(&sandbox);
                    self.fleet.failed(now, sandbox, fault);
                    self.fleet.forget(sandbox);
                }
            }
            Step::Gone { pick } => {
                if let Some(sandbox) = self.nth(pick) {
                    self.placed.remove(&sandbox);
                    self.fleet.gone(now, sandbox);
                    self.fleet.forget(sandbox);
                }
            }
            Step::Stop { pick } => {
                if let Some(sandbox) = self.nth(pick) {
                    self.fleet.stop(sandbox, Duration::ZERO);
                }
            }
            Step::Order { worker, duty } => {
                self.fleet.order(now, RequestId(1), &format!("w{worker}").into(), duty);
            }
            Step::Remove { worker, force } => {
                self.fleet.remove(now, RequestId(1), &format!("w{worker}").into(), force);
            }
            Step::Store { outcome } => {
                if !self.writes.is_empty() {
                    let token = self.writes.remove(0);
                    self.fleet.persisted(now, token, outcome);
                }
            }
        }
        self.listen();
    }

    /// A worker attaches with what it has, or with nothing.
    fn join(&mut self, worker: u64, forgetful: bool) {
        let now = ms(self.now);
        self.streams += 1;
        let stream = StreamId(self.streams);
        let name: Arc<str> = format!("w{worker}").into();
        let id = self.fleet.names.get(&name).copied();
        let has = |(on, report): &(WorkerId, SandboxReport)| {
            (Some(*on) == id && !forgetful).then(|| report.clone())
        };
        let reports: Vec<_> = self.placed.values().filter_map(has).collect();
        self.fleet.attached(now, stream, name);
        self.fleet.hello(now, stream, hello(1, reports.clone()));
        self.attached.insert(worker, stream);
        self.listen();
        // What was not reported is gone.
        let missing: Vec<_> = self
            .placed
            .iter()
            .filter(|(sandbox, (on, _))| {
                Some(*on) == id && !reports.iter().any(|r| r.sandbox == **sandbox)
            })
            .map(|(sandbox, _)| *sandbox)
            .collect();
        for sandbox in missing {
            // Placed by this very hello: it is on its way.
            if forgetful && self.fleet.sandboxes.get(&sandbox).is_some_and(|b| !b.starting) {
                self.placed.remove(&sandbox);
                self.fleet.gone(now, sandbox);
                self.fleet.forget(sandbox);
            }
        }
    }

    fn beat(&mut self) {
        for stream in self.attached.values() {
            self.fleet.beat(ms(self.now), *stream, Load::default());
        }
    }

    /// Meets every deadline up to now.
    fn settle(&mut self) {
        let now = ms(self.now);
        for _ in 0..10_000 {
            let Some(at) = self.fleet.deadline().filter(|at| *at <= now) else { return };
            self.fleet.expire(at);
            self.listen();
        }
        panic!("deadlines do not end");
    }

    fn listen(&mut self) {
        for output in drain(&mut self.fleet) {
            match output {
                Output::Placed { sandbox, worker, .. } => {
                    assert!(self.waiting.remove(&sandbox), "{sandbox} was not waiting");
                    let want = self.wanted.get(&sandbox).unwrap();
                    let report = SandboxReport {
                        sandbox,
                        revision: want.revision,
                        memory: want.spec.resources.memory,
                        cpu: want.spec.resources.cpu,
                        address: None,
                        stopping: false,
                    };
                    self.placed.insert(sandbox, (worker, report));
                }
                Output::NoRoom { function, .. } => assert!(self.roomless.insert(function)),
                Output::RoomAgain { function } => assert!(self.roomless.remove(&function)),
                Output::Close { stream, .. } => self.attached.retain(|_, open| *open != stream),
                Output::Send { stream, frame } => {
                    let worker = self.fleet.worker_of(stream).unwrap();
                    let health = self.fleet.workers.get(&worker).unwrap().health;
                    if matches!(frame, ToWorker::StartSandbox(_)) {
                        assert_eq!(health, Health::Live);
                    }
                }
                Output::Persist { token, .. } => self.writes.push(token),
                Output::Removed { sandboxes, .. } => {
                    for sandbox in sandboxes {
                        self.placed.remove(&sandbox);
                        self.fleet.gone(ms(self.now), sandbox);
                        self.fleet.forget(sandbox);
                    }
                }
                Output::Joined { .. }
                | Output::Lost { .. }
                | Output::Leaving { .. }
                | Output::Reply { .. } => {}
            }
        }
    }

    fn check(&self) {
        let fleet = &self.fleet;
        for sandbox in &self.waiting {
            assert!(fleet.waiting.contains(*sandbox) && !fleet.sandboxes.contains_key(sandbox));
        }
        for (sandbox, (worker, _)) in &self.placed {
            assert!(!fleet.waiting.contains(*sandbox));
            assert_eq!(fleet.sandboxes.get(sandbox).map(|b| b.worker), Some(*worker));
        }
        assert_eq!(fleet.sandboxes.len(), self.placed.len());
        assert_eq!(fleet.roomless, self.roomless);
        fleet.check();
    }
}

impl Fleet {
    /// Every rule of the books, the expensive way.
    fn check(&self) {
        let mut functions: BTreeMap<FunctionId, u32> = BTreeMap::new();
        let mut used: BTreeMap<WorkerId, Used> = BTreeMap::new();
        for booking in self.sandboxes.values() {
            *functions.entry(booking.function).or_default() += 1;
            let used = used.entry(booking.worker).or_default();
            used.memory += booking.memory;
            used.cpu += u64::from(booking.cpu);
            used.sandboxes += 1;
            used.starting += u32::from(booking.starting);
        }
        assert_eq!(functions, self.functions);
        let there = self.sandboxes.iter().map(|(sandbox, booking)| (booking.worker, *sandbox));
        let listed = self.workers.keys().flat_map(|id| self.on(*id).map(|sandbox| (*id, sandbox)));
        assert_eq!(there.collect::<BTreeSet<_>>(), listed.collect::<BTreeSet<_>>());
        for (id, worker) in &self.workers {
            assert_eq!(used.get(id).copied().unwrap_or_default(), worker.used, "{id}");
            let Some(capacity) = &worker.capacity else { continue };
            assert!(worker.used.memory <= capacity.memory.0, "{id}: memory exceeded");
            assert!(worker.used.cpu <= 40_000, "{id}: processors exceeded");
            assert!(worker.used.sandboxes <= capacity.sandboxes, "{id}: sandboxes exceeded");
            assert!(worker.used.starting <= capacity.starts, "{id}: tokens exceeded");
            assert_eq!(worker.earmarks > 0, self.earmarked.contains(id));
            assert_eq!(
                worker.timer.is_some_and(|at| self.timers.contains(&(at, *id))),
                worker.timer.is_some()
            );
            assert_eq!(self.pools.open().any(|open| open == *id), worker.is_open());
        }
        let present = |w: &&Worker| matches!(w.health, Health::Live | Health::Suspect);
        assert_eq!(self.workers.values().filter(present).count(), self.present);
        let marked: usize = self.waiting.groups.values().filter(|g| g.earmark.is_some()).count();
        let marks: u32 = self.workers.values().map(|worker| worker.earmarks).sum();
        assert_eq!(u32::try_from(marked).unwrap(), marks);
        if self.changed.is_empty() {
            self.check_that_nothing_waits_in_vain();
        }
    }

    /// With no work left, what waits fits nowhere, and for the reason stated.
    fn check_that_nothing_waits_in_vain(&self) {
        for (shape, group) in &self.waiting.groups {
            let head = group.head().unwrap();
            let open = |worker: &&Worker| {
                worker.is_open()
                    && worker.has_room(&shape.need)
                    && !(shape.calm && self.storm.is_active())
                    && (worker.earmarks == 0 || !head.later)
            };
            let idle = self.workers.values().find(open).map(|worker| worker.record.id);
            assert_eq!(idle, None, "could take {shape:?}");
            let room = self.workers.values().any(|w| w.is_ready() && w.has_room(&shape.need));
            match group.why {
                Why::Held => assert!(shape.calm && self.storm.is_active()),
                Why::Room => assert!(!room, "{shape:?} has room"),
                Why::Token(id) => {
                    let seen = self.workers.get(&id).unwrap();
                    assert!(seen.is_ready() && seen.has_room(&shape.need), "{shape:?}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn the_books_hold_and_every_want_is_placed_withdrawn_or_waiting(
        steps in prop::collection::vec(step(), 1..160),
    ) {
        let mut world = World::new();
        for step in steps {
            world.take(step);
            world.check();
        }
        // Then the workers heal, and sandboxes come and go: everything is placed in the end.
        for worker in 1..=WORKERS {
            world.take(Step::Join { worker, forgetful: false });
            world.take(Step::Order { worker, duty: Duty::InUse });
        }
        for round in 0..4_000 {
            if world.waiting.is_empty() {
                break;
            }
            prop_assert!(round < 3_999, "{:?} never placed", world.waiting);
            world.now += 100;
            world.beat();
            world.settle();
            world.take(Step::Store { outcome: Outcome::Ok { revision: 1 } });
            if round % 20 == 19 {
                // What was in doubt then is known now.
                for worker in 1..=WORKERS {
                    world.take(Step::Join { worker, forgetful: false });
                    world.take(Step::Order { worker, duty: Duty::InUse });
                }
            }
            if let Some(sandbox) = world.nth(0) {
                world.fleet.ready(ms(world.now), sandbox);
                world.take(Step::Gone { pick: 0 });
            }
            world.check();
        }
    }
}
