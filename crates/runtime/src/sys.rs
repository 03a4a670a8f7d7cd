//! The system calls that no safe library offers: making processes, executing programs, signals.
//!
//! The only place of the project with unsafe code. Everything here assumes a process with one
//! thread where it says so; the keeper checks that at its start.

pub(crate) mod listener;
pub(crate) mod lock;
pub(crate) mod mount;
pub(crate) mod process;
pub(crate) mod signal;
pub(crate) mod user;
#[cfg(feature = "containerd")]
pub(crate) mod watch;
