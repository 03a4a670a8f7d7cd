//! The network rules of sandboxes that have a network of their own: one table of nftables.
//!
//! What is not said here of a packet of theirs is refused. The rules stay as they are; who may what
//! stands in sets:
//!
//! | set | holds |
//! |---|---|
//! | `blocks` | the blocks of addresses of this pool |
//! | `confined` | sandboxes that may not connect to everything public |
//! | `allowed` | to what those may connect: sandbox, host, protocol, port |
//! | `ports` | ports of the machine's address, and the sandbox and port that each leads to |
//! | `turned` | ports of sandboxes that lead to others of theirs, for who is on the machine |

use std::{collections::BTreeMap, fmt::Write as _, net::Ipv4Addr};

use dirigent_core::{Destination, Outbound};
use ipnet::{IpNet, Ipv4Net};

use super::{
    Exposed, Settings, Via,
    elements::{Element, Ported},
    range::BLOCK,
};

/// No sandbox connects there, whatever its policy: this network, loopback, link-local (metadata of
/// clouds), multicast, reserved, broadcast.
const NEVER: [&str; 5] =
    ["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4"];

/// Not public: nobody connects there without saying so.
const PRIVATE: [&str; 4] = ["10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16"];

/// On a machine that forwarded nothing before we came: it forwards nothing else now.
const GUARD: &str = "chain guard {\ntype filter hook forward priority filter + 10\n\
                     iifname \"dg*\" accept\noifname \"dg*\" accept\n\
                     meta nfproto ipv4 drop\n}\n";

impl Exposed {
    /// What stands in the sets for it.
    pub(super) const fn element(self, address: Ipv4Addr) -> Element {
        let Self { via, port, inside } = self;
        match via {
            Via::Machine => Element::Port { port, to: address, inside },
            Via::Sandbox => Element::Turned { port, of: address, inside },
        }
    }
}

/// What one sandbox may, and where it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) outbound: Outbound,
    pub(super) exposed: Option<Exposed>,
}

impl Lease {
    /// What stands in the sets for it.
    pub(super) fn elements(&self, address: Ipv4Addr) -> Vec<Element> {
        let mut elements = Vec::new();
        elements.extend(self.exposed.map(|exposed| exposed.element(address)));
        let list: &[Destination] = match &self.outbound {
            Outbound::Internet => return elements,
            Outbound::None => &[],
            Outbound::Only(list) => list,
        };
        elements.push(Element::Confined(address));
        for Destination { hosts: to, port } in narrowed(list) {
            let ports = match port {
                None => vec![None],
                Some(port) => vec![Some((Ported::Tcp, port)), Some((Ported::Udp, port))],
            };
            let allowed = |port| Element::Allowed { from: address, to, port };
            elements.extend(ports.into_iter().map(allowed));
        }
        elements
    }
}

/// Without those that others cover: the kernel refuses what is there twice.
fn narrowed(list: &[Destination]) -> Vec<Destination> {
    let mut kept: Vec<Destination> = Vec::new();
    for destination in list {
        if kept.iter().any(|other| other.covers(destination)) {
            continue;
        }
        kept.retain(|other| !destination.covers(other));
        kept.push(*destination);
    }
    kept
}

/// Everything that the table is written from.
#[derive(Debug)]
pub(super) struct Content<'a> {
    pub(super) table: &'a str,
    pub(super) settings: &'a Settings,
    pub(super) blocks: Vec<Ipv4Net>,
    pub(super) leases: &'a BTreeMap<Ipv4Addr, Lease>,
    /// The machine's resolvers.
    pub(super) resolvers: &'a [Ipv4Addr],
    /// Whether the machine forwarded nothing before we came: then it forwards nothing else now.
    pub(super) guard: bool,
}

impl Content<'_> {
    /// For `nft -f`: the table anew, in one transaction.
    pub(super) fn text(&self) -> String {
        let Self { table, settings, .. } = self;
        let nets = |nets: &mut dyn Iterator<Item = String>| nets.collect::<Vec<_>>().join(", ");
        let set = |name: &str, kind: &str, elements: String| {
            let elements = match elements.is_empty() {
                true => String::new(),
                false => format!("elements = {{ {elements} }}\n"),
            };
            format!("set {name} {{\ntype {kind}\n{elements}}}\n")
        };
        let ranges = "ipv4_addr; flags interval; auto-merge";
        let forbidden = settings.forbidden.iter().map(ToString::to_string);
        let never = NEVER.iter().map(|&net| net.to_owned());
        let admitted = settings.admitted.iter().filter_map(|net| match net {
            IpNet::V4(net) => Some(net.trunc().to_string()),
            IpNet::V6(_) => None,
        });
        let sets = [
            set("blocks", "ipv4_addr", nets(&mut self.blocks.iter().map(|b| b.addr().to_string()))),
            set(
                "resolvers",
                "ipv4_addr",
                nets(&mut self.resolvers.iter().map(ToString::to_string)),
            ),
            set("never", ranges, nets(&mut never.chain(forbidden))),
            set("private", ranges, nets(&mut PRIVATE.iter().map(|&net| net.to_owned()))),
            set("admitted", ranges, nets(&mut admitted.into_iter())),
            set("confined", "ipv4_addr", String::new()),
            "set allowed {\ntype ipv4_addr . ipv4_addr . inet_proto . inet_service\n\
             flags interval\n}\n\
             map ports {\ntype inet_service : ipv4_addr . inet_service\n}\n\
             map turned {\ntype ipv4_addr . inet_service : ipv4_addr . inet_service\n}\n"
                .to_owned(),
        ]
        .concat();
        let mut text = format!(
            "table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n{sets}{}}}\n",
            self.chains()
        );
        for (address, lease) in self.leases {
            for element in lease.elements(*address) {
                writeln!(text, "add element inet {table} {element}").expect("a string takes all");
            }
        }
        text
    }

    fn chains(&self) -> String {
        let of = |end: &str| {
            let bits = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, BLOCK).netmask();
            format!("ip {end} & {bits} @blocks")
        };
        let (from_us, to_us) = (of("saddr"), of("daddr"));
        let (leading, guard) = (self.leading(&to_us), if self.guard { GUARD } else { "" });
        // A sandbox that may send raw packets says who it is, or nothing. Each packet that one sends
        // on its own account is judged, not only the first of a connection: what the address's last
        // holder had begun gives the next one no right.
        format!(
            "chain entry {{\ntype filter hook prerouting priority raw\n\
             iifname \"dg*\" meta nfproto ipv6 drop\n\
             iifname \"dg*\" fib saddr . iif oif missing drop\n}}\n\
             chain passing {{\ntype filter hook forward priority filter\n\
             oifname \"dg*\" meta nfproto ipv6 drop\n\
             {from_us} goto leaving\n{to_us} goto coming\n}}\n\
             chain leaving {{\nct direction reply ct state established,related accept\n\
             oifname \"dg*\" reject\nip daddr @never reject\n\
             ip saddr @confined goto confined_leaving\n\
             ip daddr @resolvers meta l4proto {{ tcp, udp }} th dport 53 accept\n\
             ip daddr @private reject\naccept\n}}\n\
             chain confined_leaving {{\n\
             ip saddr . ip daddr . meta l4proto . th dport @allowed accept\nreject\n}}\n\
             chain coming {{\nct status dnat ct direction original accept\n\
             ct direction original reject\nct state != {{ established, related }} drop\n\
             ip daddr @confined goto confined_coming\naccept\n}}\n\
             chain confined_coming {{\n\
             ip daddr . ip saddr . meta l4proto . th sport @allowed accept\ndrop\n}}\n\
             chain machine {{\ntype filter hook input priority filter\n\
             iifname \"dg*\" ct direction reply ct state established,related accept\n\
             iifname \"dg*\" reject\n}}\n\
             chain hiding {{\ntype nat hook postrouting priority srcnat\n\
             {from_us} oifname != \"dg*\" masquerade\n}}\n{leading}{guard}"
        )
    }

    /// From the machine's address to sandboxes. Who is not admitted is not led on, and refused by the
    /// rules of the machine's ports. Where all data planes are on the machine, from one port of a
    /// sandbox to another.
    fn leading(&self, to_us: &str) -> String {
        let address = self.settings.address;
        if address.is_loopback() {
            return format!(
                "chain led_here {{\ntype nat hook output priority -100\n\
                 {to_us} dnat ip to ip daddr . tcp dport map @turned\n}}\n"
            );
        }
        format!(
            "chain led {{\ntype nat hook prerouting priority dstnat\n\
             ip daddr {address} ip saddr @admitted dnat ip to tcp dport map @ports\n}}\n\
             chain led_here {{\ntype nat hook output priority -100\n\
             ip daddr {address} dnat ip to tcp dport map @ports\n}}\n"
        )
    }
}
