//! A client's body on its way to a sandbox, and what of it is kept for another attempt.
//!
//! It is not read before somebody asks: a queued invocation's body stays with the client (and
//! `100 Continue` is not sent). What was read is kept up to a bound, so that an invocation that
//! never reached a sandbox, or may be repeated, can be sent again.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body as _, Frame};
use hyper::body::Incoming;

use crate::slot::lock;

/// Why a body cannot be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SourceError {
    #[error("the client's body broke off or is malformed")]
    Client,
    #[error("the body is larger than is allowed")]
    TooLarge,
}

/// Memory that a data plane gives to one purpose.
#[derive(Debug)]
pub(crate) struct Budget {
    used: AtomicUsize,
    total: usize,
}

impl Budget {
    pub(crate) fn new(total: usize) -> Self {
        Self { used: AtomicUsize::new(0), total }
    }

    /// Takes one of `parts` parts of what is left, at most `max`; how much that is.
    pub(crate) fn take_part(&self, parts: usize, max: usize) -> usize {
        let part = |used: usize| (self.total.saturating_sub(used) / parts).min(max);
        let before = self.used.fetch_update(Relaxed, Relaxed, |used| Some(used + part(used)));
        before.map_or(0, part)
    }

    fn take(&self, bytes: usize) -> bool {
        self.used
            .fetch_update(Relaxed, Relaxed, |used| {
                used.checked_add(bytes).filter(|&used| used <= self.total)
            })
            .is_ok()
    }

    pub(crate) fn give(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Relaxed);
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Source {
    incoming: Option<Incoming>,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    /// Everything read so far is in `kept`.
    whole: bool,
    /// The next of `kept` to be sent again.
    next: usize,
    read: u64,
    max: Option<u64>,
    max_kept: usize,
    budget: Arc<Budget>,
    failed: Option<SourceError>,
}

impl Source {
    pub(crate) fn new(
        incoming: Incoming,
        max: Option<u64>,
        max_kept: usize,
        budget: &Arc<Budget>,
    ) -> Self {
        Self {
            incoming: (!incoming.is_end_stream()).then_some(incoming),
            kept: Vec::new(),
            kept_bytes: 0,
            whole: true,
            next: 0,
            read: 0,
            max,
            max_kept,
            budget: Arc::clone(budget),
            failed: None,
        }
    }

    /// Takes it out of hands that may not let go of it; nothing is left in them.
    pub(crate) fn take(&mut self) -> Self {
        let nothing = Self {
            incoming: None,
            kept: Vec::new(),
            kept_bytes: 0,
            whole: false,
            next: 0,
            read: 0,
            max: self.max,
            max_kept: 0,
            budget: Arc::clone(&self.budget),
            failed: None,
        };
        std::mem::replace(self, nothing)
    }

    /// Bytes that came from the client so far.
    pub(crate) fn read(&self) -> u64 {
        self.read
    }

    /// Why it could not be read on.
    pub(crate) fn failure(&self) -> Option<SourceError> {
        self.failed
    }

    /// How many bytes there will be in all, if that is known.
    pub(crate) fn length(&self) -> Option<u64> {
        match &self.incoming {
            None => Some(self.read),
            Some(incoming) => incoming.size_hint().exact().map(|rest| rest + self.read),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.incoming.is_none() && self.next >= self.kept.len()
    }

    /// Start over. Whether that is possible.
    pub(crate) fn rewind(&mut self) -> bool {
        self.next = 0;
        self.whole
    }

    /// No other attempt will be made: nothing needs to be kept.
    pub(crate) fn keep_nothing(&mut self) {
        if self.whole && self.next >= self.kept.len() {
            self.drop_kept();
        }
    }

    fn drop_kept(&mut self) {
        self.whole = self.read == 0;
        self.budget.give(std::mem::take(&mut self.kept_bytes));
        self.kept.clear();
        self.next = 0;
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, SourceError>>> {
        if let Some(again) = self.kept.get(self.next) {
            self.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(again.clone()))));
        }
        let Some(incoming) = &mut self.incoming else { return Poll::Ready(None) };
        let Some(frame) = ready!(Pin::new(incoming).poll_frame(cx)) else {
            self.incoming = None;
            return Poll::Ready(None);
        };
        let Ok(frame) = frame else {
            self.failed = Some(SourceError::Client);
            return Poll::Ready(Some(Err(SourceError::Client)));
        };
        match frame.into_data() {
            Ok(data) => Poll::Ready(Some(self.keep(data).map(Frame::data))),
            Err(frame) => {
                self.incoming = None;
                // Trailers are not kept: an invocation with them is not repeated.
                self.drop_kept();
                self.whole = false;
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn keep(&mut self, data: Bytes) -> Result<Bytes, SourceError> {
        self.read += data.len() as u64;
        if self.max.is_some_and(|max| self.read > max) {
            self.failed = Some(SourceError::TooLarge);
            return Err(SourceError::TooLarge);
        }
        if self.whole {
            let fits = self.kept_bytes + data.len() <= self.max_kept;
            if fits && self.budget.take(data.len()) {
                self.kept_bytes += data.len();
                self.kept.push(data.clone());
                self.next = self.kept.len();
            } else {
                self.drop_kept();
                self.whole = false;
            }
        }
        Ok(data)
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.budget.give(self.kept_bytes);
    }
}

/// A source as the HTTP/2 client takes it; the invocation keeps the other handle for another
/// attempt.
#[derive(Clone, Debug)]
pub(crate) struct Shared(pub(crate) Arc<Mutex<Source>>);

impl http_body::Body for Shared {
    type Data = Bytes;
    type Error = SourceError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, SourceError>>> {
        lock(&self.0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.0).is_empty()
    }
}
