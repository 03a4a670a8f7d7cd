//! Settings of connections to other hosts.

use std::{io, os::fd::AsFd, time::Duration};

use socket2::{SockRef, TcpKeepalive};

/// A host that died says nothing. The kernel gives up what no kernel there acknowledges for 5 s, where
/// it would go on for a quarter of an hour; after 5 s of silence it asks, and gives up 5 s later. On
/// this host every death is told.
///
/// # Errors
/// If the kernel refuses.
pub fn notice_death(stream: &impl AsFd) -> io::Result<()> {
    let often = Duration::from_secs(5);
    let socket = SockRef::from(stream);
    // With this the number of questions does not count (tcp(7)).
    socket.set_tcp_user_timeout(Some(often))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(often).with_interval(often))
}
