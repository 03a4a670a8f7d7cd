//! Who listens where: asked of the kernel, without connecting to anybody.
//!
//! A function is ready when it listens, and only if the listener is its own: another program of the
//! host may hold the port. The question costs a few microseconds, so that it can be asked often.

use std::{collections::HashSet, fs, io, net::Ipv4Addr, os::fd::OwnedFd};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send,
        socket_with,
    },
    process::Pid,
};

use crate::keeper::init::descendants;

/// A listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listener {
    /// Whose.
    pub(crate) uid: u32,
    /// What `/proc/PID/fd` calls it.
    pub(crate) inode: u64,
}

/// Asks for listeners.
#[derive(Debug)]
pub(crate) struct Listeners {
    /// None where the kernel has no `inet_diag`; then `/proc/net` is read.
    netlink: Option<OwnedFd>,
    buffer: Vec<u8>,
    /// Where sandboxes are connected to.
    place: Ipv4Addr,
    /// Where the kernel lists what this network has.
    net: String,
}

const REQUEST: usize = 72;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const LISTEN: u8 = 10;

impl Listeners {
    pub(crate) fn new(place: Ipv4Addr) -> Self {
        Self::with(socket(), place, OWN.to_owned())
    }

    /// In the network of a process, which is its own; `place` is its address there.
    pub(crate) fn of(process: i32, place: Ipv4Addr) -> Self {
        let namespace = format!("/proc/{process}/ns/net");
        Self::with(crate::network::within(&namespace, socket), place, net_of(process))
    }

    fn with(socket: io::Result<OwnedFd>, place: Ipv4Addr, net: String) -> Self {
        let mut new = Self { netlink: socket.ok(), buffer: vec![0; 4096], place, net };
        // A kernel without the module says so to any question.
        if let Err(error) = new.ask(1) {
            tracing::debug!(%error, "reading /proc/net instead of asking netlink");
            new.netlink = None;
        }
        new
    }

    /// Who would be connected to at this port of the place.
    pub(crate) fn at(&mut self, port: u16) -> Option<Listener> {
        if self.netlink.is_some() {
            return self.ask(port).unwrap_or_default();
        }
        let here = |address: Address, p| p == port && address.is_reached_at(self.place);
        all(&self.net).into_iter().find(|(address, p, _)| here(*address, *p)).map(|l| l.2)
    }

    fn ask(&mut self, port: u16) -> Result<Option<Listener>, Errno> {
        let Some(socket) = &self.netlink else { return Err(Errno::OPNOTSUPP) };
        send(socket, &request(self.place, port), SendFlags::empty())?;
        // The kernel has answered before `send` returns.
        let (length, _) = recv(socket, &mut self.buffer[..], RecvFlags::DONTWAIT)?;
        answer(&self.buffer[..length])
    }
}

/// `nlmsghdr` and `inet_diag_req_v2`: one socket, by its address.
fn request(place: Ipv4Addr, port: u16) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &72_u32.to_ne_bytes());
    put(4, &SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(6, &NLM_F_REQUEST.to_ne_bytes());
    put(16, &[2, 6]); // AF_INET, IPPROTO_TCP
    put(20, &(1_u32 << LISTEN).to_ne_bytes());
    put(24, &port.to_be_bytes());
    put(28, &place.octets());
    put(64, &[0xff; 8]); // no cookie
    bytes
}

/// What `inet_diag_msg` says, or the error.
fn answer(bytes: &[u8]) -> Result<Option<Listener>, Errno> {
    let word = |at: usize| {
        let word = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
        word.map(u32::from_ne_bytes).ok_or(Errno::PROTO)
    };
    match u16::from_ne_bytes([
        *bytes.get(4).ok_or(Errno::PROTO)?,
        *bytes.get(5).ok_or(Errno::PROTO)?,
    ]) {
        NLMSG_ERROR => {
            let errno = word(16)?.cast_signed().wrapping_neg();
            if errno == libc::ENOENT { Ok(None) } else { Err(Errno::from_raw_os_error(errno)) }
        }
        SOCK_DIAG_BY_FAMILY if bytes.get(17) == Some(&LISTEN) => {
            Ok(Some(Listener { uid: word(80)?, inode: u64::from(word(84)?) }))
        }
        _ => Ok(None),
    }
}

/// Where a socket listens, as text for users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address(std::net::IpAddr);

impl Address {
    /// Whether a connection to `place` arrives here.
    fn is_reached_at(self, place: Ipv4Addr) -> bool {
        self.0.is_unspecified() || self.0 == place
    }
}

/// Where the kernel lists what the network of this process has.
const OWN: &str = "/proc/net";

fn net_of(process: i32) -> String {
    format!("/proc/{process}/net")
}

fn socket() -> io::Result<OwnedFd> {
    Ok(socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?)
}

/// All listeners of a network.
fn all(net: &str) -> Vec<(Address, u16, Listener)> {
    ["tcp", "tcp6"]
        .into_iter()
        .flat_map(|file| {
            let text = fs::read_to_string(format!("{net}/{file}")).unwrap_or_default();
            text.lines().filter_map(parse).collect::<Vec<_>>()
        })
        .collect()
}

/// A line of `/proc/net/tcp`: `sl local remote st queues tr retransmits uid timeout inode`.
fn parse(line: &str) -> Option<(Address, u16, Listener)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (&local, &state) = (fields.get(1)?, fields.get(3)?);
    if state != "0A" {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    let words: Vec<u32> = (0..address.len() / 8)
        .map(|n| u32::from_str_radix(&address[n * 8..n * 8 + 8], 16))
        .collect::<Result<_, _>>()
        .ok()?;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let address = match <[u8; 4]>::try_from(&bytes[..]) {
        Ok(four) => std::net::IpAddr::from(four),
        Err(_longer) => std::net::IpAddr::from(<[u8; 16]>::try_from(&bytes[..]).ok()?),
    };
    let listener =
        Listener { uid: fields.get(7)?.parse().ok()?, inode: fields.get(9)?.parse().ok()? };
    Some((Address(address), u16::from_str_radix(port, 16).ok()?, listener))
}

/// Who a sandbox is, to tell its listeners from others'.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner {
    /// Its first process.
    pub(crate) init: i32,
    /// The uid that nobody else has, where it has one.
    pub(crate) uid: Option<u32>,
}

impl Owner {
    /// Whether a listener is the sandbox's own.
    pub(crate) fn owns(&self, listener: &Listener) -> bool {
        match self.uid {
            Some(uid) => listener.uid == uid,
            None => self.sockets().contains(&listener.inode),
        }
    }

    /// The sockets of all its processes.
    fn sockets(&self) -> HashSet<u64> {
        let init = Pid::from_raw(self.init);
        let processes = init.map(descendants).unwrap_or_default();
        // The first one may be the function itself.
        init.into_iter()
            .chain(processes)
            .flat_map(|pid| {
                let directory = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero()));
                directory.into_iter().flatten().flatten()
            })
            .filter_map(|entry| {
                let link = fs::read_link(entry.path()).ok()?;
                let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
                inode.parse().ok()
            })
            .collect()
    }

    /// Where the sandbox listens, for people; in its own network or in the machine's.
    pub(crate) fn listens_at(&self, own_network: bool) -> Vec<String> {
        let net = if own_network { net_of(self.init) } else { OWN.to_owned() };
        let sockets = if self.uid.is_none() { self.sockets() } else { HashSet::new() };
        let mut places: Vec<String> = all(&net)
            .into_iter()
            .filter(|(_, _, listener)| match self.uid {
                Some(uid) => listener.uid == uid,
                None => sockets.contains(&listener.inode),
            })
            .map(|(address, port, _)| std::net::SocketAddr::new(address.0, port).to_string())
            .collect();
        places.sort();
        places.dedup();
        places
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn inode(listener: &TcpListener) -> u64 {
        use std::os::fd::AsRawFd as _;
        let link = fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).expect("reads");
        let link = link.to_str().expect("text");
        link.trim_start_matches("socket:[").trim_end_matches(']').parse().expect("a number")
    }

    #[test]
    fn a_listener_is_seen_with_its_inode_and_a_connection_is_not_one() {
        let mut listeners = Listeners::new(Ipv4Addr::LOCALHOST);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("binds");
        let port = listener.local_addr().expect("bound").port();
        let seen = listeners.at(port).expect("listens");
        assert_eq!(seen.inode, inode(&listener));
        let connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connects");
        let other = connection.local_addr().expect("bound").port();
        assert_eq!(listeners.at(other), None);
        drop(listener);
        assert_eq!(listeners.at(port), None);
    }

    #[test]
    fn every_way_to_listen_that_reaches_loopback_counts() {
        let mut listeners = Listeners::new(Ipv4Addr::LOCALHOST);
        let any = TcpListener::bind("0.0.0.0:0").expect("binds");
        assert!(listeners.at(any.local_addr().expect("bound").port()).is_some());
        if let Ok(both) = TcpListener::bind("[::]:0") {
            assert!(listeners.at(both.local_addr().expect("bound").port()).is_some());
        }
        if let Ok(six) = TcpListener::bind("[::1]:0") {
            assert_eq!(listeners.at(six.local_addr().expect("bound").port()), None);
        }
    }

    #[test]
    fn without_netlink_the_answer_is_the_same() {
        let mut listeners =
            Listeners::with(Err(Errno::OPNOTSUPP.into()), Ipv4Addr::LOCALHOST, OWN.to_owned());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("binds");
        let port = listener.local_addr().expect("bound").port();
        assert_eq!(listeners.at(port).map(|l| l.inode), Some(inode(&listener)));
    }
}
