//! The second connection to the control plane: artifacts come in, log lines go out. It may be slow
//! without any order waiting behind it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use dirigent_core::{
    Digest,
    frame::{FromWorkerBulk, LogLine, LogQuery, ToWorkerBulk},
};
use dirigent_runtime::Runtime;
use dirigent_service::{Dialer, End, OutboxFeed};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, sleep_until},
};

use crate::{
    backoff::Backoff,
    driver::Input,
    fetch::{Fetched, Incoming, Piece},
};

/// Log queries at once; each holds a thread. One more is turned away.
const MAX_READERS: usize = 32;
/// Batches of lines between the thread that reads them and the connection.
const BATCHES: usize = 4;
/// Without a piece for so long the connection is given up, and the fetch goes on in a new one.
const STALL: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug)]
pub(crate) struct Bulk {
    dialer: Dialer<FromWorkerBulk, ToWorkerBulk>,
    incoming: Incoming,
    runtimes: Vec<Arc<dyn Runtime>>,
    inputs: mpsc::Sender<Input>,
    wants: OutboxFeed<Digest, Digest>,
}

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
enum Over {
    #[error("the control plane closed it")]
    Closed,
    #[error("the control plane does not take what is said")]
    Stuck,
    #[error("no piece of an artifact came for {} s", STALL.as_secs())]
    Stalled,
    #[error("an artifact could not be stored")]
    Unstored,
    #[error("the worker ends")]
    Ends,
}

impl Bulk {
    pub(crate) fn new(
        dialer: Dialer<FromWorkerBulk, ToWorkerBulk>,
        incoming: Incoming,
        runtimes: Vec<Arc<dyn Runtime>>,
        inputs: mpsc::Sender<Input>,
        wants: OutboxFeed<Digest, Digest>,
    ) -> Self {
        Self { dialer, incoming, runtimes, inputs, wants }
    }

    pub(crate) async fn run(mut self) {
        let mut backoff = Backoff::new();
        loop {
            match self.dialer.dial().await {
                Ok(end) => {
                    let since = Instant::now();
                    match self.connection(end).await {
                        Over::Ends => return,
                        why => tracing::debug!(%why, "the bulk connection is over"),
                    }
                    backoff.over(since);
                }
                Err(error) => tracing::debug!(%error, "the control plane cannot be reached"),
            }
            sleep(backoff.delay()).await;
        }
    }

    async fn connection(&mut self, end: End<FromWorkerBulk, ToWorkerBulk>) -> Over {
        let End { tx, mut rx } = end;
        let mut readers = Readers::new(self.runtimes.clone(), tx.clone());
        for (digest, offset) in self.incoming.offsets() {
            if tx.try_send(FromWorkerBulk::Fetch { digest, offset }).is_err() {
                return Over::Stuck;
            }
        }
        let mut progress = Instant::now();
        loop {
            let result = tokio::select! {
                biased;
                wanted = self.wants.next() => match wanted {
                    Ok(Some(digest)) => {
                        if self.incoming.is_empty() {
                            progress = Instant::now();
                        }
                        let offset = self.incoming.begin(digest);
                        tx.try_send(FromWorkerBulk::Fetch { digest, offset })
                            .map_err(|_full_or_gone| Over::Stuck)
                    }
                    Ok(None) | Err(_) => Err(Over::Ends),
                },
                frame = rx.recv() => match frame {
                    Some(frame) => {
                        progress = Instant::now();
                        self.said(frame, &mut readers).await
                    }
                    None => Err(Over::Closed),
                },
                () = sleep_until(progress + STALL), if !self.incoming.is_empty() => {
                    Err(Over::Stalled)
                }
                () = readers.reap() => Ok(()),
            };
            if let Err(over) = result {
                return over;
            }
        }
    }

    async fn said(&mut self, frame: ToWorkerBulk, readers: &mut Readers) -> Result<(), Over> {
        match frame {
            ToWorkerBulk::Chunk { digest, data, end } => {
                match self.incoming.piece(digest, &data, end).await {
                    Piece::More => Ok(()),
                    Piece::Last(fetched) => self.tell(fetched).await,
                    Piece::Failed(fetched) => {
                        self.tell(fetched).await?;
                        Err(Over::Unstored)
                    }
                    Piece::Stray => {
                        tracing::debug!(%digest, "a piece of an artifact that nobody wants");
                        Ok(())
                    }
                }
            }
            ToWorkerBulk::NoArtifact { digest, message } => {
                match self.incoming.refused(digest, message).await {
                    Some(fetched) => self.tell(fetched).await,
                    None => Ok(()),
                }
            }
            ToWorkerBulk::ReadLogs(query) => {
                readers.start(query);
                Ok(())
            }
            ToWorkerBulk::StopLogs { id } => {
                readers.stop(id);
                Ok(())
            }
        }
    }

    async fn tell(&self, fetched: Fetched) -> Result<(), Over> {
        self.inputs.send(Input::Fetched(fetched)).await.map_err(|_gone| Over::Ends)
    }
}

/// Log queries of one connection; dropped with it, and so are they.
struct Readers {
    runtimes: Vec<Arc<dyn Runtime>>,
    tx: mpsc::Sender<FromWorkerBulk>,
    running: JoinSet<u64>,
    by_id: HashMap<u64, AbortHandle>,
}

impl Readers {
    fn new(runtimes: Vec<Arc<dyn Runtime>>, tx: mpsc::Sender<FromWorkerBulk>) -> Self {
        Self { runtimes, tx, running: JoinSet::new(), by_id: HashMap::new() }
    }

    fn start(&mut self, query: LogQuery) {
        let id = query.id;
        let tx = self.tx.clone();
        let handle = if self.by_id.len() < MAX_READERS {
            self.running.spawn(read(query, self.runtimes.clone(), tx))
        } else {
            tracing::warn!(readers = MAX_READERS, "too many log readers: one is turned away");
            self.running.spawn(async move {
                let why = format!("{MAX_READERS} others read logs of this worker: try again later");
                let (lines, missing) = (Vec::new(), Some(why));
                let frame = FromWorkerBulk::LogLines { id, lines, end: true, missing };
                // Nobody to tell where the connection is over.
                drop(tx.send(frame).await);
                id
            })
        };
        self.by_id.insert(id, handle);
    }

    /// The reader's thread ends when it finds that nobody takes its lines.
    fn stop(&mut self, id: u64) {
        if let Some(reader) = self.by_id.remove(&id) {
            reader.abort();
        }
    }

    /// Forget a reader that is done; never returns without one. Cancellation safe.
    async fn reap(&mut self) {
        match self.running.join_next().await {
            Some(Ok(id)) => {
                self.by_id.remove(&id);
            }
            Some(Err(error)) => tracing::trace!(%error, "a log reader was stopped"),
            None => std::future::pending().await,
        }
    }
}

/// Read from each runtime in a thread of its own: those that follow do not end.
async fn read(
    query: LogQuery,
    runtimes: Vec<Arc<dyn Runtime>>,
    tx: mpsc::Sender<FromWorkerBulk>,
) -> u64 {
    let id = query.id;
    let (out, mut batches) = mpsc::channel(BATCHES);
    for runtime in runtimes {
        let (query, out) = (query.clone(), out.clone());
        // A thread of its own, not one of those that files and artifacts share: one that follows
        // keeps it for as long as somebody looks. Its end is the channel's.
        let work = move || runtime.logs(query, out);
        if let Err(error) = std::thread::Builder::new().name("log-reader".to_owned()).spawn(work) {
            tracing::warn!(%error, "a log cannot be read");
        }
    }
    drop(out);
    while let Some(lines) = batches.recv().await {
        if !say(&tx, id, lines, false).await {
            return id;
        }
    }
    say(&tx, id, Vec::new(), true).await;
    id
}

/// Whether anybody hears.
async fn say(tx: &mpsc::Sender<FromWorkerBulk>, id: u64, lines: Vec<LogLine>, end: bool) -> bool {
    let frame = FromWorkerBulk::LogLines { id, lines, end, missing: None };
    tx.send(frame).await.is_ok()
}
