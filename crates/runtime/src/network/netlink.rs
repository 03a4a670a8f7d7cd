//! Questions to the kernel over netlink, one after the other, each answered before the next.

use std::{io, time::Duration};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use rustix::{
    fd::OwnedFd,
    io::Errno,
    net::{
        AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv,
        send, socket_with,
        sockopt::{Timeout, set_socket_timeout},
    },
};

/// The kernel answers while it is asked; this is for one that does not.
const PATIENCE: Duration = Duration::from_secs(5);

/// The largest datagram that the kernel sends at once.
const DATAGRAM: usize = 64 * 1024;

/// `NLMSG_*`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
const HEADER: usize = 16;

/// A socket that stays in the network namespace in which it was opened.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Netlink {
    /// For links, addresses and routes.
    pub(super) fn route() -> io::Result<Self> {
        // Number 0, which has no name of its own.
        Self::open(None)
    }

    /// For nftables.
    pub(super) fn netfilter() -> io::Result<Self> {
        Self::open(Some(netlink::NETFILTER))
    }

    fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let socket =
            socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        Ok(Self { socket, buffer: vec![0; DATAGRAM], sequence: 0 })
    }

    /// A number for the next message.
    pub(super) const fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Have something done; `flags` beside those of every such question.
    pub(super) fn order(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let sequence_number = self.next_sequence();
        let bytes = bytes_of(message, NLM_F_REQUEST | NLM_F_ACK | flags, sequence_number);
        self.exchange(&bytes, 1)
    }

    /// Send messages of which so many are acknowledged, and wait until all are. The first error is
    /// the answer to all.
    pub(super) fn exchange(&mut self, messages: &[u8], acknowledged: usize) -> io::Result<()> {
        send(&self.socket, messages, SendFlags::empty())?;
        let mut missing = acknowledged;
        let mut outcome = Ok(());
        while missing > 0 {
            let length = self.receive()?;
            for (kind, body) in messages_of(&self.buffer[..length]) {
                if kind != ERROR {
                    continue;
                }
                missing = missing.saturating_sub(1);
                let error = number(body).unwrap_or(0).cast_signed();
                if error != 0 {
                    missing = 0;
                    outcome = Err(io::Error::from_raw_os_error(-error));
                }
            }
        }
        if outcome.is_err() {
            // Other answers to the same are of no interest to the next question.
            while recv(&self.socket, &mut self.buffer[..], RecvFlags::DONTWAIT).is_ok() {}
        }
        outcome
    }

    /// All that there is of something.
    pub(super) fn list(
        &mut self,
        question: RouteNetlinkMessage,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        let sequence_number = self.next_sequence();
        let bytes = bytes_of(question, NLM_F_REQUEST | NLM_F_DUMP, sequence_number);
        send(&self.socket, &bytes, SendFlags::empty())?;
        let mut found = Vec::new();
        loop {
            let length = self.receive()?;
            let mut at = 0;
            while let Some(next) = self.buffer[..length].get(at..).filter(|rest| !rest.is_empty()) {
                let Some(size) = number(next).and_then(|size| usize::try_from(size).ok()) else {
                    return Err(io::ErrorKind::InvalidData.into());
                };
                let message = next.get(..size).ok_or(io::ErrorKind::InvalidData)?;
                match kind_of(message) {
                    DONE => return Ok(found),
                    ERROR => {
                        let error = message.get(HEADER..).and_then(number).unwrap_or(0);
                        return Err(io::Error::from_raw_os_error(-error.cast_signed()));
                    }
                    _ => {}
                }
                // What the library does not know is nothing that we look for.
                if let Ok(NetlinkMessage { payload: NetlinkPayload::InnerMessage(one), .. }) =
                    NetlinkMessage::deserialize(message)
                {
                    found.push(one);
                }
                at += size.next_multiple_of(4);
            }
        }
    }

    fn receive(&mut self) -> io::Result<usize> {
        loop {
            match recv(&self.socket, &mut self.buffer[..], RecvFlags::empty()) {
                Ok((length, _)) => return Ok(length),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn bytes_of(message: RouteNetlinkMessage, flags: u16, sequence_number: u32) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence_number;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// The four bytes in front, as a number.
fn number(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk::<4>().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn kind_of(message: &[u8]) -> u16 {
    message.get(4..6).and_then(|b| b.try_into().ok()).map_or(0, u16::from_ne_bytes)
}

/// The kinds and bodies of what is in one datagram.
fn messages_of(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let size = usize::try_from(number(bytes)?).ok()?;
        let message = bytes.get(..size)?;
        let body = message.get(HEADER..)?;
        bytes = bytes.get(size.next_multiple_of(4)..).unwrap_or_default();
        Some((kind_of(message), body))
    })
}
