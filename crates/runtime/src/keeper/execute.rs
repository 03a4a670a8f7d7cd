//! The last steps before an OCI runtime: in the child of the keeper that becomes it.
//!
//! It goes into a mount namespace and, if a sandbox is to be made, into a copy of it that nobody else
//! sees: there the sandbox's root is mounted. The sandbox takes it along into its own, and the copy
//! goes with this process, so that nothing stays mounted whoever dies.

use std::{
    convert::Infallible,
    ffi::CString,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, IntoRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use rustix::{
    fs::Mode,
    io::{FdFlags, fcntl_setfd},
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    process::{Pid, Signal, chdir, getppid, set_parent_process_death_signal, setsid, umask},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use super::{
    launch::PATH,
    layer,
    protocol::{Execute, Layered, Makes},
};
use crate::sys::{
    process::{CStrings, close_from, execve, exit_now, own, place, unshare},
    signal,
};

/// The named pipes in a bundle.
pub(crate) const PIPES: [&str; 2] = ["stdout", "stderr"];

/// The file in a bundle with the number of its first process.
pub(crate) const PID: &str = "pid";

/// Where a bundle's root is mounted, and its writable layer.
const ROOT: &str = "rootfs";
const LAYER: &str = "root";

/// What `mount(2)` takes of options: a page with its end.
#[cfg(feature = "containerd")]
pub(crate) const OPTIONS: usize = 4095;

/// Where the descriptor is for what is said.
const SAID: i32 = 3;

/// The status of one that could not be executed, as shells have it.
const FAILED: i32 = 127;

impl Layered {
    /// What `overlayfs` is told, of a bundle; from within `base`.
    pub(crate) fn told(&self, bundle: &Path) -> String {
        let layer = bundle.join(LAYER);
        let own = ["upper", "work"].map(|name| format!("{name}dir={}", layer.join(name).display()));
        let lower: Vec<_> = self.layers.iter().map(|path| path.display().to_string()).collect();
        let lower = format!("lowerdir={}", lower.join(":"));
        let all = self.options.iter().cloned().chain(own).chain([lower]);
        all.collect::<Vec<_>>().join(",")
    }

    fn mount(&self, bundle: &Path) -> io::Result<()> {
        let top = self.layers.first().map_or_else(|| self.base.clone(), |top| self.base.join(top));
        layer::make(&bundle.join(LAYER), &top, self.size)?;
        let root = bundle.join(ROOT);
        match fs::create_dir(&root) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(layer::at(&root, &error));
            }
            _ => {}
        }
        chdir(&self.base).map_err(|error| layer::at(&self.base, &error.into()))?;
        let options = CString::new(self.told(bundle))?;
        mount(c"overlay", &root, c"overlay", MountFlags::empty(), options.as_c_str())
            .map_err(|error| layer::at(&root, &error.into()))?;
        Ok(chdir("/")?)
    }
}

/// Becomes the runtime. What it says, or why it cannot be executed, goes to `said`; what a sandbox
/// says goes to its pipes, which somebody has open.
pub(super) fn main(execute: &Execute, said: OwnedFd, keeper: Pid) -> ! {
    // Nothing of the keeper's stays: neither its descriptors nor, below, what it does about signals.
    if place(said.into_raw_fd(), SAID).is_err() {
        exit_now(FAILED);
    }
    close_from(SAID + 1);
    let said = own(SAID);
    let error = match run(execute, &said, keeper) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    match File::from(said).write_all(error.to_string().as_bytes()) {
        Ok(()) | Err(_) => exit_now(FAILED),
    }
}

fn run(execute: &Execute, said: &OwnedFd, keeper: Pid) -> io::Result<Infallible> {
    fcntl_setfd(said, FdFlags::CLOEXEC)?;
    let mut words = vec![CString::new(execute.program.as_os_str().as_bytes())?];
    let program = words[0].clone();
    for argument in &execute.arguments {
        words.push(CString::new(argument.as_bytes())?);
    }
    let environment = CStrings::new(vec![CString::new(format!("PATH={PATH}"))?]);
    // What a keeper that died has begun nobody would look after.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() != Some(keeper) {
        return Err(io::Error::other("its keeper has died"));
    }
    signal::reset_all();
    umask(Mode::WGRP | Mode::WOTH);
    setsid()?;
    let [stdout, stderr] = match &execute.makes {
        Some(makes) => PIPES.map(|name| open_pipe(&makes.directory.join(name))),
        None => [said.try_clone(), said.try_clone()],
    };
    place(stdout?.as_raw_fd(), 1)?;
    place(stderr?.as_raw_fd(), 2)?;
    let space = File::open(&execute.mounts).map_err(|error| layer::at(&execute.mounts, &error))?;
    move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Mount))?;
    if let Some(Makes { directory, root }) = &execute.makes {
        unshare(libc::CLONE_NEWNS)?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        root.mount(directory)?;
    }
    let error = execve(&program, &CStrings::new(words), &environment);
    Err(layer::at(&execute.program, &error))
}

/// Blocks for nobody: the keeper has it open.
fn open_pipe(path: &Path) -> io::Result<OwnedFd> {
    let opened = OpenOptions::new().write(true).open(path);
    opened.map(OwnedFd::from).map_err(|error| layer::at(path, &error))
}
