//! The members of the store: each has a disk, a change is committed when it is on a majority of them,
//! and a disk that is lost is replaced by an empty one, which counts for nothing until it was given a
//! copy. Which member orders the changes is its own business; here it matters only when it is lost.

use std::{collections::VecDeque, sync::Arc};

use dirigent_core::Time;

use super::State;

/// A change on its way to a disk, or on it: when it is there, its place in the order, and everything
/// that is recorded with it.
type Entry = (Time, u64, Arc<State>);

#[derive(Clone, Debug, Default)]
struct Member {
    lost: bool,
    disk: VecDeque<Entry>,
}

impl Member {
    /// What is on its disk, as far as the place in the order.
    fn has(&self, now: Time) -> Option<(u64, &Arc<State>)> {
        let there = self.disk.iter().take_while(|(at, ..)| *at <= now).last();
        there.filter(|_| !self.lost).map(|(_, index, state)| (*index, state))
    }
}

/// A place in the order, and after how many losses it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    index: u64,
    losses: usize,
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Members {
    all: Vec<Member>,
    first: usize,
    index: u64,
    committed: Time,
    /// How far the order was committed at each loss: what came later may be gone.
    losses: Vec<u64>,
}

impl Members {
    pub(crate) fn new(count: usize, state: &State) -> Self {
        let disk = VecDeque::from([(Time::ZERO, 0, Arc::new(state.clone()))]);
        let all = vec![Member { lost: false, disk }; count];
        Self { all, first: 0, index: 0, committed: Time::ZERO, losses: Vec::new() }
    }

    pub(crate) fn count(&self) -> usize {
        self.all.len()
    }

    const fn majority(count: usize) -> usize {
        count / 2 + 1
    }

    /// A change is on its way: it is on the first disk now, and on each other one at its time.
    pub(crate) fn append(&mut self, now: Time, state: &State, arrivals: &[Time]) {
        self.index += 1;
        let state = Arc::new(state.clone());
        let mut times = Vec::new();
        for (n, (member, &arrival)) in self.all.iter_mut().zip(arrivals).enumerate() {
            if member.lost {
                continue;
            }
            let arrival = if n == self.first { now } else { arrival };
            let last = member.disk.back().map_or(now, |(at, ..)| *at);
            let at = arrival.max(last);
            member.disk.push_back((at, self.index, Arc::clone(&state)));
            while member.disk.get(1).is_some_and(|(at, ..)| *at <= now) {
                member.disk.pop_front();
            }
            times.push(at);
        }
        times.sort_unstable();
        let last = times.get(Self::majority(self.all.len()) - 1).copied();
        self.committed = last.unwrap_or(now).max(self.committed);
    }

    /// The last change, and when a majority has it.
    pub(crate) fn mark(&self) -> (Mark, Time) {
        (Mark { index: self.index, losses: self.losses.len() }, self.committed)
    }

    /// Whether it is not known any more what became of a change.
    pub(crate) fn is_doubtful(&self, mark: Mark) -> bool {
        self.losses.iter().skip(mark.losses).any(|committed| mark.index > *committed)
    }

    /// Those that have their disks.
    pub(crate) fn whole(&self) -> Vec<usize> {
        let all = self.all.iter().enumerate();
        all.filter(|(_, member)| !member.lost).map(|(n, _)| n).collect()
    }

    /// So many disks may be lost at once.
    pub(crate) fn may_lose(&self) -> usize {
        self.whole().len().saturating_sub(Self::majority(self.all.len()))
    }

    pub(crate) const fn first(&self) -> usize {
        self.first
    }

    /// Disks are lost. What the others have is what there is: given back.
    pub(crate) fn lose(&mut self, now: Time, lost: &[usize]) -> State {
        let mut indexes: Vec<u64> =
            self.all.iter().filter_map(|member| Some(member.has(now)?.0)).collect();
        indexes.sort_unstable_by(|a, b| b.cmp(a));
        let committed = indexes.get(Self::majority(self.all.len()) - 1).copied().unwrap_or(0);
        self.losses.push(committed);
        for &n in lost {
            if let Some(member) = self.all.get_mut(n) {
                *member = Member { lost: true, disk: VecDeque::new() };
            }
        }
        if lost.contains(&self.first) {
            // Whoever has most orders the changes from now on; what only the others' way knew is gone.
            let have =
                |n: &usize| self.all.get(*n).and_then(|m| m.has(now)).map(|(index, _)| index);
            self.first = self.whole().into_iter().max_by_key(have).unwrap_or(0);
            for member in &mut self.all {
                member.disk.retain(|(at, ..)| *at <= now);
            }
        }
        let first = self.all.get(self.first);
        let (index, state) = first
            .and_then(|member| member.disk.back())
            .map_or_else(|| (0, Arc::default()), |(_, index, state)| (*index, Arc::clone(state)));
        self.index = index;
        self.settle(now, &state);
        State::clone(&state)
    }

    /// Those who are behind are given what the first one has.
    fn settle(&mut self, now: Time, state: &Arc<State>) {
        let index = self.index;
        for member in self.all.iter_mut().filter(|member| !member.lost) {
            if member.disk.back().is_none_or(|(_, has, _)| *has < index) {
                member.disk.push_back((now, index, Arc::clone(state)));
            }
        }
        self.committed = now.max(self.committed);
    }

    /// New disks take the place of lost ones, with a copy of everything.
    pub(crate) fn replace(&mut self, now: Time, lost: &[usize], state: &State) {
        let entry = (now, self.index, Arc::new(state.clone()));
        for &n in lost {
            if let Some(member) = self.all.get_mut(n).filter(|member| member.lost) {
                *member = Member { lost: false, disk: VecDeque::from([entry.clone()]) };
            }
        }
    }

    /// Everything is replaced by another state.
    pub(crate) fn restore(&mut self, now: Time, state: &State) {
        self.losses.push(0);
        self.index += 1;
        let entry = (now, self.index, Arc::new(state.clone()));
        for member in self.all.iter_mut().filter(|member| !member.lost) {
            member.disk = VecDeque::from([entry.clone()]);
        }
        self.committed = now;
    }
}
