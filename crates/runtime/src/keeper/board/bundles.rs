//! What OCI runtimes make for workers whose sandboxes are containers: they are executed here, so that
//! what they make is ours when they have ended, and how it ends is known, whoever asks and when.
//!
//! A runtime is executed by a child that is watched by its pidfd and killed if it takes too long. It
//! leaves a first process, which is a child of this process from then on. All that is asked about it is
//! answered when nothing is executed for it.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    event::epoll,
    fs::{Mode, OFlags, open},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    process::{
        Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, getpid, pidfd_open, pidfd_send_signal,
        wait,
    },
};

use super::{Alarm, Board, Source};
use crate::{
    keeper::{
        execute::{self, PID, PIPES},
        leftover::start_time,
        protocol::{Bundle, End, Execute, First, FromKeeper, Question},
    },
    sys::process::{Forked, fork},
};

/// How long an OCI runtime may take: longer than any does on a machine that is of use.
const LATE: Duration = Duration::from_secs(30);

/// Executed at once; a worker asks for far less.
const AT_ONCE: usize = 1024;

/// What is read of what one says.
const SAID: usize = 16 << 10;

/// Ends of processes that nobody is known to have made yet.
const STRAYS: usize = 1024;

/// How often it is looked whether a process that has ended has become ours: its parent is about to end.
const REAP: Duration = Duration::from_millis(2);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Bundles {
    held: HashMap<String, Held>,
    runs: HashMap<u64, Run>,
    /// By the keys of their pidfds in the poll set.
    names: HashMap<u64, String>,
    /// What has ended and is not ours yet.
    dying: HashSet<String>,
    waits: Vec<Wait>,
    /// Who ended while something was executed that may have made it, the latest of them.
    strays: VecDeque<(i32, End)>,
    /// How many there were before those.
    strays_gone: u64,
}

/// What a runtime has made.
#[derive(Debug)]
struct Held {
    first: First,
    state: State,
}

#[derive(Debug)]
enum State {
    Lives {
        key: u64,
        pidfd: OwnedFd,
        /// The place of its record.
        record: Option<u64>,
        /// Open for reading and writing, so that it can write while no worker reads.
        pipes: [OwnedFd; 2],
    },
    Ended {
        end: End,
        /// Kept until somebody asks how it ended, who has opened them: else what it wrote last is lost.
        pipes: Option<[OwnedFd; 2]>,
    },
}

/// A runtime that is executed.
#[derive(Debug)]
struct Run {
    bundle: String,
    pid: i32,
    pidfd: OwnedFd,
    /// `None` once nobody waits for it.
    question: Option<Question>,
    said: OwnedFd,
    /// What it makes: the directory, and the pipes.
    makes: Option<(PathBuf, [OwnedFd; 2])>,
    /// How many strays there were when it began: none of those is its own, whatever their numbers.
    strays: u64,
    is_late: bool,
}

/// Somebody waits for an end.
#[derive(Debug)]
struct Wait {
    question: Question,
    bundle: String,
    /// Whether it is to be forgotten then.
    releases: bool,
}

impl Bundles {
    /// Whether a pidfd with this key is one of these.
    pub(super) fn know(&self, key: u64) -> bool {
        self.runs.contains_key(&key) || self.names.contains_key(&key)
    }

    /// Whether nothing runs.
    pub(super) fn are_over(&self) -> bool {
        self.runs.is_empty() && self.held.values().all(|held| held.end().is_some())
    }

    /// What a worker is told of them.
    pub(super) fn list(&self) -> Vec<Bundle> {
        let all = self.held.iter();
        all.map(|(name, held)| Bundle { name: name.clone(), first: held.first, end: held.end() })
            .collect()
    }

    /// Signals all that run.
    pub(super) fn signal(&self, signal: Signal) {
        self.held.values().for_each(|held| held.signal(signal));
    }

    /// Who asked is gone.
    pub(super) fn forget_questions(&mut self) {
        self.waits.clear();
        for run in self.runs.values_mut() {
            run.question = None;
        }
    }

    fn strays_so_far(&self) -> u64 {
        self.strays_gone + self.strays.len() as u64
    }

    /// How a process of this number ended that was not known, after so many others.
    fn stray(&self, pid: i32, before: u64) -> Option<End> {
        let numbered = (self.strays_gone..).zip(&self.strays);
        let later = numbered.skip_while(|(number, _)| *number < before);
        later.map(|(_, stray)| *stray).find(|(stray, _)| *stray == pid).map(|(_, end)| end)
    }

    fn is_executed_for(&self, bundle: &str) -> bool {
        self.runs.values().any(|run| run.bundle == bundle)
    }

    fn holds(&self, pid: i32) -> Option<String> {
        let mut all = self.held.iter();
        let found = all.find(|(_, held)| held.first.pid == pid && held.end().is_none());
        found.map(|(name, _)| name.clone())
    }
}

impl Held {
    const fn end(&self) -> Option<End> {
        match self.state {
            State::Lives { .. } => None,
            State::Ended { end, .. } => Some(end),
        }
    }

    fn signal(&self, signal: Signal) {
        if let State::Lives { pidfd, .. } = &self.state {
            send(pidfd, signal);
        }
    }
}

fn send(pidfd: &OwnedFd, signal: Signal) {
    if let Err(error) = pidfd_send_signal(pidfd, signal) {
        tracing::debug!(%error, "has ended already");
    }
}

impl Board {
    /// Execute an OCI runtime.
    pub(super) fn execute(&mut self, question: Question, execute: &Execute) {
        if let Err(error) = self.run_runtime(question, execute) {
            let result = Err(error.to_string());
            self.tell(&FromKeeper::Executed { question, result });
        }
    }

    fn run_runtime(&mut self, question: Question, execute: &Execute) -> io::Result<()> {
        if self.exiting || self.bundles.runs.len() >= AT_ONCE {
            return Err(io::Error::other("the keeper executes nothing more at the moment"));
        }
        let makes = match &execute.makes {
            None => None,
            Some(_) if self.bundles.held.contains_key(&execute.bundle) => {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            Some(makes) => Some((makes.directory.clone(), open_pipes(&makes.directory)?)),
        };
        let (said, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&said, true)?;
        let keeper = getpid();
        let (pid, pidfd) = match fork(0)? {
            Forked::Child => execute::main(execute, theirs, keeper),
            Forked::Parent { pid, pidfd } => (pid, pidfd),
        };
        drop(theirs);
        let key = self.next_key;
        self.next_key += 1;
        let data = epoll::EventData::new_u64(Source::End(key).token());
        if let Err(error) = epoll::add(&self.poll, &pidfd, data, epoll::EventFlags::IN) {
            // Nobody would hear of its end.
            send(&pidfd, Signal::KILL);
            return Err(error.into());
        }
        let (bundle, question) = (execute.bundle.clone(), Some(question));
        let strays = self.bundles.strays_so_far();
        let run = Run { bundle, pid, pidfd, question, said, makes, strays, is_late: false };
        self.bundles.runs.insert(key, run);
        self.schedule(LATE, Alarm::Late(key));
        Ok(())
    }

    /// A runtime takes too long.
    pub(super) fn cut_off(&mut self, key: u64) {
        let Some(run) = self.bundles.runs.get_mut(&key) else { return };
        run.is_late = true;
        send(&run.pidfd, Signal::KILL);
    }

    /// Say how a bundle has ended, once it has.
    pub(super) fn await_end(&mut self, question: Question, bundle: &str) {
        let wait = Wait { question, bundle: bundle.to_owned(), releases: false };
        self.bundles.waits.push(wait);
        self.settle(bundle);
    }

    /// End a bundle, and forget it.
    pub(super) fn release(&mut self, question: Question, bundle: &str) {
        if let Some(held) = self.bundles.held.get(bundle) {
            held.signal(Signal::KILL);
        }
        let wait = Wait { question, bundle: bundle.to_owned(), releases: true };
        self.bundles.waits.push(wait);
        self.settle(bundle);
    }

    /// Answer who waits for the end of this one, if it has ended.
    fn settle(&mut self, bundle: &str) {
        let end = match self.bundles.held.get(bundle).map(|held| &held.state) {
            Some(State::Lives { .. }) => return,
            Some(State::Ended { end, .. }) => Some(*end),
            None => None,
        };
        if self.bundles.is_executed_for(bundle) {
            return;
        }
        let waits = self.bundles.waits.extract_if(.., |wait| wait.bundle == bundle);
        for Wait { question, releases, .. } in waits.collect::<Vec<_>>() {
            // First: who is told of the end reads to the end.
            if let Some(Held { state: State::Ended { pipes, .. }, .. }) =
                self.bundles.held.get_mut(bundle)
            {
                *pipes = None;
            }
            if releases {
                self.bundles.held.remove(bundle);
            }
            self.tell(&FromKeeper::Ended { question, end });
        }
    }

    /// The pidfd of one of these is ready: it can be waited for, if it is ours already.
    pub(super) fn bundle_ended(&mut self, key: u64) {
        if let Some(name) = self.bundles.names.get(&key) {
            self.bundles.dying.insert(name.clone());
        }
    }

    /// Wait for all children that have ended, adopted ones too.
    pub(super) fn reap(&mut self) {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => self.reaped(pid.as_raw_nonzero().get(), status),
                Err(Errno::INTR) => {}
                Ok(None) | Err(_) => break,
            }
        }
        if !self.bundles.dying.is_empty() {
            self.schedule_once(REAP, Alarm::Reap);
        }
    }

    fn reaped(&mut self, pid: i32, status: WaitStatus) {
        let end = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => End::Code(code),
            (_, Some(signal)) => End::Signal(signal),
            (None, None) => End::Unknown,
        };
        let mut runs = self.bundles.runs.iter();
        if let Some(key) = runs.find_map(|(&key, run)| (run.pid == pid).then_some(key)) {
            self.run_ended(key, end);
        } else if let Some(name) = self.bundles.holds(pid) {
            self.first_ended(&name, end);
        } else if !self.bundles.runs.is_empty() {
            self.bundles.strays.push_back((pid, end));
            if self.bundles.strays.len() > STRAYS {
                self.bundles.strays.pop_front();
                self.bundles.strays_gone += 1;
            }
        }
    }

    /// Processes that have ended under somebody else, who is about to end, too.
    pub(super) fn look_at_dying(&mut self) {
        self.reap();
        let lost = self.bundles.dying.iter().filter(|name| {
            let held = self.bundles.held.get(*name);
            held.is_none_or(|held| start_time(held.first.pid) != Some(held.first.started))
        });
        for name in lost.cloned().collect::<Vec<_>>() {
            self.first_ended(&name, End::Unknown);
        }
    }

    /// A runtime has ended.
    fn run_ended(&mut self, key: u64, end: End) {
        let Some(mut run) = self.bundles.runs.remove(&key) else { return };
        if let Err(error) = epoll::delete(&self.poll, &run.pidfd) {
            tracing::trace!(%error, "not waited for any more already");
        }
        // Whoever it left between itself and its first process.
        self.schedule_once(REAP, Alarm::Reap);
        let makes = run.makes.take();
        let result = match (end, makes) {
            (End::Code(0), None) => Ok(None),
            (End::Code(0), Some((directory, pipes))) => self
                .hold(&run.bundle, &directory, pipes, run.strays)
                .map(Some)
                .map_err(|error| format!("no first process: {error}")),
            _ => Err(run.failure(end)),
        };
        if self.bundles.runs.is_empty() {
            self.bundles.strays_gone = self.bundles.strays_so_far();
            self.bundles.strays.clear();
        }
        if let Some(question) = run.question {
            self.tell(&FromKeeper::Executed { question, result });
        }
        self.settle(&run.bundle);
    }

    /// From now on its first process is ours.
    fn hold(
        &mut self,
        name: &str,
        directory: &Path,
        pipes: [OwnedFd; 2],
        strays_before: u64,
    ) -> io::Result<First> {
        let text = fs::read_to_string(directory.join(PID))?;
        let pid = text.trim().parse().ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other(format!("`{text}` is no process")))?;
        let number = pid.as_raw_nonzero().get();
        // Nobody waits for our children but we, so that the number is still its own, unless we have.
        if let Some(end) = self.bundles.stray(number, strays_before) {
            let first = First { pid: number, started: 0 };
            let state = State::Ended { end, pipes: Some(pipes) };
            self.bundles.held.insert(name.to_owned(), Held { first, state });
            return Ok(first);
        }
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        let started = start_time(number).ok_or(io::ErrorKind::NotFound)?;
        let first = First { pid: number, started };
        let key = self.next_key;
        self.next_key += 1;
        let data = epoll::EventData::new_u64(Source::End(key).token());
        // Told once: until it is ours its end can be seen, but not waited for.
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&self.poll, &pidfd, data, flags)?;
        let record = super::cell::random_id().and_then(|id| self.records.add(&id, number));
        let record = record.inspect_err(|error| tracing::warn!(%error, "no record of a sandbox"));
        let state = State::Lives { key, pidfd, record: record.ok(), pipes };
        let held = Held { first, state };
        let mut waits = self.bundles.waits.iter();
        if self.exiting || waits.any(|wait| wait.releases && wait.bundle == name) {
            held.signal(Signal::KILL);
        }
        self.bundles.names.insert(key, name.to_owned());
        self.bundles.held.insert(name.to_owned(), held);
        Ok(first)
    }

    /// A first process has ended.
    fn first_ended(&mut self, name: &str, end: End) {
        self.bundles.dying.remove(name);
        let Some(Held { first, state }) = self.bundles.held.remove(name) else { return };
        let State::Lives { key, pidfd, record, pipes } = state else { return };
        let state = State::Ended { end, pipes: Some(pipes) };
        self.bundles.held.insert(name.to_owned(), Held { first, state });
        self.bundles.names.remove(&key);
        if let Err(error) = epoll::delete(&self.poll, &pidfd) {
            tracing::trace!(%error, "not waited for any more already");
        }
        if let Some(Err(error)) = record.map(|place| self.records.remove(place)) {
            tracing::warn!(%error, "the record of a sandbox that is gone stays");
        }
        self.settle(name);
    }
}

impl Run {
    /// What is told of one that failed.
    fn failure(&self, end: End) -> String {
        if self.is_late {
            return format!("it did not end within {LATE:?} and was killed");
        }
        // Whole, unless it is long: it has ended.
        let mut buffer = vec![0; SAID];
        let length = rustix::io::read(&self.said, &mut buffer).unwrap_or(0);
        let said = String::from_utf8_lossy(&buffer[..length]);
        match (said.trim(), end) {
            ("", End::Code(code)) => format!("it exited with status {code}"),
            ("", End::Signal(signal)) => format!("it was ended by signal {signal}"),
            ("", End::Unknown) => "how it ended is not known".to_owned(),
            (said, _) => said.to_owned(),
        }
    }
}

/// For reading and writing, so that neither waits for the other.
fn open_pipes(directory: &Path) -> io::Result<[OwnedFd; 2]> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let [stdout, stderr] = PIPES.map(|name| open(directory.join(name), flags, Mode::empty()));
    Ok([stdout?, stderr?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_was_somebody_elses_before_says_nothing() {
        let mut bundles = Bundles::default();
        bundles.strays.push_back((7, End::Code(1)));
        let before = bundles.strays_so_far();
        assert_eq!(bundles.stray(7, before), None);
        bundles.strays.push_back((7, End::Code(3)));
        assert_eq!(bundles.stray(7, before), Some(End::Code(3)));
        bundles.strays.pop_front();
        bundles.strays_gone += 1;
        assert_eq!((bundles.stray(7, before), bundles.strays_so_far()), (Some(End::Code(3)), 2));
    }
}
