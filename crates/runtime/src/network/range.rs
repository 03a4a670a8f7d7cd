//! Which addresses sandboxes have: a range that nothing of the machine uses, in blocks that the
//! Dirigents of a machine claim.

use std::{io, net::Ipv4Addr};

use ipnet::Ipv4Net;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteMessage},
};
use rustix::io::Errno;

use super::netlink::Netlink;
use crate::claim::Claim;

/// Tried in this order where none is configured: private addresses that Docker, Kubernetes and
/// clouds do not take by default.
const DEFAULTS: [Ipv4Net; 4] = [
    Ipv4Net::new_assert(Ipv4Addr::new(10, 213, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(172, 27, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 208, 0), 20),
    Ipv4Net::new_assert(Ipv4Addr::new(100, 99, 0, 0), 16),
];

/// A block: the first address is the machine's end of all links, the last is not used.
pub(super) const BLOCK: u8 = 24;

/// What the names of links begin with, in the rules too; the address follows.
pub(super) const PREFIX: &str = "dg";

/// The name of a sandbox's link on the machine. No other Dirigent has the address, so none has the
/// name.
pub(super) fn link_of(address: Ipv4Addr) -> String {
    format!("{PREFIX}{:08x}", u32::from(address))
}

/// The machine's end of the link.
pub(super) fn gateway_of(address: Ipv4Addr) -> Ipv4Addr {
    block_of(address).network()
}

/// Where an address belongs.
pub(super) fn block_of(address: Ipv4Addr) -> Ipv4Net {
    Ipv4Net::new_assert(address, BLOCK).trunc()
}

/// A block of addresses that no other Dirigent of the machine has.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) net: Ipv4Net,
    _claim: Claim,
}

impl Block {
    /// The next free one of a range, beginning somewhere that depends on `start` so that those who
    /// begin at the same time do not all ask for the same.
    pub(super) fn claim(range: Ipv4Net, start: usize) -> Result<Self, String> {
        let blocks: Vec<Ipv4Net> = range.subnets(BLOCK).map(Iterator::collect).unwrap_or_default();
        for n in 0..blocks.len() {
            let Some(&net) = blocks.get((start + n) % blocks.len()) else { break };
            match Claim::take(&format!("dirigent-addresses-{net}")) {
                Ok(claim) => return Ok(Self { net, _claim: claim }),
                Err(Errno::AGAIN) => {}
                Err(error) => return Err(format!("addresses cannot be claimed: {error}")),
            }
        }
        Err(format!("all addresses of {range} are claimed by other Dirigents of this machine"))
    }

    /// The addresses of sandboxes.
    pub(super) fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.net.hosts()
    }
}

/// What the machine's own network says.
#[derive(Debug)]
pub(super) struct Found {
    /// Where sandboxes get their addresses.
    pub(super) range: Ipv4Net,
    /// The longest packet that leaves the machine whole.
    pub(super) mtu: u32,
}

/// The Ethernet of most machines.
const MTU: u32 = 1500;

/// Choose a range, or check the one that is `wanted`.
pub(super) fn look(wanted: Option<Ipv4Net>) -> Result<Found, String> {
    let mut netlink = Netlink::route().map_err(unasked)?;
    let links = links(&mut netlink).map_err(unasked)?;
    let routes = routes(&mut netlink).map_err(unasked)?;
    let ours =
        |index: u32| links.iter().any(|link| link.index == index && link.name.starts_with(PREFIX));
    let default = routes.iter().filter(|route| route.to.prefix_len() == 0);
    let mtu = default
        .filter_map(|route| links.iter().find(|link| Some(link.index) == route.link))
        .map(|link| link.mtu)
        .fold(MTU, u32::min);
    let used: Vec<Ipv4Net> = routes
        .iter()
        .filter(|route| route.to.prefix_len() > 0 && !route.link.is_some_and(ours))
        .map(|route| route.to)
        .collect();
    choose(wanted, &used).map(|range| Found { range, mtu })
}

fn unasked(error: impl std::fmt::Display) -> String {
    format!("the kernel cannot be asked for links and routes: {error}")
}

fn choose(wanted: Option<Ipv4Net>, used: &[Ipv4Net]) -> Result<Ipv4Net, String> {
    let meets =
        |range: &Ipv4Net| used.iter().find(|net| net.contains(range) || range.contains(*net));
    if let Some(range) = wanted {
        if range.prefix_len() > BLOCK {
            return Err(format!(
                "sandbox_range = \"{range}\" has too few addresses: a /{BLOCK} at least, a /16 is \
                 for all that a machine can run"
            ));
        }
        return match meets(&range) {
            None => Ok(range.trunc()),
            Some(net) => Err(format!(
                "sandbox_range = \"{range}\" meets a route of this machine, {net}: choose another"
            )),
        };
    }
    DEFAULTS.into_iter().find(|range| meets(range).is_none()).ok_or_else(|| {
        let all: Vec<String> = DEFAULTS.iter().map(ToString::to_string).collect();
        format!(
            "this machine has routes to all of {}: name a range that it does not use with \
             sandbox_range",
            all.join(", ")
        )
    })
}

struct Link {
    index: u32,
    name: String,
    mtu: u32,
}

fn links(netlink: &mut Netlink) -> io::Result<Vec<Link>> {
    let found = netlink.list(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let links = found.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    });
    Ok(links
        .map(|message| {
            let mut link = Link { index: message.header.index, name: String::new(), mtu: MTU };
            for attribute in message.attributes {
                match attribute {
                    LinkAttribute::IfName(name) => link.name = name,
                    LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                    _ => {}
                }
            }
            link
        })
        .collect())
}

struct Route {
    to: Ipv4Net,
    link: Option<u32>,
}

/// Of all tables: a route of a policy is a use too.
fn routes(netlink: &mut Netlink) -> io::Result<Vec<Route>> {
    let mut question = RouteMessage::default();
    question.header.address_family = AddressFamily::Inet;
    let found = netlink.list(RouteNetlinkMessage::GetRoute(question))?;
    let routes = found.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewRoute(route) => Some(route),
        _ => None,
    });
    Ok(routes
        .filter_map(|message| {
            let (mut to, mut link) = (Ipv4Addr::UNSPECIFIED, None);
            for attribute in message.attributes {
                match attribute {
                    RouteAttribute::Destination(RouteAddress::Inet(address)) => to = address,
                    RouteAttribute::Oif(index) => link = Some(index),
                    _ => {}
                }
            }
            let to = Ipv4Net::new(to, message.header.destination_prefix_length).ok()?;
            Some(Route { to, link })
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn a_range_that_the_machine_uses_is_not_taken() {
        assert_eq!(choose(None, &[]).unwrap(), net("10.213.0.0/16"));
        // A part of it, or all of it and more.
        for used in ["10.213.7.9/32", "10.0.0.0/8"] {
            assert_eq!(choose(None, &[net(used)]).unwrap(), net("172.27.0.0/16"));
        }
        let all = DEFAULTS.to_vec();
        let error = choose(None, &all).unwrap_err();
        assert!(error.contains("sandbox_range") && error.contains("10.213.0.0/16"), "{error}");
    }

    #[test]
    fn a_range_that_is_configured_is_checked() {
        assert_eq!(choose(Some(net("10.9.8.7/16")), &[]).unwrap(), net("10.9.0.0/16"));
        let error = choose(Some(net("10.9.0.0/16")), &[net("10.9.4.0/22")]).unwrap_err();
        assert!(error.contains("10.9.4.0/22"), "{error}");
        let error = choose(Some(net("10.9.0.0/25")), &[]).unwrap_err();
        assert!(error.contains("/24"), "{error}");
    }

    #[test]
    fn blocks_are_claimed_once_until_none_is_left() {
        // Of those set aside for documentation: nobody else claims them.
        let range = net("203.0.112.0/23");
        let one = Block::claim(range, 1).unwrap();
        assert_eq!(one.net, net("203.0.113.0/24"));
        let other = Block::claim(range, 1).unwrap();
        assert_eq!(other.net, net("203.0.112.0/24"));
        assert!(Block::claim(range, 0).unwrap_err().contains("claimed"));
        drop(one);
        assert!(Block::claim(range, 0).is_ok());
        let addresses: Vec<Ipv4Addr> = other.addresses().collect();
        assert_eq!((addresses.len(), addresses[0]), (254, Ipv4Addr::new(203, 0, 112, 1)));
        assert_eq!(gateway_of(addresses[7]), Ipv4Addr::new(203, 0, 112, 0));
        assert_eq!(link_of(addresses[0]), "dgcb007001");
    }
}
