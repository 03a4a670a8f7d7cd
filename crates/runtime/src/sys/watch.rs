//! Descriptors that a task waits for.

#![expect(unsafe_code, reason = "tokio leaves it to the caller that a descriptor stays open")]

use std::{io, os::fd::OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

/// Watches a descriptor until there is something to read.
///
/// # Errors
/// If it is of a kind that cannot be waited for.
pub(crate) fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names the same open descriptor until it is dropped, which `AsyncFd` does
    // after it has deregistered it. No safe way takes a descriptor of any kind.
    let watched = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    watched.map_err(io::Error::from)
}
