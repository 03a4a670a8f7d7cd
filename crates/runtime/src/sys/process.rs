//! Making processes and executing programs.

#![expect(unsafe_code, reason = "no safe library forks into namespaces or without copying memory")]

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    io, mem,
    os::fd::{FromRawFd as _, OwnedFd, RawFd},
    ptr,
};

/// Which of the two processes one is after [`fork`].
#[derive(Debug)]
pub(crate) enum Forked {
    /// The new one.
    Child,
    /// The old one.
    Parent {
        /// The new process, as seen from here.
        pid: i32,
        /// A descriptor that stands for it and nothing else.
        pidfd: OwnedFd,
    },
}

/// `fork` into new namespaces (`CLONE_NEW*` flags). The caller must be the process's only thread:
/// then the child may do everything that the parent could, allocation included.
pub(crate) fn fork(namespaces: c_int) -> io::Result<Forked> {
    let mut pidfd: RawFd = -1;
    let flags = u64::from((namespaces | libc::CLONE_PIDFD).cast_unsigned());
    let mut args: libc::clone_args = {
        // SAFETY: all fields are integers, for which zero is a value and means "none".
        unsafe { mem::zeroed() }
    };
    args.flags = flags;
    args.pidfd = ptr::from_mut(&mut pidfd) as u64;
    args.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    // SAFETY: without CLONE_VM the child has a copy of everything, its stack included, and the
    // caller is single-threaded, so no lock is held by a thread that does not exist in the copy.
    let pid =
        unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match i32::try_from(pid) {
        Ok(0) => Ok(Forked::Child),
        Ok(pid) if pid > 0 => {
            // SAFETY: the kernel has just made this descriptor for us.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Forked::Parent { pid, pidfd })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Stack of a child that shares our memory until it executes: enough for the few calls it makes,
/// path search included.
const CHILD_STACK: usize = 256 * 1024;

/// Run `child` in a new process that shares this one's memory, which waits until the child has
/// executed a program or ended. The caller must be the process's only thread. Costs the same
/// whatever the size of this process.
pub(crate) fn vfork<F: FnMut()>(mut child: F) -> io::Result<i32> {
    extern "C" fn entry<F: FnMut()>(arg: *mut c_void) -> c_int {
        // SAFETY: `arg` is the closure that `vfork` below passes, alive because its frame waits.
        let child = unsafe { &mut *arg.cast::<F>() };
        child();
        127
    }
    // Not written before: most of its pages are never touched, and each costs a fault.
    let mut stack = Box::<[u8]>::new_uninit_slice(CHILD_STACK);
    // SAFETY: the stack is ours, aligned by the wrapper, and outlives the child's use of it since
    // CLONE_VFORK keeps this process waiting until the child has left this memory. The child has
    // its own descriptor table and signal handlers (no CLONE_FILES, no CLONE_SIGHAND).
    let pid = unsafe {
        libc::clone(
            entry::<F>,
            stack.as_mut_ptr().add(CHILD_STACK).cast(),
            libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD,
            ptr::from_mut(&mut child).cast(),
        )
    };
    if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid) }
}

/// End this process at once: no destructors, no buffers flushed. For forked children, whose copies
/// of those belong to the parent.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: `_exit` touches no memory of ours.
    unsafe { libc::_exit(status) }
}

/// A list of C strings as `execve` wants it.
#[derive(Debug)]
pub(crate) struct CStrings {
    /// What the pointers point into.
    _owned: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl CStrings {
    pub(crate) fn new(owned: Vec<CString>) -> Self {
        let pointers =
            owned.iter().map(|s| s.as_ptr()).chain(std::iter::once(ptr::null())).collect();
        Self { _owned: owned, pointers }
    }
}

/// Execute the program at `path`; returns only if that fails.
pub(crate) fn execve(path: &CStr, arguments: &CStrings, environment: &CStrings) -> io::Error {
    // SAFETY: all three are NUL-terminated and the lists end with a null pointer, kept by
    // `CStrings` beside the strings they point into.
    unsafe {
        libc::execve(path.as_ptr(), arguments.pointers.as_ptr(), environment.pointers.as_ptr());
    }
    io::Error::last_os_error()
}

/// Make `to` another name of the descriptor `from`, open over `execve`. Whatever `to` was is closed.
pub(crate) fn place(from: RawFd, to: RawFd) -> io::Result<()> {
    // SAFETY: works on descriptor numbers. The caller is a child that owns its whole table and
    // keeps no `OwnedFd` of the number `to`.
    let done = unsafe {
        if from == to { libc::fcntl(from, libc::F_SETFD, 0) } else { libc::dup2(from, to) }
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Take over the descriptor `fd` of this process.
pub(crate) fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: called once per number, in a child that has placed the descriptor there itself.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Close every descriptor from `first` on. Only for a child that uses none of them any more.
pub(crate) fn close_from(first: RawFd) {
    // SAFETY: works on descriptor numbers; the caller is a child that will not use the objects
    // that it inherited from its parent.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
}

/// Signal every process of this pid namespace but its first, which must be the caller.
pub(crate) fn kill_all_others(signal: i32) {
    // SAFETY: touches no memory.
    unsafe {
        if libc::getpid() == 1 {
            libc::kill(-1, signal);
        }
    }
}

/// Leave namespaces for new ones (`CLONE_NEW*` flags).
pub(crate) fn unshare(namespaces: c_int) -> io::Result<()> {
    // SAFETY: none of these flags touches memory or descriptors.
    if unsafe { libc::unshare(namespaces) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
