//! One invocation's account: who asked, how long each phase took, how it ended. Written into the
//! metrics and the record when it is dropped, so that no end is forgotten.

use std::{
    borrow::Cow,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use dirigent_core::{FunctionName, RevisionId, SandboxId, StartPhases, gate::Binding};
use http::HeaderValue;

use crate::{
    Shared,
    errors::Failure,
    records::{CUT, LEFT, Of, Record},
    slot::FunctionSlot,
    wire::Line,
};

/// Nanoseconds of each phase; zero for what did not happen.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Phases {
    /// Waiting for a slot, less what of it was a start: until it was decided, and the frames between
    /// the control plane and here.
    pub(crate) queue: u64,
    /// The start that it waited for, as far as it waited.
    pub(crate) start: Option<StartPhases>,
    pub(crate) connect: u64,
    pub(crate) first_byte: u64,
}

/// The status recorded for a client that left before the answer.
const CLIENT_LEFT: u16 = 499;

/// See the module.
#[derive(Debug)]
pub(crate) struct Call {
    shared: Arc<Shared>,
    line: Arc<Line>,
    pub(crate) slot: Option<Arc<FunctionSlot>>,
    pub(crate) request_id: HeaderValue,
    pub(crate) arrived: u64,
    pub(crate) phases: Phases,
    pub(crate) attempts: u32,
    pub(crate) cold: bool,
    sandbox: Option<SandboxId>,
    revision: Option<RevisionId>,
    /// The name that was asked for, where no function was found.
    pub(crate) asked: Option<FunctionName>,
    status: u16,
    code: Option<&'static str>,
    why: Cow<'static, str>,
}

impl Call {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        line: &Arc<Line>,
        request_id: HeaderValue,
        arrived: u64,
    ) -> Self {
        shared.in_flight.fetch_add(1, Relaxed);
        line.active.fetch_add(1, Relaxed);
        Self {
            shared: Arc::clone(shared),
            line: Arc::clone(line),
            slot: None,
            request_id,
            arrived,
            phases: Phases::default(),
            attempts: 0,
            cold: false,
            sandbox: None,
            revision: None,
            asked: None,
            status: CLIENT_LEFT,
            code: None,
            why: Cow::Borrowed(""),
        }
    }

    /// It got a slot after waiting since `since`.
    pub(crate) fn bound(&mut self, binding: &Binding, since: u64, now: u64) {
        self.attempts += 1;
        self.sandbox = Some(binding.sandbox);
        self.revision = Some(binding.revision);
        let mut waited = now.saturating_sub(since);
        if let Some(start) = binding.start
            && waited > 0
        {
            self.cold = true;
            let start = seen(start, Duration::from_nanos(waited));
            waited = waited.saturating_sub(nanos(start.total()));
            self.phases.start = Some(start);
        }
        self.phases.queue += waited;
    }

    /// Nothing of it was sent where it was bound: that was no attempt.
    pub(crate) fn unsent(&mut self) {
        self.attempts = self.attempts.saturating_sub(1);
    }

    /// The function answered.
    pub(crate) fn answered(&mut self, status: u16) {
        self.status = status;
    }

    /// The platform answered.
    pub(crate) fn failed(&mut self, failure: &Failure) {
        self.status = failure.status();
        self.code = Some(failure.code.text());
        self.why = failure.message.clone();
    }

    /// The response broke off on the sandbox's side.
    pub(crate) fn cut(&mut self, why: String) {
        self.code = Some(CUT);
        self.why = why.into();
    }

    /// The client went away.
    pub(crate) fn left(&mut self) {
        self.code = Some(LEFT);
    }

    /// `Server-Timing`: milliseconds. The phases add up to the time until the first byte.
    pub(crate) fn server_timing(&self) -> HeaderValue {
        let mut text = Vec::with_capacity(128);
        let mut put = |name: &str, nanos: u64| {
            if !text.is_empty() {
                text.extend_from_slice(b", ");
            }
            text.extend_from_slice(name.as_bytes());
            text.extend_from_slice(b";dur=");
            put_millis(&mut text, nanos);
        };
        self.each_phase(&mut put);
        HeaderValue::from_maybe_shared(bytes::Bytes::from(text))
            .unwrap_or(HeaderValue::from_static(""))
    }

    fn each_phase(&self, put: &mut dyn FnMut(&'static str, u64)) {
        let Phases { queue, start, connect, first_byte } = self.phases;
        put("queue", queue);
        if let Some(start) = start {
            put("decide", nanos(start.decide));
            put("place", nanos(start.place));
            put("fetch", nanos(start.fetch));
            put("create", nanos(start.create));
            put("init", nanos(start.init));
            put("wire", nanos(start.wire));
        }
        if connect > 0 {
            put("connect", connect);
        }
        put("ttfb", first_byte);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.shared.in_flight.fetch_sub(1, Relaxed);
        self.line.active.fetch_sub(1, Relaxed);
        let now = self.shared.now().0;
        self.line.answered_at.store(now, Relaxed);
        let total = now.saturating_sub(self.arrived);
        let of = match (self.slot.take(), self.asked.take()) {
            (Some(slot), _) => {
                slot.metrics.count(self.status, total, self.cold, self.attempts);
                Of::Function(slot)
            }
            // It left before its function was known: nothing happened to it.
            (None, _) if self.code.is_none() => return,
            (None, Some(name)) => Of::Name(name),
            (None, None) => Of::Nothing,
        };
        if self.cold {
            let metrics = &self.shared.metrics;
            self.each_phase(&mut |name, nanos| metrics.phase(name, nanos));
        }
        let mut phases = Vec::new();
        if self.cold {
            self.each_phase(&mut |name, nanos| phases.push((name, nanos)));
        }
        let record = Record {
            request_id: self.request_id.clone(),
            of,
            sandbox: self.sandbox,
            revision: self.revision,
            arrived: self.arrived,
            total,
            status: self.status,
            code: self.code,
            attempts: self.attempts,
            cold: self.cold,
            warm: (self.phases.queue, self.phases.connect, self.phases.first_byte),
            phases,
        };
        self.shared.remember(record, std::mem::take(&mut self.why));
    }
}

/// Nanoseconds as milliseconds with three decimals.
fn put_millis(out: &mut Vec<u8>, nanos: u64) {
    // A u64 of microseconds has 17 digits.
    let mut digits = [b'0'; 20];
    let (mut micros, mut first) = (nanos / 1000, digits.len());
    // At least one before the point.
    while micros > 0 || first > digits.len() - 4 {
        first -= 1;
        if let Some(digit) = digits.get_mut(first) {
            *digit = b'0' + u8::try_from(micros % 10).unwrap_or(0);
        }
        micros /= 10;
    }
    let (whole, decimals) = digits.split_at(digits.len() - 3);
    out.extend_from_slice(whole.get(first..).unwrap_or_default());
    out.push(b'.');
    out.extend_from_slice(decimals);
}

/// The last `waited` of a start: what came before was not seen by this invocation.
fn seen(start: StartPhases, waited: Duration) -> StartPhases {
    let mut unseen = start.total().saturating_sub(waited);
    let mut less = |phase: Duration| {
        let cut = phase.min(unseen);
        unseen -= cut;
        phase - cut
    };
    StartPhases {
        decide: less(start.decide),
        place: less(start.place),
        fetch: less(start.fetch),
        create: less(start.create),
        init: less(start.init),
        wire: less(start.wire),
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_milliseconds() {
        for (nanos, text) in [
            (0, "0.000"),
            (999, "0.000"),
            (1_000, "0.001"),
            (1_234_567, "1.234"),
            (60_000_000_000, "60000.000"),
            (u64::MAX, "18446744073709.551"),
        ] {
            let mut out = Vec::new();
            put_millis(&mut out, nanos);
            assert_eq!(String::from_utf8(out).unwrap(), text);
        }
    }

    #[test]
    fn only_the_part_of_a_start_that_was_waited_for_counts() {
        let ms = Duration::from_millis;
        let (decide, place, create, init) = (ms(1), ms(2), ms(3), ms(4));
        let start = StartPhases { decide, place, create, init, ..StartPhases::default() };
        let part = seen(start, ms(6));
        assert_eq!((part.decide, part.place, part.create, part.init), (ms(0), ms(0), ms(2), ms(4)));
        assert_eq!(seen(start, ms(20)), start);
    }
}
