//! A control plane's doors, and its artifacts: one is held, and kept.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use dirigent_core::{
    Digest,
    frame::{FromWorker, FromWorkerBulk, ToWorker, ToWorkerBulk},
};
use dirigent_service::{Acceptor, acceptor};
use dirigent_transport::{Answer, Depot, Doors, Pieces};
use futures_util::StreamExt as _;
use tokio::net::TcpListener;

/// Who is behind the doors of workers.
pub(crate) type Behind = (Acceptor<ToWorker, FromWorker>, Acceptor<ToWorkerBulk, FromWorkerBulk>);

/// Where a control plane listens, and its doors. Only those of workers are answered.
pub(crate) async fn doors() -> (TcpListener, Doors, Behind) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (to_workers, workers) = acceptor("worker");
    let (to_workers_bulk, workers_bulk) = acceptor("worker");
    let doors = Doors {
        workers: to_workers,
        workers_bulk: to_workers_bulk,
        data_planes: acceptor("data plane").0,
        data_planes_bulk: acceptor("data plane").0,
        depot: Arc::new(Shelf),
    };
    (listener, doors, (workers, workers_bulk))
}

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
