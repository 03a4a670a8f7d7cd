//! A network namespace with one link to the machine: both ends, their addresses, the way out.
//!
//! There is no bridge, so none has too many ports: each sandbox has a link of its own, and the
//! machine routes to its address. Both ends have the same hardware address and ask nobody for
//! others', so there is neither ARP nor anything to poison.

use std::{
    fs, io,
    net::Ipv4Addr,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage, AddressScope},
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
        RouteType,
    },
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{
    netlink::Netlink,
    range::{gateway_of, link_of},
};
use crate::sys::process::unshare;

/// What the link is called in a sandbox.
const INSIDE: &str = "eth0";

/// Its number there, which is given so that it need not be asked for; 1 is the loopback.
const INSIDE_INDEX: u32 = 2;

/// Of the namespace, written before anything else can be in it. Sandboxes cannot: they are not the
/// user whose namespace it is, and have no capability.
const SETTINGS: [(&str, &str); 5] = [
    // As the machine's, if nothing is said.
    ("net/ipv4/ip_forward", "0"),
    // The link has no IPv6; the loopback keeps it for programs that talk to themselves.
    ("net/ipv6/conf/default/disable_ipv6", "1"),
    // It is the sandbox's own: any port of it may be any user's.
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    // A connection that waits after its end keeps a port and the namespace from the next sandbox,
    // for a minute, against packets that are late; on this link none are.
    ("net/ipv4/tcp_max_tw_buckets", "0"),
    // Whoever has sent its last word and hears nothing is given up within seconds.
    ("net/ipv4/tcp_orphan_retries", "2"),
];

/// The network namespace of this thread.
pub(super) fn own_namespace() -> io::Result<OwnedFd> {
    Ok(fs::File::open("/proc/thread-self/ns/net")?.into())
}

/// Does something in another network namespace. The thread comes back; one that could not would do
/// everything else in the wrong place.
pub(super) fn within<T>(
    namespace: BorrowedFd<'_>,
    home: BorrowedFd<'_>,
    act: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?;
    let done = act();
    go_home(home);
    done
}

fn go_home(home: BorrowedFd<'_>) {
    move_into_link_name_space(home, Some(LinkNameSpaceType::Network))
        .expect("a namespace that is held open can be entered by who came from there");
}

/// Make a namespace in which `address` is. The calling thread is in `home`, before and after.
pub(super) fn make(address: Ipv4Addr, mtu: u32, home: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    unshare(libc::CLONE_NEWNET)?;
    let inside = own_namespace().and_then(|namespace| {
        for (name, value) in SETTINGS {
            set(name, value)?;
        }
        let mut netlink = Netlink::route()?;
        netlink.order(up(1, LinkFlags::Up), 0)?;
        Ok((namespace, netlink))
    });
    go_home(home);
    let (namespace, mut inside) = inside?;
    let name = link_of(address);
    let mut outside = Netlink::route()?;
    outside.order(pair(&name, address, mtu, &namespace), NLM_F_CREATE | NLM_F_EXCL)?;
    let gateway = gateway_of(address);
    let finished = (|| {
        // Written while it is down: it never has an address of its own making.
        set(&format!("net/ipv6/conf/{name}/disable_ipv6"), "1")?;
        let index = rustix::net::netdevice::name_to_index(&outside_socket()?, &name)?;
        outside.order(assign(index, gateway, address), NLM_F_CREATE | NLM_F_EXCL)?;
        outside.order(up(index, LinkFlags::Up | LinkFlags::Noarp), 0)?;
        inside.order(assign(INSIDE_INDEX, address, gateway), NLM_F_CREATE | NLM_F_EXCL)?;
        inside.order(up(INSIDE_INDEX, LinkFlags::Up | LinkFlags::Noarp), 0)?;
        inside.order(way_out(gateway), NLM_F_CREATE | NLM_F_EXCL)
    })();
    // What is half made goes with its namespace, when that is closed here.
    finished.map(|()| namespace)
}

/// For questions about links, which any socket answers.
fn outside_socket() -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let flags = SocketFlags::CLOEXEC;
    Ok(socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?)
}

/// How many sockets there are in the namespace of this thread, those that end included.
///
/// # Errors
/// Also if the address is not there any more: runtimes that bring a network stack of their own take
/// it away, and leave nothing to be lent again.
pub(super) fn sockets(address: Ipv4Addr) -> io::Result<u64> {
    let text = fs::read_to_string("/proc/thread-self/net/sockstat")?;
    let words: Vec<&str> = text.split_whitespace().collect();
    let after = |word: &str| {
        let at = words.iter().position(|one| *one == word)?;
        words.get(at + 1)?.parse::<u64>().ok()
    };
    let used = after("used").ok_or(io::ErrorKind::InvalidData)?;
    // After the count, in which it would be for a moment more.
    drop(std::net::UdpSocket::bind((address, 0))?);
    Ok(used + after("tw").unwrap_or(0))
}

fn set(name: &str, value: &str) -> io::Result<()> {
    let path = format!("/proc/sys/{name}");
    match fs::write(&path, value) {
        // A kernel without IPv6 has none to be switched off.
        Err(error) if error.kind() == io::ErrorKind::NotFound && name.contains("ipv6") => Ok(()),
        Err(error) => Err(io::Error::new(error.kind(), format!("{path}: {error}"))),
        Ok(()) => Ok(()),
    }
}

/// One end here, down; the other one in the namespace.
fn pair(name: &str, address: Ipv4Addr, mtu: u32, namespace: &OwnedFd) -> RouteNetlinkMessage {
    let [a, b, c, d] = address.octets();
    // "Locally administered"; the same at both ends, see the module.
    let hardware = vec![0x02, 0, a, b, c, d];
    let mut inside = LinkMessage::default();
    inside.header.index = INSIDE_INDEX;
    inside.attributes = vec![
        LinkAttribute::IfName(INSIDE.to_owned()),
        LinkAttribute::Address(hardware.clone()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::NetNsFd(namespace.as_fd().as_raw_fd()),
    ];
    let mut outside = LinkMessage::default();
    outside.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(hardware),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(inside))),
        ]),
    ];
    RouteNetlinkMessage::NewLink(outside)
}

fn up(index: u32, flags: LinkFlags) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = flags;
    message.header.change_mask = flags;
    RouteNetlinkMessage::SetLink(message)
}

/// An address at this end, and the other end's, to which the kernel then knows the way.
fn assign(index: u32, local: Ipv4Addr, peer: Ipv4Addr) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = 32;
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    message.attributes =
        vec![AddressAttribute::Local(local.into()), AddressAttribute::Address(peer.into())];
    RouteNetlinkMessage::NewAddress(message)
}

fn way_out(gateway: Ipv4Addr) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        RouteAttribute::Gateway(RouteAddress::Inet(gateway)),
        RouteAttribute::Oif(INSIDE_INDEX),
    ];
    RouteNetlinkMessage::NewRoute(message)
}
