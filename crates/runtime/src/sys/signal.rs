//! Signals of a process with one thread.

#![expect(unsafe_code, reason = "rustix has neither signal masks nor signalfd")]

use std::{
    io, mem,
    os::fd::{FromRawFd as _, OwnedFd},
    ptr,
};

/// Block SIGCHLD and read it from a descriptor instead.
pub(crate) fn child_signals() -> io::Result<OwnedFd> {
    let mut set = mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigemptyset` initialises the set that the other calls read; the descriptor made is
    // new and owned by nobody else.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        if libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut()) < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// Ignore a signal that would end this process.
pub(crate) fn ignore(signal: i32) {
    // SAFETY: SIG_IGN runs no code of ours.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Every signal as a new program expects it: default action, nothing blocked. Rust ignores SIGPIPE,
/// and what is ignored stays so over `execve`.
pub(crate) fn reset_all() {
    let mut set = mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: SIG_DFL runs no code of ours; signals that cannot be set are refused without harm.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), ptr::null_mut());
    }
}
