//! The gate of one function in one data plane: its queue and the slots it holds. The hot path.
//!
//! It is called under a short lock by the task of the connection, so that a warm invocation never
//! hops between tasks: `admit` takes a free slot without searching or allocating, `Finished` gives
//! it back or binds the next in the queue to it. It decides *which* sandbox serves, which is given
//! back, and when one has been idle for too long; the control plane decides *how many* there are.
//!
//! Decided here:
//! - Among free slots the most recently used sandbox serves, so that the others age; without a
//!   limit (`Share::Open`) the least busy one, among equals the most recently used.
//! - A retry avoids the sandbox that failed it as long as any other is held that could serve it,
//!   waiting for a slot of that one if need be; those behind it in the queue do not wait for that.
//! - With `keep_alive = "auto"` how long an idle sandbox is kept, and whether one is expected to be
//!   needed, is learned here from the calls.
//! - In a crash loop only those are refused who would wait for a start: while a sandbox that
//!   serves is held, invocations are bound to it and wait for it.
//! - What cannot be said is not done: without a control plane nothing is given back; what is due
//!   goes back at the next attachment. A recall by number ends with its stream.
//! - Callers read the clock before they take the lock: time never runs backwards inside.
//!
//! Refused: deadlines of invocations (their own tasks keep them, and say `Left`), retries' number,
//! connections.
//!
//! Invariant: whoever waits could not be bound to any free slot.

mod event;
mod held;
mod learned;
mod queue;
#[cfg(test)]
mod tests;

pub use event::{Attempt, Binding, Effect, Event, Finish, Refusal, Verdict};

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use crate::{
    FunctionView, InvocationId, KeepAlive, RevisionId, SandboxId, Serial, StartPhases, Time,
    frame::{Demand, FromDataPlane, Grant, Holding, Returned, Share, Status, WhyReturned},
};

use held::{Holdings, Stage};
use learned::Learned;
use queue::{Queue, Waiting};

/// While invocations run, the demand is told so often; it is cumulative, so nothing is lost between.
const DEMAND_EVERY: Duration = Duration::from_secs(1);

/// While a queue that was told of changes, it is told so often: more would only keep the control
/// plane busy with a function that is at its maximum. What matters for a start, the first who waits
/// and a queue twice as long, is told at once.
const QUEUE_EVERY: Duration = Duration::from_millis(1);

/// What was said so long ago on a stream that is still up has arrived: a stream without progress is
/// given up after 10 s.
const ARRIVED: Duration = Duration::from_secs(30);
/// So many sandboxes given back as `Closing` are remembered.
const CLOSING: usize = 1000;

/// See the module.
#[derive(Debug)]
pub struct Gate {
    view: Arc<FunctionView>,
    version: u64,
    status: Status,
    deleted: bool,
    attached: bool,
    holdings: Holdings,
    queue: Queue,
    /// Slots still to be given back as they become free.
    owed: u32,
    /// The control plane asked for slots that were in use: it hears as soon as one is idle.
    sought: bool,
    /// Given back as `Closing` not long ago: if the stream breaks, that may have been lost with it,
    /// and nobody else knows that a handler may still run there.
    closing: BTreeMap<SandboxId, Closing>,
    effects: VecDeque<Effect>,
    telling: Telling,
    /// With `keep_alive = "auto"`.
    learned: Option<Box<Learned>>,
    born: Time,
    now: Time,
    /// Of busy nanoseconds, up to `now`. It wraps, so that differences stay exact.
    busy_integral: u64,
    arrivals: u64,
    finished: u64,
}

/// A sandbox given back because a handler may still run in it.
#[derive(Clone, Copy, Debug)]
struct Closing {
    returned: Returned,
    revision: RevisionId,
    at: Time,
}

/// When the demand is told.
#[derive(Debug, Default)]
struct Telling {
    /// It is to be told; it is made when it is polled, so that it is never stale.
    due: bool,
    /// Something changed since it was last told.
    changed: bool,
    /// The queue did.
    queue_changed: bool,
    /// How many waited when it was last told.
    queued: u32,
    /// How many slots were expected to be needed then.
    expected: u32,
    last: Option<Time>,
}

impl Gate {
    /// A gate for a function just resolved, with nothing held.
    #[must_use]
    pub fn new(now: Time, version: u64, view: Arc<FunctionView>) -> Self {
        let mut gate = Self {
            holdings: Holdings::new(&view.targets),
            view,
            version,
            status: Status::Flowing,
            deleted: false,
            attached: true,
            queue: Queue::default(),
            owed: 0,
            sought: false,
            closing: BTreeMap::new(),
            effects: VecDeque::new(),
            telling: Telling::default(),
            learned: None,
            born: now,
            now,
            busy_integral: 0,
            arrivals: 0,
            finished: 0,
        };
        gate.learn_or_not();
        gate.applied();
        gate
    }

    /// An invocation asks for a slot.
    pub fn admit(&mut self, now: Time, invocation: InvocationId, attempt: Attempt) -> Verdict {
        self.advance(now);
        self.telling.changed = true;
        let avoid = match attempt {
            Attempt::First => {
                self.arrivals += 1;
                None
            }
            Attempt::Retry { avoid } => Some(avoid),
        };
        let verdict = self.verdict(invocation, avoid);
        if !matches!(verdict, Verdict::Refused(_))
            && let Some(mut learned) = self.learned.take()
        {
            let present = self.ranks_in_use();
            match attempt {
                Attempt::First => learned.arrived(self.now, present),
                Attempt::Retry { .. } => learned.settled(self.now, present),
            }
            self.learned = Some(learned);
        }
        self.tell_demand_if_due();
        self.check();
        verdict
    }

    /// The world says something.
    pub fn handle(&mut self, now: Time, event: Event) {
        self.advance(now);
        let came = if let Event::Granted(grant) = &event {
            Some(grant.start.as_ref().map(StartPhases::again))
        } else {
            None
        };
        match event {
            Event::Configured { version, view } => self.configured(version, view),
            Event::Deleted => self.delete(),
            Event::Granted(grant) => self.granted(&grant),
            Event::Recalled { n, idle_only } => self.recalled(n, idle_only),
            Event::SandboxRecalled { sandbox, gone } => {
                if let Some(at) = self.holdings.find(sandbox) {
                    let why = if gone { WhyReturned::Unreachable } else { WhyReturned::Drained };
                    self.leave(at, why);
                }
            }
            Event::StatusChanged(status) => self.status = status,
            Event::Finished { sandbox, how } => self.finished(sandbox, how),
            Event::Left { invocation } => self.left(invocation),
            Event::Attached => self.attach(),
            Event::Detached => {
                self.attached = false;
                self.telling.due = false;
                self.owed = 0;
                self.sought = false;
            }
        }
        self.settle();
        self.learn(came);
        self.tell_demand_if_due();
        self.check();
    }

    /// A deadline may have passed.
    pub fn expire(&mut self, now: Time) {
        self.advance(now);
        self.expire_idle();
        self.settle();
        self.tell_demand_if_due();
        self.check();
    }

    /// When to call `expire`. It moves to later times with almost every invocation: a timer that
    /// still fires at an earlier one does no harm.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        if !self.attached {
            return None;
        }
        let idle = self.holdings.longest_idle().and_then(|(at, since)| self.goes_at(at, since));
        let demand = (self.telling.changed || self.holdings.busy() > 0).then(|| self.demand_due());
        let ahead = self.learned.as_deref().and_then(|learned| learned.expects_at(self.now));
        idle.into_iter().chain(demand).chain(ahead).min()
    }

    /// For how long after the last invocation what is known of the function is worth keeping,
    /// although nothing is held.
    #[must_use]
    pub fn remembers_for(&self) -> Duration {
        self.learned.as_ref().map_or(Duration::ZERO, |_| Learned::lasts())
    }

    /// What to do, in order.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        if let Some(effect) = self.effects.pop_front() {
            return Some(effect);
        }
        std::mem::take(&mut self.telling.due).then(|| {
            let demand = self.demand(self.now);
            self.sought &= demand.queued > 0 || demand.idle == 0;
            Effect::Send(FromDataPlane::Demand(demand))
        })
    }

    /// The function as last configured.
    #[must_use]
    pub fn view(&self) -> &Arc<FunctionView> {
        &self.view
    }

    /// Why invocations wait, as last told: decides the code when a queue deadline passes.
    #[must_use]
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// Whether nothing is held, queued or bound, so that the gate may be dropped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.holdings.is_empty() && self.queue.is_empty()
    }

    /// What is held.
    #[must_use]
    pub fn holdings(&self) -> Vec<Holding> {
        self.holdings
            .iter()
            .map(|(_, held)| Holding {
                sandbox: held.sandbox,
                revision: held.revision,
                share: held.share(),
                busy: held.busy,
                draining: held.stage != Stage::Serving,
                pinned: held.pinned,
            })
            .collect()
    }

    /// What the data plane's `Hello` says of this function: what is held, and what was given back
    /// as `Closing` so lately that it may have been lost with the stream. That is claimed until it
    /// is given back once more, after the `Hello`.
    #[must_use]
    pub fn claims(&self) -> Vec<Holding> {
        let mut claims = self.holdings();
        claims.extend(self.closing.values().map(|closing| Holding {
            sandbox: closing.returned.sandbox,
            revision: closing.revision,
            share: closing.returned.share,
            busy: 0,
            draining: true,
            pinned: false,
        }));
        claims
    }

    /// The demand as of now.
    #[must_use]
    pub fn demand(&self, now: Time) -> Demand {
        let now = now.max(self.now);
        Demand {
            function: self.view.id,
            queued: count(self.queue.len()),
            oldest_wait: self.queue.oldest().map_or(Duration::ZERO, |since| now - since),
            held: self.holdings.held(),
            idle: self.holdings.idle(),
            busy: self.holdings.busy(),
            busy_integral: self.busy_until(now),
            elapsed: now.0.saturating_sub(self.born.0),
            arrivals_total: self.arrivals,
            finished_total: self.finished,
            expected: self.expected(),
        }
    }

    fn verdict(&mut self, invocation: InvocationId, avoid: Option<SandboxId>) -> Verdict {
        // Those who wait could not be bound to any free slot, so nobody is overtaken here.
        if !self.deleted
            && let Some(at) = self.slot_for(avoid)
        {
            return Verdict::Bound(self.bind(at));
        }
        if let Some(refusal) = self.refusal() {
            return Verdict::Refused(refusal);
        }
        let max_queue = self.view.settings.max_queue;
        if avoid.is_none() && count(self.queue.len()) >= max_queue {
            return Verdict::Refused(Refusal::QueueFull { max_queue });
        }
        self.queue.push(Waiting { invocation, avoid, since: self.now });
        self.tell_queue();
        Verdict::Queued
    }

    /// Why nobody may wait now.
    fn refusal(&self) -> Option<Refusal> {
        if self.deleted {
            return Some(Refusal::Deleted);
        }
        match &self.status {
            Status::CrashLoop(failure) if self.holdings.bindable() == 0 => {
                Some(Refusal::CrashLoop(failure.clone()))
            }
            Status::CrashLoop(_)
            | Status::Flowing
            | Status::AtMax
            | Status::NoCapacity
            | Status::NotReady
            | Status::StartFailed(_) => None,
        }
    }

    /// A free slot for an attempt that avoids a sandbox, or does not.
    fn slot_for(&mut self, avoid: Option<SandboxId>) -> Option<usize> {
        let avoid = avoid.and_then(|sandbox| self.holdings.find(sandbox));
        self.holdings.pick(avoid).or_else(|| {
            let only = avoid.filter(|&at| self.holdings.is_bindable(at))?;
            (self.holdings.bindable() == 1).then_some(())?;
            self.holdings.pick(None).inspect(|&at| debug_assert_eq!(at, only))
        })
    }

    fn bind(&mut self, at: usize) -> Binding {
        self.holdings.bind(at);
        let start = self.holdings.take_start(at);
        let held = self.holdings.at(at);
        Binding {
            sandbox: held.sandbox,
            revision: held.revision,
            address: Arc::clone(&held.address),
            protocol: held.protocol,
            start,
        }
    }

    /// After any event: binds or refuses those who wait, as far as it goes.
    fn settle(&mut self) {
        if !self.queue.is_empty() {
            self.serve_queue();
            if let Some(refusal) = self.refusal() {
                while let Some(Waiting { invocation, .. }) = self.queue.pop() {
                    self.effects.push_back(Effect::Refuse { invocation, refusal: refusal.clone() });
                }
            }
            if self.queue.is_empty() {
                self.tell_queue();
            }
        }
        if self.sought && self.queue.is_empty() && self.holdings.idle() > 0 {
            self.tell_demand();
        }
    }

    /// After any event: what is to be learned of it, and of a grant the time of the sandbox's start.
    fn learn(&mut self, came: Option<Option<Duration>>) {
        let Some(mut learned) = self.learned.take() else { return };
        learned.served(self.finished, self.busy_integral, self.holdings.busy());
        learned.settled(self.now, self.ranks_in_use());
        if let Some(took) = came {
            learned.came(self.now, self.ranks(), took);
        }
        self.learned = Some(learned);
    }

    /// As the settings say.
    fn learn_or_not(&mut self) {
        match self.view.settings.keep_alive {
            KeepAlive::For(_) => self.learned = None,
            KeepAlive::Auto if self.learned.is_none() => {
                let mut learned = Learned::new(self.finished, self.busy_integral);
                learned.begin(self.now, self.ranks_in_use(), self.ranks());
                self.learned = Some(Box::new(learned));
            }
            KeepAlive::Auto => {}
        }
    }

    /// Sandboxes that invocations can be bound to.
    fn ranks(&self) -> u32 {
        count(self.holdings.bindable())
    }

    /// Of those, how many are enough for the invocations in the house.
    fn ranks_in_use(&self) -> u32 {
        let present = count(self.queue.len()).saturating_add(self.holdings.busy());
        match self.concurrency() {
            0 => present.min(1),
            concurrency => present.div_ceil(concurrency),
        }
    }

    fn concurrency(&self) -> u32 {
        self.view.targets.iter().find(|target| target.weight > 0).map_or(1, |t| t.concurrency)
    }

    /// Slots wanted in all for what is expected; 0 if there are sandboxes enough.
    fn expected(&self) -> u32 {
        let Some(learned) = self.learned.as_deref() else { return 0 };
        let sandboxes = learned.expected(self.now);
        if sandboxes <= self.ranks() {
            return 0;
        }
        sandboxes.saturating_mul(self.concurrency().max(1))
    }

    fn serve_queue(&mut self) {
        while let Some((invocation, at)) = self.next_match() {
            self.queue.remove(invocation);
            // How long the next one has waited decides whose slot the next one is.
            self.telling.queue_changed = true;
            let binding = self.bind(at);
            self.effects.push_back(Effect::Bind { invocation, binding });
        }
    }

    /// The first who waits and can be bound. Only retries can stand in front without being it, and
    /// only while the sandbox that they avoid is the only free one.
    fn next_match(&mut self) -> Option<(InvocationId, usize)> {
        if self.deleted {
            return None;
        }
        let mut tried = None;
        for one in self.queue.iter() {
            if one.avoid.is_some() && one.avoid == tried {
                continue;
            }
            let avoid = one.avoid.and_then(|sandbox| self.holdings.find(sandbox));
            let others = self.holdings.bindable() > 1;
            let avoid = avoid.filter(|&at| others && self.holdings.is_bindable(at));
            if let Some(at) = self.holdings.pick(avoid) {
                return Some((one.invocation, at));
            }
            avoid?;
            tried = one.avoid;
        }
        None
    }

    fn configured(&mut self, version: u64, view: Arc<FunctionView>) {
        let is_old = if self.deleted { version <= self.version } else { version < self.version };
        if is_old || view.id != self.view.id {
            return;
        }
        // The store was restored from a copy in which it is not deleted.
        self.deleted = false;
        if view.targets != self.view.targets {
            self.holdings.retarget(&view.targets);
        }
        self.view = view;
        self.version = version;
        self.telling.changed = true;
        self.learn_or_not();
        self.applied();
    }

    fn applied(&mut self) {
        let (function, version) = (self.view.id, self.version);
        self.effects.push_back(Effect::Send(FromDataPlane::Applied { function, version }));
    }

    fn delete(&mut self) {
        self.deleted = true;
        let all: Vec<usize> = self.holdings.iter().map(|(at, _)| at).collect();
        for at in all {
            self.leave(at, WhyReturned::Drained);
        }
    }

    fn granted(&mut self, grant: &Grant) {
        if grant.share == Share::Slots(0) {
            return;
        }
        self.telling.changed = true;
        self.closing.remove(&grant.sandbox);
        let known = self.view.targets.iter().find(|target| target.id == grant.revision);
        // Without knowing better, one slot is taken for all there is: a sandbox recycled for
        // nothing costs less than an invocation beside an abandoned one.
        let concurrency = known.map_or_else(
            || match grant.share {
                Share::Slots(slots) => slots,
                Share::Open => 0,
            },
            |view| view.concurrency,
        );
        let at = self.holdings.grant(self.now, grant, concurrency);
        self.owed = self.owed.min(self.holdings.busy_serving());
        match self.holdings.at(at).stage {
            Stage::Serving if self.deleted => self.leave(at, WhyReturned::Drained),
            Stage::Leaving(why) => self.leave(at, why),
            Stage::Serving => {}
        }
    }

    /// Slots are wanted back by number: whole idle sandboxes first, so that they can stop.
    fn recalled(&mut self, n: u32, idle_only: bool) {
        if let Some(learned) = self.learned.as_deref_mut() {
            learned.void();
        }
        let mut rest = n;
        for at in self.holdings.idle_ones() {
            let weight = self.holdings.at(at).weight();
            if weight <= rest {
                rest -= weight;
                self.give_back(at, WhyReturned::Idle);
            }
        }
        for at in self.holdings.coldest_first() {
            let held = self.holdings.at(at);
            let slots = held.idle_slots().min(rest);
            if slots > 0 && !held.open {
                rest -= slots;
                self.give_back_slots(at, slots);
            }
        }
        if !idle_only {
            rest -= self.owe(rest);
        }
        if rest > 0 && self.attached {
            self.sought = true;
            let function = self.view.id;
            self.effects.push_back(Effect::Send(FromDataPlane::Kept { function, n: rest }));
        }
    }

    /// Marks so many busy slots (or sandboxes without a limit) as to be given back when they are
    /// free; says how many.
    fn owe(&mut self, wanted: u32) -> u32 {
        let slots = wanted.min(self.holdings.busy_serving() - self.owed);
        self.owed += slots;
        let mut owed = slots;
        for at in self.holdings.coldest_first() {
            if owed < wanted && self.holdings.at(at).open {
                self.leave(at, WhyReturned::Idle);
                owed += 1;
            }
        }
        owed
    }

    fn finished(&mut self, sandbox: SandboxId, how: Finish) {
        let at = self.holdings.find(sandbox).expect("a sandbox with an invocation in it is held");
        self.telling.changed = true;
        self.finished += 1;
        self.holdings.unbind(self.now, at);
        let held = self.holdings.at(at);
        match (how, held.stage) {
            (Finish::Unreachable, _) => self.leave(at, WhyReturned::Unreachable),
            (Finish::Abandoned, _) if held.concurrency == 1 => {
                self.leave(at, WhyReturned::Closing);
            }
            (_, Stage::Leaving(why)) => self.leave(at, why),
            (Finish::Done | Finish::Abandoned, Stage::Serving) if self.owed > 0 && !held.open => {
                self.owed -= 1;
                self.give_back_slots(at, 1);
            }
            (Finish::Done | Finish::Abandoned, Stage::Serving) => {}
        }
    }

    fn left(&mut self, invocation: InvocationId) {
        if self.queue.remove(invocation) {
            // At once, so that nothing is started for somebody who left.
            self.tell_demand();
        }
    }

    fn attach(&mut self) {
        self.attached = true;
        self.owed = 0;
        self.sought = false;
        self.holdings.forget_serials();
        for closing in self.closing.values_mut() {
            closing.at = self.now;
            let returned = Returned { serial: Serial::default(), ..closing.returned };
            self.effects.push_back(Effect::Send(FromDataPlane::Returned(returned)));
        }
        let leaving: Vec<(usize, WhyReturned)> = self
            .holdings
            .iter()
            .filter_map(|(at, held)| match held.stage {
                Stage::Leaving(why) => Some((at, why)),
                Stage::Serving => None,
            })
            .collect();
        for (at, why) in leaving {
            self.leave(at, why);
        }
        self.expire_idle();
        self.tell_demand();
    }

    fn expire_idle(&mut self) {
        while self.attached
            && let Some((at, since)) = self.holdings.longest_idle()
            && self.goes_at(at, since).is_some_and(|goes| goes <= self.now)
        {
            self.give_back(at, WhyReturned::Idle);
        }
    }

    /// Nothing more is bound to it; it goes back now, if nothing is in it.
    fn leave(&mut self, at: usize, why: WhyReturned) {
        self.telling.changed = true;
        self.holdings.leave(at, why);
        self.owed = self.owed.min(self.holdings.busy_serving());
        let held = self.holdings.at(at);
        if let (0, Stage::Leaving(why), true) = (held.busy, held.stage, self.attached) {
            self.give_back(at, why);
        }
    }

    /// Gives back everything held of a sandbox with nothing in it.
    fn give_back(&mut self, at: usize, why: WhyReturned) {
        self.telling.changed = true;
        let held = self.holdings.at(at);
        let (sandbox, share, serial) = (held.sandbox, held.share(), held.serial);
        let (revision, returned) = (held.revision, Returned { sandbox, share, serial, why });
        self.holdings.remove(at);
        if why == WhyReturned::Closing {
            let at = self.now;
            self.closing.retain(|_, closing| closing.at + ARRIVED > at);
            if self.closing.len() < CLOSING {
                self.closing.insert(sandbox, Closing { returned, revision, at });
            }
        }
        self.returned(returned);
        self.effects.push_back(Effect::Close { sandbox });
    }

    fn give_back_slots(&mut self, at: usize, slots: u32) {
        let held = self.holdings.at(at);
        if slots == held.slots {
            return self.give_back(at, WhyReturned::Idle);
        }
        self.telling.changed = true;
        let (sandbox, share, serial) = (held.sandbox, Share::Slots(slots), held.serial);
        self.holdings.give_up(at, slots);
        self.returned(Returned { sandbox, share, serial, why: WhyReturned::Idle });
    }

    fn returned(&mut self, returned: Returned) {
        self.effects.push_back(Effect::Send(FromDataPlane::Returned(returned)));
    }

    /// When the sandbox that has been idle for longest goes; `None` as long as it may be needed.
    fn goes_at(&self, at: usize, since: Time) -> Option<Time> {
        match self.learned.as_deref() {
            Some(learned) if self.holdings.is_bindable(at) => learned.goes_at(self.ranks()),
            Some(_) | None => Some(since + self.view.settings.keep_alive.unheld()),
        }
    }

    fn demand_due(&self) -> Time {
        let every = if self.telling.queue_changed { QUEUE_EVERY } else { DEMAND_EVERY };
        self.telling.last.map_or(self.now, |told| told + every)
    }

    fn tell_demand_if_due(&mut self) {
        let due =
            (self.telling.changed || self.holdings.busy() > 0) && self.demand_due() <= self.now;
        if due || self.expected() != self.telling.expected {
            self.tell_demand();
        }
    }

    /// The queue got longer, or empty.
    fn tell_queue(&mut self) {
        self.telling.changed = true;
        self.telling.queue_changed = true;
        let (waiting, told) = (count(self.queue.len()), self.telling.queued);
        let grown = waiting > told && waiting >= told.saturating_mul(2);
        if grown || self.demand_due() <= self.now {
            self.tell_demand();
        }
    }

    fn tell_demand(&mut self) {
        if self.attached {
            let (queued, expected) = (count(self.queue.len()), self.expected());
            let last = Some(self.now);
            self.telling = Telling { due: true, queued, expected, last, ..Telling::default() };
        }
    }

    fn advance(&mut self, now: Time) {
        let now = now.max(self.now);
        self.busy_integral = self.busy_until(now);
        self.now = now;
    }

    fn busy_until(&self, now: Time) -> u64 {
        let passed = now.0.saturating_sub(self.now.0);
        let busy = u64::from(self.holdings.busy());
        self.busy_integral.wrapping_add(busy.wrapping_mul(passed))
    }

    fn check(&self) {
        assert!(self.owed <= self.holdings.busy_serving(), "only busy slots are owed");
        if cfg!(debug_assertions) {
            self.holdings.check();
            self.check_queue();
        }
    }

    /// Whoever waits could not be bound to any free slot.
    fn check_queue(&self) {
        let others = self.holdings.bindable() > 1;
        for one in self.queue.iter() {
            let fits = self.holdings.iter().find(|&(at, held)| {
                self.holdings.is_bindable(at)
                    && (held.open || held.busy < held.slots)
                    && (one.avoid != Some(held.sandbox) || !others)
            });
            assert!(fits.is_none(), "{} waits although a slot is free", one.invocation);
        }
        assert!(self.queue.is_empty() || self.refusal().is_none(), "nobody waits in vain");
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
