//! The last steps before the function's own program: descriptors, limits, identity, system calls.
//!
//! Everything that needs memory is prepared by the parent; the child that takes the steps shares
//! its memory, and its parent waits until it has executed or given up.

use std::{ffi::CString, os::fd::RawFd};

use rustix::{
    fs::Mode,
    process::{
        Gid, Pid, Resource, Rlimit, Uid, chdir, getpid, getrlimit, setrlimit, setsid, umask,
    },
    thread::{
        CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs, set_thread_groups,
        set_thread_res_gid, set_thread_res_uid,
    },
};
use seccompiler::{apply_filter, sock_filter};

use crate::{
    keeper::{
        init::{Failure, c_string},
        protocol::Run,
    },
    sys::{
        process::{CStrings, close_from, execve, exit_now, place, vfork},
        signal,
    },
};

/// Where programs are looked for.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The number at which a passed listener is found, by systemd's protocol.
const LISTENER: RawFd = 3;

/// Open files, where the keeper's own limit allows so many.
const OPEN_FILES: u64 = 65_536;

/// Who runs the function.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Identity {
    /// A uid and gid that nobody else has.
    Own(u32),
    /// Whoever runs the keeper.
    Inherited,
}

/// What the function finds open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptors {
    pub(crate) stdout: RawFd,
    pub(crate) stderr: RawFd,
    pub(crate) listener: Option<RawFd>,
}

/// A program ready to be executed.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    /// The paths to try, in order.
    candidates: Vec<CString>,
    arguments: CStrings,
    environment: CStrings,
    directory: CString,
    identity: Identity,
    processes: Option<u64>,
    filter: &'a [sock_filter],
    program: String,
    pass_listener: bool,
    /// The environment, to be completed by the child with a pid that only it knows.
    pairs: Vec<CString>,
}

impl<'a> Launch<'a> {
    pub(crate) fn new(
        run: &Run,
        directory: CString,
        filter: &'a [sock_filter],
    ) -> Result<Self, Failure> {
        let program =
            run.command.first().ok_or_else(|| Failure::theirs("the command is empty"))?.clone();
        let path = run.environment.iter().find(|(name, _)| name == "PATH");
        let path = path.map_or(PATH, |(_, value)| value.as_str());
        let candidates = if program.contains('/') {
            vec![c_string(&program)?]
        } else {
            path.split(':')
                .filter(|directory| !directory.is_empty())
                .map(|directory| c_string(&format!("{directory}/{program}")))
                .collect::<Result<_, _>>()?
        };
        let arguments = run.command.iter().map(|a| c_string(a)).collect::<Result<_, _>>()?;
        let pairs: Vec<CString> = run
            .environment
            .iter()
            .map(|(name, value)| c_string(&format!("{name}={value}")))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            candidates,
            arguments: CStrings::new(arguments),
            environment: CStrings::new(pairs.clone()),
            directory,
            identity: Identity::of(run),
            processes: run.processes,
            filter,
            program,
            pass_listener: run.pass_listener,
            pairs,
        })
    }

    /// Execute it in a new process.
    pub(crate) fn execute(mut self, descriptors: &Descriptors) -> Result<Pid, Failure> {
        let mut failure = None;
        let pid = vfork(|| {
            failure = Some(self.become_function(descriptors));
            exit_now(127);
        })
        .map_err(|error| Failure::ours(format!("no new process: {error}")))?;
        match failure {
            // The child is reaped with everybody else.
            Some(failure) => Err(failure),
            None => Pid::from_raw(pid).ok_or_else(|| Failure::ours("no new process")),
        }
    }

    /// In the child: returns only if it failed. Allocates only what it also frees, or what the
    /// parent, whose memory it is, can do without.
    fn become_function(&mut self, descriptors: &Descriptors) -> Failure {
        if let Err((step, error)) = self.confine(descriptors) {
            return Failure::ours(format!("{step}: {error}"));
        }
        if let Err(error) = chdir(&self.directory) {
            return Failure::ours(format!("working directory: {error}"));
        }
        if self.pass_listener {
            // Only here is the pid known under which the function knows itself.
            let mut pairs = std::mem::take(&mut self.pairs);
            let id = getpid().as_raw_nonzero();
            if let Ok(pair) = c_string(&format!("LISTEN_PID={id}")) {
                pairs.push(pair);
            }
            self.environment = CStrings::new(pairs);
        }
        if let Err(error) = apply_filter(self.filter) {
            return Failure::ours(format!("seccomp: {error}"));
        }
        let mut worst = libc::ENOENT;
        for path in &self.candidates {
            let error = execve(path, &self.arguments, &self.environment);
            // As the shells do: a file that is there and cannot be executed tells more.
            match error.raw_os_error().unwrap_or(libc::ENOENT) {
                libc::ENOENT | libc::ENOTDIR => {}
                other => worst = other,
            }
        }
        self.explain(worst)
    }

    fn confine(&self, descriptors: &Descriptors) -> Result<(), (&'static str, std::io::Error)> {
        fn step<T, E: Into<std::io::Error>>(
            name: &'static str,
            result: Result<T, E>,
        ) -> Result<T, (&'static str, std::io::Error)> {
            result.map_err(|error| (name, error.into()))
        }
        signal::reset_all();
        step("session", setsid())?;
        step("stdout", place(descriptors.stdout, 1))?;
        step("stderr", place(descriptors.stderr, 2))?;
        if let Some(listener) = descriptors.listener {
            step("listener", place(listener, LISTENER))?;
            close_from(LISTENER + 1);
        } else {
            close_from(LISTENER);
        }
        umask(Mode::WGRP | Mode::WOTH);
        let most = getrlimit(Resource::Nofile).maximum.map_or(OPEN_FILES, |m| m.min(OPEN_FILES));
        step("limit of open files", limit(Resource::Nofile, most))?;
        step("limit of core files", limit(Resource::Core, 0))?;
        if let Some(most) = self.processes {
            let bound = getrlimit(Resource::Nproc).maximum.map_or(most, |m| m.min(most));
            step("limit of processes", limit(Resource::Nproc, bound))?;
        }
        if let Identity::Own(id) = self.identity {
            let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
            step("groups", set_thread_groups(&[]))?;
            step("gid", set_thread_res_gid(gid, gid, gid))?;
            step("uid", set_thread_res_uid(uid, uid, uid))?;
        }
        let none = CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        };
        step("capabilities", set_capabilities(None, none))?;
        step("no_new_privs", set_no_new_privs(true))
    }

    /// What an error of `execve` means to who wrote the command.
    fn explain(&self, error: i32) -> Failure {
        let program = &self.program;
        let (how, error_text) = match error {
            libc::ENOENT if program.contains('/') => (
                "no such file in the artifact or on the machine (or its interpreter is missing)",
                String::new(),
            ),
            libc::ENOENT => ("no such program in the path of the sandbox", format!(" ({PATH})")),
            libc::EACCES => ("not executable (mode bits, or a directory)", String::new()),
            libc::ENOEXEC => {
                ("neither a program for this machine nor a script with #!", String::new())
            }
            libc::E2BIG => ("arguments and environment are too long", String::new()),
            other => {
                ("cannot be executed", format!(": {}", std::io::Error::from_raw_os_error(other)))
            }
        };
        Failure::theirs(format!("command `{program}`: {how}{error_text}"))
    }
}

fn limit(resource: Resource, most: u64) -> rustix::io::Result<()> {
    setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })
}
