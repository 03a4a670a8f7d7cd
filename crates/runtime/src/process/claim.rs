//! Which sandbox may use a port, agreed on by all Dirigents of a host.
//!
//! A port that nobody listens on yet may have been given to a sandbox that is about to, by another
//! worker on this host: both would start, and the second would fail as if by its own fault. A claim
//! is a name in the abstract namespace of Unix sockets, which is as wide as that of ports (the
//! network namespace), needs no directory and no rights, and ends with the process that holds it. A
//! sandbox that outlives its worker listens, which keeps others away until it is adopted.

use std::os::fd::OwnedFd;

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with},
};

/// A port claimed for a sandbox; given up when it is dropped.
#[derive(Debug)]
pub(super) struct Claim {
    _name: OwnedFd,
}

impl Claim {
    /// Claims `port`.
    ///
    /// # Errors
    /// If another sandbox has it, or claims do not work (no descriptors left): then the start may go
    /// on and fail, or not, by what it finds.
    pub(super) fn take(port: u16) -> Result<Self, Taken> {
        let name = || {
            let name = format!("dirigent-port-{port}");
            let address = SocketAddrUnix::new_abstract_name(name.as_bytes())?;
            let socket =
                socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
            bind(&socket, &address)?;
            Ok(socket)
        };
        match name() {
            Ok(name) => Ok(Self { _name: name }),
            Err(Errno::ADDRINUSE) => Err(Taken::ByAnother),
            Err(errno) => Err(Taken::Unknown(errno)),
        }
    }
}

/// Why a port was not claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Another sandbox has it.
    ByAnother,
    /// Claims do not work now.
    Unknown(Errno),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_claimed_once_until_it_is_given_up() {
        // Outside of the ports that sandboxes get, so that no other test is in the way.
        let port = 19_999;
        let claim = Claim::take(port).unwrap();
        assert_eq!(Claim::take(port).unwrap_err(), Taken::ByAnother);
        drop(claim);
        drop(Claim::take(port).unwrap());
    }
}
