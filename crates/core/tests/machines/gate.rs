//! The gate against a small model of what its data plane and control plane may expect of it, under
//! random events.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
    time::Duration,
};

use dirigent_core::{
    Address, Cause, Epoch, Fault, FunctionId, FunctionView, InvocationId, Protocol, RevisionId,
    RevisionView, SandboxId, Serial, Settings, StartFailure, Time,
    frame::{FromDataPlane, Grant, Returned, Share, Status, WhyReturned},
    gate::{Attempt, Effect, Event, Finish, Gate, Refusal, Verdict},
};
use proptest::{prelude::*, sample::Index};

const FUNCTION: FunctionId = FunctionId::new(Epoch(1), 1);
const MAX_QUEUE: u32 = 6;
const KEEP_ALIVE: Duration = Duration::from_millis(5000);

#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Admit,
    Retry { pick: Index },
    Grant { sandbox: u64, slots: u32, pinned: bool },
    Finish { pick: Index, how: Finish },
    Leave { pick: Index },
    Recall { n: u32, idle_only: bool },
    RecallSandbox { sandbox: u64, gone: bool },
    CrashLoop,
    Flow,
    Target { revisions: u32 },
    Attach,
    Detach,
    Pass { ms: u64 },
    Delete,
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    let how = prop_oneof![
        6 => Just(Finish::Done),
        1 => Just(Finish::Abandoned),
        1 => Just(Finish::Unreachable),
    ];
    let sandbox = 1..8_u64;
    prop_oneof![
        300 => Just(Step::Admit),
        40 => any::<Index>().prop_map(|pick| Step::Retry { pick }),
        150 => (sandbox.clone(), 1..4_u32, any::<bool>())
            .prop_map(|(sandbox, slots, pinned)| Step::Grant { sandbox, slots, pinned }),
        250 => (any::<Index>(), how).prop_map(|(pick, how)| Step::Finish { pick, how }),
        50 => any::<Index>().prop_map(|pick| Step::Leave { pick }),
        50 => (1..6_u32, any::<bool>()).prop_map(|(n, idle_only)| Step::Recall { n, idle_only }),
        40 => (sandbox, any::<bool>())
            .prop_map(|(sandbox, gone)| Step::RecallSandbox { sandbox, gone }),
        15 => Just(Step::CrashLoop),
        30 => Just(Step::Flow),
        30 => (1..4_u32).prop_map(|revisions| Step::Target { revisions }),
        40 => Just(Step::Attach),
        15 => Just(Step::Detach),
        120 => prop_oneof![Just(1), Just(300), Just(2500)].prop_map(|ms| Step::Pass { ms }),
        1 => Just(Step::Delete),
    ]
}

/// What the world knows of a sandbox.
#[derive(Clone, Debug)]
struct Known {
    revision: u32,
    held: u32,
    busy: u32,
    pinned: bool,
    /// Nothing may be bound to it any more.
    over: bool,
    idle_since: Time,
}

/// The world around the gate.
#[derive(Debug)]
struct World {
    gate: Gate,
    now: Time,
    concurrency: u32,
    version: u64,
    /// Bits of the revisions that are targets.
    targets: u32,
    sandboxes: BTreeMap<SandboxId, Known>,
    /// Given back because a handler may still run there.
    closing: BTreeSet<SandboxId>,
    waiting: Vec<(InvocationId, Attempt)>,
    bound: Vec<(InvocationId, SandboxId)>,
    attached: bool,
    deleted: bool,
    crash_loop: bool,
    invocations: u64,
    arrivals: u64,
    finished: u64,
    busy_integral: u64,
    serial: u64,
    /// Ids are never reused: a sandbox given back for good is followed by one of the next
    /// generation.
    generations: BTreeMap<u64, u64>,
}

fn view(concurrency: u32, targets: u32) -> Arc<FunctionView> {
    let target = |number| RevisionView {
        id: RevisionId { function: FUNCTION, number },
        weight: number * 10,
        concurrency,
        protocol: Protocol::Http1,
    };
    Arc::new(FunctionView {
        id: FUNCTION,
        name: "f".parse().unwrap(),
        settings: Arc::new(Settings {
            max_queue: MAX_QUEUE,
            keep_alive: KEEP_ALIVE.into(),
            ..Settings::default()
        }),
        targets: (1..=2).filter(|number| targets & number != 0).map(target).collect(),
    })
}

impl World {
    fn new(concurrency: u32) -> Self {
        let mut world = Self {
            gate: Gate::new(Time::ZERO, 1, view(concurrency, 1)),
            now: Time::ZERO,
            concurrency,
            version: 1,
            targets: 1,
            sandboxes: BTreeMap::new(),
            closing: BTreeSet::new(),
            waiting: Vec::new(),
            bound: Vec::new(),
            attached: true,
            deleted: false,
            crash_loop: false,
            invocations: 0,
            arrivals: 0,
            finished: 0,
            busy_integral: 0,
            serial: 0,
            generations: BTreeMap::new(),
        };
        world.drain();
        world
    }

    fn id(&self, sandbox: u64) -> SandboxId {
        let generation = self.generations.get(&sandbox).copied().unwrap_or_default();
        SandboxId::new(Epoch(generation), sandbox)
    }

    fn is_target(&self, known: &Known) -> bool {
        !known.over && self.targets & known.revision != 0
    }

    fn is_free(&self, known: &Known) -> bool {
        self.is_target(known) && (self.concurrency == 0 || known.busy < known.held)
    }

    fn servers(&self) -> usize {
        self.sandboxes.values().filter(|known| self.is_target(known)).count()
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Admit => self.admit(Attempt::First),
            Step::Retry { pick } => {
                let known: Vec<SandboxId> = self.sandboxes.keys().copied().collect();
                if !known.is_empty() {
                    self.admit(Attempt::Retry { avoid: *pick.get(&known) });
                }
            }
            Step::Grant { sandbox, slots, pinned } => self.grant(sandbox, slots, pinned),
            Step::Finish { pick, how } => self.finish(&pick, how),
            Step::Leave { pick } => {
                if !self.waiting.is_empty() {
                    let (invocation, _) = self.waiting.remove(pick.index(self.waiting.len()));
                    self.handle(Event::Left { invocation });
                }
            }
            Step::Recall { n, idle_only } => self.recall(n, idle_only),
            Step::RecallSandbox { sandbox, gone } => {
                let sandbox = self.id(sandbox);
                if self.attached {
                    if let Some(known) = self.sandboxes.get_mut(&sandbox) {
                        known.over = true;
                    }
                    self.handle(Event::SandboxRecalled { sandbox, gone });
                }
            }
            Step::CrashLoop => {
                self.crash_loop = true;
                self.handle(Event::StatusChanged(Status::CrashLoop(StartFailure {
                    cause: Cause::Exited { code: 1 },
                    fault: Fault::Function,
                    log_tail: Vec::new(),
                })));
            }
            Step::Flow => {
                self.crash_loop = false;
                self.handle(Event::StatusChanged(Status::Flowing));
            }
            Step::Target { revisions } => {
                self.version += 1;
                // What is said after a deletion is that the store was restored, and has it again.
                self.deleted = false;
                self.targets = revisions;
                let view = view(self.concurrency, revisions);
                self.handle(Event::Configured { version: self.version, view });
            }
            Step::Attach => {
                self.attached = true;
                self.handle(Event::Attached);
            }
            Step::Detach => {
                self.attached = false;
                self.handle(Event::Detached);
            }
            Step::Pass { ms } => self.pass(Duration::from_millis(ms)),
            Step::Delete => {
                self.deleted = true;
                self.sandboxes.values_mut().for_each(|known| known.over = true);
                self.handle(Event::Deleted);
            }
        }
        self.check();
    }

    fn admit(&mut self, attempt: Attempt) {
        self.invocations += 1;
        let invocation = InvocationId(self.invocations);
        self.arrivals += u64::from(attempt == Attempt::First);
        match self.gate.admit(self.now, invocation, attempt) {
            Verdict::Bound(binding) => self.bind(invocation, binding.sandbox, attempt),
            Verdict::Queued => self.waiting.push((invocation, attempt)),
            Verdict::Refused(refusal) => {
                self.may_refuse(&refusal);
                if let Refusal::QueueFull { max_queue } = refusal {
                    assert_eq!((max_queue, attempt), (MAX_QUEUE, Attempt::First));
                    assert!(self.waiting.len() >= 6, "refused before the queue was full");
                }
            }
        }
        self.drain();
    }

    fn may_refuse(&self, refusal: &Refusal) {
        match refusal {
            Refusal::QueueFull { .. } => {}
            Refusal::CrashLoop(_) => {
                assert!(self.crash_loop && self.servers() == 0, "refused without a crash loop");
            }
            Refusal::Deleted => assert!(self.deleted, "refused as deleted"),
        }
    }

    fn grant(&mut self, sandbox: u64, slots: u32, pinned: bool) {
        if !self.attached {
            return;
        }
        self.serial += 1;
        let id = self.id(sandbox);
        let revision = if sandbox < 6 { 1 } else { 2 };
        // No more than a control plane would: in all at most the sandbox's concurrency.
        let have = self.sandboxes.get(&id).map_or(0, |known| known.held);
        let share = match self.concurrency {
            0 => Share::Open,
            concurrency => Share::Slots(slots.min(concurrency - have)),
        };
        if share == Share::Slots(0) {
            return;
        }
        let over = self.deleted;
        let fresh = Known { revision, held: 0, busy: 0, pinned, over, idle_since: self.now };
        let known = self.sandboxes.entry(id).or_insert(fresh);
        known.held = match share {
            Share::Open => 1,
            Share::Slots(slots) => known.held + slots,
        };
        known.pinned = pinned;
        known.idle_since = self.now;
        self.handle(Event::Granted(Box::new(Grant {
            sandbox: id,
            revision: RevisionId { function: FUNCTION, number: revision },
            address: Address::Tcp((Ipv4Addr::LOCALHOST, 20000).into()),
            protocol: Protocol::Http1,
            share,
            serial: Serial(self.serial),
            pinned,
            start: None,
        })));
    }

    fn finish(&mut self, pick: &Index, how: Finish) {
        if self.bound.is_empty() {
            return;
        }
        let (_, sandbox) = self.bound.remove(pick.index(self.bound.len()));
        let known = self.sandboxes.get_mut(&sandbox).expect("a busy sandbox is held");
        known.busy -= 1;
        known.idle_since = self.now;
        known.over |=
            how == Finish::Unreachable || (how == Finish::Abandoned && self.concurrency == 1);
        self.finished += 1;
        self.handle(Event::Finished { sandbox, how });
    }

    /// Recalled slots are given back or kept, at once if they are idle: each of them once.
    fn recall(&mut self, n: u32, idle_only: bool) {
        if !self.attached {
            return;
        }
        let idle = |known: &Known| match self.concurrency {
            0 => u32::from(known.busy == 0),
            _ => known.held - known.busy,
        };
        let idle: u32 = self.sandboxes.values().filter(|known| !known.over).map(idle).sum();
        self.gate.handle(self.now, Event::Recalled { n, idle_only });
        let (returned, kept) = self.drain();
        assert_eq!(returned, idle.min(n), "every idle slot that is wanted goes back");
        if idle_only {
            assert_eq!(returned + kept, n, "the rest is kept");
        } else {
            assert!(returned + kept <= n, "no slot is answered twice");
        }
        // Open ones that are busy go back when they are empty.
        for held in self.gate.holdings() {
            self.sandboxes.get_mut(&held.sandbox).expect("held").over |= held.draining;
        }
    }

    fn pass(&mut self, time: Duration) {
        let busy: u32 = self.sandboxes.values().map(|known| known.busy).sum();
        let until = self.now + time;
        while let Some(deadline) = self.gate.deadline().filter(|&at| at <= until) {
            assert!(deadline >= self.now || deadline + KEEP_ALIVE >= self.now, "long overdue");
            let at = deadline.max(self.now);
            self.busy_integral += u64::from(busy) * (at.0 - self.now.0);
            self.now = at;
            self.gate.expire(at);
            self.drain();
            assert!(self.gate.deadline() > Some(at) || self.gate.deadline().is_none(), "progress");
        }
        self.busy_integral += u64::from(busy) * (until.0 - self.now.0);
        self.now = until;
        for (sandbox, known) in &self.sandboxes {
            let idle = known.busy == 0 && !known.over && !known.pinned && self.attached;
            let overdue = idle && known.idle_since + KEEP_ALIVE <= self.now;
            assert!(!overdue, "{sandbox} is idle beyond its keep-alive");
        }
    }

    fn handle(&mut self, event: Event) {
        self.gate.handle(self.now, event);
        self.drain();
    }

    /// Takes the effects; says how many slots were returned and kept.
    fn drain(&mut self) -> (u32, u32) {
        let (mut returned, mut kept, mut demands) = (0, 0, 0);
        let mut closed = BTreeSet::new();
        while let Some(effect) = self.gate.poll_effect() {
            match effect {
                Effect::Bind { invocation, binding } => {
                    let attempt = self.answered(invocation);
                    self.bind(invocation, binding.sandbox, attempt);
                }
                Effect::Refuse { invocation, refusal } => {
                    self.answered(invocation);
                    self.may_refuse(&refusal);
                }
                Effect::Send(frame) => match frame {
                    FromDataPlane::Returned(what) => returned += self.returned(what),
                    FromDataPlane::Kept { n, .. } => kept += n,
                    FromDataPlane::Demand(demand) => {
                        demands += 1;
                        assert_eq!(demand, self.gate.demand(self.now), "it is not stale");
                    }
                    FromDataPlane::Applied { version, .. } => {
                        assert_eq!(version, self.version);
                    }
                    other => panic!("a gate does not say {other:?}"),
                },
                Effect::Close { sandbox } => {
                    assert!(!self.sandboxes.contains_key(&sandbox), "{sandbox} is still held");
                    assert!(closed.insert(sandbox), "closed twice");
                }
            }
        }
        assert!(demands <= 1, "the newest demand replaces those before");
        (returned, kept)
    }

    /// Who is answered waits, and no first attempt before it does.
    fn answered(&mut self, invocation: InvocationId) -> Attempt {
        let place = self.waiting.iter().position(|&(waiting, _)| waiting == invocation);
        let place = place.expect("only those who wait are answered, once");
        let (_, attempt) = self.waiting.remove(place);
        if attempt == Attempt::First {
            let overtaken = self.waiting[..place].iter().any(|&(_, a)| a == Attempt::First);
            assert!(!overtaken, "{invocation} overtook somebody");
        }
        attempt
    }

    fn bind(&mut self, invocation: InvocationId, sandbox: SandboxId, attempt: Attempt) {
        let known = self.sandboxes.get(&sandbox).expect("only what is held is bound");
        assert!(self.is_free(known), "{sandbox} was bound without a free slot");
        if attempt == (Attempt::Retry { avoid: sandbox }) {
            assert_eq!(self.servers(), 1, "{sandbox} was to be avoided");
        }
        self.sandboxes.get_mut(&sandbox).unwrap().busy += 1;
        self.bound.push((invocation, sandbox));
    }

    /// What goes back is idle, and counted.
    fn returned(&mut self, returned: Returned) -> u32 {
        assert!(self.attached, "without a stream nothing is given back");
        let again = self.closing.contains(&returned.sandbox);
        if again && !self.sandboxes.contains_key(&returned.sandbox) {
            // It may have been lost with the stream: it is said once more to the next leader.
            assert_eq!((returned.why, returned.serial.0), (WhyReturned::Closing, 0));
            return 0;
        }
        if returned.why == WhyReturned::Closing {
            self.closing.insert(returned.sandbox);
        }
        let known = self.sandboxes.get_mut(&returned.sandbox).expect("only what is held goes back");
        assert!(returned.serial.0 <= self.serial, "a serial that was given");
        if returned.why != WhyReturned::Idle {
            assert!(known.over && known.busy == 0, "it goes back whole, when it is empty");
        }
        let slots = match returned.share {
            Share::Open => {
                assert_eq!((known.busy, self.concurrency), (0, 0));
                known.held
            }
            Share::Slots(slots) => slots,
        };
        assert!(self.concurrency == 0 || slots <= known.held - known.busy, "a busy slot went back");
        known.held -= slots;
        if known.held == 0 {
            self.sandboxes.remove(&returned.sandbox);
            *self.generations.entry(returned.sandbox.counter).or_default() += 1;
        }
        slots
    }

    fn check(&self) {
        let demand = self.gate.demand(self.now);
        let busy: u32 = self.sandboxes.values().map(|known| known.busy).sum();
        let held: u32 = self.sandboxes.values().map(|known| known.held).sum();
        assert_eq!((demand.busy, demand.held), (busy, held));
        assert_eq!(demand.queued as usize, self.waiting.len());
        assert_eq!(demand.busy_integral, self.busy_integral);
        assert_eq!(demand.elapsed, self.now.0);
        assert_eq!((demand.arrivals_total, demand.finished_total), (self.arrivals, self.finished));
        assert!(self.waiting.len() <= 6 || self.waiting.iter().any(|w| w.1 != Attempt::First));

        let holdings = self.gate.holdings();
        assert_eq!(holdings.len(), self.sandboxes.len());
        for held in holdings {
            let known = &self.sandboxes[&held.sandbox];
            assert_eq!((held.busy, held.draining), (known.busy, known.over));
        }
        let free = self.sandboxes.values().any(|known| self.is_free(known));
        let first = self.waiting.iter().any(|&(_, attempt)| attempt == Attempt::First);
        assert!(!(free && first && !self.deleted), "somebody waits although a slot is free");
        assert!(self.waiting.is_empty() || !self.deleted, "somebody waits for what is deleted");
        let empty = self.sandboxes.is_empty() && self.waiting.is_empty();
        assert_eq!(self.gate.is_empty(), empty);
    }

    /// Whatever happened: once all is finished and recalled, nothing is left.
    fn end(mut self) {
        self.take(Step::Attach);
        while let Some(&(invocation, _)) = self.waiting.first() {
            self.waiting.remove(0);
            self.handle(Event::Left { invocation });
        }
        while !self.bound.is_empty() {
            let (_, sandbox) = self.bound.remove(0);
            self.sandboxes.get_mut(&sandbox).unwrap().busy -= 1;
            self.finished += 1;
            self.handle(Event::Finished { sandbox, how: Finish::Done });
        }
        self.recall(u32::MAX, true);
        self.check();
        assert!(self.gate.is_empty(), "{:?} is left", self.gate.holdings());
        self.pass(Duration::from_secs(2));
        assert_eq!(self.gate.deadline(), None, "an unused gate costs nothing");
    }
}

/// With so many slots in a sandbox.
pub(crate) fn play((concurrency, steps): (u32, Vec<Step>)) {
    let mut world = World::new(concurrency);
    for step in steps {
        world.take(step);
    }
    world.end();
}

proptest! {
    #[test]
    fn a_gate_keeps_its_promises(
        concurrency in prop_oneof![Just(0), Just(1), Just(3)],
        steps in prop::collection::vec(step(), 1..150),
    ) {
        play((concurrency, steps));
    }
}
