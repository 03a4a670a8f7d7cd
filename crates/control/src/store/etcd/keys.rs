//! The keys, all under one prefix, and the requests that are made of them.
//!
//! ```text
//! PREFIX/cluster              the cluster's id, made once
//! PREFIX/format               of the records; what programs must know at least
//! PREFIX/leader               epoch and control plane in office
//! PREFIX/beat                 raised by the leader
//! PREFIX/writes               the last transaction's mark
//! PREFIX/members/NAME         a control plane, and the formats that it knows
//! PREFIX/functions/EPOCH.N    a function; numbers are hexadecimal, so that they sort
//! PREFIX/workers/N            a worker
//! PREFIX/data-planes/N        a data plane
//! PREFIX/tokens               the API's tokens
//! PREFIX/refused/SERIAL       a certificate that nobody lets in, and when it runs out
//! PREFIX/migration            while records come from another store
//! ```

use dirigent_core::{FunctionId, Write};

use super::rpc::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op::Request,
};

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.trim_end_matches('/').to_owned() }
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The key of a singular record, or the beginning of those of a kind.
    pub(super) fn of(&self, name: &str) -> Vec<u8> {
        format!("{}/{name}", self.prefix).into_bytes()
    }

    pub(super) fn functions(&self) -> Vec<u8> {
        self.of("functions/")
    }

    fn function(&self, id: FunctionId) -> Vec<u8> {
        self.of(&format!("functions/{:016x}.{:016x}", id.epoch.0, id.counter))
    }

    pub(super) fn refused(&self) -> Vec<u8> {
        self.of("refused/")
    }

    pub(super) fn refusal(&self, serial: &str) -> Vec<u8> {
        self.of(&format!("refused/{serial}"))
    }

    /// What a write changes, and to what; `None` removes it.
    pub(super) fn change(&self, write: &Write) -> Result<(Vec<u8>, Option<Vec<u8>>), String> {
        let worker = |id| self.of(&format!("workers/{id:016x}"));
        let data_plane = |id| self.of(&format!("data-planes/{id:016x}"));
        Ok(match write {
            Write::PutFunction(record) => (self.function(record.id), Some(json(record)?)),
            Write::DeleteFunction(id) => (self.function(*id), None),
            Write::PutWorker(record) => (worker(record.id.0), Some(json(record)?)),
            Write::DeleteWorker(id) => (worker(id.0), None),
            Write::PutDataPlane(record) => (data_plane(record.id.0), Some(json(record)?)),
            Write::DeleteDataPlane(id) => (data_plane(id.0), None),
            Write::PutTokens(tokens) => (self.of("tokens"), Some(json(tokens)?)),
        })
    }
}

/// The form of all values, as of the file's.
pub(super) fn json<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, String> {
    serde_json::to_vec(value).map_err(|error| error.to_string())
}

/// The end of the range of keys that begin so.
pub(super) fn after(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // To the end of all keys.
    vec![0]
}

/// Whether a key was last changed at `revision`; at 0 it is not there.
pub(super) fn unchanged(key: Vec<u8>, revision: u64) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key,
        target_union: Some(TargetUnion::ModRevision(signed(revision))),
        range_end: Vec::new(),
    }
}

/// Whether a key was changed at `revision` or later.
pub(super) fn changed_since(key: Vec<u8>, revision: u64) -> Compare {
    Compare { result: CompareResult::Greater.into(), ..unchanged(key, revision.saturating_sub(1)) }
}

/// Whether no key that begins so was changed or added after `revision`.
pub(super) fn none_changed(prefix: Vec<u8>, revision: u64) -> Compare {
    Compare {
        result: CompareResult::Less.into(),
        range_end: after(&prefix),
        ..unchanged(prefix, revision + 1)
    }
}

pub(super) const fn read(key: Vec<u8>) -> RequestOp {
    read_all(RangeRequest { key, range_end: Vec::new(), limit: 0, revision: 0, count_only: false })
}

pub(super) const fn read_all(range: RangeRequest) -> RequestOp {
    RequestOp { request: Some(Request::RequestRange(range)) }
}

/// Keys that begin so.
pub(super) fn beginning(prefix: Vec<u8>) -> RangeRequest {
    RangeRequest { range_end: after(&prefix), key: prefix, ..RangeRequest::default() }
}

/// What comes after this page of the keys that begin so, if anything does.
pub(super) fn following(page: &RangeResponse, prefix: &[u8]) -> Option<RangeRequest> {
    let mut key = page.kvs.last().filter(|_| page.more)?.key.clone();
    key.push(0);
    Some(RangeRequest { key, range_end: after(prefix), ..RangeRequest::default() })
}

pub(super) const fn put(key: Vec<u8>, value: Vec<u8>) -> RequestOp {
    RequestOp { request: Some(Request::RequestPut(PutRequest { key, value, prev_kv: false })) }
}

pub(super) fn change(key: Vec<u8>, value: Option<Vec<u8>>, prev_kv: bool) -> RequestOp {
    let request = match value {
        Some(value) => Request::RequestPut(PutRequest { key, value, prev_kv }),
        None => Request::RequestDeleteRange(DeleteRangeRequest { key }),
    };
    RequestOp { request: Some(request) }
}

/// etcd counts in signed numbers, and from 1.
pub(super) fn signed(revision: u64) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use dirigent_core::Epoch;

    use super::*;

    #[test]
    fn functions_sort_as_their_ids_do() {
        let keys = Keys::new("/dirigent/");
        let ids = [(1, 2), (1, 16), (1, 255), (9, 1), (16, 0)];
        let sorted: Vec<_> =
            ids.iter().map(|(e, n)| keys.function(FunctionId::new(Epoch(*e), *n))).collect();
        assert!(sorted.is_sorted());
        assert!(sorted.iter().all(|key| key.starts_with(b"/dirigent/functions/")));
        assert!(sorted.iter().all(|key| *key < after(&keys.functions())));
    }

    #[test]
    fn a_range_ends_after_all_that_begin_so() {
        assert_eq!(after(b"a/"), b"a0");
        assert_eq!(after(&[b'a', 0xff]), b"b");
        assert_eq!(after(&[0xff]), [0]);
    }
}
