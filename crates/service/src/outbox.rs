//! What is to be said to one peer: the owner of a machine puts messages here and never waits.
//!
//! A message with a key replaces the waiting one with the same key and takes its place in line
//! (newest wins), so that what is waiting does not grow with how often something changes. Messages
//! without a key are all delivered. The order of first mention is kept.
//!
//! A peer that takes nothing for [`Limits::stall`], or for whom more waits than the limits allow,
//! is given up: the outbox closes, and the peer attaches anew and is told everything from scratch.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{Notify, mpsc};

/// How much may wait, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Messages at most.
    pub entries: usize,
    /// Bytes at most, as counted by those who push.
    pub bytes: usize,
    /// The longest time without a message being taken.
    pub stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 1 << 20, bytes: 64 << 20, stall: Duration::from_secs(10) }
    }
}

/// Why an outbox is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutboxClosed {
    /// More waited than the limits allow.
    #[error("more than {entries} messages or {bytes} bytes waited for the peer")]
    Full {
        /// The limit.
        entries: usize,
        /// The limit.
        bytes: usize,
    },
    /// The peer took nothing for too long.
    #[error("the peer took nothing for {} s", stall.as_secs())]
    Stalled {
        /// The limit.
        stall: Duration,
    },
    /// The peer is gone.
    #[error("the peer is gone")]
    Gone,
}

/// The end of the one who speaks. Dropping it lets what waits be delivered, then ends the stream.
#[derive(Debug)]
pub struct Outbox<K, M> {
    shared: Arc<Shared<K, M>>,
}

/// The end that feeds the peer's stream.
#[derive(Debug)]
pub struct OutboxFeed<K, M> {
    shared: Arc<Shared<K, M>>,
    limits: Limits,
}

#[derive(Debug)]
struct Shared<K, M> {
    state: Mutex<State<K, M>>,
    changed: Notify,
}

#[derive(Debug)]
struct State<K, M> {
    limits: Limits,
    /// Oldest first. The number of the first is `first`.
    waiting: VecDeque<Entry<K, M>>,
    first: u64,
    by_key: HashMap<K, u64>,
    bytes: usize,
    closed: Option<OutboxClosed>,
    ended: bool,
}

#[derive(Debug)]
struct Entry<K, M> {
    key: Option<K>,
    bytes: usize,
    message: M,
}

/// A new outbox: the speaker's end and the stream's.
#[must_use]
pub fn outbox<K: Hash + Eq + Clone, M>(limits: Limits) -> (Outbox<K, M>, OutboxFeed<K, M>) {
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            limits,
            waiting: VecDeque::new(),
            first: 0,
            by_key: HashMap::new(),
            bytes: 0,
            closed: None,
            ended: false,
        }),
        changed: Notify::new(),
    });
    (Outbox { shared: Arc::clone(&shared) }, OutboxFeed { shared, limits })
}

impl<K, M> Shared<K, M> {
    fn lock(&self) -> MutexGuard<'_, State<K, M>> {
        // Nothing below panics between two states, so a poisoned lock still guards a whole one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Hash + Eq + Clone, M> Outbox<K, M> {
    /// Say `message`, which takes about `bytes`. With a key it replaces what waits under that key.
    /// Never waits.
    ///
    /// # Errors
    /// Why the outbox is closed. The message is dropped, like everything that waited.
    pub fn push(&self, key: Option<K>, bytes: usize, message: M) -> Result<(), OutboxClosed> {
        let mut state = self.shared.lock();
        if let Some(why) = state.closed {
            return Err(why);
        }
        state.put(key, bytes, message);
        let Limits { entries, bytes, .. } = state.limits;
        let result = if state.waiting.len() > entries || state.bytes > bytes {
            let why = OutboxClosed::Full { entries, bytes };
            state.close(why);
            Err(why)
        } else {
            Ok(())
        };
        drop(state);
        self.shared.changed.notify_one();
        result
    }

    /// Messages that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.lock().waiting.len()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<K, M> Drop for Outbox<K, M> {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_one();
    }
}

impl<K: Hash + Eq + Clone, M> State<K, M> {
    fn put(&mut self, key: Option<K>, bytes: usize, message: M) {
        let held = key.as_ref().and_then(|key| self.by_key.get(key)).copied();
        let place = held.and_then(|number| usize::try_from(number - self.first).ok());
        if let Some(entry) = place.and_then(|place| self.waiting.get_mut(place)) {
            self.bytes = self.bytes - entry.bytes + bytes;
            entry.bytes = bytes;
            entry.message = message;
            return;
        }
        if let Some(key) = &key {
            let number = self.first + self.waiting.len() as u64;
            self.by_key.insert(key.clone(), number);
        }
        self.bytes += bytes;
        self.waiting.push_back(Entry { key, bytes, message });
    }

    fn take(&mut self) -> Option<M> {
        let entry = self.waiting.pop_front()?;
        self.first += 1;
        self.bytes -= entry.bytes;
        if let Some(key) = entry.key {
            self.by_key.remove(&key);
        }
        Some(entry.message)
    }

    fn close(&mut self, why: OutboxClosed) {
        self.closed = Some(why);
        self.waiting = VecDeque::new();
        self.by_key = HashMap::new();
        self.bytes = 0;
    }
}

impl<K: Hash + Eq + Clone, M> OutboxFeed<K, M> {
    /// The next message; `Ok(None)` once the speaker is gone and everything was taken.
    /// Cancellation safe.
    ///
    /// # Errors
    /// Why the outbox is closed.
    pub async fn next(&mut self) -> Result<Option<M>, OutboxClosed> {
        loop {
            {
                let mut state = self.shared.lock();
                if let Some(why) = state.closed {
                    return Err(why);
                }
                if let Some(message) = state.take() {
                    return Ok(Some(message));
                }
                if state.ended {
                    return Ok(None);
                }
            }
            self.shared.changed.notified().await;
        }
    }

    /// Feed `stream` until the speaker is gone, the peer is, or the outbox closes. Dropping the
    /// future may lose the message in hand: the stream is over then anyway.
    ///
    /// # Errors
    /// Why the stream ended, unless the speaker left.
    pub async fn forward(mut self, stream: &mpsc::Sender<M>) -> Result<(), OutboxClosed> {
        loop {
            // Waiting for room comes before taking a message, so that what waits can still be
            // replaced by something newer.
            let room = tokio::select! {
                biased;
                // An outbox that overflows meanwhile is not waited for.
                why = self.overflow() => return Err(why),
                room = self.room(stream) => room,
            };
            let permit = match room {
                Ok(permit) => permit,
                Err(why) => {
                    self.shared.lock().close(why);
                    return Err(why);
                }
            };
            let message = tokio::select! {
                message = self.next() => message?,
                () = stream.closed() => {
                    self.shared.lock().close(OutboxClosed::Gone);
                    return Err(OutboxClosed::Gone);
                }
            };
            match message {
                Some(message) => permit.send(message),
                None => return Ok(()),
            }
        }
    }

    async fn room<'a>(
        &self,
        stream: &'a mpsc::Sender<M>,
    ) -> Result<mpsc::Permit<'a, M>, OutboxClosed> {
        let stall = self.limits.stall;
        match tokio::time::timeout(stall, stream.reserve()).await {
            Ok(permit) => permit.map_err(|_closed| OutboxClosed::Gone),
            Err(_elapsed) => Err(OutboxClosed::Stalled { stall }),
        }
    }

    async fn overflow(&self) -> OutboxClosed {
        loop {
            let changed = self.shared.changed.notified();
            if let Some(why) = self.shared.lock().closed {
                return why;
            }
            changed.await;
        }
    }
}

impl<K, M> Drop for OutboxFeed<K, M> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed.get_or_insert(OutboxClosed::Gone);
        state.waiting = VecDeque::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Limits {
        Limits { entries: 3, bytes: 100, ..Limits::default() }
    }

    #[tokio::test]
    async fn the_newest_of_a_key_takes_the_place_of_the_oldest() {
        let (out, mut feed) = outbox(small());
        out.push(Some("a"), 1, "a1").unwrap();
        out.push(None, 1, "plain").unwrap();
        out.push(Some("a"), 1, "a2").unwrap();
        drop(out);
        let mut got = Vec::new();
        while let Some(message) = feed.next().await.unwrap() {
            got.push(message);
        }
        assert_eq!(got, ["a2", "plain"]);
    }

    #[tokio::test]
    async fn a_key_that_was_taken_waits_anew() {
        let (out, mut feed) = outbox(small());
        for n in 0..50 {
            out.push(Some("a"), 1, n).unwrap();
            out.push(None, 1, n).unwrap();
            assert_eq!(feed.next().await, Ok(Some(n)));
            assert_eq!(feed.next().await, Ok(Some(n)));
        }
        assert!(out.is_empty());
    }

    #[test]
    fn too_many_messages_or_bytes_close_it() {
        let (out, _feed) = outbox::<u8, u8>(small());
        let full = Err(OutboxClosed::Full { entries: 3, bytes: 100 });
        for n in 0..3 {
            out.push(None, 1, n).unwrap();
        }
        assert_eq!(out.push(None, 1, 3), full);
        assert_eq!(out.push(None, 1, 4), full);

        let (out, _feed) = outbox::<u8, u8>(small());
        out.push(Some(1), 90, 0).unwrap();
        out.push(Some(1), 100, 0).unwrap();
        assert_eq!(out.push(Some(2), 1, 0), full);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_for_ten_seconds_is_given_up() {
        let (out, feed) = outbox::<u8, u8>(Limits::default());
        let (tx, mut rx) = mpsc::channel(1);
        out.push(None, 1, 1).unwrap();
        out.push(None, 1, 2).unwrap();
        let stalled = OutboxClosed::Stalled { stall: Duration::from_secs(10) };
        assert_eq!(feed.forward(&tx).await, Err(stalled));
        assert_eq!(out.push(None, 1, 3), Err(stalled));
        assert_eq!(rx.recv().await, Some(1));
    }

    #[tokio::test]
    async fn a_peer_that_is_gone_closes_it() {
        let (out, feed) = outbox::<u8, u8>(Limits::default());
        let (tx, rx) = mpsc::channel(1);
        drop(rx);
        assert_eq!(feed.forward(&tx).await, Err(OutboxClosed::Gone));
        assert_eq!(out.push(None, 1, 3), Err(OutboxClosed::Gone));
    }
}
