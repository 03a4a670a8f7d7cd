//! A control plane's artifacts: one is held, and kept.

use std::net::SocketAddr;

use bytes::Bytes;
use dirigent_core::Digest;
use dirigent_transport::{Answer, Depot, Pieces};
use futures_util::StreamExt as _;

/// See the module.
#[derive(Debug)]
pub(crate) struct Shelf;

/// What it holds.
pub(crate) const HELD: Digest = Digest([7; 32]);

impl Depot for Shelf {
    fn read(&self, digest: Digest) -> Answer<Pieces> {
        Box::pin(async move {
            if digest != HELD {
                return Err("it is not here".to_owned());
            }
            let pieces = vec![vec![1; 600 << 10], vec![2; 5]];
            let pieces: Pieces =
                Box::pin(futures_util::stream::iter(pieces).map(|piece| Ok(Bytes::from(piece))));
            Ok(pieces)
        })
    }

    fn keep(&self, digest: Digest, from: SocketAddr) -> Answer<()> {
        let kept = if digest == HELD { Ok(()) } else { Err(format!("{from} is not asked")) };
        Box::pin(std::future::ready(kept))
    }
}
