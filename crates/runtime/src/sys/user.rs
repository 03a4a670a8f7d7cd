//! Whose what this thread makes is.

#![expect(unsafe_code, reason = "rustix has no setfsuid")]

/// Runs `make` so that the files and sockets that it makes are `uid`'s. A socket's user is what the
/// kernel's filters go by, and no `fchown` changes it later. For root; of one thread only.
pub(crate) fn made_by<T>(uid: u32, make: impl FnOnce() -> T) -> T {
    // SAFETY: changes a number of this thread's credentials; touches no memory.
    let before = unsafe { libc::setfsuid(uid) };
    let made = make();
    // SAFETY: as above. What it returns is an id, never negative as a number of 32 bits.
    unsafe { libc::setfsuid(before.cast_unsigned()) };
    made
}
