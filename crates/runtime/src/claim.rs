//! Who lives: names that hold as long as the process that took them, seen by all Dirigents of a
//! host, whoever runs them.
//!
//! A name is a byte of one empty file, locked: that ends with its holder however that ends. The file
//! lies where every user may write and no sandbox but a `plain` one looks. (Not a name in the abstract
//! namespace of Unix sockets: every sandbox could take those.)

use std::{
    fs::{File, OpenOptions, Permissions},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::io::Errno;

use crate::sys::lock::lock_byte;

/// Directories that everybody may write to, the best first.
const PLACES: [&str; 2] = ["/run/lock", "/tmp"];
const FILE: &str = "dirigent.claims";

/// A name taken; given up when it is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    _lock: OwnedFd,
}

/// Another sandbox has the port, be it one of another worker.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Taken;

impl Claim {
    /// Takes a name.
    ///
    /// # Errors
    /// `AGAIN` if somebody has it; anything else if names cannot be taken now.
    pub(crate) fn take(name: &str) -> Result<Self, Errno> {
        // FNV-1a. Behind the ports; two names that meet by chance only wait for each other.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self::at(i64::from(u16::MAX) + 1 + (hash >> 8).cast_signed())
    }

    /// Claims a port for a sandbox. A port that nobody listens on yet may have been given to a
    /// sandbox that is about to, by another worker: both would start, and the second would fail as if
    /// by its own fault. A sandbox that outlives its worker listens, which keeps others away until
    /// it is adopted.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub(crate) fn port(port: u16) -> Result<Self, Errno> {
        Self::at(i64::from(port))
    }

    /// As [`Self::port`], for a start. Where names cannot be taken now it goes on without, and fails
    /// or not by what it finds: else one lack of descriptors would cost a worker all its ports.
    ///
    /// # Errors
    /// If somebody has it.
    pub(crate) fn for_start(port: u16) -> Result<Option<Self>, Taken> {
        needed(port, Self::port(port))
    }

    fn at(byte: i64) -> Result<Self, Errno> {
        let locked = open(&place()).and_then(|file| lock_byte(file, byte));
        match locked {
            Ok(lock) => Ok(Self { _lock: lock }),
            Err(error) => Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        }
    }

    /// Takes a name that somebody may have for a moment.
    ///
    /// # Errors
    /// As [`Self::take`], once the patience is over.
    pub(crate) fn take_within(name: &str, patience: Duration) -> io::Result<Self> {
        let deadline = Instant::now() + patience;
        loop {
            match Self::take(name) {
                Err(Errno::AGAIN) if Instant::now() < deadline => {
                    std::thread::park_timeout(Duration::from_millis(2));
                }
                taken => return taken.map_err(io::Error::from),
            }
        }
    }
}

fn needed(port: u16, claimed: Result<Claim, Errno>) -> Result<Option<Claim>, Taken> {
    match claimed {
        Ok(claim) => Ok(Some(claim)),
        Err(Errno::AGAIN) => Err(Taken),
        Err(error) => {
            tracing::warn!(port, %error, "a port cannot be claimed");
            Ok(None)
        }
    }
}

/// The same for all users of a host.
fn place() -> PathBuf {
    const EVERYBODYS: u32 = 0o1777;
    let open = |path: &&&str| {
        Path::new(path).metadata().is_ok_and(|m| m.is_dir() && m.mode() & 0o7777 == EVERYBODYS)
    };
    Path::new(PLACES.iter().find(open).unwrap_or(&"/tmp")).join(FILE)
}

/// Others' files in such a directory may be opened and not "created", so that is done only where
/// there is none.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    // Somebody may have put something else there.
    options.read(true).write(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => return opened,
    }
    match options.clone().create_new(true).mode(0o666).open(path) {
        Ok(file) => {
            // Whatever this process's mask is.
            file.set_permissions(Permissions::from_mode(0o666))?;
            Ok(file)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => options.open(path),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_once_until_it_is_given_up() {
        let name = format!("dirigent-test-{}", std::process::id());
        let claim = Claim::take(&name).unwrap();
        assert_eq!(Claim::take(&name).unwrap_err(), Errno::AGAIN);
        let refused = Claim::take_within(&name, Duration::from_millis(1)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        drop(claim);
        Claim::take_within(&name, Duration::ZERO).unwrap();
    }

    #[test]
    fn a_start_goes_on_where_nothing_can_be_claimed() {
        let claim = Claim::for_start(3).unwrap();
        assert!(claim.is_some());
        assert_eq!(Claim::for_start(3).unwrap_err(), Taken);
        drop(claim);
        assert!(needed(3, Err(Errno::MFILE)).unwrap().is_none());
        assert!(Claim::for_start(3).unwrap().is_some());
    }

    #[test]
    fn ports_are_told_apart_from_each_other_and_everybody_may_claim() {
        let (one, other) = (Claim::port(1).unwrap(), Claim::port(2).unwrap());
        assert_eq!(Claim::port(1).unwrap_err(), Errno::AGAIN);
        drop((one, other));
        Claim::port(1).unwrap();
        assert_eq!(place().metadata().unwrap().mode() & 0o777, 0o666);
    }
}
