//! Starts that wait for a worker, and in which order they get one.
//!
//! Starts of one revision form a line, first in first out. Lines that need the same of a worker
//! form a group, so that a freed worker is compared once with each group and not with each start.
//! Across groups the order is: callers wait for it before nobody does (but for every eighth); functions without any
//! sandbox before those that have some; then by turns, one start each.

use std::collections::{BTreeMap, BTreeSet};

use super::{Want, worker::Need};
use crate::{FunctionId, RevisionId, SandboxId, Time, WorkerId};

/// What a group's starts have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Shape {
    /// Nobody waits for it.
    pub(super) calm: bool,
    pub(super) need: Need,
}

impl Shape {
    pub(super) fn of(want: &Want) -> Self {
        Self { calm: !want.urgent, need: Need::of(&want.spec) }
    }
}

/// A line's place; the least is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub(super) calm: bool,
    /// Its function has a sandbox already.
    pub(super) later: bool,
    turn: u64,
    revision: RevisionId,
}

impl Rank {
    pub(super) const fn function(&self) -> FunctionId {
        self.revision.function
    }
}

/// Why a group waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// No ready worker has room.
    Room,
    /// There is room, for instance here, but no start token, or it is set aside.
    Token(WorkerId),
    /// Too many workers were lost at once: only what callers wait for is started.
    Held,
}

#[derive(Debug)]
pub(super) struct Group {
    order: BTreeSet<Rank>,
    pub(super) why: Why,
    /// The worker set aside for it, and until when.
    pub(super) earmark: Option<(WorkerId, Time)>,
    /// Before that nothing is set aside for it again.
    pub(super) rest: Time,
}

impl Group {
    pub(super) fn head(&self) -> Option<Rank> {
        self.order.first().copied()
    }

    pub(super) fn functions(&self) -> BTreeSet<FunctionId> {
        self.order.iter().map(|rank| rank.revision.function).collect()
    }
}

type LineKey = (RevisionId, bool);

#[derive(Debug)]
struct Line {
    wants: BTreeMap<u64, Want>,
    rank: Rank,
    shape: Shape,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub(super) groups: BTreeMap<Shape, Group>,
    lines: BTreeMap<LineKey, Line>,
    places: BTreeMap<SandboxId, (LineKey, u64)>,
    counter: u64,
}

/// A start that no longer waits.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) want: Want,
    pub(super) shape: Shape,
    /// What was set aside for its group, if the group is empty now.
    pub(super) released: Option<WorkerId>,
}

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Whose a start that waits is.
    pub(super) fn home(&self, sandbox: SandboxId) -> Option<FunctionId> {
        self.places.get(&sandbox).map(|((revision, _), _)| revision.function)
    }

    #[cfg(test)]
    pub(super) fn contains(&self, sandbox: SandboxId) -> bool {
        self.places.contains_key(&sandbox)
    }

    pub(super) fn head(&self, shape: &Shape) -> Option<Rank> {
        self.groups.get(shape)?.head()
    }

    fn count(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// One more waits, at the end of its line. A new group waits for room until found otherwise.
    pub(super) fn push(&mut self, want: Want, later: bool) {
        let shape = Shape::of(&want);
        let key = (want.revision, shape.calm);
        let sequence = self.count();
        self.places.insert(want.sandbox, (key, sequence));
        if let Some(line) = self.lines.get_mut(&key) {
            line.wants.insert(sequence, want);
            return;
        }
        let rank = Rank { calm: shape.calm, later, turn: self.count(), revision: want.revision };
        let group = self.groups.entry(shape).or_insert_with(|| Group {
            order: BTreeSet::new(),
            why: Why::Room,
            earmark: None,
            rest: Time::ZERO,
        });
        group.order.insert(rank);
        self.lines.insert(key, Line { wants: BTreeMap::from([(sequence, want)]), rank, shape });
    }

    /// Takes the first start of the group's first line; the line goes to the end of the order.
    pub(super) fn pop(&mut self, shape: &Shape) -> Option<Left> {
        let rank = self.head(shape)?;
        let key = (rank.revision, rank.calm);
        let turn = self.count();
        let line = self.lines.get_mut(&key)?;
        let (_, want) = line.wants.pop_first()?;
        self.places.remove(&want.sandbox);
        line.rank = Rank { later: true, turn, ..rank };
        let again = (!line.wants.is_empty()).then_some(line.rank);
        self.reorder(key, rank, again);
        let released = self.close_if_empty(shape);
        Some(Left { want, shape: *shape, released })
    }

    /// Takes a start out, wherever it stands.
    pub(super) fn take(&mut self, sandbox: SandboxId) -> Option<Left> {
        let (key, sequence) = self.places.remove(&sandbox)?;
        let line = self.lines.get_mut(&key)?;
        let want = line.wants.remove(&sequence)?;
        let (rank, shape) = (line.rank, line.shape);
        let again = (!line.wants.is_empty()).then_some(rank);
        self.reorder(key, rank, again);
        let released = self.close_if_empty(&shape);
        Some(Left { want, shape, released })
    }

    /// A function got its first sandbox, or lost its last.
    pub(super) fn set_later(&mut self, function: FunctionId, later: bool) {
        for key in self.keys(function) {
            let Some(line) = self.lines.get_mut(&key) else { continue };
            let old = line.rank;
            line.rank.later = later;
            let new = line.rank;
            self.reorder(key, old, Some(new));
        }
    }

    /// Whether any of a function's lines waits for room.
    pub(super) fn lacks_room(&self, function: FunctionId) -> bool {
        self.keys(function).any(|key| {
            let group = self.lines.get(&key).and_then(|line| self.groups.get(&line.shape));
            group.is_some_and(|group| group.why == Why::Room)
        })
    }

    /// The first of a function's starts that wait, for what it needs.
    pub(super) fn example(&self, function: FunctionId) -> Option<&Want> {
        let first = self.keys(function).next()?;
        self.lines.get(&first)?.wants.values().next()
    }

    fn keys(&self, function: FunctionId) -> impl Iterator<Item = LineKey> + use<> {
        let from = (RevisionId { function, number: 0 }, false);
        let to = (RevisionId { function, number: u32::MAX }, true);
        let keys: Vec<_> = self.lines.range(from..=to).map(|(key, _)| *key).collect();
        keys.into_iter()
    }

    /// Moves a line within its group, or takes it out.
    fn reorder(&mut self, key: LineKey, old: Rank, new: Option<Rank>) {
        let Some(line) = self.lines.get(&key) else { return };
        if let Some(group) = self.groups.get_mut(&line.shape) {
            group.order.remove(&old);
            group.order.extend(new);
        }
        if new.is_none() {
            self.lines.remove(&key);
        }
    }

    fn close_if_empty(&mut self, shape: &Shape) -> Option<WorkerId> {
        if self.groups.get(shape)?.order.is_empty() {
            return self.groups.remove(shape)?.earmark.map(|(worker, _)| worker);
        }
        None
    }
}
