//! Certificates that are refused although they have not run out, for all control planes.
//!
//! The set only grows, until a certificate has run out anyway: a member that was removed stays so. So
//! each control plane adds what it knows, whoever leads, and no write has to come before another.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::{
    Chair, RECORDS,
    client::Answered,
    keys::{beginning, change, following, json, none_changed, put, read_all, signed, unchanged},
    rpc::{RangeRequest, RequestOp, TxnRequest},
};
use crate::store::StoreError;

/// For a look, or a transaction; what did not go comes again.
const WITHIN: Duration = Duration::from_secs(2);
/// Certificates of a page.
const PAGE: i64 = 4000;

/// What the store refuses, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Refusals {
    /// By serial number, with the time at which a certificate runs out: milliseconds since 1970.
    pub(crate) serials: BTreeMap<String, u64>,
    /// When that was so.
    pub(crate) revision: u64,
}

impl Chair {
    /// What is refused, if anything was added after `seen`, or at all where nothing was seen yet.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub(crate) async fn refusals(&self, seen: Option<u64>) -> Result<Option<Refusals>, StoreError> {
        let (place, deadline) = (&self.place, Instant::now() + WITHIN);
        let all = place.keys.refused();
        let first = read_all(RangeRequest { limit: PAGE, ..beginning(all.clone()) });
        let request = match seen {
            Some(seen) => TxnRequest {
                compare: vec![none_changed(all.clone(), seen)],
                success: Vec::new(),
                failure: vec![first],
            },
            None => TxnRequest { success: vec![first], ..TxnRequest::default() },
        };
        let answered = place.client.repeatable(&request, deadline).await;
        let answered: Answered = answered.map_err(|error| place.unavailable(&error))?;
        let revision = answered.revision();
        let mut page = answered.ranges().next();
        if page.is_none() {
            return Ok(None);
        }
        let mut serials = BTreeMap::new();
        while let Some(read) = page {
            for kv in &read.kvs {
                let serial = kv.key.strip_prefix(&*all).unwrap_or(&kv.key);
                let serial = String::from_utf8_lossy(serial).into_owned();
                serials.insert(serial, place.parse(kv)?);
            }
            page = match following(&read, &all) {
                None => None,
                Some(next) => {
                    let next = RangeRequest { limit: PAGE, revision: signed(revision), ..next };
                    let range = place.client.range(&next, deadline).await;
                    Some(range.map_err(|error| place.unavailable(&error))?)
                }
            };
        }
        Ok(Some(Refusals { serials, revision }))
    }

    /// Have these certificates refused by every control plane: serial numbers, and when each runs out.
    ///
    /// # Errors
    /// If it is not known that all of them are.
    pub(crate) async fn refuse(&self, more: &[(String, u64)]) -> Result<(), StoreError> {
        let written = more.iter().map(|(serial, until_ms)| {
            let value = json(until_ms).map_err(|why| self.place.broken(why))?;
            Ok(put(self.place.keys.refusal(serial), value))
        });
        self.change_refusals(written.collect::<Result<_, StoreError>>()?).await
    }

    /// These certificates have run out for good: nobody has to know them any more.
    ///
    /// # Errors
    /// If it is not known that all are gone.
    pub(crate) async fn forget_refusals(&self, serials: &[String]) -> Result<(), StoreError> {
        let gone =
            serials.iter().map(|serial| change(self.place.keys.refusal(serial), None, false));
        self.change_refusals(gone.collect()).await
    }

    async fn change_refusals(&self, changes: Vec<RequestOp>) -> Result<(), StoreError> {
        for some in changes.chunks(RECORDS) {
            let request = TxnRequest {
                // Whose move into this place is going on, finds there what it has put there.
                compare: vec![unchanged(self.place.keys.of("migration"), 0)],
                success: some.to_vec(),
                failure: Vec::new(),
            };
            let answered = self.place.client.repeatable(&request, Instant::now() + WITHIN).await;
            if !answered.map_err(|error| self.place.unavailable(&error))?.succeeded() {
                let (place, from) = (self.place.name.clone(), "another store".to_owned());
                return Err(StoreError::Moving { place, from });
            }
        }
        Ok(())
    }
}
