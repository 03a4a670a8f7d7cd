//! Who lives: names that hold as long as the process that took them, seen by all of a host.
//!
//! A name in the abstract namespace of Unix sockets is as wide as the network namespace, needs no
//! directory and no rights, and ends with its holder however that ends.

use std::{
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with},
};

/// A name taken; given up when it is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    _socket: OwnedFd,
}

impl Claim {
    /// Takes a name.
    ///
    /// # Errors
    /// `ADDRINUSE` if somebody has it; anything else if names cannot be taken now.
    pub(crate) fn take(name: &str) -> Result<Self, Errno> {
        let address = SocketAddrUnix::new_abstract_name(name.as_bytes())?;
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        bind(&socket, &address)?;
        Ok(Self { _socket: socket })
    }

    /// Claims a port for a sandbox, among all Dirigents of the host. A port that nobody listens on
    /// yet may have been given to a sandbox that is about to, by another worker: both would start,
    /// and the second would fail as if by its own fault. A sandbox that outlives its worker listens,
    /// which keeps others away until it is adopted.
    ///
    /// # Errors
    /// As [`Self::take`]; where names cannot be taken the start may go on and fail, or not, by what
    /// it finds.
    pub(crate) fn port(port: u16) -> Result<Self, Errno> {
        Self::take(&format!("dirigent-port-{port}"))
    }

    /// Takes a name that somebody may have for a moment.
    ///
    /// # Errors
    /// As [`Self::take`], once the patience is over.
    pub(crate) fn take_within(name: &str, patience: Duration) -> io::Result<Self> {
        let deadline = Instant::now() + patience;
        loop {
            match Self::take(name) {
                Err(Errno::ADDRINUSE) if Instant::now() < deadline => {
                    std::thread::park_timeout(Duration::from_millis(2));
                }
                taken => return taken.map_err(io::Error::from),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_once_until_it_is_given_up() {
        let name = format!("dirigent-test-{}", std::process::id());
        let claim = Claim::take(&name).unwrap();
        assert_eq!(Claim::take(&name).unwrap_err(), Errno::ADDRINUSE);
        let refused = Claim::take_within(&name, Duration::from_millis(1)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        drop(claim);
        Claim::take_within(&name, Duration::ZERO).unwrap();
    }
}
