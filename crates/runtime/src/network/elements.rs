//! Elements of the sets of our table of network rules, put in and taken out while sandboxes come and
//! go: one transaction of the kernel each, by netlink. (The tables themselves are written by `nft`.)

use std::{fmt, io, net::Ipv4Addr};

use ipnet::Ipv4Net;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST};

use super::netlink::Netlink;

/// `linux/netfilter/nfnetlink.h` and `nf_tables.h`.
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NFTABLES: u16 = 10;
const GET_TABLE: u16 = NFTABLES << 8 | 1;
const NEW_ELEMENT: u16 = NFTABLES << 8 | 12;
const DELETE_ELEMENT: u16 = NFTABLES << 8 | 14;
const FAMILY_INET: u8 = 1;
const NESTED: u16 = 0x8000;

const TABLE_NAME: u16 = 1;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const LIST_ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
const ELEMENT_KEY_END: u16 = 10;
const DATA_VALUE: u16 = 1;

/// A protocol that has ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ported {
    Tcp = 6,
    Udp = 17,
}

/// An element of one of the sets that [`super::rules`] describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    /// These addresses are sandboxes', by the first of their block.
    Block(Ipv4Addr),
    /// This sandbox may not connect to everything public.
    Confined(Ipv4Addr),
    /// It may connect there.
    Allowed { from: Ipv4Addr, to: Ipv4Net, port: Option<(Ported, u16)> },
    /// This port of the machine leads there.
    Port { port: u16, to: Ipv4Addr, inside: u16 },
    /// This port of a sandbox leads to another one of it.
    Turned { port: u16, of: Ipv4Addr, inside: u16 },
}

impl Element {
    const fn set(&self) -> &'static str {
        match self {
            Self::Block(_) => "blocks",
            Self::Confined(_) => "confined",
            Self::Allowed { .. } => "allowed",
            Self::Port { .. } => "ports",
            Self::Turned { .. } => "turned",
        }
    }

    fn attributes(&self) -> Vec<u8> {
        let element = match *self {
            Self::Block(address) | Self::Confined(address) => data(ELEMENT_KEY, &address.octets()),
            Self::Allowed { from, to, port } => {
                let ((low, high), (first, last)) = match port {
                    None => ((0, u8::MAX), (0, u16::MAX)),
                    Some((protocol, port)) => ((protocol as u8, protocol as u8), (port, port)),
                };
                let key = |to: Ipv4Addr, protocol: u8, port: u16| {
                    let port = word(&port.to_be_bytes());
                    [from.octets(), to.octets(), word(&[protocol]), port].concat()
                };
                let start = key(to.network(), low, first);
                let end = key(to.broadcast(), high, last);
                [data(ELEMENT_KEY, &start), data(ELEMENT_KEY_END, &end)].concat()
            }
            Self::Port { port, to, inside } => {
                let value = [to.octets(), word(&inside.to_be_bytes())].concat();
                [data(ELEMENT_KEY, &port.to_be_bytes()), data(ELEMENT_DATA, &value)].concat()
            }
            Self::Turned { port, of, inside } => {
                let [key, value] =
                    [port, inside].map(|port| [of.octets(), word(&port.to_be_bytes())].concat());
                [data(ELEMENT_KEY, &key), data(ELEMENT_DATA, &value)].concat()
            }
        };
        attribute(NESTED | LIST_ELEMENT, &element)
    }
}

/// As `nft` reads it, the set included.
impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {{ ", self.set())?;
        match self {
            Self::Block(address) | Self::Confined(address) => write!(f, "{address}")?,
            Self::Allowed { from, to, port: None } => write!(f, "{from} . {to} . 0-255 . 0-65535")?,
            Self::Allowed { from, to, port: Some((protocol, port)) } => {
                write!(f, "{from} . {to} . {} . {port}", *protocol as u8)?;
            }
            Self::Port { port, to, inside } => write!(f, "{port} : {to} . {inside}")?,
            Self::Turned { port, of, inside } => write!(f, "{of} . {port} : {of} . {inside}")?,
        }
        f.write_str(" }")
    }
}

/// What is done with elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// They are there afterwards; those that were already are no error.
    Add,
    /// They are not; one that was not is an error.
    Remove,
}

/// All of it happens, or nothing.
pub(super) fn change(
    netlink: &mut Netlink,
    table: &str,
    what: Change,
    elements: &[Element],
) -> io::Result<()> {
    if elements.is_empty() {
        return Ok(());
    }
    let (kind, flags) = match what {
        Change::Add => (NEW_ELEMENT, NLM_F_CREATE),
        Change::Remove => (DELETE_ELEMENT, 0),
    };
    let mut batch = message(BATCH_BEGIN, NLM_F_REQUEST, netlink.next_sequence(), 0, NFTABLES, &[]);
    for element in elements {
        let body = [
            attribute(LIST_TABLE, &text(table)),
            attribute(LIST_SET, &text(element.set())),
            attribute(NESTED | LIST_ELEMENTS, &element.attributes()),
        ]
        .concat();
        let flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        batch.extend(message(kind, flags, netlink.next_sequence(), FAMILY_INET, 0, &body));
    }
    let sequence = netlink.next_sequence();
    batch.extend(message(BATCH_END, NLM_F_REQUEST, sequence, 0, NFTABLES, &[]));
    netlink.exchange(&batch, elements.len())
}

/// Whether our table is there: whoever reloads a firewall flushes others' tables too.
pub(super) fn is_there(netlink: &mut Netlink, table: &str) -> io::Result<bool> {
    let body = attribute(TABLE_NAME, &text(table));
    let flags = NLM_F_REQUEST | NLM_F_ACK;
    let question = message(GET_TABLE, flags, netlink.next_sequence(), FAMILY_INET, 0, &body);
    match netlink.exchange(&question, 1) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// `nlmsghdr`, `nfgenmsg` and the rest.
fn message(
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    resource: u16,
    body: &[u8],
) -> Vec<u8> {
    let length = u32::try_from(20 + body.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(20 + body.len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(body);
    bytes
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = Vec::with_capacity((4 + value.len()).next_multiple_of(4));
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn data(kind: u16, value: &[u8]) -> Vec<u8> {
    attribute(NESTED | kind, &attribute(DATA_VALUE, value))
}

fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// A part of a key that has several: each takes whole words.
fn word(bytes: &[u8]) -> [u8; 4] {
    let mut word = [0; 4];
    for (to, from) in word.iter_mut().zip(bytes) {
        *to = *from;
    }
    word
}
