//! Records in memory: for tests, and for clusters that may forget everything.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use dirigent_core::{
    ApiTokens, ClusterId, DataPlaneId, DataPlaneRecord, Epoch, FunctionId, FunctionRecord, Office,
    Records, WorkerId, WorkerRecord, Write, control::Outcome,
};

use super::{Applied, Deposed, Store, StoreError};

/// See the module. A clone is the same store, as a file opened again would be.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    cluster: Option<ClusterId>,
    /// The last ones, oldest first.
    terms: Vec<Epoch>,
    revision: u64,
    functions: BTreeMap<FunctionId, Arc<FunctionRecord>>,
    workers: BTreeMap<WorkerId, WorkerRecord>,
    data_planes: BTreeMap<DataPlaneId, DataPlaneRecord>,
    tokens: Arc<ApiTokens>,
}

impl Store for MemoryStore {
    fn take_office(&mut self, shown: Epoch) -> Result<(Office, Records), StoreError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let cluster = match state.cluster {
            Some(cluster) => cluster,
            None => super::new_cluster().map_err(|source| StoreError::Io {
                place: "memory".into(),
                source: source.into(),
            })?,
        };
        state.cluster = Some(cluster);
        let last = state.terms.last().copied().unwrap_or_default();
        let epoch = super::next_epoch(last, shown)
            .map_err(|source| StoreError::Io { place: "memory".into(), source: source.into() })?;
        Records::enter(&mut state.terms, epoch);
        let records = Records {
            functions: state.functions.values().cloned().collect(),
            workers: state.workers.values().cloned().collect(),
            data_planes: state.data_planes.values().cloned().collect(),
            terms: state.terms.clone(),
            tokens: Arc::clone(&state.tokens),
        };
        Ok((Office { cluster, epoch }, records))
    }

    fn apply(&mut self, batch: &[Write]) -> Result<Applied, Deposed> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for write in batch {
            match write.clone() {
                Write::PutFunction(record) => {
                    state.functions.insert(record.id, record);
                }
                Write::DeleteFunction(id) => {
                    state.functions.remove(&id);
                }
                Write::PutWorker(record) => {
                    state.workers.insert(record.id, record);
                }
                Write::DeleteWorker(id) => {
                    state.workers.remove(&id);
                }
                Write::PutDataPlane(record) => {
                    state.data_planes.insert(record.id, record);
                }
                Write::DeleteDataPlane(id) => {
                    state.data_planes.remove(&id);
                }
                Write::PutTokens(tokens) => state.tokens = tokens,
            }
        }
        state.revision += 1;
        let outcome = Outcome::Ok { revision: state.revision };
        Ok(Applied { writes: batch.len(), outcome })
    }

    fn functions(&self) -> u64 {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.functions.len() as u64
    }
}
