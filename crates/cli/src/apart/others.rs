//! How control planes reach each other: the transport's side of what the role asks for.

use std::{net::SocketAddr, pin::Pin};

use dirigent_control::copies::{self, Artifacts, Others};
use dirigent_core::{Digest, office::Event};
use dirigent_transport::{Answer, Depot, Pieces, Reach};
use tokio::sync::mpsc;
use tokio_util::io::ReaderStream;

/// Bytes read from a file at once.
const PIECE: usize = 256 << 10;

/// The others, from here.
#[derive(Debug)]
pub(super) struct Neighbours(pub(super) Reach);

impl Others for Neighbours {
    fn line(
        &self,
        leader: SocketAddr,
        told: mpsc::Sender<Event>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let reach = self.0.clone();
        Box::pin(async move { reach.line(leader, told).await })
    }

    fn keep(&self, at: SocketAddr, digest: Digest, from: SocketAddr) -> copies::Answer<()> {
        let reach = self.0.clone();
        Box::pin(async move { reach.keep_artifact(at, digest, from).await })
    }

    fn read(&self, at: SocketAddr, digest: Digest) -> copies::Answer<copies::Pieces> {
        let reach = self.0.clone();
        Box::pin(async move { reach.read_artifact(at, digest).await })
    }
}

/// This one, for the others.
#[derive(Debug)]
pub(super) struct Own(pub(super) Artifacts);

impl Depot for Own {
    fn read(&self, digest: Digest) -> Answer<Pieces> {
        let artifacts = self.0.clone();
        Box::pin(async move {
            let file = artifacts.read(digest).await.map_err(|error| error.to_string())?;
            let pieces: Pieces = Box::pin(ReaderStream::with_capacity(file, PIECE));
            Ok(pieces)
        })
    }

    fn keep(&self, digest: Digest, from: SocketAddr) -> Answer<()> {
        let artifacts = self.0.clone();
        Box::pin(async move { artifacts.keep(digest, from).await })
    }
}
