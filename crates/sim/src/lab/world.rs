//! One function in simulated time, under one policy, with machines for everything it wants.
//!
//! Functions do not meet: a sandbox starts as fast for one as for a hundred. What a policy may not
//! choose is a property of the world: when a call is bound to a sandbox, whether there is a tick,
//! and what becomes of a call for which nothing is free.
//!
//! Integer nanoseconds; events at one time happen in the order in which they were put.

mod early;
mod sandboxes;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    time::Duration,
};

use dirigent_core::{
    Time,
    policy::{
        random::Pcg,
        scaling::{Ahead, Hold, Levels, Scaling, Wanted},
    },
};

use super::{
    calls::{Call, StartTime, nanos},
    measure::{Felt, Meter},
};
use sandboxes::Sandboxes;

/// When a call is bound to a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// When a slot is free: one queue.
    Late,
    /// At once to one of those there are; who waits for so long chooses anew.
    Early {
        /// How long it waits for the chosen one.
        again: Duration,
    },
}

/// Who goes when there are more than wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// Those idle longest; busy ones are never asked.
    Idle,
    /// Any; a busy one goes when its call has ended.
    Any,
}

/// What becomes of a call for which nothing is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excess {
    /// It waits.
    Queues,
    /// It gets a sandbox of its own, for this call only. The policy hears of it only while the
    /// median time between arrivals is below this.
    SingleUse {
        /// See above.
        report_below: Duration,
    },
}

/// What is not the policy's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// When calls are bound.
    pub binding: Binding,
    /// The policy is asked at this interval as long as there is a sandbox or a call.
    pub tick: Option<Duration>,
    /// Who goes.
    pub victim: Victim,
    /// Calls for which nothing is free.
    pub excess: Excess,
}

impl Rules {
    /// As Dirigent works: late binding, no tick.
    pub const OURS: Self =
        Self { binding: Binding::Late, tick: None, victim: Victim::Idle, excess: Excess::Queues };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    /// A sandbox's call has ended.
    Done {
        sandbox: u32,
    },
    /// A sandbox is ready.
    Ready {
        sandbox: u32,
    },
    /// An idle sandbox may have reached its end.
    Release {
        sandbox: u32,
    },
    /// A start for a call that is expected may be due.
    Ahead {
        rank: u32,
    },
    /// Early binding: the call chooses anew.
    Choose {
        call: u32,
        round: u32,
    },
    /// A single-use sandbox has done its call, of which the policy was told or not.
    Spent {
        told: bool,
    },
    Tick,
}

/// A start that is planned for a rank.
#[derive(Clone, Copy, Debug, Default)]
struct Plan {
    /// From when until when, if it still stands.
    due: Option<(u64, u64)>,
    /// The entry in the agenda that will look at it.
    alarm: Option<u64>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct World<'a> {
    rules: Rules,
    start: StartTime,
    calls: &'a [Call],
    next: usize,
    now: u64,
    number: u64,
    agenda: BinaryHeap<Reverse<(u64, u64, What)>>,
    policy: Box<dyn Scaling>,
    random: Pcg,
    sandboxes: Sandboxes,
    queue: VecDeque<u32>,
    plans: Vec<Plan>,
    ticking: bool,
    /// Single-use sandboxes: those that run and those that start.
    single: u32,
    /// Of those, the ones that the policy hears of.
    reported: u32,
    gaps: early::Gaps,
    rounds: Vec<u32>,
    meter: Meter,
}

impl<'a> World<'a> {
    /// A function before its first call.
    pub(crate) fn new(
        calls: &'a [Call],
        policy: Box<dyn Scaling>,
        rules: Rules,
        start: StartTime,
        random: Pcg,
        meter: Meter,
    ) -> Self {
        let early = matches!(rules.binding, Binding::Early { .. });
        Self {
            rules,
            start,
            calls,
            next: 0,
            now: 0,
            number: 0,
            agenda: BinaryHeap::new(),
            policy,
            random,
            sandboxes: Sandboxes::default(),
            queue: VecDeque::new(),
            plans: Vec::new(),
            ticking: false,
            single: 0,
            reported: 0,
            gaps: early::Gaps::default(),
            rounds: if early { vec![0; calls.len()] } else { Vec::new() },
            meter,
        }
    }

    /// Runs until everything measured has ended.
    pub(crate) fn run(mut self) -> Felt {
        loop {
            let arrival = self.calls.get(self.next).map(|call| call.at);
            let event = self.agenda.peek().map(|Reverse((at, ..))| *at);
            let at = match (arrival, event) {
                (Some(arrival), Some(event)) => arrival.min(event),
                (Some(at), None) | (None, Some(at)) => at,
                (None, None) => break,
            };
            // What happens after the last minute is measured only as far as calls that came in it.
            if at > self.meter.end() && self.meter.unanswered() == 0 {
                break;
            }
            self.meter.pass(at, self.sandboxes.count() + self.single, self.sandboxes.busy());
            self.now = at;
            // What ends at the moment of an arrival makes room for it.
            if event.is_some_and(|event| event <= at) {
                if let Some(Reverse((_, _, what))) = self.agenda.pop() {
                    self.happen(what);
                }
            } else {
                self.arrive();
            }
        }
        self.meter.close(self.sandboxes.count() + self.single, self.sandboxes.busy())
    }

    fn levels(&self) -> Levels {
        Levels {
            now: Time(self.now),
            queued: u32::try_from(self.queue.len()).unwrap_or(u32::MAX) + self.sandboxes.waiting(),
            busy: self.sandboxes.busy() + self.reported,
            idle: self.sandboxes.idle(),
            starting: self.sandboxes.starting(),
        }
    }

    fn put(&mut self, at: u64, what: What) {
        self.number += 1;
        self.agenda.push(Reverse((at, self.number, what)));
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Done { sandbox } => self.done(sandbox),
            What::Ready { sandbox } => self.ready(sandbox),
            What::Release { sandbox } => self.release(sandbox),
            What::Ahead { rank } => self.start_ahead(rank),
            What::Choose { call, round } => self.choose_anew(call, round),
            What::Spent { told } => self.spent(told),
            What::Tick => self.tick(),
        }
    }

    fn arrive(&mut self) {
        let call = u32::try_from(self.next).unwrap_or(u32::MAX);
        self.next += 1;
        self.meter.came(self.now);
        if let Some(tick) = self.rules.tick
            && !self.ticking
        {
            self.ticking = true;
            self.put(self.now + nanos(tick), What::Tick);
        }
        if self.rules.excess != Excess::Queues {
            self.gaps.arrived(self.now);
        }
        match (self.rules.binding, self.rules.excess) {
            _ if self.sandboxes.idle() > 0 => self.bind_idle(call),
            (_, Excess::SingleUse { report_below }) => self.serve_once(call, report_below),
            (Binding::Early { again }, _) if self.sandboxes.ready() > 0 => {
                self.choose(call, again);
            }
            (Binding::Early { .. } | Binding::Late, _) => self.queue.push_back(call),
        }
        let levels = self.levels();
        // The ranks that are needed now need no start ahead any more.
        let needed = usize::try_from(levels.present()).unwrap_or(usize::MAX).min(self.plans.len());
        if let Some(plan) = needed.checked_sub(1).and_then(|index| self.plans.get_mut(index)) {
            plan.due = None;
        }
        self.policy.arrived(&levels);
        if levels.queued > 0 {
            let wanted = self.policy.starts(&levels);
            for _ in levels.starting..wanted {
                self.begin_start(None);
            }
        }
    }

    fn bind_idle(&mut self, call: u32) {
        let idle = match self.rules.binding {
            Binding::Late => self.sandboxes.latest_idle(),
            Binding::Early { .. } => self.sandboxes.first_idle(),
        };
        match idle {
            Some(sandbox) => self.bind(call, sandbox),
            None => self.queue.push_back(call),
        }
    }

    /// An idle sandbox runs the call.
    fn bind(&mut self, call: u32, sandbox: u32) {
        let Some(&Call { at, runs }) = self.calls.get(call as usize) else { return };
        let fresh = self.sandboxes.begin(sandbox, call, self.now);
        let cold = fresh && self.now > at;
        self.meter.bound(at, self.now, runs, cold);
        self.put(self.now + runs, What::Done { sandbox });
    }

    fn begin_start(&mut self, until: Option<u64>) {
        let takes = self.start.draw(&mut self.random);
        let sandbox = self.sandboxes.start(self.now, until);
        self.meter.started(self.now);
        self.put(self.now + takes, What::Ready { sandbox });
    }

    fn done(&mut self, sandbox: u32) {
        let call = self.sandboxes.end(sandbox).and_then(|call| self.calls.get(call as usize));
        let ran = Duration::from_nanos(call.map_or(0, |call| call.runs));
        if self.sandboxes.is_leaving(sandbox) {
            self.remove(sandbox);
            let levels = self.levels();
            self.policy.finished(&levels, ran);
            return;
        }
        self.sandboxes.free(sandbox, self.now);
        let served = self.serve(sandbox);
        let levels = self.levels();
        self.policy.finished(&levels, ran);
        if !served {
            self.idled(sandbox, levels.busy + 1);
        }
    }

    /// The next in line has the free sandbox, if somebody waits.
    fn serve(&mut self, sandbox: u32) -> bool {
        let next = match self.rules.binding {
            Binding::Late => self.queue.pop_front(),
            Binding::Early { .. } => self.sandboxes.next_waiting(sandbox),
        };
        if let Some(call) = next {
            self.bind(call, sandbox);
        }
        next.is_some()
    }

    fn ready(&mut self, sandbox: u32) {
        let (since, until) = self.sandboxes.ready_now(sandbox, self.now);
        if let Binding::Early { again } = self.rules.binding {
            // Everybody who waited for the first one chooses among those there are now.
            while let Some(call) = self.queue.pop_front() {
                self.choose(call, again);
            }
        } else {
            self.serve(sandbox);
        }
        let levels = self.levels();
        self.policy.started(&levels, Duration::from_nanos(self.now - since));
        if self.sandboxes.is_idle(sandbox) {
            match until {
                Some(until) => self.keep_until(sandbox, until.max(self.now)),
                None => self.idled(sandbox, levels.busy + levels.idle),
            }
        }
    }

    /// A sandbox has nothing to do: the policy says for how long that is well.
    fn idled(&mut self, sandbox: u32, rank: u32) {
        let levels = self.levels();
        let Hold { keep, ahead } = self.policy.hold(&levels, rank);
        self.keep_until(sandbox, self.now.saturating_add(nanos(keep)));
        if let Some(Ahead { from, until }) = ahead {
            let index = rank.max(1) as usize - 1;
            if self.plans.len() <= index {
                self.plans.resize(index + 1, Plan::default());
            }
            let at = self.now.saturating_add(nanos(from));
            let until = self.now.saturating_add(nanos(until));
            let Some(plan) = self.plans.get_mut(index) else { return };
            plan.due = Some((at, until));
            if plan.alarm.is_none_or(|alarm| alarm > at) {
                plan.alarm = Some(at);
                self.put(at, What::Ahead { rank });
            }
        }
    }

    fn keep_until(&mut self, sandbox: u32, at: u64) {
        // Those kept for ever need no entry.
        if self.sandboxes.keep_until(sandbox, at) && at < self.meter.end() {
            self.put(at, What::Release { sandbox });
        }
    }

    fn release(&mut self, sandbox: u32) {
        match self.sandboxes.due(sandbox, self.now) {
            sandboxes::Due::Now => self.remove(sandbox),
            sandboxes::Due::Later(at) => self.put(at, What::Release { sandbox }),
            sandboxes::Due::Never => {}
        }
    }

    fn remove(&mut self, sandbox: u32) {
        let waited = self.sandboxes.remove(sandbox);
        self.send_elsewhere(waited);
    }

    fn send_elsewhere(&mut self, calls: Vec<u32>) {
        if let Binding::Early { again } = self.rules.binding {
            for call in calls {
                self.choose(call, again);
            }
        }
    }

    fn start_ahead(&mut self, rank: u32) {
        let Some(plan) = self.plans.get_mut(rank.max(1) as usize - 1) else { return };
        plan.alarm = None;
        let Some((at, until)) = plan.due else { return };
        if at > self.now {
            plan.alarm = Some(at);
            self.put(at, What::Ahead { rank });
            return;
        }
        plan.due = None;
        if self.levels().sandboxes() < rank {
            self.begin_start(Some(until));
        } else if let Some(sandbox) = self.sandboxes.latest_idle() {
            let until = self.sandboxes.kept_until(sandbox).max(until);
            self.keep_until(sandbox, until);
        }
    }

    fn tick(&mut self) {
        let levels = self.levels();
        if let Some(wanted) = self.policy.tick(&levels) {
            self.follow(wanted);
        }
        // With nothing there and nobody waiting the next call begins it anew.
        let levels = self.levels();
        self.ticking = levels.sandboxes() > 0 || levels.queued > 0 || self.single > 0;
        if let Some(tick) = self.rules.tick.filter(|_| self.ticking) {
            self.put(self.now + nanos(tick), What::Tick);
        }
    }

    fn follow(&mut self, Wanted { at_least, at_most }: Wanted) {
        let have = self.sandboxes.staying();
        for _ in have..at_least {
            self.begin_start(None);
        }
        for _ in at_most..have {
            let victim = match self.rules.victim {
                Victim::Idle => self.sandboxes.longest_idle(),
                Victim::Any => self.sandboxes.any(&mut self.random),
            };
            let Some(sandbox) = victim else { break };
            if self.sandboxes.is_idle(sandbox) {
                self.remove(sandbox);
            } else {
                let waited = self.sandboxes.leave(sandbox);
                self.send_elsewhere(waited);
            }
        }
    }
}

#[cfg(test)]
mod tests;
