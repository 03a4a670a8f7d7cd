//! Records in etcd, for several control planes of which one leads.
//!
//! Each transaction of a term compares two keys: `leader`, so that a deposed leader writes nothing,
//! and `writes`, the mark of the transaction before, so that they form one chain. When the answer
//! to one is lost, a mark alone is written after the same predecessor: it is taken only if the lost
//! one was not, and the lost one cannot be taken after it. Nothing else is written before that is
//! known.
//!
//! What is asked for in one transaction is limited by etcd's defaults: 128 operations, 1.5 MiB.

mod client;
mod keys;
mod load;
pub(super) mod moving;
mod office;
mod refused;
mod rpc;

use std::{collections::BTreeSet, fmt::Display, sync::Arc, time::Duration};

use dirigent_core::{Epoch, Office, Records, Write, control::Outcome};
use dirigent_service::tls::Foreign;
use tokio::{runtime::Handle, time::Instant};

pub use self::office::{Beat, Chair, Leader, Look, Member, Term};
use self::{
    client::{Client, EtcdError},
    keys::{Keys, beginning, change, json, put, read, unchanged, unsigned},
    rpc::{KeyValue, RequestOp, TxnRequest},
};
use super::{Applied, Deposed, Store, StoreError};

/// Records in one transaction: etcd takes 128 operations, and the mark is one.
const RECORDS: usize = 126;
/// Their bytes: etcd takes 1.5 MiB, with what is around them.
const BYTES: usize = 1 << 20;
/// For a transaction, until its outcome is called unknown: etcd may need another leader meanwhile.
const WRITE_WITHIN: Duration = Duration::from_secs(4);
/// The same while etcd could not be reached the last time: nobody waits long for what is known.
const RETRY_WITHIN: Duration = Duration::from_millis(600);

/// Which etcd, and where in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdConfig {
    /// Its members, as `http://HOST:PORT`, or `https://` with `tls`.
    pub members: Vec<String>,
    /// How they are known, and know us.
    pub tls: Option<Foreign>,
    /// What all keys begin with. Another cluster has another one.
    pub prefix: String,
}

/// The keys of one cluster in one etcd.
#[derive(Debug)]
pub(super) struct Place {
    client: Client,
    keys: Keys,
    name: String,
}

impl Place {
    fn unavailable(&self, error: &EtcdError) -> StoreError {
        StoreError::Unavailable { place: self.name.clone(), message: error.to_string() }
    }

    fn newer(&self, found: u64, known: u64) -> StoreError {
        let instead = "another prefix with --etcd-prefix";
        StoreError::Newer { place: self.name.clone(), found, known, instead }
    }

    /// What is not etcd's fault.
    fn broken(&self, why: impl Display) -> StoreError {
        let source = std::io::Error::other(why.to_string()).into();
        StoreError::Io { place: self.name.clone(), source }
    }

    fn parse<T: for<'a> serde::Deserialize<'a>>(&self, kv: &KeyValue) -> Result<T, StoreError> {
        serde_json::from_slice(&kv.value).map_err(|error| self.unreadable(kv, &error))
    }

    fn unreadable(&self, kv: &KeyValue, error: &serde_json::Error) -> StoreError {
        StoreError::Record {
            place: self.name.clone(),
            record: String::from_utf8_lossy(&kv.key).into_owned(),
            message: error.to_string(),
        }
    }

    /// As many writes as fit into one transaction, from the front, and how many.
    fn fit(&self, batch: &[Write]) -> Result<(usize, Vec<RequestOp>), String> {
        let functions = self.keys.functions();
        let (mut seen, mut bytes, mut changes) = (BTreeSet::new(), 0, Vec::new());
        for write in batch.iter().take(RECORDS) {
            let (key, value) = match self.keys.change(write) {
                Ok(changed) => changed,
                // Of one that cannot be written down the others learn nothing.
                Err(why) if changes.is_empty() => return Err(why),
                Err(_why) => break,
            };
            bytes += key.len() + value.as_ref().map_or(0, Vec::len);
            // etcd takes a key once in a transaction.
            if (bytes > BYTES && !changes.is_empty()) || !seen.insert(key.clone()) {
                break;
            }
            let counted = key.starts_with(&functions);
            changes.push(change(key, value, counted));
        }
        Ok((changes.len(), changes))
    }
}

/// The office of the cluster at `config`, for a control plane.
///
/// # Errors
/// If an address is of no use.
pub fn chair(config: &EtcdConfig, member: Member) -> Result<Chair, StoreError> {
    let name = format!("etcd at {}", config.members.join(","));
    let broken = |why: String| StoreError::Io {
        place: name.clone(),
        source: std::io::Error::other(why).into(),
    };
    let client = Client::new(&config.members, config.tls.as_ref()).map_err(broken)?;
    let keys = Keys::new(&config.prefix);
    let name = format!("{name} under {}", keys.prefix());
    let place = Arc::new(Place { client, keys, name });
    Chair::new(Arc::clone(&place), member).map_err(|error| place.broken(error))
}

/// See the module.
#[derive(Debug)]
pub struct EtcdStore {
    chair: Chair,
    runtime: Handle,
    term: Option<Term>,
    /// The revision of the chain's last transaction.
    last: u64,
    /// Marks given out in this term.
    marks: u64,
    /// The mark of the transaction whose answer was lost.
    doubt: Option<u64>,
    /// Whether the last one was taken.
    reachable: bool,
    functions: u64,
}

impl EtcdStore {
    /// The store of a term already taken, or of one that is taken by force; it is used from threads
    /// that may block, beside `runtime`.
    #[must_use]
    pub const fn new(chair: Chair, term: Option<Term>, runtime: Handle) -> Self {
        Self { chair, runtime, term, last: 0, marks: 0, doubt: None, reachable: true, functions: 0 }
    }

    fn place(&self) -> &Arc<Place> {
        &self.chair.place
    }

    fn block<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// The chain's last transaction is known, and nothing is in doubt.
    fn continues(&mut self, revision: u64) {
        self.last = revision;
        self.doubt = None;
        self.chair.knows(revision);
    }

    /// A transaction that continues the chain, with a mark of its own.
    fn chained(&mut self, term: &Term, mut changes: Vec<RequestOp>) -> (u64, TxnRequest) {
        self.marks += 1;
        let mark = self.marks;
        let keys = &self.place().keys;
        // Numbers are always JSON.
        changes.push(put(keys.of("writes"), json(&mark).unwrap_or_default()));
        let request = TxnRequest {
            compare: vec![
                unchanged(keys.of("leader"), term.revision),
                unchanged(keys.of("writes"), self.last),
            ],
            success: changes,
            failure: vec![read(keys.of("leader")), read(keys.of("writes"))],
        };
        (mark, request)
    }

    /// What became of the transaction whose answer was lost; `Unknown` while etcd cannot be asked.
    fn settle(&mut self, term: &Term, deadline: Instant) -> Result<Outcome, Deposed> {
        let Some(lost) = self.doubt else { return Ok(Outcome::Refused) };
        // The mark is put once more when it is in doubt itself: whichever is first ends the doubt.
        let (mark, request) = self.chained(term, Vec::new());
        let place = Arc::clone(self.place());
        let answered = match self.block(place.client.repeatable(&request, deadline)) {
            Ok(answered) => answered,
            Err(error) => {
                tracing::warn!(place = place.name, %error, "whether a write was taken is not known");
                return Ok(Outcome::Unknown);
            }
        };
        if answered.succeeded() {
            self.continues(answered.revision());
            return Ok(Outcome::Refused);
        }
        let mut ranges = answered.ranges();
        let leader = ranges.next().and_then(|range| range.kvs.into_iter().next());
        if leader.is_none_or(|kv| unsigned(kv.mod_revision) != term.revision) {
            return Err(Deposed);
        }
        let Some(writes) = ranges.next().and_then(|range| range.kvs.into_iter().next()) else {
            return Err(Deposed);
        };
        self.continues(unsigned(writes.mod_revision));
        match serde_json::from_slice::<u64>(&writes.value) {
            Ok(found) if found == lost => {
                self.count(deadline);
                Ok(Outcome::Ok { revision: self.last })
            }
            // An earlier mark of this or of an earlier settling, which was in doubt too.
            Ok(_mark) => Ok(Outcome::Refused),
            Err(error) => {
                tracing::error!(%error, mark, "`writes` is not the store's own");
                Err(Deposed)
            }
        }
    }

    /// How many functions there are, where the answer that would have told is lost.
    fn count(&mut self, deadline: Instant) {
        let place = Arc::clone(self.place());
        let functions = beginning(place.keys.functions());
        let request = rpc::RangeRequest { count_only: true, ..functions };
        match self.block(place.client.range(&request, deadline)) {
            Ok(range) => self.functions = unsigned(range.count),
            Err(error) => tracing::debug!(%error, "functions are not counted now"),
        }
    }

    fn commit(&mut self, term: &Term, changes: &[RequestOp]) -> Result<Outcome, Deposed> {
        let patience = if self.reachable { WRITE_WITHIN } else { RETRY_WITHIN };
        let deadline = Instant::now() + patience;
        if self.doubt.is_some() && self.settle(term, deadline)? == Outcome::Unknown {
            // What came before is not known; this was not tried.
            return Ok(Outcome::Refused);
        }
        let place = Arc::clone(self.place());
        loop {
            let (mark, request) = self.chained(term, changes.to_vec());
            let error = match self.block(place.client.txn(&request, deadline)) {
                Ok(answered) if answered.succeeded() => {
                    let growth = answered.growth(&request, &place.keys.functions());
                    self.functions = self.functions.saturating_add_signed(growth);
                    self.continues(answered.revision());
                    return Ok(Outcome::Ok { revision: self.last });
                }
                // Only the office can have changed: the chain is this leader's own.
                Ok(_answered) => return Err(Deposed),
                Err(error) => error,
            };
            tracing::warn!(place = place.name, %error, "the store took no write");
            if !matches!(error, EtcdError::Doubtful(_)) {
                return Ok(Outcome::Refused);
            }
            self.doubt = Some(mark);
            match self.settle(term, deadline)? {
                // It is certain now that it was not taken: once more, while there is time.
                Outcome::Refused if Instant::now() < deadline => {}
                outcome => return Ok(outcome),
            }
        }
    }
}

impl Store for EtcdStore {
    fn take_office(&mut self, shown: Epoch) -> Result<(Office, Records), StoreError> {
        let chair = self.chair.clone();
        let term = match self.term {
            Some(term) => term,
            None => self.block(async {
                loop {
                    let look = chair.look().await?;
                    if let Some(term) = chair.take(look.seat, shown).await? {
                        return Ok::<_, StoreError>(term);
                    }
                }
            })?,
        };
        let records = load::load(self.place(), Some(&term), &self.runtime)?;
        self.functions = records.functions.len() as u64;
        // Office was taken with the chain's first mark.
        self.continues(term.revision);
        self.term = Some(term);
        Ok((term.office, records))
    }

    fn apply(&mut self, batch: &[Write]) -> Result<Applied, Deposed> {
        let Some(term) = self.term else { return Err(Deposed) };
        let (writes, changes) = match self.place().fit(batch) {
            Ok((writes, changes)) => (writes, changes),
            Err(why) => {
                tracing::error!(why, "a record cannot be written down");
                return Ok(Applied { writes: 1, outcome: Outcome::Refused });
            }
        };
        let outcome = self.commit(&term, &changes)?;
        self.reachable = matches!(outcome, Outcome::Ok { .. });
        Ok(Applied { writes, outcome })
    }

    fn functions(&self) -> u64 {
        self.functions
    }
}

#[cfg(test)]
mod tests;
