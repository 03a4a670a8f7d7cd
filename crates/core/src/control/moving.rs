//! Sandboxes of one function on workers that are drained: others are started elsewhere first, then
//! their slots are called back. What runs in them ends there.
//!
//! As many are started as are in use: what the windows say, `min`, and one where there was one, so
//! that a caller who is used to a warm function does not wait. They are not waited for where there
//! is no room, and not for longer than a start may take: a drain ends.

use crate::{
    SandboxId, Time,
    control::{
        cluster::Cluster,
        function::{Function, Grounds},
        sandbox::{Reason, Stage, Tally},
        timers::Timer,
    },
};

/// See the module.
#[derive(Debug)]
pub(crate) struct Moving {
    /// How many in use were to leave when it was decided.
    leaving: u32,
    /// So many are wanted elsewhere.
    goal: u32,
    /// They are not waited for any longer.
    until: Time,
}

impl Function {
    /// These sandboxes of it are on a worker that is drained from now on, or no longer.
    pub(crate) fn mark_leaving(&mut self, c: &mut Cluster, sandboxes: &[SandboxId], leaving: bool) {
        let Some(active) = self.active.as_deref_mut() else { return };
        for &sandbox in sandboxes {
            active.change(sandbox, |entry| entry.leaving = leaving);
        }
        if !leaving {
            self.offer_unheld(c);
        }
    }

    /// Takes the move away from workers that are drained as far as it goes now.
    pub(crate) fn leave_workers(&mut self, c: &mut Cluster) {
        let id = self.id();
        let Some(active) = self.active.as_deref_mut() else { return };
        if active.books.leaving.is_empty() {
            if active.moving.take().is_some() {
                c.timers.cancel(Timer::Moving(id));
            }
            return;
        }
        if c.recovering {
            // Nothing is called back before everybody has said what is wanted.
            c.attention.insert(id);
            return;
        }
        let leaving: Vec<SandboxId> = active.books.leaving.iter().copied().collect();
        let serves = |sandbox: &SandboxId| {
            let entry = self.active.as_ref().and_then(|active| active.sandboxes.get(sandbox));
            entry.is_some_and(|entry| {
                entry.stage == Stage::Ready && !entry.is_unheld() && self.is_target(entry.number)
            })
        };
        let (serving, idle): (Vec<_>, Vec<_>) = leaving.into_iter().partition(serves);
        if !idle.is_empty() {
            for sandbox in idle {
                self.recall(c, sandbox);
            }
            // One by which a deploy is checked may be among them.
            self.roll_out(c);
        }
        let many = u32::try_from(serving.len()).unwrap_or(u32::MAX);
        if many > 0 && self.is_replaced(c, many) {
            for sandbox in serving {
                self.recall(c, sandbox);
            }
        }
    }

    /// Whether those that leave are called back now; starts what is missing.
    fn is_replaced(&mut self, c: &mut Cluster, leaving: u32) -> bool {
        let (id, now) = (self.id(), c.now);
        let concurrency = self.target_concurrency();
        let settings = &self.record.settings;
        let (min, max, patience) = (settings.min, settings.max, settings.start_timeout);
        let Some(active) = self.active.as_deref_mut() else { return true };
        let tally = active.books.tally_of(&self.record.targets);
        let decided = active.moving.as_ref().map_or(0, |moving| moving.leaving);
        if decided < leaving {
            let present = tally.ready.saturating_add(leaving);
            let windows =
                active.kpa.as_mut().map_or(0, |kpa| kpa.desired(now, concurrency, present).count);
            let goal = windows.max(min).max(1).min(present).min(max);
            let until = now.after(patience);
            active.moving = Some(Moving { leaving, goal, until });
            c.timers.set(Timer::Moving(id), until);
        }
        let Some(Moving { goal, until, .. }) = active.moving else { return true };
        let vain = active.no_room || active.crashes.looping() || until <= now;
        if tally.ready >= goal || vain {
            return true;
        }
        let have = tally.ready.saturating_add(tally.starting);
        if have < goal {
            let causes: Vec<_> =
                self.busiest_holder().map(|id| (id, goal - have)).into_iter().collect();
            self.start(c, goal - have, Reason::Moving, &causes);
            let before = Tally { ready: tally.ready + leaving, ..tally };
            let grounds = Grounds::Moving { leaving, goal };
            self.explain(c, before, goal - tally.ready, grounds);
        }
        false
    }
}
