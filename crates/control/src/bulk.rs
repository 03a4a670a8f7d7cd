//! The second connections of workers and data planes: artifacts go out by pieces, questions about
//! logs and invocations go out and their answers are given to those who asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use dirigent_core::{
    Digest,
    frame::{
        FromDataPlaneBulk, FromWorkerBulk, InvocationRecord, LogLine, LogQuery, ToDataPlaneBulk,
        ToWorkerBulk,
    },
};
use dirigent_service::{Acceptor, End, OnCancel, Tasks};
use tokio::{
    io::{AsyncReadExt as _, AsyncSeekExt as _},
    sync::mpsc,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::copies::Artifacts;

/// Every second connection, and every question on its way. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bulk {
    next: Arc<AtomicU64>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    workers: BTreeMap<u64, mpsc::Sender<ToWorkerBulk>>,
    data_planes: BTreeMap<u64, mpsc::Sender<ToDataPlaneBulk>>,
    readers: BTreeMap<u64, mpsc::Sender<Heard>>,
    finders: BTreeMap<u64, mpsc::Sender<Option<Box<InvocationRecord>>>>,
}

/// Lines of one worker, for a reader of logs.
#[derive(Debug)]
struct Heard {
    connection: u64,
    lines: Vec<LogLine>,
    end: bool,
    missing: Option<String>,
}

/// What a reader of logs gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// Lines of one worker, oldest first.
    Lines(Vec<LogLine>),
    /// Lines are missing, and why.
    Missing(String),
}

/// The largest piece of an artifact.
const PIECE: usize = 256 << 10;

/// Pieces that wait for one worker: the connection holds far more messages, but not of this size.
const PIECES: usize = 16;

/// Batches of lines that wait for a reader.
const BATCHES: usize = 64;

/// How long a reader who takes nothing may hold up the connection that its lines come on.
const SLOW_READER: Duration = Duration::from_secs(2);

impl Bulk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Accept workers' second connections until nobody can dial any more.
    pub(crate) fn accept_workers(
        &self,
        mut acceptor: Acceptor<ToWorkerBulk, FromWorkerBulk>,
        artifacts: &Artifacts,
        tasks: &Tasks,
    ) {
        let (this, artifacts, spawner) = (self.clone(), artifacts.clone(), tasks.clone());
        tasks.run("accept bulk of workers", OnCancel::Abort, async move {
            while let Some((_name, end)) = acceptor.accept().await {
                let (this, artifacts) = (this.clone(), artifacts.clone());
                spawner.run("bulk of a worker", OnCancel::Abort, async move {
                    this.serve_worker(end, &artifacts).await;
                });
            }
        });
    }

    async fn serve_worker(&self, end: End<ToWorkerBulk, FromWorkerBulk>, artifacts: &Artifacts) {
        let End { tx, mut rx } = end;
        let connection = self.number();
        self.lock().workers.insert(connection, tx.clone());
        let mut sending = JoinSet::new();
        let mut current: BTreeMap<Digest, CancellationToken> = BTreeMap::new();
        while let Some(frame) = rx.recv().await {
            while sending.try_join_next().is_some() {}
            match frame {
                FromWorkerBulk::Fetch { digest, offset } => {
                    let newest = CancellationToken::new();
                    // Pieces of two answers to the same question must not mix.
                    if let Some(older) = current.insert(digest, newest.clone()) {
                        older.cancel();
                    }
                    let (artifacts, tx) = (artifacts.clone(), tx.clone());
                    sending.spawn(newest.run_until_cancelled_owned(async move {
                        send_artifact(&artifacts, digest, offset, &tx).await;
                    }));
                }
                FromWorkerBulk::LogLines { id, lines, end, missing } => {
                    let heard = Heard { connection, lines, end, missing };
                    // Nobody wants these: the worker may not have heard that its reader left.
                    if !self.hand_out(id, heard).await
                        && !end
                        && tx.send(ToWorkerBulk::StopLogs { id }).await.is_err()
                    {
                        break;
                    }
                }
            }
        }
        let readers: Vec<u64> = {
            let mut state = self.lock();
            state.workers.remove(&connection);
            state.readers.keys().copied().collect()
        };
        for id in readers {
            let missing = Some("a worker has left or connects anew".to_owned());
            self.hand_out(id, Heard { connection, lines: Vec::new(), end: true, missing }).await;
        }
    }

    /// Give lines to their reader, if there is one. Who does not take them is given up.
    async fn hand_out(&self, id: u64, heard: Heard) -> bool {
        let reader = self.lock().readers.get(&id).cloned();
        let Some(reader) = reader else { return false };
        let taken = reader.send_timeout(heard, SLOW_READER).await.is_ok();
        if !taken {
            self.lock().readers.remove(&id);
        }
        taken
    }

    /// Read logs of all workers.
    pub(crate) async fn read_logs(&self, mut query: LogQuery) -> LogReader {
        let id = self.number();
        query.id = id;
        let (tx, rx) = mpsc::channel(BATCHES);
        let workers = {
            let mut state = self.lock();
            state.readers.insert(id, tx);
            state.workers.clone()
        };
        let (waiting, missing) = (BTreeSet::new(), None);
        let mut reader = LogReader { bulk: self.clone(), id, rx, waiting, missing };
        for (connection, worker) in workers {
            let question = ToWorkerBulk::ReadLogs(query.clone());
            if worker.send_timeout(question, SLOW_READER).await.is_ok() {
                reader.waiting.insert(connection);
            } else {
                reader.missing = Some("a worker is too busy to be asked".to_owned());
            }
        }
        reader
    }

    /// Accept data planes' second connections until nobody can dial any more.
    pub(crate) fn accept_data_planes(
        &self,
        mut acceptor: Acceptor<ToDataPlaneBulk, FromDataPlaneBulk>,
        tasks: &Tasks,
    ) {
        let (this, spawner) = (self.clone(), tasks.clone());
        tasks.run("accept bulk of data planes", OnCancel::Abort, async move {
            while let Some((_name, end)) = acceptor.accept().await {
                let this = this.clone();
                spawner.run("bulk of a data plane", OnCancel::Abort, async move {
                    this.serve_data_plane(end).await;
                });
            }
        });
    }

    async fn serve_data_plane(&self, end: End<ToDataPlaneBulk, FromDataPlaneBulk>) {
        let End { tx, mut rx } = end;
        let connection = self.number();
        self.lock().data_planes.insert(connection, tx);
        while let Some(FromDataPlaneBulk::Invocation { id, record }) = rx.recv().await {
            let finder = self.lock().finders.get(&id).cloned();
            if let Some(finder) = finder
                && finder.try_send(record).is_err()
            {
                tracing::debug!(id, "nobody waits for this answer");
            }
        }
        self.lock().data_planes.remove(&connection);
    }

    /// What the data planes remember of an invocation.
    pub(crate) async fn find(&self, request_id: &str) -> Option<Box<InvocationRecord>> {
        let id = self.number();
        let data_planes: Vec<_> = self.lock().data_planes.values().cloned().collect();
        let (tx, mut rx) = mpsc::channel(data_planes.len().max(1));
        self.lock().finders.insert(id, tx);
        let _forget = Forget { bulk: self, id };
        let mut asked = 0;
        for data_plane in data_planes {
            let question =
                ToDataPlaneBulk::FindInvocation { id, request_id: request_id.to_owned() };
            if data_plane.try_send(question).is_ok() {
                asked += 1;
            }
        }
        let search = async {
            for _answer in 0..asked {
                if let Some(record) = rx.recv().await? {
                    return Some(record);
                }
            }
            None
        };
        tokio::time::timeout(SLOW_READER, search).await.ok().flatten()
    }
}

/// Ends a search, also one that nobody waits for any more.
struct Forget<'a> {
    bulk: &'a Bulk,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.bulk.lock().finders.remove(&self.id);
    }
}

/// Lines of all workers as they come. Dropping it stops the workers.
#[derive(Debug)]
pub(crate) struct LogReader {
    bulk: Bulk,
    id: u64,
    rx: mpsc::Receiver<Heard>,
    /// Connections that have not said that they are through.
    waiting: BTreeSet<u64>,
    /// To be told next.
    missing: Option<String>,
}

impl LogReader {
    /// What comes next from some worker; `None` when all are through. Cancellation safe.
    pub(crate) async fn next(&mut self) -> Option<Read> {
        loop {
            if let Some(why) = self.missing.take() {
                return Some(Read::Missing(why));
            }
            // Of one that has left, only that is of interest.
            if self.waiting.is_empty() {
                return None;
            }
            let Some(Heard { connection, lines, end, missing }) = self.rx.recv().await else {
                self.waiting.clear();
                return Some(Read::Missing("they were read too slowly".to_owned()));
            };
            let awaited = self.waiting.contains(&connection);
            if end {
                self.waiting.remove(&connection);
            }
            self.missing = missing.filter(|_| awaited);
            if !lines.is_empty() {
                return Some(Read::Lines(lines));
            }
        }
    }
}

impl Drop for LogReader {
    fn drop(&mut self) {
        let mut state = self.bulk.lock();
        state.readers.remove(&self.id);
        for connection in &self.waiting {
            if let Some(worker) = state.workers.get(connection)
                && worker.try_send(ToWorkerBulk::StopLogs { id: self.id }).is_err()
            {
                tracing::debug!(id = self.id, "a worker was too busy to hear that a reader left");
            }
        }
    }
}

/// Send an artifact by pieces, each when the one before it was taken.
async fn send_artifact(
    artifacts: &Artifacts,
    digest: Digest,
    offset: u64,
    tx: &mpsc::Sender<ToWorkerBulk>,
) {
    if let Err(error) = pieces(artifacts, digest, offset, tx).await {
        let message = error.to_string();
        if tx.send(ToWorkerBulk::NoArtifact { digest, message }).await.is_err() {
            tracing::debug!(%digest, "the worker left");
        }
    }
}

async fn pieces(
    artifacts: &Artifacts,
    digest: Digest,
    offset: u64,
    tx: &mpsc::Sender<ToWorkerBulk>,
) -> std::io::Result<()> {
    let mut file = artifacts.open(digest).await?;
    file.seek(std::io::SeekFrom::Start(offset)).await?;
    loop {
        let mut data = Vec::with_capacity(PIECE);
        (&mut file).take(PIECE as u64).read_to_end(&mut data).await?;
        let end = data.is_empty();
        // Room for one, once no more than that wait.
        let room = tx.max_capacity().saturating_sub(PIECES - 1).max(1);
        let Ok(mut room) = tx.reserve_many(room).await else { return Ok(()) };
        if let Some(room) = room.next() {
            room.send(ToWorkerBulk::Chunk { digest, data, end });
        }
        if end {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests;
