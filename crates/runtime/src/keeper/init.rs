//! The first process of a sandbox: a fork of the keeper that prepares namespaces, mounts and group,
//! waits for its start, executes the function, and buries the dead.
//!
//! In `basic` it is pid 1 of the sandbox, so its end is the end of everything inside; in `plain` it
//! is the reaper of its descendants and kills them by walking their tree. It ends when the function
//! ends, when it is told to, and when the keeper is gone: a sandbox without a keeper has nobody to
//! read its output. It can be neither traced nor dumped: it is a copy of the keeper.

use std::{
    ffi::CString,
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, IntoRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::Mode,
    io::Errno,
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send},
    process::{
        DumpableBehavior, Pid, Signal, WaitOptions, WaitStatus, getpid, kill_process,
        set_child_subreaper, set_dumpable_behavior, setsid, umask, wait,
    },
    thread::{
        CapabilitySet, LinkNameSpaceType, clear_ambient_capability_set, move_into_link_name_space,
        remove_capability_from_bounding_set,
    },
};
use seccompiler::sock_filter;

use crate::{
    keeper::{
        launch::{self, Identity, Launch},
        protocol::{Exit, FromInit, Run, ToInit},
        root::Template,
        scope,
    },
    sys::{
        process::{close_from, exit_now, kill_all_others, own, place},
        signal,
    },
};

/// The longest message to an init; bounds the environment of a function.
pub(crate) const MAX_MESSAGE: usize = 192 * 1024;

/// The keeper's socket in an init.
const SOCKET: i32 = 3;

/// What an init prepares.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    /// The root file system; none in `plain`.
    pub(crate) template: Option<&'a Template>,
    /// Where artifacts are.
    pub(crate) artifacts: &'a Path,
    /// The uid that the function will have, if it is one of its own.
    pub(crate) uid: Option<u32>,
    /// The groups to join.
    pub(crate) doors: Vec<PathBuf>,
    /// The system calls allowed.
    pub(crate) filter: &'a [sock_filter],
    /// Who we are in the user namespace of our own, where there is one.
    pub(crate) user: Option<(u32, u32)>,
}

/// Be an init. The caller is a new child with one thread, which never returns from here.
pub(crate) fn main(socket: OwnedFd, plan: &Plan<'_>) -> ! {
    // From here on, what the keeper had open is closed behind its owners' backs: nothing of the
    // keeper's state may be used or dropped any more.
    if place(socket.into_raw_fd(), SOCKET).is_err() {
        exit_now(1);
    }
    close_from(SOCKET + 1);
    let socket = own(SOCKET);
    match prepare(plan) {
        Ok(children) => {
            say(&socket, &FromInit::Parked);
            let mut init = Init { socket, children, plan, main: None, state: State::Running };
            init.rehearse();
            init.serve();
        }
        Err(error) => say(&socket, &FromInit::Unable(error.to_string())),
    }
    exit_now(0)
}

fn prepare(plan: &Plan<'_>) -> io::Result<OwnedFd> {
    setsid()?;
    umask(Mode::WGRP | Mode::WOTH);
    if let Some((uid, gid)) = plan.user {
        map_user(uid, gid)?;
    }
    let children = signal::child_signals()?;
    for number in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        signal::ignore(number);
    }
    // Functions are killed before daemons where a machine is out of memory.
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "500") {
        tracing::debug!(%error, "oom_score_adj not set");
    }
    for door in &plan.doors {
        std::fs::write(door, "0").map_err(|error| {
            io::Error::new(error.kind(), format!("joining {}: {error}", door.display()))
        })?;
    }
    if let Some(template) = plan.template {
        rustix::system::sethostname(b"sandbox")?;
        template.prepare(plan.artifacts, plan.uid)?;
        if let Err(error) = scope::confine() {
            // Said once, by the keeper, where the kernel cannot.
            tracing::debug!(%error, "abstract names are not kept apart");
        }
    } else {
        set_child_subreaper(Some(getpid()))?;
    }
    drop_bounds();
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(children)
}

/// Be the same user in a new user namespace.
pub(crate) fn map_user(uid: u32, gid: u32) -> io::Result<()> {
    let write = |file: &str, text: String| {
        std::fs::write(file, text)
            .map_err(|error| io::Error::new(error.kind(), format!("{file}: {error}")))
    };
    write("/proc/self/setgroups", "deny".to_owned())?;
    write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}

/// Take all capabilities out of reach of whatever is executed from here on.
fn drop_bounds() {
    for bit in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        // The first number that the kernel does not know, or no right to: then there is nothing
        // that could be gained either, since nothing is held.
        if remove_capability_from_bounding_set(one).is_err() {
            break;
        }
    }
    if let Err(error) = clear_ambient_capability_set() {
        tracing::debug!(%error, "no ambient capabilities here");
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    /// Told to stop: waits until everybody has ended.
    Terminating,
    Over,
}

struct Init<'a> {
    socket: OwnedFd,
    children: OwnedFd,
    plan: &'a Plan<'a>,
    main: Option<Pid>,
    state: State,
}

impl Init<'_> {
    /// Goes through what a start does in this process's own memory. It is a copy of the keeper's, of
    /// which each page is copied when it is written first: dozens of times between an order and its
    /// execution, unless that was done while nobody waited.
    fn rehearse(&self) {
        let mut told = [PollFd::new(&self.socket, PollFlags::IN)];
        if poll(&mut told, Some(&Timespec::default())) != Ok(0) {
            return;
        }
        let pair = |number: u32| (format!("VARIABLE_{number}"), "of about this length".repeat(2));
        let run = Run {
            command: vec!["./program".to_owned(); 3],
            environment: (0..16).map(pair).collect(),
            artifact: Some(PathBuf::from("/artifacts").join("0".repeat(64))),
            ..Run::default()
        };
        if let Ok(message) = serde_json::to_vec(&ToInit::Run(Box::new(run)))
            && let Ok(ToInit::Run(run)) = serde_json::from_slice(&message)
        {
            drop(std::hint::black_box(Launch::new(&run, CString::default(), self.plan.filter)));
        }
    }

    fn serve(&mut self) {
        let mut buffer = vec![0; MAX_MESSAGE];
        while self.state != State::Over {
            let mut fds = [
                PollFd::new(&self.socket, PollFlags::IN),
                PollFd::new(&self.children, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => break,
            }
            let (told, died) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
            if told {
                match receive(self.socket.as_fd(), &mut buffer) {
                    Ok(Some((message, descriptors))) => self.obey(message, &descriptors),
                    Ok(None) | Err(_) => break,
                }
            }
            if died {
                drain_signals(&self.children);
                self.bury();
            }
        }
        self.kill_rest();
    }

    fn obey(&mut self, message: ToInit, descriptors: &[OwnedFd]) {
        match message {
            ToInit::Run(run) => match self.run(&run, descriptors) {
                Ok((pid, at_ns)) => {
                    self.main = Some(pid);
                    say(&self.socket, &FromInit::Started { at_ns });
                }
                Err(Failure { function, message }) => {
                    say(&self.socket, &FromInit::NotStarted { function, message });
                    self.state = State::Over;
                }
            },
            ToInit::Terminate => {
                self.state = State::Terminating;
                if self.plan.template.is_some() {
                    kill_all_others(libc::SIGTERM);
                } else {
                    signal_all(&descendants(getpid()), Signal::TERM);
                }
            }
            ToInit::Kill => self.state = State::Over,
        }
    }

    fn run(&self, run: &Run, descriptors: &[OwnedFd]) -> Result<(Pid, u64), Failure> {
        let (stdout, stderr, network, listener) = match (descriptors, run.own_network) {
            ([stdout, stderr, network, listener @ ..], true) => {
                (stdout, stderr, Some(network), listener)
            }
            ([stdout, stderr, listener @ ..], false) => (stdout, stderr, None, listener),
            _ => return Err(Failure::ours("descriptors are missing")),
        };
        if let Some(network) = network {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(network.as_fd(), kind)
                .map_err(|error| Failure::ours(format!("its network: {error}")))?;
        }
        let directory: &Path = if let Some(template) = self.plan.template {
            template
                .enter(run)
                .map_err(|error| Failure::ours(format!("no root file system: {error}")))?;
            Path::new(super::root::WORK)
        } else {
            run.artifact.as_deref().unwrap_or(&run.home)
        };
        let directory = c_string(&directory.to_string_lossy())?;
        let launch = Launch::new(run, directory, self.plan.filter)?;
        let pid = launch.execute(&launch::Descriptors {
            stdout: stdout.as_raw_fd(),
            stderr: stderr.as_raw_fd(),
            listener: listener.first().map(OwnedFd::as_raw_fd),
        })?;
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        Ok((pid, seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)))
    }

    /// Reap everybody who has ended.
    fn bury(&mut self) {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    if self.has_ended(pid, status) && self.state == State::Running {
                        self.state = State::Over;
                    }
                }
                Ok(None) | Err(Errno::INTR) => return,
                Err(_nobody_left) => {
                    if self.main.is_some() {
                        self.state = State::Over;
                    }
                    return;
                }
            }
        }
    }

    /// Tell of the function's own process; whether it is that.
    fn has_ended(&self, pid: Pid, status: WaitStatus) -> bool {
        if Some(pid) != self.main {
            return false;
        }
        let exit = match status.terminating_signal() {
            Some(signal) => Exit::Signal(signal),
            None => Exit::Code(status.exit_status().unwrap_or(-1)),
        };
        say(&self.socket, &FromInit::Exited(exit));
        true
    }

    /// In `basic` the kernel kills everybody when this process ends.
    fn kill_rest(&self) {
        if self.plan.template.is_some() {
            return;
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            signal_all(&descendants(getpid()), Signal::KILL);
            loop {
                match wait(WaitOptions::NOHANG) {
                    // The keeper looks everywhere for what is left of one that does not tell.
                    Ok(Some((pid, status))) => drop(self.has_ended(pid, status)),
                    Err(Errno::INTR) => {}
                    Ok(None) => break,
                    Err(_nobody_left) => return,
                }
            }
            if Instant::now() >= deadline {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }
}

/// Why a function could not be executed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Whether it is the function's fault.
    pub(crate) function: bool,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn ours(message: impl Into<String>) -> Self {
        Self { function: false, message: message.into() }
    }

    pub(crate) fn theirs(message: impl Into<String>) -> Self {
        Self { function: true, message: message.into() }
    }
}

/// Text for a system call.
pub(crate) fn c_string(text: &str) -> Result<CString, Failure> {
    CString::new(text)
        .map_err(|_nul| Failure::theirs("a NUL byte in the command or the environment"))
}

impl Identity {
    /// Who runs the function.
    pub(crate) fn of(run: &Run) -> Self {
        run.uid.map_or(Self::Inherited, Self::Own)
    }
}

fn drain_signals(children: &OwnedFd) {
    let mut buffer = [0; 1024];
    while rustix::io::read(children, &mut buffer).is_ok_and(|n| n > 0) {}
}

fn signal_all(processes: &[Pid], signal: Signal) {
    for &pid in processes {
        if let Err(error) = kill_process(pid, signal) {
            tracing::trace!(?pid, %error, "not signalled");
        }
    }
}

/// All descendants of a process, as far as can be seen at this moment.
pub(crate) fn descendants(of: Pid) -> Vec<Pid> {
    let mut all = vec![of];
    let mut next = 0;
    while let Some(&pid) = all.get(next) {
        next += 1;
        let tasks = format!("/proc/{}/task", pid.as_raw_nonzero());
        for task in std::fs::read_dir(tasks).into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(task.path().join("children"));
            let children = children.unwrap_or_default();
            let new = children.split_whitespace().filter_map(|c| Pid::from_raw(c.parse().ok()?));
            all.extend(new);
        }
    }
    all.remove(0);
    all
}

/// Tell the keeper. If it is gone, the socket says so to the loop.
fn say(socket: &OwnedFd, message: &FromInit) {
    if let Ok(bytes) = serde_json::to_vec(message)
        && let Err(error) = send(socket, &bytes, SendFlags::NOSIGNAL)
    {
        tracing::debug!(%error, "the keeper is gone");
    }
}

/// The next message and its descriptors; `None` once the keeper is gone.
fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<Option<(ToInit, Vec<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut parts = [IoSliceMut::new(buffer)];
        match recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    let message = serde_json::from_slice(&buffer[..received.bytes])?;
    Ok(Some((message, descriptors)))
}
