//! The last invocations, remembered for `logs --request-id`.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use dirigent_core::{RevisionId, SandboxId, frame::InvocationRecord};
use dirigent_service::Clock;
use http::HeaderValue;

use crate::slot::{FunctionSlot, lock};

/// An invocation as it is kept: nothing is copied or printed before somebody asks.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) request_id: HeaderValue,
    pub(crate) slot: Arc<FunctionSlot>,
    pub(crate) sandbox: Option<SandboxId>,
    pub(crate) revision: Option<RevisionId>,
    /// Nanoseconds of the clock.
    pub(crate) arrived: u64,
    pub(crate) total: u64,
    pub(crate) status: u16,
    pub(crate) code: Option<&'static str>,
    pub(crate) attempts: u32,
    pub(crate) cold: bool,
    /// Queue, connect and first byte of one that waited for no start.
    pub(crate) warm: (u64, u64, u64),
    /// The phases of one that did.
    pub(crate) phases: Vec<(&'static str, u64)>,
}

const SHARDS: usize = 16;

#[derive(Debug, Default)]
struct Ring {
    records: Vec<Record>,
    next: usize,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Records {
    rings: [Mutex<Ring>; SHARDS],
    turn: AtomicUsize,
    per_ring: usize,
    /// The time of day at the clock's origin.
    origin_ms: u64,
}

impl Records {
    pub(crate) fn new(capacity: usize, clock: Clock) -> Self {
        let since = u64::try_from(clock.elapsed().as_millis()).unwrap_or(0);
        Self {
            rings: std::array::from_fn(|_| Mutex::default()),
            turn: AtomicUsize::new(0),
            per_ring: capacity.div_ceil(SHARDS).max(1),
            origin_ms: Clock::wall_ms().saturating_sub(since),
        }
    }

    /// The time of day at a moment of the clock.
    pub(crate) fn wall_ms(&self, nanos: u64) -> u64 {
        self.origin_ms + nanos / 1_000_000
    }

    pub(crate) fn put(&self, record: Record) {
        let turn = self.turn.fetch_add(1, Relaxed);
        let Some(ring) = self.rings.get(turn % SHARDS) else { return };
        let mut ring = lock(ring);
        let at = ring.next;
        ring.next = (at + 1) % self.per_ring;
        let old = match ring.records.get_mut(at) {
            Some(place) => Some(std::mem::replace(place, record)),
            None => {
                ring.records.push(record);
                None
            }
        };
        drop(ring);
        drop(old);
    }

    pub(crate) fn find(&self, request_id: &str) -> Option<InvocationRecord> {
        self.rings.iter().find_map(|ring| {
            let ring = lock(ring);
            let found = ring
                .records
                .iter()
                .rev()
                .find(|r| r.request_id.as_bytes() == request_id.as_bytes());
            found.map(|record| self.view(record))
        })
    }

    fn view(&self, record: &Record) -> InvocationRecord {
        let (queue, connect, first_byte) = record.warm;
        let warm = [("queue", queue), ("connect", connect), ("ttfb", first_byte)];
        let phases = if record.cold { &record.phases[..] } else { &warm[..] };
        InvocationRecord {
            request_id: record.request_id.to_str().unwrap_or_default().to_owned(),
            function: record.slot.name.clone(),
            function_id: record.slot.id,
            sandbox: record.sandbox,
            revision: record.revision,
            arrived_ms: self.wall_ms(record.arrived),
            total: Duration::from_nanos(record.total),
            status: record.status,
            code: record.code.map(str::to_owned),
            attempts: record.attempts,
            cold: record.cold,
            phases: phases
                .iter()
                .map(|&(name, nanos)| (name.to_owned(), Duration::from_nanos(nanos)))
                .collect(),
        }
    }
}
