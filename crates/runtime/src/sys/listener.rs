//! The receiving side of `listen = "fd"`, for functions that are part of this program.

#![expect(unsafe_code, reason = "a descriptor given by number has no owner yet")]

use std::{
    net::TcpListener,
    os::fd::FromRawFd as _,
    sync::atomic::{AtomicBool, Ordering},
};

/// By systemd's protocol.
const FIRST: i32 = 3;

static TAKEN: AtomicBool = AtomicBool::new(false);

/// The listener that was passed to this process (`LISTEN_FDS`, `LISTEN_PID`), the first time it is
/// asked for; `None` if there is none. To be called before the process opens files of its own.
#[must_use]
pub fn passed_listener() -> Option<TcpListener> {
    let ours = std::env::var("LISTEN_PID").ok()? == std::process::id().to_string();
    let some = std::env::var("LISTEN_FDS").ok()?.parse::<u32>().ok()? >= 1;
    if !ours || !some || TAKEN.swap(true, Ordering::SeqCst) {
        return None;
    }
    // SAFETY: whoever executed this process has put a listener there for it, and says so by the
    // two variables; it is taken once.
    Some(unsafe { TcpListener::from_raw_fd(FIRST) })
}
