//! The last invocations, remembered for `logs --request-id`.
//!
//! Those that failed are kept apart from those that went well, and from those that were refused: a
//! function that is called a thousand times a second, or a client that calls names that there are
//! not, would push them out within seconds.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use dirigent_core::{FunctionName, RevisionId, SandboxId, frame::InvocationRecord};
use dirigent_service::Clock;
use http::HeaderValue;

use crate::slot::{FunctionSlot, lock};

/// An invocation as it is kept: nothing is copied or printed before somebody asks.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) request_id: HeaderValue,
    pub(crate) of: Of,
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

/// Whose invocation it was.
#[derive(Debug)]
pub(crate) enum Of {
    Function(Arc<FunctionSlot>),
    /// There is none with this name, or nobody knows.
    Name(FunctionName),
    /// It named none.
    Nothing,
}

/// How an invocation ended, as far as others may push it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The function answered, or the client did not wait for it.
    Answered,
    /// The platform failed, or the function says that it did.
    Failed,
    /// It was not let in.
    Refused,
}

impl Record {
    /// What the platform failed at, or why it did not let it in.
    pub(crate) fn failure(&self) -> Option<&'static str> {
        self.code.filter(|code| *code != LEFT)
    }

    /// Whether the platform failed.
    pub(crate) fn is_fault(&self) -> bool {
        self.code.is_some_and(|code| code == CUT || self.status >= 500)
    }

    pub(crate) fn function(&self) -> Option<FunctionName> {
        match &self.of {
            Of::Function(slot) => Some(slot.name.clone()),
            Of::Name(_) | Of::Nothing => None,
        }
    }

    fn end(&self) -> End {
        match self.code {
            // However many connections a full data plane turns away: they push out nobody's call.
            Some(_) if matches!(self.of, Of::Nothing) => End::Refused,
            _ if self.status >= 500 => End::Failed,
            Some(CUT) => End::Failed,
            None | Some(LEFT) => End::Answered,
            Some(_) => End::Refused,
        }
    }
}

/// The code of an answer that broke off.
pub(crate) const CUT: &str = "cut";
/// The code of one whose client went away.
pub(crate) const LEFT: &str = "client_left";

const SHARDS: usize = 16;

#[derive(Debug, Default)]
struct Ring {
    records: Vec<Record>,
    next: usize,
}

/// Several, so that those who put seldom meet.
#[derive(Debug)]
struct Rings {
    rings: [Mutex<Ring>; SHARDS],
    turn: AtomicUsize,
    per_ring: usize,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Records {
    answered: Rings,
    failed: Rings,
    refused: Rings,
    /// The time of day at the clock's origin.
    origin_ms: u64,
}

impl Records {
    /// Of each kind of end the last `capacity`.
    pub(crate) fn new(capacity: usize, clock: Clock) -> Self {
        let since = u64::try_from(clock.elapsed().as_millis()).unwrap_or(0);
        Self {
            answered: Rings::new(capacity),
            failed: Rings::new(capacity),
            refused: Rings::new(capacity),
            origin_ms: Clock::wall_ms().saturating_sub(since),
        }
    }

    /// The time of day at a moment of the clock.
    pub(crate) fn wall_ms(&self, nanos: u64) -> u64 {
        self.origin_ms + nanos / 1_000_000
    }

    pub(crate) fn put(&self, record: Record) {
        match record.end() {
            End::Answered => self.answered.put(record),
            End::Failed => self.failed.put(record),
            End::Refused => self.refused.put(record),
        }
    }

    pub(crate) fn find(&self, request_id: &str) -> Option<InvocationRecord> {
        let view = |record: &Record| self.view(record);
        [&self.failed, &self.refused, &self.answered]
            .into_iter()
            .find_map(|rings| rings.find(request_id, view))
    }

    fn view(&self, record: &Record) -> InvocationRecord {
        let (queue, connect, first_byte) = record.warm;
        let warm = [("queue", queue), ("connect", connect), ("ttfb", first_byte)];
        let phases = if record.cold { &record.phases[..] } else { &warm[..] };
        let (function, function_id) = match &record.of {
            Of::Function(slot) => (Some(slot.name.clone()), Some(slot.id)),
            Of::Name(name) => (Some(name.clone()), None),
            Of::Nothing => (None, None),
        };
        InvocationRecord {
            request_id: record.request_id.to_str().unwrap_or_default().to_owned(),
            function,
            function_id,
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

impl Rings {
    fn new(capacity: usize) -> Self {
        Self {
            rings: std::array::from_fn(|_| Mutex::default()),
            turn: AtomicUsize::new(0),
            per_ring: capacity.div_ceil(SHARDS).max(1),
        }
    }

    fn put(&self, record: Record) {
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

    /// What `view` makes of the record of this request, if it is here.
    fn find<T>(&self, request_id: &str, view: impl Fn(&Record) -> T) -> Option<T> {
        self.rings.iter().find_map(|ring| {
            let ring = lock(ring);
            let mut records = ring.records.iter().rev();
            records.find(|r| r.request_id.as_bytes() == request_id.as_bytes()).map(&view)
        })
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn record(number: usize, of: Of) -> Record {
        Record {
            request_id: HeaderValue::from_str(&format!("r{number}")).unwrap(),
            of,
            sandbox: None,
            revision: None,
            arrived: 0,
            total: 0,
            status: 503,
            code: Some("no_capacity"),
            attempts: 0,
            cold: false,
            warm: (0, 0, 0),
            phases: Vec::new(),
        }
    }

    #[test]
    fn connections_that_were_turned_away_push_out_no_call_that_failed() {
        let records = Records::new(SHARDS, Clock::new());
        records.put(record(0, Of::Name("hello".parse().unwrap())));
        for number in 1..1000 {
            let turned_away = record(number, Of::Nothing);
            assert!(turned_away.is_fault(), "it is a warning in the log");
            records.put(turned_away);
        }
        assert!(records.find("r0").is_some());
        assert!(records.find("r999").is_some());
        assert!(records.find("r1").is_none(), "what is remembered is bounded");
    }
}
