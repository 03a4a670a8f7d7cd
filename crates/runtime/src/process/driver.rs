//! The runtime's thread: what the keeper says, who listens by now, and whose time is over.

use std::{
    collections::{HashMap, HashSet},
    io::{self, Read as _},
    net::{Ipv4Addr, SocketAddrV4},
    os::unix::net::UnixStream,
    sync::{Arc, atomic::Ordering, mpsc as std_mpsc},
    time::{Duration, Instant},
};

use dirigent_core::{Address, Cause, Fault, SandboxId, StartFailure, worker::Adopted};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    time::{ClockId, clock_gettime},
};
use tokio::sync::mpsc;

use super::{
    Shared,
    bundles::Answer,
    link,
    listeners::{Listeners, Owner},
    lock,
};
use crate::{
    Event,
    claim::Claim,
    keeper::{
        Options,
        protocol::{Ended, FromKeeper, Inbox, Lent, Start, ToKeeper, Welcome},
    },
};

/// How long the driver sleeps at most: a start that the keeper never answers has a deadline too.
const NAP: Duration = Duration::from_secs(1);

/// How long after a keeper could not be started the next attempt is made.
const RETRY: Duration = Duration::from_secs(1);

/// On others' ports a sandbox is found so often before it is ended: a helper with a port of its own
/// choice is no reason to cut calls.
const TRESPASSES: u32 = 8;

/// What callers tell the driver.
#[derive(Debug)]
pub(super) enum Order {
    /// The keeper is about to be told to start this one.
    Expect { sandbox: SandboxId, entry: Box<Entry> },
    /// It could not be told.
    Unsent { sandbox: SandboxId, error: String },
    /// Tell the worker.
    Report(Event),
    /// Somebody listens on a port that was to be a sandbox's.
    Occupied { port: u16 },
    /// Remove these without a word, and say when that is done.
    Remove { sandboxes: Vec<SandboxId>, done: std_mpsc::Sender<()> },
    /// The end is near.
    Close,
}

/// A sandbox.
#[derive(Debug)]
pub(super) struct Entry {
    port: u16,
    pass_listener: bool,
    deadline: Instant,
    start_timeout: Duration,
    state: State,
    /// Who it is, once it runs.
    owner: Option<Owner>,
    /// Its address, where it has a network of its own.
    place: Option<Ipv4Addr>,
    /// Who listens in that network, while that is waited for.
    listeners: Option<Listeners>,
    /// How often it was found on others' ports.
    trespasses: u32,
    /// Why we ended it, where that is more than "stopped".
    verdict: Option<Cause>,
    /// Keeps the port from others until the sandbox is gone.
    _claim: Option<Claim>,
}

#[derive(Debug)]
enum State {
    /// The keeper was told.
    Creating,
    /// It runs and does not listen yet.
    Starting { owner: Owner, at_ns: u64, since: Instant, next_look: Instant },
    /// It listens, or nobody waits for that any more.
    Settled,
}

impl Entry {
    pub(super) fn new(
        start: &Start,
        claim: Option<Claim>,
        start_timeout: Duration,
        now: Instant,
    ) -> Self {
        Self {
            port: start.port,
            pass_listener: start.pass_listener,
            deadline: now + start_timeout,
            start_timeout,
            state: State::Creating,
            owner: None,
            place: None,
            listeners: None,
            trespasses: 0,
            verdict: None,
            _claim: claim,
        }
    }

    fn adopted(adopted: &Adopted, now: Instant) -> Self {
        Self {
            port: adopted.port.unwrap_or(0),
            pass_listener: false,
            deadline: now,
            start_timeout: Duration::ZERO,
            state: State::Settled,
            owner: None,
            place: None,
            listeners: None,
            trespasses: 0,
            verdict: None,
            _claim: adopted.port.and_then(|port| Claim::port(port).ok()),
        }
    }

    const fn starting(&self) -> bool {
        matches!(self.state, State::Creating | State::Starting { .. })
    }
}

/// How long to wait before looking again at a sandbox that has run for `age`: natively compiled
/// servers listen within a few milliseconds, others take longer and wait for half of one no more.
const fn pause(age: Duration) -> Duration {
    match age.as_millis() {
        0..20 => Duration::from_micros(200),
        _ => Duration::from_micros(500),
    }
}

/// What this thread has used of a processor so far.
fn processor_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap_or_default()
}

/// See the module.
pub(super) struct Driver {
    shared: Arc<Shared>,
    options: Options,
    stream: Option<UnixStream>,
    inbox: Inbox,
    orders: std_mpsc::Receiver<Order>,
    events: mpsc::Sender<Event>,
    sandboxes: HashMap<SandboxId, Entry>,
    /// Ended before this life of the worker, not told yet.
    ended: Vec<Ended>,
    /// Being removed without a word.
    unspoken: HashSet<SandboxId>,
    waiting: Vec<std_mpsc::Sender<()>>,
    listeners: Listeners,
    /// Processor time that one round of looking cost; looking takes at most a fifth of a
    /// processor. What this thread waited for one meanwhile does not count.
    cost: Duration,
    next_attempt: Instant,
}

impl Driver {
    pub(super) fn new(
        shared: Arc<Shared>,
        options: Options,
        stream: UnixStream,
        orders: std_mpsc::Receiver<Order>,
        events: mpsc::Sender<Event>,
        found: &Welcome,
    ) -> io::Result<Self> {
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let now = Instant::now();
        let ended = found.ended.iter().map(|ended| &ended.adopted);
        let all = found.sandboxes.iter().chain(ended);
        let listeners = Listeners::new(options.network.address);
        let sandboxes = all.map(|a| (a.report.sandbox, Entry::adopted(a, now))).collect();
        Ok(Self {
            shared,
            options,
            stream: Some(stream),
            inbox: Inbox::default(),
            orders,
            events,
            sandboxes,
            ended: found.ended.clone(),
            unspoken: HashSet::new(),
            waiting: Vec::new(),
            listeners,
            cost: Duration::ZERO,
            next_attempt: now,
        })
    }

    pub(super) fn run(mut self) {
        if let Err(error) = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1)) {
            tracing::debug!(%error, "timers are coarse");
        }
        let ended = std::mem::take(&mut self.ended);
        self.all_gone(ends(ended));
        loop {
            let (readable, woken) = self.wait();
            if woken {
                let mut count = [0; 8];
                if let Err(error) = rustix::io::read(&self.shared.wake, &mut count) {
                    tracing::trace!(%error, "woken for nothing");
                }
            }
            // Orders first: a sandbox is expected before the keeper tells of it.
            while let Ok(order) = self.orders.try_recv() {
                self.obey(order);
            }
            if readable && let Err(error) = self.hear() {
                // In this order: who asks afterwards cannot be heard, who asked before is told.
                self.shared.link.close();
                self.shared.spaces.unanswered();
                self.shared.bundles.unanswered();
                if self.shared.closing.load(Ordering::Acquire) {
                    return;
                }
                tracing::warn!(%error, "the keeper is gone");
                self.stream = None;
            }
            let now = Instant::now();
            if self.stream.is_none() {
                if self.shared.closing.load(Ordering::Acquire) {
                    return;
                }
                self.reconnect(now);
            }
            self.look(now);
            self.expire(now);
        }
    }

    /// Sleep until there is something to do: whether the keeper and whether a caller has spoken.
    fn wait(&self) -> (bool, bool) {
        let now = Instant::now();
        let mut until = now + NAP;
        for entry in self.sandboxes.values().filter(|entry| entry.starting()) {
            until = until.min(entry.deadline);
            if let State::Starting { next_look, .. } = entry.state {
                until = until.min(next_look);
            }
        }
        if self.stream.is_none() {
            until = until.min(self.next_attempt);
        }
        let timeout = Timespec::try_from(until.saturating_duration_since(now)).ok();
        let mut fds = vec![PollFd::new(&self.shared.wake, PollFlags::IN)];
        fds.extend(self.stream.as_ref().map(|stream| PollFd::new(stream, PollFlags::IN)));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return (false, false),
            Err(error) => {
                // Out of memory, at worst: nothing is lost by looking again.
                tracing::error!(%error, "poll");
                return (false, false);
            }
        }
        let heard = |n: usize| fds.get(n).is_some_and(|fd| !fd.revents().is_empty());
        (heard(1), heard(0))
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Expect { sandbox, entry } => {
                self.sandboxes.insert(sandbox, *entry);
            }
            Order::Unsent { sandbox, error } => {
                let message = format!("the keeper cannot be told: {error}");
                self.gone(sandbox, failure(Cause::CreateFailed { message }, Fault::Worker));
            }
            Order::Report(event) => self.report(event),
            Order::Occupied { port } => self.occupied(port),
            Order::Remove { sandboxes, done } => {
                for sandbox in sandboxes {
                    if self.sandboxes.contains_key(&sandbox) {
                        self.unspoken.insert(sandbox);
                        self.stop(sandbox);
                    }
                }
                self.waiting.push(done);
                self.release();
            }
            Order::Close => {}
        }
    }

    fn report(&self, event: Event) {
        if self.events.blocking_send(event).is_err() {
            tracing::debug!("nobody hears of a sandbox");
        }
    }

    /// A sandbox may listen where it likes, but not keep others from starting: one that is found on
    /// others' ports again and again is ended. It is its own fault, the others start elsewhere.
    fn occupied(&mut self, port: u16) {
        let Some(listener) = self.listeners.at(port) else { return };
        let found = self.sandboxes.iter_mut().find(|(_, entry)| {
            entry.port != port && entry.owner.is_some_and(|owner| owner.owns(&listener))
        });
        let Some((&sandbox, entry)) = found else { return };
        entry.trespasses += 1;
        tracing::info!(%sandbox, port, "a sandbox listens on another one's port");
        if entry.trespasses < TRESPASSES || entry.verdict.is_some() {
            return;
        }
        let message = format!(
            "listened on {TRESPASSES} ports that were to be other sandboxes', such as {port}: \
             listen on $PORT, or on ports outside of this range"
        );
        entry.verdict = Some(Cause::CreateFailed { message });
        self.stop(sandbox);
    }

    /// Kill it.
    fn stop(&self, sandbox: SandboxId) {
        if let Err(error) = self.shared.link.send(&ToKeeper::Stop { sandbox, grace_ms: 0 }) {
            tracing::debug!(%sandbox, %error, "there is no keeper");
        }
    }

    fn hear(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        let Some(stream) = &mut self.stream else { return Ok(()) };
        match stream.read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => self.inbox.push(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        let mut ends = Vec::new();
        while let Some(message) = self.inbox.next()? {
            match message {
                FromKeeper::Created { sandbox, init, uid, place, at_ns } => {
                    self.created(sandbox, Owner { init, uid }, place, at_ns);
                }
                FromKeeper::Lent { sandbox, lent } => self.lent(sandbox, lent),
                FromKeeper::Executed { question, result } => {
                    self.shared.bundles.answered(question, Answer::Executed(result));
                }
                FromKeeper::Ended { question, end } => {
                    self.shared.bundles.answered(question, Answer::Ended(end));
                }
                FromKeeper::Gone { sandbox, failure } => ends.push((sandbox, failure)),
            }
        }
        self.all_gone(ends);
        Ok(())
    }

    fn lent(&self, sandbox: SandboxId, lent: Result<Lent, String>) {
        let was_lent = lent.is_ok();
        if !self.shared.spaces.answered(sandbox, lent)
            && was_lent
            && let Err(error) = self.shared.link.send(&ToKeeper::GiveBack { sandbox })
        {
            tracing::debug!(%sandbox, %error, "there is no keeper");
        }
    }

    /// The keeper told of these, and forgets them once it knows that they were heard of.
    fn all_gone(&mut self, ends: Vec<(SandboxId, StartFailure)>) {
        if ends.is_empty() {
            return;
        }
        // First: who was told of an end and detaches then is not told of it again.
        let sandboxes = ends.iter().map(|(sandbox, _)| *sandbox).collect();
        if let Err(error) = self.shared.link.send(&ToKeeper::Heard { sandboxes }) {
            tracing::debug!(%error, "there is no keeper");
        }
        for (sandbox, failure) in ends {
            self.gone(sandbox, failure);
        }
    }

    fn created(&mut self, sandbox: SandboxId, owner: Owner, place: Option<Ipv4Addr>, at_ns: u64) {
        let Some(entry) = self.sandboxes.get_mut(&sandbox) else {
            // Given up with the former keeper while the order was on its way to this one.
            return self.stop(sandbox);
        };
        let now = Instant::now();
        entry.owner = Some(owner);
        entry.place = place;
        if !entry.pass_listener {
            entry.listeners = place.map(|place| Listeners::of(owner.init, place));
        }
        entry.state = State::Starting { owner, at_ns, since: now, next_look: now };
        let passed = entry.pass_listener;
        self.report(Event::Created { sandbox });
        if passed {
            self.listening(sandbox);
        }
    }

    fn listening(&mut self, sandbox: SandboxId) {
        let Some(entry) = self.sandboxes.get_mut(&sandbox) else { return };
        let State::Starting { at_ns, .. } = entry.state else { return };
        let init = if entry.pass_listener {
            Duration::ZERO
        } else {
            Duration::from_nanos(monotonic().saturating_sub(at_ns))
        };
        entry.state = State::Settled;
        entry.listeners = None;
        // Data planes of this machine connect to a sandbox's own address; for others this one's
        // leads there.
        let network = self.options.network.address;
        let host = entry.place.filter(|_| network.is_loopback()).unwrap_or(network);
        let address = Address::Tcp((host, entry.port).into());
        let told = ToKeeper::Listening { sandbox, address: address.clone() };
        // The keeper hears of it first: if this process dies once the sandbox is in use, the next
        // one must find it as listening, not as half made.
        if let Err(error) = self.shared.link.send(&told) {
            tracing::debug!(%sandbox, %error, "there is no keeper");
        }
        self.report(Event::Listening { sandbox, address, init });
    }

    fn gone(&mut self, sandbox: SandboxId, mut failure: StartFailure) {
        let Some(entry) = self.sandboxes.remove(&sandbox) else { return };
        if let Some(verdict) = entry.verdict {
            failure.cause = verdict;
            failure.fault = Fault::Function;
        }
        if self.unspoken.remove(&sandbox) {
            self.release();
        } else {
            self.report(Event::Gone { sandbox, failure });
        }
    }

    /// Tell those who wait that all is removed.
    fn release(&mut self) {
        if self.unspoken.is_empty() {
            for done in self.waiting.drain(..) {
                if done.send(()).is_err() {
                    tracing::debug!("whoever asked has given up waiting");
                }
            }
        }
    }

    /// Who listens by now?
    fn look(&mut self, now: Instant) {
        let mut ready = Vec::new();
        let mut looked = false;
        let least = self.cost * 4;
        let begun = processor_time();
        for (sandbox, entry) in &mut self.sandboxes {
            let State::Starting { owner, since, next_look, .. } = &mut entry.state else {
                continue;
            };
            if *next_look > now {
                continue;
            }
            looked = true;
            let listeners = entry.listeners.as_mut().unwrap_or(&mut self.listeners);
            if listeners.at(entry.port).is_some_and(|listener| owner.owns(&listener)) {
                ready.push(*sandbox);
            } else {
                *next_look = now + pause(now.saturating_duration_since(*since)).max(least);
            }
        }
        if looked {
            self.cost = processor_time().saturating_sub(begun);
        }
        for sandbox in ready {
            self.listening(sandbox);
        }
    }

    /// Whose time is over?
    fn expire(&mut self, now: Instant) {
        let mut over = Vec::new();
        for (sandbox, entry) in &mut self.sandboxes {
            if !entry.starting() || entry.deadline > now {
                continue;
            }
            let owner = match entry.state {
                State::Starting { owner, .. } => Some(owner),
                State::Creating | State::Settled => None,
            };
            let places = owner.map(|owner| owner.listens_at(entry.place.is_some()));
            let places = places.unwrap_or_default();
            // What it was told as its host.
            let host = match entry.place {
                Some(_) => Ipv4Addr::UNSPECIFIED,
                None => self.options.network.address,
            };
            let place = SocketAddrV4::new(host, entry.port);
            let message = never_listened(place, entry.start_timeout, &places);
            entry.verdict = Some(Cause::NeverListened { message });
            entry.state = State::Settled;
            over.push(*sandbox);
        }
        for sandbox in over {
            self.stop(sandbox);
        }
    }

    /// The keeper is gone, and with it its sandboxes: the next one has seen to that when it answers.
    fn reconnect(&mut self, now: Instant) {
        if now < self.next_attempt {
            return;
        }
        self.next_attempt = now + RETRY;
        let connected = link::connect(&self.shared.config.keeper_command, &self.options);
        let (kept, ended): (HashSet<SandboxId>, _) = match connected {
            Ok((stream, welcome)) => {
                // First: who asks this keeper already must not be taken for one that asked another.
                self.shared.bundles.found(welcome.bundles);
                self.shared.spaces.found(welcome.lent);
                *lock(&self.shared.abilities) = welcome.abilities;
                if let Err(error) = self.shared.link.replace(&stream) {
                    return tracing::warn!(%error, "the keeper cannot be used");
                }
                self.inbox = Inbox::default();
                self.stream = Some(stream);
                let kept = welcome.sandboxes.iter().map(|adopted| adopted.report.sandbox);
                (kept.collect(), ends(welcome.ended))
            }
            Err(error) => return tracing::error!(%error, "no keeper"),
        };
        // Orders given meanwhile have failed; those are told by `Unsent`.
        while let Ok(order) = self.orders.try_recv() {
            self.obey(order);
        }
        self.all_gone(ended);
        let lost: Vec<SandboxId> =
            self.sandboxes.keys().filter(|sandbox| !kept.contains(sandbox)).copied().collect();
        for sandbox in lost {
            self.gone(sandbox, failure(Cause::WorkerLost, Fault::Worker));
        }
    }
}

fn ends(ended: Vec<Ended>) -> Vec<(SandboxId, StartFailure)> {
    ended.into_iter().map(|one| (one.adopted.report.sandbox, one.failure)).collect()
}

fn failure(cause: Cause, fault: Fault) -> StartFailure {
    StartFailure { cause, fault, log_tail: Vec::new() }
}

fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// What users read when a function runs without listening.
pub(crate) fn never_listened(place: SocketAddrV4, timeout: Duration, places: &[String]) -> String {
    let waited = format!("did not listen on {place} ($HOST:$PORT) within {timeout:?}");
    if places.is_empty() {
        format!("{waited}; it listens nowhere")
    } else {
        format!(
            "{waited}; it listens on {} instead: listen on $PORT, at $HOST or 0.0.0.0",
            places.join(", ")
        )
    }
}
