//! The gate of one function with `keep_alive = "auto"`, and a control plane that starts what is
//! queued or expected, in no time.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use crate::{
    Address, Epoch, FunctionId, FunctionView, InvocationId, KeepAlive, Protocol, RevisionId,
    RevisionView, SandboxId, Serial, Settings, StartPhases, Time,
    frame::{Demand, FromDataPlane, Grant, Share, WhyReturned},
    gate::{Attempt, Effect, Event, Finish, Gate, Verdict},
};

const FUNCTION: FunctionId = FunctionId::new(Epoch(1), 1);
const START: Duration = Duration::from_millis(175);
const MINUTE: Duration = Duration::from_secs(60);

fn view(keep_alive: KeepAlive, concurrency: u32) -> Arc<FunctionView> {
    Arc::new(FunctionView {
        id: FUNCTION,
        name: "f".parse().unwrap(),
        settings: Arc::new(Settings { keep_alive, ..Settings::default() }),
        targets: vec![RevisionView {
            id: RevisionId { function: FUNCTION, number: 1 },
            weight: 100,
            concurrency,
            protocol: Protocol::Http1,
        }],
    })
}

struct House {
    gate: Gate,
    now: Time,
    concurrency: u32,
    sandboxes: u64,
    invocations: u64,
    demand: Option<Demand>,
    bound: Vec<SandboxId>,
    /// The last one that an invocation ended in.
    used: Option<SandboxId>,
    given_back: Vec<SandboxId>,
    held: usize,
    /// Nanoseconds of sandboxes held.
    spent: u128,
}

impl House {
    fn new(concurrency: u32) -> Self {
        Self {
            gate: Gate::new(Time::ZERO, 1, view(KeepAlive::Auto, concurrency)),
            now: Time::ZERO,
            concurrency,
            sandboxes: 0,
            invocations: 0,
            demand: None,
            bound: Vec::new(),
            used: None,
            given_back: Vec::new(),
            held: 0,
            spent: 0,
        }
    }

    fn listen(&mut self) {
        while let Some(effect) = self.gate.poll_effect() {
            match effect {
                Effect::Bind { binding, .. } => self.bound.push(binding.sandbox),
                Effect::Send(FromDataPlane::Demand(demand)) => self.demand = Some(demand),
                Effect::Send(FromDataPlane::Returned(returned)) => {
                    assert_eq!(returned.why, WhyReturned::Idle);
                    self.given_back.push(returned.sandbox);
                    self.held -= 1;
                }
                Effect::Send(_) | Effect::Close { .. } => {}
                Effect::Refuse { refusal, .. } => panic!("{refusal:?}"),
            }
        }
    }

    fn until(&mut self, at: Time) {
        self.spent += self.held as u128 * at.since(self.now).as_nanos();
        self.now = at;
    }

    /// Lets time pass; what is expected is started.
    fn pass(&mut self, time: Duration) {
        let end = self.now.after(time);
        while let Some(at) = self.gate.deadline().filter(|at| *at <= end) {
            self.until(at.max(self.now));
            self.gate.expire(self.now);
            self.listen();
            while self.demand.as_ref().is_some_and(|d| d.expected > d.held) {
                self.grant();
            }
        }
        self.until(end);
    }

    fn grant(&mut self) {
        self.sandboxes += 1;
        self.held += 1;
        let grant = Grant {
            sandbox: SandboxId::new(Epoch(1), self.sandboxes),
            revision: RevisionId { function: FUNCTION, number: 1 },
            address: Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 20000))),
            protocol: Protocol::Http1,
            share: Share::Slots(self.concurrency),
            serial: Serial(self.sandboxes),
            pinned: false,
            start: Some(StartPhases { init: START, ..StartPhases::default() }),
        };
        self.gate.handle(self.now, Event::Granted(Box::new(grant)));
        self.listen();
        // What the gate says on a grant alone is told later.
        let now = self.now;
        self.demand = Some(self.gate.demand(now));
    }

    /// Calls at once, each for so long; how many of them had to wait for a start.
    fn call(&mut self, n: u64, runs: Duration) -> u64 {
        let mut cold: u64 = 0;
        for _ in 0..n {
            self.invocations += 1;
            let invocation = InvocationId(self.invocations);
            match self.gate.admit(self.now, invocation, Attempt::First) {
                Verdict::Bound(binding) => self.bound.push(binding.sandbox),
                Verdict::Queued => cold += 1,
                Verdict::Refused(refusal) => panic!("{refusal:?}"),
            }
        }
        self.listen();
        if cold > 0 {
            let started = cold.div_ceil(u64::from(self.concurrency));
            self.until(self.now.after(START));
            (0..started).for_each(|_| self.grant());
        }
        self.until(self.now.after(runs));
        for sandbox in std::mem::take(&mut self.bound) {
            self.used = Some(sandbox);
            self.gate.handle(self.now, Event::Finished { sandbox, how: Finish::Done });
        }
        self.listen();
        cold
    }
}

#[test]
fn what_is_called_by_a_timer_is_let_go_and_started_ahead() {
    let mut house = House::new(1);
    let mut cold = 0;
    for round in 0..300 {
        if round == 200 {
            (cold, house.spent) = (0, 0);
        }
        cold += house.call(1, Duration::from_millis(10));
        house.pass(5 * MINUTE);
    }
    assert_eq!(cold, 0, "every call found a sandbox");
    let share = house.spent as f64 / (100.0 * 300e9);
    assert!((0.01..0.3).contains(&share), "held {share} of the time");
}

#[test]
fn what_comes_often_is_held_between_calls_and_goes_when_calls_end() {
    let mut house = House::new(1);
    let cold: u64 = (0..100)
        .map(|_| {
            let cold = house.call(1, Duration::from_millis(50));
            house.pass(Duration::from_secs(20));
            cold
        })
        .sum();
    assert_eq!(cold, 1);
    house.pass(Duration::from_secs(10 * 3600));
    assert_eq!((house.given_back.len(), house.held), (1, 0));
    assert_eq!(house.gate.deadline(), None, "and nothing is planned any more");
    assert!(house.gate.is_empty());
}

#[test]
fn the_longest_idle_of_a_burst_go_first_and_one_by_one() {
    let mut house = House::new(1);
    for _ in 0..50 {
        house.call(1, Duration::from_millis(100));
        house.pass(Duration::from_secs(5));
    }
    let before = house.held;
    house.call(8, Duration::from_millis(100));
    assert_eq!(house.held, 8);
    // Nothing is known of eight at once, and one call at a time goes on.
    for _ in 0..2000 {
        house.call(1, Duration::from_millis(100));
        house.pass(Duration::from_secs(5));
    }
    assert!(house.held < 8 && house.held >= before, "{} held", house.held);
    let used = house.used.unwrap();
    assert!(!house.given_back.contains(&used), "{used} is the one in use all the time");
}

#[test]
fn ranks_are_sandboxes_not_invocations() {
    let mut house = House::new(10);
    let cold = house.call(10, Duration::from_millis(20));
    assert_eq!((cold, house.held), (10, 1), "ten share one");
    house.pass(Duration::from_millis(100));
    assert_eq!(house.call(7, Duration::from_millis(20)), 0);
    house.pass(Duration::from_secs(10 * 3600));
    assert_eq!((house.given_back.len(), house.held), (1, 0));
}

#[test]
fn settings_change_between_learned_and_told() {
    let mut house = House::new(1);
    house.call(1, Duration::from_millis(20));
    let fixed = view(MINUTE.into(), 1);
    house.gate.handle(house.now, Event::Configured { version: 2, view: fixed });
    house.pass(MINUTE - Duration::from_nanos(1));
    assert_eq!(house.held, 1);
    house.pass(Duration::from_nanos(1));
    assert_eq!(house.held, 0);

    house.call(1, Duration::from_millis(20));
    let auto = view(KeepAlive::Auto, 1);
    house.gate.handle(house.now, Event::Configured { version: 3, view: auto });
    assert!(house.gate.deadline().is_some(), "it does not stay for ever");
    house.pass(Duration::from_secs(10 * 3600));
    assert_eq!(house.held, 0);
}

#[test]
fn nothing_is_expected_any_more_once_idle_ones_are_wanted_elsewhere() {
    let mut house = House::new(1);
    for _ in 0..200 {
        house.call(1, Duration::from_millis(10));
        house.pass(5 * MINUTE);
    }
    let started = house.sandboxes;
    house.call(1, Duration::from_millis(10));
    house.gate.handle(house.now, Event::Recalled { n: 1, idle_only: true });
    house.listen();
    house.pass(10 * MINUTE);
    assert_eq!((house.held, house.sandboxes), (0, started));
}
