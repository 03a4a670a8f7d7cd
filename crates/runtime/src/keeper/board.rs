//! The keeper's state and its loop: events of sandboxes, words of the worker, alarms.

mod bundles;
mod cell;
mod machine;
mod spaces;
mod worker;

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap, VecDeque},
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixListener,
    },
    time::{Duration, Instant},
};

use dirigent_core::{Isolation, SandboxId};
use rustix::{
    event::{PollFd, PollFlags, Timespec, epoll, poll},
    io::Errno,
    process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid},
};
use seccompiler::BpfProgram;

use crate::claim::Claim;

use super::{
    Options,
    cgroup::{Group, Groups},
    leftover::Records,
    orphans::Name,
    output::{Bounds, Logs, Pumped, Which},
    protocol::{Abilities, Ended, Network},
    root::Template,
    rules, seccomp,
};
use crate::sys::process::{Forked, close_from, exit_now, fork};
use bundles::Bundles;
use cell::Cell;
use spaces::Networks;
use worker::Connection;

/// How long after a start the next sandbox is prepared: the one that starts comes first.
const REFILL_AFTER: Duration = Duration::from_millis(5);

/// How long to wait after a sandbox could not be prepared.
const REFILL_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// How often a group that is still busy is tried to be removed again.
const SWEEP_EVERY: Duration = Duration::from_millis(10);

/// How often groups that were kept for new sandboxes and not needed are removed.
const TRIM_EVERY: Duration = Duration::from_secs(2);

/// How often memory is looked at where the kernel does not limit it.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Beyond standard input and output. A child that holds copies of the others keeps connections and
/// pipes open that are closed here, and the poll set speaks of them until it ends.
const FIRST_OF_OURS: i32 = 3;

/// How often a renewal of the rules is looked at: a program is launched for it.
const RENEWAL: Duration = Duration::from_millis(10);

/// What sandboxes get to end well in when no worker comes back.
const ABANDONED_GRACE: Duration = Duration::from_secs(10);

/// Something to do later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Alarm {
    /// The grace of a sandbox is over.
    Grace(u64),
    /// A sandbox that was told to die and does not.
    Overdue(u64),
    /// Read again from one that wrote too fast.
    Resume(u64, bool),
    Refill,
    Sweep,
    /// Groups that were kept are looked at.
    Trim,
    Watch,
    Idle,
    /// Network rules are made anew.
    Rules,
    /// Network rules are missing, perhaps.
    Missing,
    /// Networks are made ahead.
    Fill,
    /// Networks that were given back are looked at.
    Rest,
    /// Whether a renewal of the rules has ended.
    Renewed,
    /// An OCI runtime that was executed should have ended.
    Late(u64),
    /// What OCI runtimes have made had its grace, if no worker came back.
    Abandoned,
    /// Processes have ended that are about to become ours.
    Reap,
}

/// What a descriptor in the poll set belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Listener,
    Worker,
    /// Networks have been made.
    Maker,
    /// A sandbox's init speaks.
    Socket(u64),
    /// It ended.
    End(u64),
    Pipe(u64, Which),
}

impl Source {
    const fn token(self) -> u64 {
        match self {
            Self::Listener => 0,
            Self::Worker => 1,
            Self::Maker => 2,
            Self::Socket(key) => key * 4,
            Self::End(key) => key * 4 + 1,
            Self::Pipe(key, Which::Stdout) => key * 4 + 2,
            Self::Pipe(key, Which::Stderr) => key * 4 + 3,
        }
    }

    const fn of(token: u64) -> Self {
        let key = token / 4;
        match (key, token % 4) {
            (0, 0) => Self::Listener,
            (0, 1) => Self::Worker,
            (0, _) => Self::Maker,
            (_, 0) => Self::Socket(key),
            (_, 1) => Self::End(key),
            (_, 2) => Self::Pipe(key, Which::Stdout),
            (_, _) => Self::Pipe(key, Which::Stderr),
        }
    }
}

/// Everything that the keeper knows.
#[derive(Debug)]
pub(crate) struct Board {
    options: Options,
    poll: OwnedFd,
    listener: UnixListener,
    /// Held as long as this keeper lives.
    _lock: OwnedFd,
    _claim: Option<Claim>,
    /// Of what outlives the process.
    name: Name,
    worker: Option<Connection>,
    cells: HashMap<u64, Cell>,
    next_key: u64,
    /// Prepared, or being prepared, in the order in which they were.
    parked: VecDeque<u64>,
    by_sandbox: HashMap<SandboxId, u64>,
    /// Ends that no worker is known to have heard of, the latest of them.
    untold: VecDeque<Ended>,
    template: Option<Template>,
    groups: Groups,
    /// By which the next keeper finds sandboxes.
    records: Records,
    /// Of sandboxes that are gone, not removable yet.
    dead_groups: Vec<Group>,
    abilities: Abilities,
    filter: BpfProgram,
    logs: Logs,
    alarms: BinaryHeap<Reverse<(Instant, Alarm)>>,
    buffer: Vec<u8>,
    as_root: bool,
    /// Whether there are network rules.
    has_rules: bool,
    /// Who makes them anew.
    renewal: Option<OwnedFd>,
    /// Networks of their own for sandboxes.
    networks: Networks,
    /// What OCI runtimes make here.
    bundles: Bundles,
    /// Since when there is neither a sandbox nor a worker.
    idle_since: Option<Instant>,
    /// Since when there is no worker; `None` also once its sandboxes were told to end for that.
    alone_since: Option<Instant>,
    /// Alarms that are set already, of those that need ringing only once.
    due: BTreeSet<Alarm>,
    exiting: bool,
}

impl Board {
    /// Look around: end what earlier keepers left, find out what works, prepare the first sandbox.
    pub(crate) fn new(options: Options, listener: UnixListener, lock: OwnedFd) -> io::Result<Self> {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let found = machine::look(&options)?;
        let bounds = Bounds { file: options.log_file, total: options.log_total };
        let mut board = Self {
            logs: Logs::new(options.directory.join("logs"), bounds),
            options,
            poll,
            listener,
            _lock: lock,
            _claim: found.claim,
            name: found.name,
            worker: None,
            cells: HashMap::new(),
            next_key: 1,
            parked: VecDeque::new(),
            by_sandbox: HashMap::new(),
            untold: VecDeque::new(),
            template: found.template,
            groups: found.groups,
            records: found.records,
            dead_groups: Vec::new(),
            abilities: found.abilities,
            filter: seccomp::program(),
            alarms: BinaryHeap::new(),
            buffer: vec![0; 64 * 1024],
            as_root: rustix::process::geteuid().is_root(),
            has_rules: found.has_rules,
            renewal: None,
            networks: Networks::new(found.pool),
            bundles: Bundles::default(),
            idle_since: None,
            alone_since: Some(Instant::now()),
            due: BTreeSet::new(),
            exiting: false,
        };
        board.probe();
        epoll::add(
            &board.poll,
            &board.listener,
            epoll::EventData::new_u64(Source::Listener.token()),
            epoll::EventFlags::IN,
        )?;
        Ok(board)
    }

    /// Prepare one sandbox and wait for the outcome: whether `basic` works is known only then.
    fn probe(&mut self) {
        if self.template.is_none() {
            return;
        }
        let outcome = match self.spawn(Isolation::Basic) {
            Ok(key) => {
                let outcome = self.cells.get(&key).map_or(Ok(()), Cell::await_parked);
                self.parked.push_back(key);
                outcome
            }
            Err(error) => Err(error.to_string()),
        };
        if let Err(reason) = outcome {
            for key in std::mem::take(&mut self.parked) {
                self.discard(key);
            }
            self.template = None;
            if let Some(pool) = self.networks.pool.take() {
                pool.close();
                self.abilities.no_strict = Some(machine::WITHOUT_BASIC.to_owned());
            }
            self.abilities.no_basic = Some(machine::explain(&reason, self.as_root));
        }
    }

    /// Serve until told to exit, or until nobody needs it.
    pub(crate) fn serve(&mut self) -> io::Result<()> {
        self.schedule_once(Duration::ZERO, Alarm::Idle);
        self.schedule_once(Duration::from_millis(self.options.rules_ms), Alarm::Rules);
        self.refill();
        self.fill_spaces();
        let mut events = Vec::with_capacity(256);
        while !(self.exiting && self.cells.is_empty() && self.bundles.are_over()) {
            let timeout = self.until_next_alarm();
            events.clear();
            match epoll::wait(
                &self.poll,
                rustix::buffer::spare_capacity(&mut events),
                timeout.as_ref(),
            ) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let mut ended = false;
            for event in &events {
                let source = Source::of(event.data.u64());
                ended |= matches!(source, Source::End(_));
                self.hear(source, event.flags);
            }
            if ended {
                self.reap();
            }
            self.ring();
        }
        self.clean_up();
        Ok(())
    }

    fn hear(&mut self, source: Source, flags: epoll::EventFlags) {
        match source {
            Source::Listener => self.accept(),
            Source::Worker => self.hear_worker(flags),
            Source::Maker => self.hear_maker(),
            Source::Socket(key) => self.hear_init(key),
            Source::End(key) if self.bundles.know(key) => self.bundle_ended(key),
            Source::End(key) => self.finish(key),
            Source::Pipe(key, which) => self.pump(key, which),
        }
    }

    fn pump(&mut self, key: u64, which: Which) {
        let Some(output) = self.cells.get_mut(&key).and_then(Cell::output) else { return };
        match output.pump(which, &mut self.buffer) {
            Pumped::More | Pumped::Empty | Pumped::Ended => {}
            Pumped::Flood => {
                if let Some(pipe) = output.pipe(which) {
                    let data = epoll::EventData::new_u64(Source::Pipe(key, which).token());
                    if epoll::modify(&self.poll, pipe, data, epoll::EventFlags::empty()).is_ok() {
                        let alarm = Alarm::Resume(key, which == Which::Stderr);
                        self.schedule(super::output::FLOOD_PAUSE, alarm);
                    }
                }
            }
        }
        self.logs.tidy();
    }

    fn schedule(&mut self, after: Duration, alarm: Alarm) {
        self.alarms.push(Reverse((Instant::now() + after, alarm)));
    }

    /// As `schedule`, unless that alarm is set already.
    fn schedule_once(&mut self, after: Duration, alarm: Alarm) {
        if self.due.insert(alarm) {
            self.schedule(after, alarm);
        }
    }

    fn until_next_alarm(&self) -> Option<Timespec> {
        let Reverse((at, _)) = self.alarms.peek()?;
        Timespec::try_from(at.saturating_duration_since(Instant::now())).ok()
    }

    fn ring(&mut self) {
        let now = Instant::now();
        while let Some(Reverse((at, alarm))) = self.alarms.peek().copied() {
            if at > now {
                break;
            }
            self.alarms.pop();
            self.due.remove(&alarm);
            match alarm {
                Alarm::Grace(key) => self.kill(key),
                Alarm::Overdue(key) => self.kill_hard(key),
                Alarm::Resume(key, stderr) => self.resume(key, stderr),
                Alarm::Refill => self.refill(),
                Alarm::Sweep => self.sweep_groups(),
                Alarm::Trim => self.trim_groups(),
                Alarm::Watch => self.watch(),
                Alarm::Idle => self.look_idle(now),
                Alarm::Rules | Alarm::Missing => self.renew_rules(),
                Alarm::Fill => self.fill_spaces(),
                Alarm::Rest => self.look_at_resting(now),
                Alarm::Renewed => self.look_at_renewal(),
                Alarm::Late(key) => self.cut_off(key),
                Alarm::Abandoned if self.worker.is_none() => self.bundles.signal(Signal::KILL),
                Alarm::Abandoned => {}
                Alarm::Reap => self.look_at_dying(),
            }
        }
    }

    fn resume(&mut self, key: u64, stderr: bool) {
        let which = if stderr { Which::Stderr } else { Which::Stdout };
        let Some(output) = self.cells.get_mut(&key).and_then(Cell::output) else { return };
        if let Some(pipe) = output.pipe(which) {
            let data = epoll::EventData::new_u64(Source::Pipe(key, which).token());
            if let Err(error) = epoll::modify(&self.poll, pipe, data, epoll::EventFlags::IN) {
                tracing::warn!(%error, "a pipe is not read any more");
            }
        }
    }

    /// Prepare sandboxes again once half of them are used, all in one go: the first process that is
    /// moved into a group of version 1 waits for the kernel to quiesce, milliseconds in which no
    /// process on the machine can be started; those that follow at once do not.
    fn refill(&mut self) {
        let wanted = self.options.parked;
        if self.template.is_none() || self.exiting || self.parked.len() > wanted / 2 {
            return;
        }
        while self.parked.len() < wanted {
            match self.spawn(Isolation::Basic) {
                Ok(key) => self.parked.push_back(key),
                Err(error) => {
                    tracing::warn!(%error, "no sandbox could be prepared");
                    return self.refill_later(REFILL_AFTER_FAILURE);
                }
            }
        }
    }

    fn refill_later(&mut self, after: Duration) {
        self.schedule_once(after, Alarm::Refill);
    }

    /// Remove the groups of those who are gone.
    fn sweep_groups(&mut self) {
        self.dead_groups.retain_mut(|group| !self.groups.give_back(group));
        if !self.dead_groups.is_empty() {
            self.schedule_once(SWEEP_EVERY, Alarm::Sweep);
        }
        self.schedule_once(TRIM_EVERY, Alarm::Trim);
    }

    /// Remove the groups that nobody needed lately.
    fn trim_groups(&mut self) {
        if self.groups.trim() {
            self.schedule_once(TRIM_EVERY, Alarm::Trim);
        }
    }

    /// A keeper that nobody needs goes, and sandboxes that nobody comes back for.
    fn look_idle(&mut self, now: Instant) {
        let abandoned = self.options.abandoned();
        if self.alone_since.is_some_and(|since| now.duration_since(since) >= abandoned) {
            self.alone_since = None;
            let sandboxes: Vec<_> = self.by_sandbox.keys().copied().collect();
            if !sandboxes.is_empty() {
                tracing::warn!(count = sandboxes.len(), ?abandoned, "no worker: sandboxes end");
            }
            for sandbox in sandboxes {
                self.stop(sandbox, ABANDONED_GRACE);
            }
            self.bundles.signal(Signal::TERM);
            self.schedule(ABANDONED_GRACE, Alarm::Abandoned);
        }
        if self.worker.is_some() || !self.has_nothing() {
            self.idle_since = None;
        } else if self.idle_since.is_none() {
            self.idle_since = Some(now);
        }
        let idle = self.options.idle();
        let look = (idle.min(abandoned) / 2).max(Duration::from_millis(10));
        if self.idle_since.is_some_and(|since| now.duration_since(since) >= idle) {
            self.exit();
        } else {
            self.schedule_once(look, Alarm::Idle);
        }
    }

    /// Whether nobody's end would be missed.
    fn has_nothing(&self) -> bool {
        let Self { by_sandbox, networks, bundles, .. } = self;
        by_sandbox.is_empty() && networks.loans.is_empty() && bundles.are_over()
    }

    /// The worker's configuration may be newer than this keeper.
    fn configure(&mut self, network: Network) {
        if self.options.network != network {
            self.options.network = network;
            let settings = self.options.pool();
            self.networks.configure(settings);
            self.renew_rules();
        }
    }

    /// Makes the network rules anew, in a process of its own: starts do not wait for that. A
    /// firewall that is reloaded flushes them, and nobody tells.
    fn renew_rules(&mut self) {
        if !self.has_rules || self.exiting {
            return;
        }
        self.schedule_once(Duration::from_millis(self.options.rules_ms), Alarm::Rules);
        if self.is_renewing(Duration::ZERO) {
            return self.schedule_once(RENEWAL, Alarm::Renewed);
        }
        let of_pool = self.networks.renewal();
        match fork(0) {
            Ok(Forked::Child) => {
                close_from(FIRST_OF_OURS);
                let made = rules::make(&self.options, &self.name.table())
                    .and_then(|()| of_pool.map_or(Ok(()), |renewal| renewal.run()));
                if let Err(reason) = &made {
                    tracing::warn!(%reason, "the network rules could not be made anew");
                }
                exit_now(i32::from(made.is_err()))
            }
            Ok(Forked::Parent { pidfd, .. }) => {
                self.renewal = Some(pidfd);
                self.schedule_once(RENEWAL, Alarm::Renewed);
            }
            Err(error) => {
                self.networks.doubt();
                tracing::warn!(%error, "the network rules are not made anew");
            }
        }
    }

    /// If a renewal has ended, what has changed since is in it.
    fn look_at_renewal(&mut self) {
        if self.is_renewing(Duration::ZERO) {
            return self.schedule_once(RENEWAL, Alarm::Renewed);
        }
        if self.networks.renewed() {
            self.renew_rules();
        }
    }

    /// Whether the last renewal of the rules still runs, after waiting for it so long.
    fn is_renewing(&mut self, patience: Duration) -> bool {
        let Some(pidfd) = &self.renewal else { return false };
        let patience = Timespec::try_from(patience).ok();
        let ended = poll(&mut [PollFd::new(pidfd, PollFlags::IN)], patience.as_ref());
        if !matches!(ended, Ok(1..)) {
            return true;
        }
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match waitid(WaitId::PidFd(pidfd.as_fd()), options) {
            Ok(Some(status)) if status.exit_status() == Some(0) => {}
            Ok(_) => self.networks.doubt(),
            Err(error) => {
                tracing::trace!(%error, "it has been waited for with others");
                self.networks.doubt();
            }
        }
        self.renewal = None;
        false
    }

    /// Kill everything; the loop ends when all are gone.
    fn exit(&mut self) {
        self.exiting = true;
        let keys: Vec<u64> = self.cells.keys().copied().collect();
        for key in keys {
            self.kill(key);
        }
        self.bundles.signal(Signal::KILL);
    }

    fn clean_up(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while !self.dead_groups.is_empty() && Instant::now() < deadline {
            self.dead_groups.retain_mut(|group| !group.remove());
            std::thread::park_timeout(Duration::from_millis(1));
        }
        self.groups.remove();
        // It must not make what is removed now.
        if self.is_renewing(Duration::from_secs(5))
            && let Some(pidfd) = &self.renewal
            && let Err(error) = pidfd_send_signal(pidfd, Signal::KILL)
        {
            tracing::debug!(%error, "has ended already");
        }
        if let Some(pool) = self.networks.pool.take() {
            pool.close();
        }
        machine::leave(&self.options, &self.name);
    }
}
