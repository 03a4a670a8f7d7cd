//! One queue over all data planes, for a function that may not grow any more.
//!
//! Below its maximum a function whose callers wait gets sandboxes. At its maximum only busy slots
//! are left, and those of other data planes would serve their own callers first, who have waited
//! for less long. So data planes with younger callers, or none, are asked to give slots back as
//! they become free, and the next free slot is granted to whoever has waited longest. What comes
//! back after those have been served is kept here for the next one who waits, wherever that is.

use std::time::Duration;

use crate::{
    DataPlaneId, SandboxId, Time,
    control::{cluster::Cluster, function::Function, sandbox::Stage},
    frame::ToDataPlane,
};

/// Shorter calls are over before a slot has moved: sharing their slots would only keep the control
/// plane busy.
const SHARED_MIN: Duration = Duration::from_micros(500);

impl Function {
    /// Whether its busy slots go to whoever has waited longest, wherever that is.
    pub(crate) fn is_shared(&self) -> bool {
        let Some(active) = self.active.as_deref() else { return false };
        let tally = active.books.tally_of(&self.record.targets);
        let at_max = tally.ready.saturating_add(tally.starting) >= self.record.settings.max;
        let long = active.service_time.get().is_some_and(|service| service >= SHARED_MIN);
        let several = active.levels.len() > 1 && active.rollout.is_none();
        at_max && self.target_concurrency() > 0 && long && several
    }

    /// Callers wait and nothing is idle: asks for busy slots, as far as that was not done already.
    pub(crate) fn share(&mut self, c: &mut Cluster) {
        let function = self.id();
        if !self.is_shared() {
            return;
        }
        let Some(active) = self.active.as_deref_mut() else { return };
        let queues: Vec<(Time, u32)> = active
            .levels
            .uneasy()
            .map(|(_, level)| (level.waits_since(), level.unserved(false)))
            .filter(|(_, unserved)| *unserved > 0)
            .collect();
        let holding: Vec<DataPlaneId> = active.levels.holding().map(|(id, _)| id).collect();
        for data_plane in holding {
            if !c.peers.is_attached(data_plane) {
                continue;
            }
            active.levels.change(data_plane, |level| {
                let own = if level.demand.queued > 0 { level.waits_since() } else { c.now };
                let older = queues.iter().filter(|(since, _)| *since < own);
                let wanted = older.fold(0_u32, |sum, (_, unserved)| sum.saturating_add(*unserved));
                let n = wanted.min(level.books).saturating_sub(level.owed + level.recalling);
                if n > 0 {
                    level.owed += n;
                    c.tell(data_plane, ToDataPlane::Recall { function, n, idle_only: false });
                }
            });
        }
    }

    /// Slots of a sandbox came back that were asked for while they were busy. Whoever waits gets
    /// them; without anybody the sandbox stays, for its keep-alive, with its slots here: it was not
    /// given back for being idle. False if it is to end for another reason.
    pub(crate) fn keep_shared(&mut self, c: &mut Cluster, sandbox: SandboxId) -> bool {
        let entry = self.active.as_ref().and_then(|active| active.sandboxes.get(&sandbox));
        let stays = entry.is_some_and(|entry| {
            entry.stage == Stage::Ready && !entry.lost && self.is_target(entry.number)
        });
        let calm = self.active.as_ref().is_some_and(|a| a.rollout.is_none() && !a.deleted);
        if !stays || !calm {
            return false;
        }
        self.serve(c);
        let unheld =
            self.active.as_ref().is_some_and(|active| active.books.unheld.contains(&sandbox));
        if unheld {
            self.keep(c, sandbox);
        }
        true
    }
}
