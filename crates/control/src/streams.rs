//! The streams of workers and data planes: each is one task that carries frames in, waiting while
//! the owner is behind, and feeds the peer from its outbox.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use dirigent_core::{
    StreamId,
    control::Event,
    frame::{Capacity, FromDataPlane, FromWorker, ToDataPlane, ToWorker},
};
use dirigent_service::{Acceptor, End, Limits, OnCancel, OutboxFeed, Tasks, outbox};
use tokio::time::Instant;

use crate::owner::{Handle, Input, Sitting, Speaker, Topic};

/// What attached workers say that they offer, for people to look at.
#[derive(Clone, Debug, Default)]
pub(crate) struct Offers {
    by_stream: Arc<Mutex<ByStream>>,
}

type ByStream = BTreeMap<StreamId, (Arc<str>, Capacity)>;

impl Offers {
    fn lock(&self) -> MutexGuard<'_, ByStream> {
        self.by_stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Each worker's identity and offer.
    pub(crate) fn all(&self) -> Vec<(Arc<str>, Capacity)> {
        self.lock().values().cloned().collect()
    }
}

/// Accept workers until nobody can dial any more.
pub(crate) fn accept_workers(
    mut acceptor: Acceptor<ToWorker, FromWorker>,
    owner: Handle,
    offers: Offers,
    tasks: &Tasks,
) {
    let (spawner, numbers) = (tasks.clone(), owner.clone());
    tasks.run("accept workers", OnCancel::Abort, async move {
        while let Some((name, end)) = acceptor.accept().await {
            // Who comes when another leads goes there.
            let Some(owner) = owner.sitting() else { continue };
            #[cfg(feature = "ablations")]
            let end = crate::ablation::of_worker(end, &spawner);
            let stream = numbers.stream();
            let (speaker, feed) = outbox(Limits::default());
            let speaker = Speaker::Worker(speaker);
            let offers = offers.clone();
            spawner.run("worker stream", OnCancel::Abort, async move {
                let attached = Input::Attached { stream, name: Arc::clone(&name), speaker };
                if owner.tell(attached).await {
                    let said = |frame| {
                        if let FromWorker::Hello(hello) = &frame {
                            let offer = (Arc::clone(&name), hello.capacity.clone());
                            offers.lock().insert(stream, offer);
                        }
                        Input::Event(Event::WorkerSaid { stream, frame })
                    };
                    carry(stream, end, feed, &owner, said).await;
                    offers.lock().remove(&stream);
                }
            });
        }
    });
}

/// Accept data planes until nobody can dial any more.
pub(crate) fn accept_data_planes(
    mut acceptor: Acceptor<ToDataPlane, FromDataPlane>,
    owner: Handle,
    tasks: &Tasks,
) {
    let (spawner, numbers) = (tasks.clone(), owner.clone());
    tasks.run("accept data planes", OnCancel::Abort, async move {
        while let Some((name, end)) = acceptor.accept().await {
            // Who comes when another leads goes there.
            let Some(owner) = owner.sitting() else { continue };
            #[cfg(feature = "ablations")]
            let end = crate::ablation::of_data_plane(end, &spawner);
            let stream = numbers.stream();
            let (speaker, feed) = outbox(Limits::default());
            let speaker = Speaker::DataPlane(speaker);
            spawner.run("data plane stream", OnCancel::Abort, async move {
                if owner.tell(Input::Attached { stream, name, speaker }).await {
                    let said = |frame| Input::DataPlane { stream, frame, heard: Instant::now() };
                    carry(stream, end, feed, &owner, said).await;
                }
            });
        }
    });
}

/// Carry frames both ways until either side ends the stream, then tell the owner.
async fn carry<Out: Send, In>(
    stream: StreamId,
    end: End<Out, In>,
    feed: OutboxFeed<Topic, Out>,
    owner: &Sitting,
    said: impl Fn(In) -> Input,
) {
    let End { tx, mut rx } = end;
    let hear = async {
        while let Some(frame) = rx.recv().await {
            if !owner.tell(said(frame)).await {
                return;
            }
        }
    };
    tokio::select! {
        () = hear => tracing::debug!(%stream, "the peer left"),
        result = feed.forward(&tx) => match result {
            Ok(()) => tracing::debug!(%stream, "closed by us"),
            Err(why) => tracing::info!(%stream, %why, "stream ended"),
        },
    }
    // Before the owner hears of it, so that the peer sees its end and can dial again.
    drop((tx, rx));
    if !owner.tell(Input::Event(Event::Detached { stream })).await {
        tracing::debug!(%stream, "the owner is gone");
    }
}
