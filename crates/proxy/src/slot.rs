//! A function in this data plane: its gate, those who wait at it, and the connections kept to its
//! sandboxes, under one short lock.
//!
//! The connection's own task calls the gate here, so that a warm invocation never changes tasks.
//! What the gate has to say is said before the lock is let go, which keeps the order; those who
//! waited are woken after that, for each takes a system call if another thread serves it.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};

use arc_swap::ArcSwap;
use dirigent_core::{
    FunctionId, FunctionName, FunctionView, InvocationId, SandboxId, Time,
    frame::{Demand, Holding},
    gate::{Attempt, Binding, Effect, Event, Finish, Gate, Refusal, Verdict},
};
use tokio::sync::oneshot;

use crate::{
    Shared,
    errors::Failure,
    metrics::FunctionMetrics,
    timers::Alarm,
    upstream::{Conn, Home, Kept, Multiplexed},
};

/// A poisoned lock still guards a whole state: nothing panics between two of them.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A slot for an invocation, with a connection if one was kept.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) binding: Binding,
    pub(crate) kept: Option<Kept>,
    pub(crate) h2: Option<Multiplexed>,
}

/// What one who waits is told.
#[derive(Debug)]
pub(crate) enum Answer {
    Bound(Box<Bound>),
    Refused(Refusal),
}

#[expect(clippy::large_enum_variant, reason = "a warm invocation saves the allocation")]
pub(crate) enum Admission {
    Bound(Bound),
    Queued(oneshot::Receiver<Answer>),
    Refused(Refusal),
}

/// Connections kept to a sandbox: by the thread that each is at home on, the most recently used
/// last. There are as many entries as threads at most.
#[derive(Debug, Default)]
struct Pool {
    idle: Vec<(Home, VecDeque<Kept>)>,
    h2: Option<Multiplexed>,
}

impl Pool {
    /// Keeps a connection, and lets go of the two that were idle for longest if that was too long:
    /// so they go faster than they come.
    fn keep(&mut self, conn: Conn, now: u64, limit: u64) {
        let home = conn.home;
        let kept = Kept { conn, since: now };
        match self.idle.iter_mut().find(|(at, _)| *at == home) {
            Some((_, idle)) => idle.push_back(kept),
            None => self.idle.push((home, VecDeque::from([kept]))),
        }
        for _ in 0..2 {
            let since = |idle: &VecDeque<Kept>| idle.front().map_or(u64::MAX, |kept| kept.since);
            let oldest = self.idle.iter_mut().min_by_key(|(_, idle)| since(idle));
            if let Some((_, idle)) = oldest
                && now.saturating_sub(since(idle)) > limit
            {
                idle.pop_front();
            }
        }
    }

    /// One for an invocation served by `home`: its own thread's if there is one, since another's
    /// has to move. None that was idle for longer than `limit`.
    fn take(&mut self, home: Home, now: u64, limit: u64) -> Option<Kept> {
        let since = |idle: &VecDeque<Kept>| idle.back().map(|kept| kept.since);
        let (_, idle) = self
            .idle
            .iter_mut()
            .filter(|(_, idle)| !idle.is_empty())
            .max_by_key(|(at, idle)| (*at == home, since(idle)))?;
        let kept = idle.pop_back()?;
        if now.saturating_sub(kept.since) > limit {
            // The others were idle for longer still.
            idle.clear();
            return None;
        }
        Some(kept)
    }
}

/// One who waits.
#[derive(Debug)]
struct Waiter {
    told: oneshot::Sender<Answer>,
    home: Home,
}

#[derive(Debug)]
struct Inner {
    gate: Gate,
    waiters: HashMap<InvocationId, Waiter>,
    pools: HashMap<SandboxId, Pool>,
    /// What the timers know of.
    armed: Option<Alarm>,
    /// The stream whose `Hello` named what this gate holds; what it says is for that one.
    stream: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct FunctionSlot {
    pub(crate) id: FunctionId,
    pub(crate) name: FunctionName,
    /// As last configured; read without the lock.
    view: ArcSwap<FunctionView>,
    inner: Mutex<Inner>,
    /// When an invocation last came: nanoseconds of the clock.
    pub(crate) used_at: AtomicU64,
    /// The name leads elsewhere now.
    pub(crate) retired: AtomicBool,
    pub(crate) metrics: FunctionMetrics,
}

impl FunctionSlot {
    pub(crate) fn new(
        shared: &Shared,
        now: Time,
        version: u64,
        view: Arc<FunctionView>,
        stream: u64,
    ) -> Arc<Self> {
        let metrics = shared.metrics.function(&view.name, shared.limits.series);
        let slot = Arc::new(Self {
            id: view.id,
            name: view.name.clone(),
            view: ArcSwap::new(Arc::clone(&view)),
            inner: Mutex::new(Inner {
                gate: Gate::new(now, version, view),
                waiters: HashMap::new(),
                pools: HashMap::new(),
                armed: None,
                stream,
            }),
            used_at: AtomicU64::new(now.0),
            retired: AtomicBool::new(false),
            metrics,
        });
        slot.settle(lock(&slot.inner), shared, now);
        slot
    }

    pub(crate) fn view(&self) -> Arc<FunctionView> {
        self.view.load_full()
    }

    /// An invocation, served by a thread, asks for a slot.
    pub(crate) fn admit(
        self: &Arc<Self>,
        shared: &Shared,
        now: Time,
        (invocation, home): (InvocationId, Home),
        attempt: Attempt,
    ) -> Admission {
        let mut inner = lock(&self.inner);
        let admission = match inner.gate.admit(now, invocation, attempt) {
            Verdict::Bound(binding) => Admission::Bound(inner.bind(shared, now, binding, home)),
            Verdict::Queued => {
                let (told, answer) = oneshot::channel();
                inner.waiters.insert(invocation, Waiter { told, home });
                Admission::Queued(answer)
            }
            Verdict::Refused(refusal) => Admission::Refused(refusal),
        };
        self.settle(inner, shared, now);
        admission
    }

    /// The world says something.
    pub(crate) fn handle(self: &Arc<Self>, shared: &Shared, now: Time, event: Event) {
        let configures = matches!(event, Event::Configured { .. });
        let mut inner = lock(&self.inner);
        inner.gate.handle(now, event);
        if configures {
            self.view.store(Arc::clone(inner.gate.view()));
        }
        self.settle(inner, shared, now);
    }

    /// A slot is no longer used; the connection, if it may be used again.
    pub(crate) fn finish(
        self: &Arc<Self>,
        shared: &Shared,
        sandbox: SandboxId,
        how: Finish,
        conn: Option<Conn>,
    ) {
        let now = shared.now();
        let mut inner = lock(&self.inner);
        match how {
            Finish::Done => {
                if let Some(conn) = conn {
                    inner.pools.entry(sandbox).or_default().keep(conn, now.0, shared.kept_nanos());
                }
            }
            // What else is kept leads to the same place.
            Finish::Unreachable => drop(inner.pools.remove(&sandbox)),
            Finish::Abandoned => {}
        }
        inner.gate.handle(now, Event::Finished { sandbox, how });
        self.settle(inner, shared, now);
    }

    /// One who waits goes away. What it was told meanwhile, if it was; what it is about to be told
    /// comes back to the gate when nobody is there to hear it.
    pub(crate) fn leave(
        self: &Arc<Self>,
        shared: &Shared,
        invocation: InvocationId,
        answer: &mut oneshot::Receiver<Answer>,
    ) -> Option<Answer> {
        let now = shared.now();
        let mut inner = lock(&self.inner);
        if inner.waiters.remove(&invocation).is_none() {
            return answer.try_recv().ok();
        }
        inner.gate.handle(now, Event::Left { invocation });
        self.settle(inner, shared, now);
        None
    }

    /// Why nobody was let in for so long.
    pub(crate) fn why_waited(&self, shared: &Shared, waited: std::time::Duration) -> Failure {
        let inner = lock(&self.inner);
        let holds = inner.gate.demand(shared.now()).held > 0;
        Failure::waited(&inner.gate, holds, shared.is_attached(), waited)
    }

    /// How many invocations a revision's sandboxes take at once. A revision that is no target any
    /// more is on its way out: the careful answer is one.
    pub(crate) fn concurrency(&self, revision: dirigent_core::RevisionId) -> u32 {
        let view = self.view.load();
        view.targets.iter().find(|target| target.id == revision).map_or(1, |r| r.concurrency)
    }

    /// A connection that many invocations may share.
    pub(crate) fn share(&self, sandbox: SandboxId, connection: &Multiplexed) {
        lock(&self.inner).pools.entry(sandbox).or_default().h2 = Some(connection.clone());
    }

    /// A deadline may have passed.
    pub(crate) fn expire(self: &Arc<Self>, shared: &Shared, alarm: Alarm) {
        let now = shared.now();
        let mut inner = lock(&self.inner);
        if inner.armed == Some(alarm) {
            inner.armed = None;
        }
        inner.gate.expire(now);
        self.settle(inner, shared, now);
    }

    /// What a `Hello` says of this function; from now on what the gate says is for `stream`.
    pub(crate) fn introduce(&self, stream: u64, now: Time) -> (Vec<Holding>, Demand) {
        let mut inner = lock(&self.inner);
        inner.stream = stream;
        (inner.gate.claims(), inner.gate.demand(now))
    }

    pub(crate) fn demand(&self, now: Time) -> Demand {
        lock(&self.inner).gate.demand(now)
    }

    /// The sandboxes of which it holds slots.
    pub(crate) fn held(&self) -> Vec<SandboxId> {
        let claims = lock(&self.inner).gate.claims();
        claims.into_iter().map(|held| held.sandbox).collect()
    }

    /// Whether it may be forgotten.
    pub(crate) fn is_empty(&self) -> bool {
        let inner = lock(&self.inner);
        inner.gate.is_empty() && inner.waiters.is_empty()
    }

    /// Whether it may be forgotten for want of use: nobody came for `limit`, nor for as long as what
    /// was learned of the calls is of use.
    pub(crate) fn is_unused(&self, now: u64, limit: u64) -> bool {
        let inner = lock(&self.inner);
        let remembers = inner.gate.remembers_for().as_nanos();
        let limit = limit.max(u64::try_from(remembers).unwrap_or(u64::MAX));
        let unused = now.saturating_sub(self.used_at.load(SeqCst)) >= limit;
        unused && inner.gate.is_empty() && inner.waiters.is_empty()
    }

    /// Do what the gate orders, tell the timers, and wake those who waited.
    fn settle(self: &Arc<Self>, mut inner: MutexGuard<'_, Inner>, shared: &Shared, now: Time) {
        let mut answered = Vec::new();
        while let Some(effect) = inner.gate.poll_effect() {
            match effect {
                Effect::Bind { invocation, binding } => {
                    let waiter = inner.waiters.remove(&invocation);
                    let Waiter { told, home } = waiter.expect("who is in the queue waits here");
                    let bound = inner.bind(shared, now, binding, home);
                    answered.push((told, Answer::Bound(Box::new(bound))));
                }
                Effect::Refuse { invocation, refusal } => {
                    let waiter = inner.waiters.remove(&invocation);
                    let Waiter { told, .. } = waiter.expect("who is in the queue waits here");
                    answered.push((told, Answer::Refused(refusal)));
                }
                Effect::Send(frame) => shared.say(inner.stream, frame),
                Effect::Close { sandbox } => {
                    inner.pools.remove(&sandbox);
                    shared.catalogue.forget_sandbox(sandbox);
                }
            }
        }
        if let Some(deadline) = inner.gate.deadline()
            && inner.armed.is_none_or(|alarm| deadline.0 < alarm.at)
        {
            inner.armed = Some(shared.timers.arm(inner.armed, deadline.0, self));
        }
        drop(inner);
        for (told, answer) in answered {
            if let Err(Answer::Bound(bound)) = told.send(answer) {
                // It left in the same moment: nothing was sent, the slot is free.
                let Bound { binding, kept, .. } = *bound;
                let conn = kept.map(|kept| kept.conn);
                self.finish(shared, binding.sandbox, Finish::Done, conn);
            }
        }
    }
}

impl Inner {
    fn bind(&mut self, shared: &Shared, now: Time, binding: Binding, home: Home) -> Bound {
        let pool = self.pools.get_mut(&binding.sandbox);
        let (kept, h2) = pool.map_or((None, None), |pool| {
            (pool.take(home, now.0, shared.kept_nanos()), pool.h2.clone())
        });
        Bound { binding, kept, h2 }
    }
}
