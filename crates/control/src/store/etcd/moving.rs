//! Records that come from another store, whole or not at all.
//!
//! Before the first of them `migration` says whose they are and `format` shuts every program out,
//! older ones too; with the last transaction `migration` goes, the office is that of the last leader,
//! and whoever stands by takes it over with an epoch above. Until then it can be begun again: what is
//! there is written over, and what is not wanted any more removed.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use dirigent_core::{ClusterId, Epoch, Records, Write};
use serde::{Deserialize, Serialize};
use tokio::{runtime::Handle, time::Instant};

use super::{
    Chair, Place,
    client::Answered,
    keys::{change, json, none_changed, put, read, unchanged, unsigned},
    load::load,
    office::{Cluster, Leader, Member},
    rpc::{KeyValue, RequestOp, TxnRequest},
};
use crate::store::StoreError;

/// A format that no program knows.
pub(in crate::store) const SHUT: u64 = u32::MAX as u64;
/// For one transaction: etcd may need another leader meanwhile.
const WITHIN: Duration = Duration::from_secs(10);

/// What is moved, and of which cluster.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Origin<'a> {
    /// Where it comes from, for messages.
    pub(in crate::store) place: &'a str,
    pub(in crate::store) cluster: ClusterId,
    /// Of the last term.
    pub(in crate::store) epoch: Epoch,
    /// Of the records.
    pub(in crate::store) format: u64,
    pub(in crate::store) records: &'a Records,
}

/// The value of `migration`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Migration {
    from: String,
    cluster: Cluster,
}

/// A move that has begun.
#[derive(Debug)]
pub(in crate::store) struct Moving<'a> {
    place: Arc<Place>,
    runtime: Handle,
    origin: Origin<'a>,
    /// The revision of `migration`.
    revision: u64,
}

impl<'a> Moving<'a> {
    /// Begins, where there is nothing yet, or again.
    pub(in crate::store) fn begin(
        chair: &Chair,
        origin: Origin<'a>,
        runtime: &Handle,
    ) -> Result<Self, StoreError> {
        let place = Arc::clone(&chair.place);
        let keys = &place.keys;
        let ours =
            Migration { from: origin.place.to_owned(), cluster: Cluster::of(origin.cluster) };
        let request = TxnRequest {
            compare: vec![none_changed(keys.of(""), 0)],
            success: vec![
                put(keys.of("migration"), encoded(&place, &ours)?),
                put(keys.of("format"), encoded(&place, &SHUT)?),
            ],
            failure: vec![read(keys.of("migration")), read(keys.of("cluster"))],
        };
        let moving = |revision| Self {
            place: Arc::clone(&place),
            runtime: runtime.clone(),
            origin,
            revision,
        };
        let answered = transact(&place, runtime, &request)?;
        if answered.succeeded() {
            return Ok(moving(answered.revision()));
        }
        let mut ranges = answered.ranges();
        let mut next = || ranges.next().and_then(|range| range.kvs.into_iter().next());
        let (begun, cluster): (Option<KeyValue>, Option<KeyValue>) = (next(), next());
        let Some(begun) = begun else {
            let there: Option<Cluster> = cluster.map(|kv| place.parse(&kv)).transpose()?;
            let is_ours = there.is_some_and(|there| there == ours.cluster);
            let place = place.name.clone();
            return Err(if is_ours {
                StoreError::Moved { place: origin.place.to_owned(), to: place }
            } else {
                StoreError::NotEmpty { place }
            });
        };
        let theirs: Migration = place.parse(&begun)?;
        if theirs.cluster != ours.cluster {
            return Err(StoreError::Moving { place: place.name.clone(), from: theirs.from });
        }
        Ok(moving(unsigned(begun.mod_revision)))
    }

    /// Writes every record, and removes what an earlier attempt has left; tells how many of how many
    /// are done.
    pub(in crate::store) fn write(
        &self,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(), StoreError> {
        let writes = self.writes()?;
        let mut left = writes.as_slice();
        while !left.is_empty() {
            let (count, changes) = self.place.fit(left).map_err(|why| self.place.broken(why))?;
            self.put(changes)?;
            left = &left[count..];
            progress(writes.len() - left.len(), writes.len());
        }
        Ok(())
    }

    fn writes(&self) -> Result<Vec<Write>, StoreError> {
        let Records { functions, workers, data_planes, tokens, terms: _ } = self.origin.records;
        let there = load(&self.place, None, &self.runtime)?;
        let kept: BTreeSet<_> = functions.iter().map(|function| function.id).collect();
        let stale = there.functions.iter().filter(|function| !kept.contains(&function.id));
        let mut writes: Vec<Write> = stale.map(|f| Write::DeleteFunction(f.id)).collect();
        for worker in &there.workers {
            if !workers.iter().any(|kept| kept.id == worker.id) {
                writes.push(Write::DeleteWorker(worker.id));
            }
        }
        for data_plane in &there.data_planes {
            if !data_planes.iter().any(|kept| kept.id == data_plane.id) {
                writes.push(Write::DeleteDataPlane(data_plane.id));
            }
        }
        writes.extend(functions.iter().map(|record| Write::PutFunction(Arc::clone(record))));
        writes.extend(workers.iter().cloned().map(Write::PutWorker));
        writes.extend(data_planes.iter().cloned().map(Write::PutDataPlane));
        writes.push(Write::PutTokens(Arc::clone(tokens)));
        Ok(writes)
    }

    fn put(&self, changes: Vec<RequestOp>) -> Result<(), StoreError> {
        let request = TxnRequest {
            compare: vec![unchanged(self.place.keys.of("migration"), self.revision)],
            success: changes,
            failure: Vec::new(),
        };
        if transact(&self.place, &self.runtime, &request)?.succeeded() {
            return Ok(());
        }
        Err(StoreError::NotEmpty { place: self.place.name.clone() })
    }

    /// Whether everything is there, as it was.
    pub(in crate::store) fn check(&self) -> Result<(), StoreError> {
        let (there, here) = (load(&self.place, None, &self.runtime)?, self.origin.records);
        let differs = |kind: &str| {
            Err(self.place.broken(format!("{kind} are not there as they were: try it again")))
        };
        if there.functions != here.functions {
            return differs("functions");
        }
        if there.workers != here.workers {
            return differs("workers");
        }
        if there.data_planes != here.data_planes {
            return differs("data planes");
        }
        if there.tokens != here.tokens {
            return differs("tokens");
        }
        Ok(())
    }

    /// From now on it is a store like any other.
    pub(in crate::store) fn finish(self) -> Result<(), StoreError> {
        let Self { place, runtime, origin, revision } = self;
        let keys = &place.keys;
        let (cluster, terms) = (Cluster::of(origin.cluster), origin.records.terms.clone());
        let member = Member { name: "store migrate".to_owned(), ..Member::default() };
        let leader = Leader { epoch: origin.epoch, life: 0, member, terms };
        let request = TxnRequest {
            compare: vec![unchanged(keys.of("migration"), revision)],
            success: vec![
                put(keys.of("cluster"), encoded(&place, &cluster)?),
                put(keys.of("leader"), encoded(&place, &leader)?),
                put(keys.of("beat"), encoded(&place, &0)?),
                put(keys.of("writes"), encoded(&place, &0)?),
                put(keys.of("format"), encoded(&place, &origin.format)?),
                change(keys.of("migration"), None, false),
            ],
            failure: vec![read(keys.of("cluster")), read(keys.of("migration"))],
        };
        let answered = transact(&place, &runtime, &request)?;
        if answered.succeeded() {
            return Ok(());
        }
        // An attempt whose answer was lost may have done it.
        let mut ranges = answered.ranges();
        let found = ranges.next().and_then(|range| range.kvs.into_iter().next());
        let found: Option<Cluster> = found.map(|kv| place.parse(&kv)).transpose()?;
        let is_open = ranges.next().is_none_or(|range| range.kvs.is_empty());
        if is_open && found == Some(cluster) {
            return Ok(());
        }
        Err(StoreError::NotEmpty { place: place.name.clone() })
    }
}

fn encoded<T: Serialize>(place: &Place, value: &T) -> Result<Vec<u8>, StoreError> {
    json(value).map_err(|why| place.broken(why))
}

fn transact(place: &Place, runtime: &Handle, request: &TxnRequest) -> Result<Answered, StoreError> {
    let deadline = Instant::now() + WITHIN;
    let answered = runtime.block_on(place.client.repeatable(request, deadline));
    answered.map_err(|error| place.unavailable(&error))
}
