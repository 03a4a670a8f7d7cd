//! What the cluster remembers: functions, workers and data planes; nothing that an invocation
//! needs to write. A back end applies batches of writes, each transaction whole or not at all; a
//! thread of its own takes all writes that wait, makes one durable transaction of as many as fit,
//! and answers their tokens in order.
//!
//! Taking office raises the epoch, and the records are read after it, so that two leaders never share
//! one; it is marked at random, so that they do not either if the store is restored from an older copy
//! and counts on from there.

pub mod etcd;
pub mod memory;
pub mod migrate;
mod reading;
pub mod redb;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use dirigent_core::{Epoch, Office, Records, Write, WriteToken, control::Outcome};
use dirigent_service::{OnCancel, OnError, Tasks};
use tokio::sync::mpsc;

pub use self::{etcd::EtcdStore, memory::MemoryStore, redb::RedbStore};

/// The version of the records' format that is written here.
pub const SCHEMA: u64 = 2;

/// The first format in which functions may ask their callers for a token.
pub(crate) const TOKENS_FORMAT: u64 = 2;

/// Where records are kept.
pub trait Store: Send + 'static {
    /// Take office: raise the epoch, durably, and read everything. The next epoch is above the last
    /// one, and above `shown`: what a peer is known to have obeyed.
    ///
    /// # Errors
    /// If the store cannot be used by this program, or not now.
    fn take_office(&mut self, shown: Epoch) -> Result<(Office, Records), StoreError>;

    /// Apply writes in order, from the front as many as fit into one transaction, at least one: all
    /// of these durably or none.
    ///
    /// # Errors
    /// If another control plane leads: nothing is written here any more.
    fn apply(&mut self, batch: &[Write]) -> Result<Applied, Deposed>;

    /// How many functions are recorded, since office was taken.
    fn functions(&self) -> u64;
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The writes that this is about, from the front.
    pub writes: usize,
    /// How they went.
    pub outcome: Outcome,
}

/// Another control plane leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("another control plane leads")]
pub struct Deposed;

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A newer program wrote it.
    #[error(
        "{place} has format {found}, this program knows formats up to {known}: run the version that \
         wrote it or a newer one, or choose {instead}"
    )]
    Newer {
        /// The store.
        place: String,
        /// The format found.
        found: u64,
        /// The newest that is known.
        known: u64,
        /// Where else records could be kept, and by which flag.
        instead: &'static str,
    },
    /// Another process has it open.
    #[error("{place} is open in another process")]
    InUse {
        /// The store.
        place: String,
    },
    /// Everything in it is elsewhere now.
    #[error("{place} was moved to {to}: start the control plane with --etcd")]
    Moved {
        /// The store.
        place: String,
        /// Where it is.
        to: String,
    },
    /// Another store is being moved into it.
    #[error(
        "{place} is to get what is in {from}, which is not finished: `dirigent store migrate` ends it"
    )]
    Moving {
        /// The store.
        place: String,
        /// What comes.
        from: String,
    },
    /// It is to be empty and is not.
    #[error("{place} is not empty: choose another prefix with --etcd-prefix")]
    NotEmpty {
        /// The store.
        place: String,
    },
    /// Another control plane took office meanwhile.
    #[error("another control plane has taken office")]
    Deposed,
    /// It cannot be asked now.
    #[error("{place} cannot be used now: {message}")]
    Unavailable {
        /// The store.
        place: String,
        /// Why.
        message: String,
    },
    /// A record cannot be read.
    #[error("{place}: the record {record} cannot be read: {message}")]
    Record {
        /// The store.
        place: String,
        /// Which.
        record: String,
        /// Why.
        message: String,
    },
    /// It cannot be opened, read or written.
    #[error("{place} cannot be used")]
    Io {
        /// The store.
        place: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Writes that wait at most. More are refused: callers of the API are bounded far below it.
const WAITING: usize = 16_384;

/// Writes offered for one transaction at most, so that one answer does not wait for the whole queue.
const BATCH: usize = 1024;

/// A store at work on its thread.
#[derive(Debug)]
pub struct Writer {
    writes: mpsc::Sender<(WriteToken, Write)>,
    counts: Counts,
}

/// What a store at work has done and holds. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Writes applied since the start.
    pub writes: Arc<AtomicU64>,
    /// Transactions that they took.
    pub transactions: Arc<AtomicU64>,
    /// Functions recorded.
    pub functions: Arc<AtomicU64>,
}

/// How writes went, in their order; or that none will go any more.
pub type Answers = Result<Vec<(WriteToken, Outcome)>, Deposed>;

impl Writer {
    /// Put `store` to work. It ends, with all writes that wait applied, when the writer is dropped;
    /// what is `held` (the right to use its directory) is then given up.
    #[must_use]
    pub fn start(
        store: Box<dyn Store>,
        held: impl Send + 'static,
        counts: Counts,
        tasks: &Tasks,
    ) -> (Self, mpsc::Receiver<Answers>) {
        let (writes, waiting) = mpsc::channel(WAITING);
        // Full: the thread waits for the owner, which always comes back to read it.
        let (answers, answered) = mpsc::channel(16);
        counts.functions.store(store.functions(), Ordering::Relaxed);
        let counter = counts.clone();
        tasks.spawn("store", OnError::StopRole, OnCancel::Wait, async move {
            let worked = tokio::task::spawn_blocking(move || {
                work(store, waiting, &answers, &counter);
            })
            .await;
            drop(held);
            worked
        });
        (Self { writes, counts }, answered)
    }

    /// Have something written. Never waits.
    ///
    /// # Errors
    /// If too many writes wait already: it was not, and will not be, applied.
    pub fn write(&self, token: WriteToken, write: Write) -> Result<(), Outcome> {
        self.writes.try_send((token, write)).map_err(|_full| Outcome::Refused)
    }

    /// What it has done and holds.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts.clone()
    }
}

fn work(
    mut store: Box<dyn Store>,
    mut waiting: mpsc::Receiver<(WriteToken, Write)>,
    answers: &mpsc::Sender<Answers>,
    counts: &Counts,
) {
    let (mut tokens, mut batch) = (Vec::new(), Vec::new());
    loop {
        if batch.is_empty() {
            let Some((token, write)) = waiting.blocking_recv() else { return };
            tokens.push(token);
            batch.push(write);
        }
        while batch.len() < BATCH
            && let Ok((token, write)) = waiting.try_recv()
        {
            tokens.push(token);
            batch.push(write);
        }
        let result = store.apply(&batch);
        if let Ok(Applied { writes, outcome: Outcome::Ok { .. } }) = result {
            counts.writes.fetch_add(writes as u64, Ordering::Relaxed);
            counts.transactions.fetch_add(1, Ordering::Relaxed);
        }
        counts.functions.store(store.functions(), Ordering::Relaxed);
        let is_over = result.is_err();
        let result = result.map(|Applied { writes, outcome }| {
            batch.drain(..writes);
            tokens.drain(..writes).map(|token| (token, outcome)).collect()
        });
        if answers.blocking_send(result).is_err() {
            // Nobody decides any more; what was asked for is still written.
            tracing::debug!("answers of the store are no longer wanted");
        }
        if is_over {
            return;
        }
    }
}

/// A cluster id that nobody else has.
fn new_cluster() -> std::io::Result<dirigent_core::ClusterId> {
    let mut bytes = [0; 16];
    crate::random(&mut bytes)?;
    Ok(dirigent_core::ClusterId(u128::from_le_bytes(bytes)))
}

/// The epoch of the next term: above the last one and the one shown.
fn next_epoch(last: Epoch, shown: Epoch) -> std::io::Result<Epoch> {
    let mut bytes = [0; 8];
    crate::random(&mut bytes)?;
    Ok(last.max(shown).next(u64::from_le_bytes(bytes)))
}

#[cfg(test)]
pub(crate) mod tests;
