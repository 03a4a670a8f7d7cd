//! The invocations that wait for a slot: retries first, then in the order of their arrival.

use std::collections::BTreeMap;

use crate::{InvocationId, SandboxId, Time};

/// A place in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Position {
    /// Retries stand before everybody who has not been served once: `false` sorts first.
    first_attempt: bool,
    number: u64,
}

/// One who waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) invocation: InvocationId,
    /// The sandbox that failed it.
    pub(super) avoid: Option<SandboxId>,
    pub(super) since: Time,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Queue {
    order: BTreeMap<Position, Waiting>,
    index: BTreeMap<InvocationId, Position>,
    number: u64,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    pub(super) fn push(&mut self, waiting: Waiting) {
        self.number += 1;
        let position = Position { first_attempt: waiting.avoid.is_none(), number: self.number };
        let before = self.index.insert(waiting.invocation, position);
        assert!(before.is_none(), "{} was admitted while it waits", waiting.invocation);
        self.order.insert(position, waiting);
    }

    /// Those who wait, first to be served first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Waiting> {
        self.order.values()
    }

    /// Takes one out; false if it does not wait.
    pub(super) fn remove(&mut self, invocation: InvocationId) -> bool {
        self.index
            .remove(&invocation)
            .is_some_and(|position| self.order.remove(&position).is_some())
    }

    pub(super) fn pop(&mut self) -> Option<Waiting> {
        let (_, waiting) = self.order.pop_first()?;
        self.index.remove(&waiting.invocation);
        Some(waiting)
    }

    /// Since when the one who has waited longest waits.
    pub(super) fn oldest(&self) -> Option<Time> {
        let tail = Position { first_attempt: true, number: 0 };
        let retry = self.order.values().next();
        let first = self.order.range(tail..).next().map(|(_, waiting)| waiting);
        retry.into_iter().chain(first).map(|waiting| waiting.since).min()
    }
}
