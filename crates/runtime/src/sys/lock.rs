//! A lock on a byte of a file that belongs to the file's description, not to the process.

#![expect(unsafe_code, reason = "rustix has the locks of processes only")]

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

/// Locks a byte for whoever holds `file` open; closing it unlocks. As the process's own locks it is
/// for the local host; unlike those it also keeps out the process itself.
///
/// # Errors
/// `EAGAIN` if somebody else has it.
pub(crate) fn lock_byte(file: File, at: i64) -> io::Result<OwnedFd> {
    let short = |number: libc::c_int| {
        libc::c_short::try_from(number).map_err(|_too_large| io::ErrorKind::InvalidInput)
    };
    let lock = libc::flock {
        l_type: short(libc::F_WRLCK)?,
        l_whence: short(libc::SEEK_SET)?,
        l_start: at,
        l_len: 1,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open, and the kernel only reads a `flock` that lives on.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } == 0 {
        return Ok(file.into());
    }
    Err(io::Error::last_os_error())
}
