//! One sandbox: made, parked, given its start, stopped, buried.

use std::{
    fs, io,
    io::IoSlice,
    mem::MaybeUninit,
    net::Ipv4Addr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use dirigent_core::{Address, Cause, Fault, Isolation, SandboxId, StartFailure, worker::Adopted};
use rustix::{
    event::{PollFd, PollFlags, Timespec, epoll, poll},
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
        SocketFlags, SocketType, recv, sendmsg, socketpair,
    },
    pipe::{PipeFlags, pipe_with},
    process::{Pid, Signal, Uid, getgid, getuid, pidfd_send_signal},
};

use super::{Alarm, Board, FIRST_OF_OURS, REFILL_AFTER, SWEEP_EVERY, Source, WATCH_EVERY, machine};
use crate::{
    keeper::{
        cgroup::Group,
        init::{self, MAX_MESSAGE, Plan, descendants},
        leftover,
        output::{Output, Which},
        protocol::{Exit, FromInit, FromKeeper, Run, Start, ToInit},
    },
    network::Space,
    sys::process::{Forked, close_from, exit_now, fork},
};

/// How long a sandbox that was told to die may take before it is killed without its help.
const OVERDUE: Duration = Duration::from_secs(2);

/// The process side of a sandbox, parked or running.
#[derive(Debug)]
pub(super) struct Cell {
    /// Random; what its processes and its files are found by.
    id: String,
    init: i32,
    pidfd: OwnedFd,
    /// The place of its record.
    record: Option<u64>,
    socket: OwnedFd,
    group: Option<Group>,
    isolation: Isolation,
    /// The uid that nobody else has.
    uid: Option<u32>,
    /// Why it could not be prepared.
    unable: Option<String>,
    assigned: Option<Assigned>,
    /// Its own network, from its start on.
    space: Option<Space>,
}

/// What runs in it.
#[derive(Debug)]
struct Assigned {
    adopted: Adopted,
    output: Output,
    exit: Option<Exit>,
    not_started: Option<(Fault, String)>,
    /// Killed by us for what it used.
    over_memory: bool,
}

impl Cell {
    pub(super) fn output(&mut self) -> Option<&mut Output> {
        self.assigned.as_mut().map(|a| &mut a.output)
    }

    /// What a worker is told of it.
    pub(super) fn adopted(&self) -> Option<Adopted> {
        self.assigned.as_ref().map(|a| a.adopted.clone())
    }

    /// Wait until it is prepared, or cannot be. Only at the keeper's start.
    pub(super) fn await_parked(&self) -> Result<(), String> {
        let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        match poll(&mut fds, Some(&limit)) {
            Ok(1..) => {}
            _ => return Err("a sandbox was not ready within 10 s".to_owned()),
        }
        let mut buffer = vec![0; 64 * 1024];
        let (length, _) =
            recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT).map_err(|e| e.to_string())?;
        match serde_json::from_slice(&buffer[..length]) {
            Ok(FromInit::Parked) => Ok(()),
            Ok(FromInit::Unable(reason)) => Err(reason),
            _ => Err("a sandbox ended while it was prepared".to_owned()),
        }
    }

    fn tell(&self, message: &ToInit, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > MAX_MESSAGE {
            let length = bytes.len();
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("command and environment take {length} bytes, {MAX_MESSAGE} at most"),
            ));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut control, flags)?;
        Ok(())
    }

    /// End its first process, and with it, in `basic`, everything.
    fn kill(&self) {
        if let Err(error) = pidfd_send_signal(&self.pidfd, Signal::KILL) {
            tracing::debug!(%error, "has ended already");
        }
    }
}

impl Board {
    /// Make a sandbox that waits for its start.
    pub(super) fn spawn(&mut self, isolation: Isolation) -> io::Result<u64> {
        let basic = isolation == Isolation::Basic;
        let id = random_id()?;
        let uid = (basic && self.as_root).then(|| self.free_uid());
        let template = if basic { self.template.as_mut() } else { None };
        let template = template.map(|template| {
            template.refresh();
            &*template
        });
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let mut group = if basic { Some(self.groups.take(&id)?) } else { None };
        // As an ordinary user also a user namespace: processes are counted in each.
        let user = (basic && !self.as_root).then(|| (getuid().as_raw(), getgid().as_raw()));
        let mut namespaces = 0;
        if basic {
            namespaces =
                libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
        }
        if user.is_some() {
            namespaces |= libc::CLONE_NEWUSER;
        }
        let artifacts = self.options.directory.join("artifacts");
        let plan = Plan {
            template,
            artifacts: &artifacts,
            uid,
            doors: group.as_ref().map(Group::doors).unwrap_or_default(),
            filter: &self.filter,
            user,
        };
        let (pid, pidfd) = match fork(namespaces) {
            Ok(Forked::Child) => init::main(theirs, &plan),
            Ok(Forked::Parent { pid, pidfd }) => (pid, pidfd),
            Err(error) => {
                self.dead_groups.extend(group.take());
                self.sweep_groups();
                return Err(error);
            }
        };
        drop(theirs);
        let key = self.next_key;
        self.next_key += 1;
        let heard = [(&ours, Source::Socket(key)), (&pidfd, Source::End(key))];
        let heard = heard.into_iter().try_for_each(|(fd, source)| {
            let data = epoll::EventData::new_u64(source.token());
            epoll::add(&self.poll, fd, data, epoll::EventFlags::IN)
        });
        if let Err(error) = heard {
            // Nobody would hear of its end.
            if let Err(error) = pidfd_send_signal(&pidfd, Signal::KILL) {
                tracing::debug!(%error, "has ended already");
            }
            self.dead_groups.extend(group.take());
            self.sweep_groups();
            return Err(error.into());
        }
        // Without one its group, or the mark in its environment, still leads to it.
        let record = self.records.add(&id, pid);
        let record = record.inspect_err(|error| tracing::warn!(%error, "no record of a sandbox"));
        let cell = Cell {
            id,
            init: pid,
            pidfd,
            record: record.ok(),
            socket: ours,
            group,
            isolation,
            uid,
            unable: None,
            assigned: None,
            space: None,
        };
        self.cells.insert(key, cell);
        Ok(key)
    }

    /// A uid in which nobody runs.
    fn free_uid(&self) -> u32 {
        let taken = |uid| self.cells.values().any(|cell| cell.uid == Some(uid));
        let mut number = self.next_key;
        loop {
            let offset = u32::from(u16::try_from(number % (1 << 16)).unwrap_or(0));
            let uid = self.options.uid_base.saturating_add(offset);
            if !taken(uid) {
                return uid;
            }
            number += 1;
        }
    }

    /// Start a sandbox, in one that is prepared if there is one.
    pub(super) fn start(&mut self, start: Start) {
        let sandbox = start.adopted.report.sandbox;
        if self.by_sandbox.contains_key(&sandbox) {
            return tracing::warn!(%sandbox, "started twice");
        }
        let fail = |error: &io::Error| StartFailure {
            cause: Cause::CreateFailed { message: error.to_string() },
            fault: match error.kind() {
                io::ErrorKind::InvalidInput => Fault::Function,
                _ => Fault::Worker,
            },
            log_tail: Vec::new(),
        };
        let key = match start.isolation {
            // A network is added to the same at the start.
            Isolation::Basic | Isolation::Strict => {
                self.parked.pop_front().map_or_else(|| self.spawn(Isolation::Basic), Ok)
            }
            Isolation::Plain => self.spawn(Isolation::Plain),
        };
        self.refill_later(REFILL_AFTER);
        let key = match key {
            Ok(key) => key,
            Err(error) => return self.tell_gone(start.adopted, fail(&error)),
        };
        let adopted = start.adopted.clone();
        if let Err(error) = self.assign(key, start) {
            self.discard(key);
            self.tell_gone(adopted, fail(&error));
        }
    }

    fn assign(&mut self, key: u64, start: Start) -> io::Result<()> {
        let report = &start.adopted.report;
        let log = self.logs.of(report.revision.function);
        if start.isolation == Isolation::Strict {
            self.connect(key, &start)?;
        }
        let Some(cell) = self.cells.get_mut(&key) else {
            return Err(io::Error::other("the sandbox ended while it was prepared"));
        };
        let address = self.options.network.address;
        let listener = match (&cell.space, &self.networks.pool) {
            _ if !start.pass_listener => None,
            // A listener is of the network in which it was made: one of the machine's could be made
            // into a socket that connects there.
            (Some(space), Some(pool)) => {
                let any = Ipv4Addr::UNSPECIFIED;
                Some(pool.within(space, || machine::listen(any, start.port, cell.uid))?)
            }
            _ => Some(machine::listen(address, start.port, cell.uid)?),
        };
        let pipe = || {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            rustix::io::ioctl_fionbio(&read, true)?;
            if let Some(uid) = cell.uid {
                // So that it can open `/dev/stdout`, as programs of all kinds do for their logs.
                rustix::fs::fchown(&write, Some(Uid::from_raw(uid)), None)?;
            }
            Ok::<_, io::Error>((read, write))
        };
        let ((stdout, their_stdout), (stderr, their_stderr)) = (pipe()?, pipe()?);
        let home = leftover::directory(&self.options.directory, &cell.id).join("home");
        let basic = cell.isolation == Isolation::Basic;
        if !basic {
            fs::create_dir_all(&home)?;
        }
        let temporary = if basic { "/tmp".into() } else { home.to_string_lossy() };
        let environment = completed(start.environment, &temporary, &cell.id);
        let mut command = start.command;
        if start.builtin
            && let Some(program) = command.first_mut()
        {
            *program = builtin(basic);
        }
        let run = Run {
            command,
            environment,
            artifact: start.artifact,
            temporary: report.memory.0 / 2,
            uid: cell.uid,
            pass_listener: listener.is_some(),
            own_network: cell.space.is_some(),
            processes: (basic && (self.as_root || machine::counts_per_namespace()))
                .then_some(u64::from(self.options.processes)),
            home,
        };
        let mut descriptors = vec![their_stdout.as_fd(), their_stderr.as_fd()];
        descriptors.extend(cell.space.as_ref().map(Space::namespace));
        descriptors.extend(listener.as_ref().map(AsFd::as_fd));
        cell.tell(&ToInit::Run(Box::new(run)), &descriptors)?;
        // While it wakes up: long before the function can use any memory.
        if let Some(group) = &cell.group {
            group.limit(report.memory).map_err(|error| {
                io::Error::other(format!("limits of the sandbox cannot be set: {error}"))
            })?;
        }
        for (pipe, which) in [(&stdout, Which::Stdout), (&stderr, Which::Stderr)] {
            let data = epoll::EventData::new_u64(Source::Pipe(key, which).token());
            epoll::add(&self.poll, pipe, data, epoll::EventFlags::IN)?;
        }
        let watched = cell.group.is_none() || !self.groups.limit_memory();
        self.by_sandbox.insert(report.sandbox, key);
        cell.assigned = Some(Assigned {
            output: Output::new(report.sandbox, log, stdout, stderr),
            adopted: start.adopted,
            exit: None,
            not_started: None,
            over_memory: false,
        });
        if watched {
            self.watch_later();
        }
        Ok(())
    }

    /// Give one a network of its own.
    fn connect(&mut self, key: u64, start: &Start) -> io::Result<()> {
        let space = self.take_space(&start.outbound, start.port, start.port)?;
        match self.cells.get_mut(&key) {
            Some(cell) => cell.space = Some(space),
            None => self.return_space(space),
        }
        Ok(())
    }

    /// An init speaks.
    pub(super) fn hear_init(&mut self, key: u64) {
        loop {
            let Some(cell) = self.cells.get_mut(&key) else { return };
            let length = match recv(&cell.socket, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                Ok((length @ 1.., _)) => length,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return,
                // It ends, which its pidfd tells.
                Ok(_) | Err(_) => {
                    if let Err(error) = epoll::delete(&self.poll, &cell.socket) {
                        tracing::trace!(%error, "not heard any more already");
                    }
                    return;
                }
            };
            let Ok(message) = serde_json::from_slice(&self.buffer[..length]) else { continue };
            self.note(key, message);
        }
    }

    fn note(&mut self, key: u64, message: FromInit) {
        let Some(cell) = self.cells.get_mut(&key) else { return };
        match (message, &mut cell.assigned) {
            (FromInit::Unable(reason), _) => {
                tracing::warn!(%reason, "a sandbox cannot be prepared");
                cell.unable = Some(reason);
            }
            (FromInit::Started { at_ns }, Some(assigned)) => {
                let (sandbox, init, uid) = (assigned.adopted.report.sandbox, cell.init, cell.uid);
                let place = cell.space.as_ref().map(Space::address);
                self.tell(&FromKeeper::Created { sandbox, init, uid, place, at_ns });
            }
            (FromInit::NotStarted { function, message }, Some(assigned)) => {
                let fault = if function { Fault::Function } else { Fault::Worker };
                assigned.not_started = Some((fault, message));
            }
            (FromInit::Exited(exit), Some(assigned)) => assigned.exit = Some(exit),
            (FromInit::Parked, _) | (_, None) => {}
        }
    }

    pub(super) fn listening(&mut self, sandbox: SandboxId, address: Address) {
        let key = self.by_sandbox.get(&sandbox);
        let Some(cell) = key.and_then(|key| self.cells.get_mut(key)) else { return };
        let Some(assigned) = &mut cell.assigned else { return };
        assigned.adopted.report.address = Some(address);
        if let Some(group) = &cell.group
            && let Err(error) = group.weigh(assigned.adopted.report.cpu)
        {
            tracing::warn!(%sandbox, %error, "its weight cannot be set");
        }
    }

    pub(super) fn stop(&mut self, sandbox: SandboxId, grace: Duration) {
        let Some(&key) = self.by_sandbox.get(&sandbox) else { return };
        let Some(cell) = self.cells.get_mut(&key) else { return };
        let Some(assigned) = &mut cell.assigned else { return };
        let again = std::mem::replace(&mut assigned.adopted.report.stopping, true);
        if grace.is_zero() {
            return self.kill(key);
        }
        if !again && let Err(error) = cell.tell(&ToInit::Terminate, &[]) {
            tracing::debug!(%sandbox, %error, "has ended already");
        }
        self.schedule(grace, Alarm::Grace(key));
    }

    /// SIGKILL to everything in a sandbox.
    pub(super) fn kill(&mut self, key: u64) {
        let Some(cell) = self.cells.get(&key) else { return };
        if cell.isolation == Isolation::Basic || cell.tell(&ToInit::Kill, &[]).is_err() {
            cell.kill();
        } else {
            self.schedule(OVERDUE, Alarm::Overdue(key));
        }
    }

    pub(super) fn kill_hard(&mut self, key: u64) {
        if let Some(cell) = self.cells.get(&key) {
            cell.kill();
        }
    }

    /// Get rid of one that has no start, or cannot have it.
    pub(super) fn discard(&mut self, key: u64) {
        self.kill(key);
    }

    /// A sandbox's first process has ended: the last word on it.
    pub(super) fn finish(&mut self, key: u64) {
        self.hear_init(key);
        let Some(mut cell) = self.cells.remove(&key) else { return };
        self.parked.retain(|parked| *parked != key);
        for fd in [&cell.socket, &cell.pidfd] {
            if let Err(error) = epoll::delete(&self.poll, fd) {
                tracing::trace!(%error, "not heard any more already");
            }
        }
        let assigned = cell.assigned.take();
        if cell.isolation == Isolation::Plain
            && assigned.as_ref().is_some_and(|a| a.exit.is_none())
            && !leftover::kill_marked(std::slice::from_ref(&cell.id), OVERDUE)
        {
            tracing::warn!(id = %cell.id, "some processes of a sandbox could not be killed");
        }
        if let Some(mut assigned) = assigned {
            let log_tail = self.bury(key, &mut assigned);
            let (cause, fault) = cause(&assigned, &cell);
            self.by_sandbox.remove(&assigned.adopted.report.sandbox);
            self.tell_gone(assigned.adopted, StartFailure { cause, fault, log_tail });
        } else if cell.unable.is_some() {
            self.refill_later(super::REFILL_AFTER_FAILURE);
        } else {
            self.refill_later(REFILL_AFTER);
        }
        self.logs.forget_closed();
        self.logs.tidy();
        if let Some(space) = cell.space.take() {
            self.return_space(space);
        }
        if let Some(group) = cell.group.take() {
            self.dead_groups.push(group);
            self.schedule_once(SWEEP_EVERY, Alarm::Sweep);
        }
        if let Some(Err(error)) = cell.record.map(|place| self.records.remove(place)) {
            tracing::warn!(%error, "the record of a sandbox that is gone stays");
        }
        if cell.isolation == Isolation::Plain {
            self.remove_files(&cell);
        }
    }

    /// Keep the last of its output; its last lines.
    fn bury(&mut self, key: u64, assigned: &mut Assigned) -> Vec<String> {
        for which in [Which::Stdout, Which::Stderr] {
            if let Some(pipe) = assigned.output.pipe(which)
                && let Err(error) = epoll::delete(&self.poll, pipe)
            {
                tracing::trace!(key, %error, "not read any more already");
            }
        }
        assigned.output.finish(&mut self.buffer)
    }

    fn remove_files(&self, cell: &Cell) {
        let directory = leftover::directory(&self.options.directory, &cell.id);
        let quick =
            fs::remove_dir(directory.join("home")).and_then(|()| fs::remove_dir(&directory));
        // One that was never started has none.
        if quick.err().is_none_or(|error| error.kind() == io::ErrorKind::NotFound) {
            return;
        }
        // It left files, maybe many: others do not wait for that.
        match fork(0) {
            Ok(Forked::Child) => {
                close_from(FIRST_OF_OURS);
                let code = i32::from(fs::remove_dir_all(&directory).is_err());
                exit_now(code)
            }
            Ok(Forked::Parent { .. }) => {}
            Err(error) => tracing::warn!(%error, "a sandbox's files stay until the next start"),
        }
    }

    fn watch_later(&mut self) {
        self.schedule_once(WATCH_EVERY, Alarm::Watch);
    }

    /// Where the kernel limits no memory: kill what uses too much.
    pub(super) fn watch(&mut self) {
        let limited = self.groups.limit_memory();
        let mut over = Vec::new();
        let mut any = false;
        for (key, cell) in &mut self.cells {
            let Some(assigned) = &mut cell.assigned else { continue };
            if limited && cell.group.is_some() {
                continue;
            }
            any = true;
            if used(cell.init, cell.isolation) > assigned.adopted.report.memory.0 {
                assigned.over_memory = true;
                over.push(*key);
            }
        }
        for key in over {
            self.kill(key);
        }
        if any {
            self.watch_later();
        }
    }
}

/// Why a sandbox has ended, and whose fault that is.
fn cause(assigned: &Assigned, cell: &Cell) -> (Cause, Fault) {
    let limit = assigned.adopted.report.memory;
    if let Some((fault, message)) = &assigned.not_started {
        return (Cause::CreateFailed { message: message.clone() }, *fault);
    }
    if let Some(reason) = &cell.unable {
        return (Cause::CreateFailed { message: reason.clone() }, Fault::Worker);
    }
    if assigned.over_memory {
        return (Cause::OutOfMemory { limit }, Fault::Function);
    }
    if assigned.adopted.report.stopping {
        return (Cause::Stopped, Fault::Function);
    }
    let well = assigned.exit == Some(Exit::Code(0));
    if !well && cell.group.as_ref().is_some_and(Group::out_of_memory) {
        return (Cause::OutOfMemory { limit }, Fault::Function);
    }
    let cause = match assigned.exit {
        Some(Exit::Code(code)) => Cause::Exited { code },
        Some(Exit::Signal(signal)) => Cause::Signalled { signal },
        None => Cause::Signalled { signal: libc::SIGKILL },
    };
    (cause, Fault::Function)
}

/// What a sandbox's processes use alone or share only in memory, not the files that they map, and
/// what its files in temporary space take.
fn used(init: i32, isolation: Isolation) -> u64 {
    let Some(init) = Pid::from_raw(init) else { return 0 };
    let processes = descendants(init);
    let kibibytes: u64 = processes
        .iter()
        .map(|pid| {
            let status = format!("/proc/{}/status", pid.as_raw_nonzero());
            let status = fs::read_to_string(status).unwrap_or_default();
            status
                .lines()
                .filter_map(|line| {
                    line.strip_prefix("RssAnon:").or_else(|| line.strip_prefix("RssShmem:"))
                })
                .filter_map(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok())
                .sum::<u64>()
        })
        .sum();
    let files = match isolation {
        Isolation::Basic => processes.iter().filter_map(|pid| temporary(*pid)).max(),
        // On the host's disk.
        Isolation::Plain | Isolation::Strict => None,
    };
    (kibibytes << 10) + files.unwrap_or(0)
}

/// Bytes of files in the temporary space that a process sees; not of init, which may not be looked
/// at once it has changed who it is.
fn temporary(pid: Pid) -> Option<u64> {
    let space = rustix::fs::statvfs(format!("/proc/{}/root/tmp", pid.as_raw_nonzero())).ok()?;
    Some((space.f_blocks - space.f_bfree) * space.f_frsize)
}

/// An environment with what only the keeper knows.
fn completed(
    mut environment: Vec<(String, String)>,
    temporary: &str,
    id: &str,
) -> Vec<(String, String)> {
    for name in ["HOME", "TMPDIR"] {
        if environment.iter().all(|(set, _)| set != name) {
            environment.push((name.to_owned(), temporary.to_owned()));
        }
    }
    environment.push((leftover::VARIABLE.to_owned(), id.to_owned()));
    environment
}

/// The program `dirigent`, as a sandbox finds it.
fn builtin(basic: bool) -> String {
    // Init is a fork of the keeper and its child shares its memory: this is the keeper's binary
    // also after the file was replaced by a newer one.
    let path = if basic { crate::keeper::root::BUILTIN } else { "/proc/self/exe" };
    path.to_owned()
}

pub(super) fn random_id() -> io::Result<String> {
    let mut bytes = [0_u8; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
