//! What the data planes want and use of one function.
//!
//! A function may be called through every data plane of the cluster, while an event concerns one of
//! them: sums over all are kept in step with each change, and so are those to look at.

use std::collections::BTreeMap;

use crate::{
    DataPlaneId, Time,
    frame::{Demand, Status},
};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Levels {
    /// Boxed: a map makes room for eleven at a time.
    all: BTreeMap<DataPlaneId, Box<Level>>,
    sums: Sums,
    /// Those with a queue, and those that were told of an obstacle or of which it is not known what
    /// they were told; in order.
    uneasy: Vec<DataPlaneId>,
    /// Those that hold slots by our books; in order.
    holding: Vec<DataPlaneId>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Sums {
    queued: u64,
    busy: u64,
    idle: u64,
    coming: u64,
    expected: u64,
}

impl Sums {
    fn enter(&mut self, level: &Level) {
        self.queued += u64::from(level.demand.queued);
        self.busy += u64::from(level.demand.busy);
        self.idle += u64::from(level.idle());
        self.coming += u64::from(level.recalling - level.hoped);
        self.expected += u64::from(level.expected());
    }

    fn strike(&mut self, level: &Level) {
        self.queued -= u64::from(level.demand.queued);
        self.busy -= u64::from(level.demand.busy);
        self.idle -= u64::from(level.idle());
        self.coming -= u64::from(level.recalling - level.hoped);
        self.expected -= u64::from(level.expected());
    }
}

impl Levels {
    pub(crate) fn get(&self, data_plane: DataPlaneId) -> Option<&Level> {
        self.all.get(&data_plane).map(Box::as_ref)
    }

    /// Changes a level and keeps the sums in step.
    pub(crate) fn change<R>(
        &mut self,
        data_plane: DataPlaneId,
        change: impl FnOnce(&mut Level) -> R,
    ) -> Option<R> {
        let level = self.all.get_mut(&data_plane)?;
        self.sums.strike(level);
        let (uneasy, holds) = (level.is_uneasy(), level.books > 0);
        let result = change(level);
        self.sums.enter(level);
        if uneasy != level.is_uneasy() {
            list(&mut self.uneasy, data_plane, !uneasy);
        }
        if holds != (level.books > 0) {
            list(&mut self.holding, data_plane, !holds);
        }
        Some(result)
    }

    /// The level of a data plane of which nothing was heard yet.
    pub(crate) fn insert(&mut self, data_plane: DataPlaneId, level: Level) {
        debug_assert!(!level.is_uneasy() && level.books == 0 && level.demand.busy == 0);
        self.all.insert(data_plane, Box::new(level));
    }

    /// Forgets a data plane that holds nothing and says nothing any more.
    pub(crate) fn remove(&mut self, data_plane: DataPlaneId) {
        let Some(level) = self.all.remove(&data_plane) else { return };
        self.sums.strike(&level);
        list(&mut self.uneasy, data_plane, false);
        list(&mut self.holding, data_plane, false);
    }

    pub(crate) fn contains(&self, data_plane: DataPlaneId) -> bool {
        self.all.contains_key(&data_plane)
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (DataPlaneId, &Level)> {
        self.all.iter().map(|(id, level)| (*id, level.as_ref()))
    }

    /// Those with a queue, and those to which a status may have to be told.
    pub(crate) fn uneasy(&self) -> impl Iterator<Item = (DataPlaneId, &Level)> {
        self.uneasy.iter().filter_map(|id| Some((*id, self.get(*id)?)))
    }

    /// Those that hold slots by our books.
    pub(crate) fn holding(&self) -> impl Iterator<Item = (DataPlaneId, &Level)> {
        self.holding.iter().filter_map(|id| Some((*id, self.get(*id)?)))
    }

    /// Invocations that wait.
    pub(crate) fn queued(&self) -> u32 {
        narrow(self.sums.queued)
    }

    /// Invocations in sandboxes.
    pub(crate) fn busy(&self) -> u32 {
        narrow(self.sums.busy)
    }

    /// Slots that nothing uses, as far as is known.
    pub(crate) fn idle(&self) -> u32 {
        narrow(self.sums.idle)
    }

    /// Slots that were recalled by number and are on their way, as far as is known.
    pub(crate) fn coming(&self) -> u32 {
        narrow(self.sums.coming)
    }

    /// Slots missing for invocations that are expected.
    pub(crate) fn expected(&self) -> u32 {
        narrow(self.sums.expected)
    }

    #[cfg(any(test, debug_assertions))]
    pub(crate) fn check(&self) {
        let mut sums = Sums::default();
        self.all.values().for_each(|level| sums.enter(level));
        assert_eq!(sums, self.sums, "the sums of the levels are out of step");
        let ids = |keep: fn(&Level) -> bool| -> Vec<DataPlaneId> {
            self.iter().filter(|(_, level)| keep(level)).map(|(id, _)| id).collect()
        };
        assert_eq!(ids(Level::is_uneasy), self.uneasy);
        assert_eq!(ids(|level| level.books > 0), self.holding);
    }
}

fn narrow(sum: u64) -> u32 {
    u32::try_from(sum).unwrap_or(u32::MAX)
}

/// Puts an id on a list, or takes it off.
fn list(ids: &mut Vec<DataPlaneId>, id: DataPlaneId, on: bool) {
    match ids.binary_search(&id) {
        Err(at) if on => ids.insert(at, id),
        Ok(at) if !on => {
            ids.remove(at);
        }
        Ok(_) | Err(_) => {}
    }
}

/// What one data plane wants and uses of one function.
#[derive(Debug)]
pub(crate) struct Level {
    pub(crate) demand: Demand,
    /// When that was heard.
    pub(crate) at: Time,
    /// When the last demand reached the control plane.
    pub(crate) heard: Time,
    /// Slots that it holds by our books; open grants count one each.
    pub(crate) books: u32,
    /// Of those, recalled by number and not answered yet.
    pub(crate) recalling: u32,
    /// Of those, asked for although nothing had been said of their being idle.
    pub(crate) hoped: u32,
    /// It kept some: it tells at once when it has idle ones.
    pub(crate) sought: bool,
    /// Of the busy ones, asked to be given back as they become free.
    pub(crate) owed: u32,
    /// Slots that were moved here rest until then.
    pub(crate) rest_until: Time,
    /// It has been silent for long: workers make sure that nothing of it is left.
    pub(crate) settling: bool,
    /// What it was told last; `None` if what it believes is not known.
    pub(crate) told: Option<Status>,
    /// What it says counts from when it has applied this version. Until it hears that there is no
    /// such function for it, it speaks of invocations that it then refuses, and says no more of them.
    pub(crate) counts_from: u64,
}

impl Level {
    pub(crate) fn new(at: Time, demand: Demand) -> Self {
        Self {
            demand,
            at,
            heard: at,
            books: 0,
            recalling: 0,
            hoped: 0,
            sought: false,
            owed: 0,
            rest_until: Time::ZERO,
            settling: false,
            told: Some(Status::Flowing),
            counts_from: 0,
        }
    }

    /// Invocations queued there for which no slot is on its way.
    pub(crate) const fn unserved(&self, open: bool) -> u32 {
        let coming = self.books.saturating_sub(self.demand.held);
        if open && coming > 0 { 0 } else { self.demand.queued.saturating_sub(coming) }
    }

    /// When the longest waiting invocation came.
    pub(crate) fn waits_since(&self) -> Time {
        self.at.before(self.demand.oldest_wait)
    }

    /// So many of those recalled by number were given back, or kept. Whether some of them were given
    /// back by the busy.
    pub(crate) fn answered(&mut self, slots: u32) -> bool {
        let by_the_busy = slots.saturating_sub(self.recalling).min(self.owed);
        self.recalling = self.recalling.saturating_sub(slots);
        self.demand.idle = self.demand.idle.saturating_sub(slots);
        self.hoped = self.hoped.min(self.recalling);
        self.owed -= by_the_busy;
        by_the_busy > 0
    }

    /// Slots that nothing uses there, as far as is known.
    pub(crate) fn idle(&self) -> u32 {
        if self.demand.queued > 0 {
            return 0;
        }
        self.books.min(self.demand.idle).saturating_sub(self.recalling)
    }

    /// Slots that it expects to need beside those that it holds.
    pub(crate) const fn expected(&self) -> u32 {
        self.demand.expected.saturating_sub(self.books)
    }

    /// It waits, or may have to be told that nothing stands in the way any more.
    fn is_uneasy(&self) -> bool {
        self.demand.queued > 0 || self.told != Some(Status::Flowing)
    }
}
