//! Frames packed into a batch, written, read and unpacked, so many rounds: what `cargo xtask bench`
//! counts instructions of.

#![expect(clippy::print_stdout, reason = "a program for developers")]

use std::net::{Ipv4Addr, SocketAddr};

use dirigent_core::{
    Address, Epoch, FunctionId, Protocol, RevisionId, SandboxId, Serial,
    frame::{Grant, Share, ToDataPlane},
};
use dirigent_proto::{Message as _, pack, unpack, v1};

/// As many as are ready together under load.
const FRAMES: u64 = 16;

fn grant(number: u64) -> ToDataPlane {
    let function = FunctionId::new(Epoch(1), number);
    ToDataPlane::Grant(Box::new(Grant {
        sandbox: SandboxId::new(Epoch(1), number),
        revision: RevisionId { function, number: 1 },
        address: Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 20_000))),
        protocol: Protocol::Http1,
        share: Share::Slots(1),
        serial: Serial(number),
        pinned: false,
        start: None,
    }))
}

fn main() {
    let rounds = std::env::args().nth(1).and_then(|rounds| rounds.parse().ok()).unwrap_or(1000);
    for round in 0..rounds {
        let batch: v1::ToDataPlanes = pack((1..=FRAMES).map(grant));
        let bytes = batch.encode_to_vec();
        let read = v1::ToDataPlanes::decode(&*bytes).map(unpack);
        let count = read.map_or(0, |frames| frames.filter(Result::is_ok).count() as u64);
        if count != FRAMES {
            return println!("round {round}: {count} of {FRAMES} frames were understood");
        }
    }
    println!("{rounds} batches of {FRAMES} frames");
}
