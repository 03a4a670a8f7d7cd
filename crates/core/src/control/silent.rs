//! The slots of data planes that fell silent.
//!
//! A handler may still run in what a silent data plane holds, so its slots stay in the books. They
//! come free when it attaches again without them, or when the sandbox's worker has made sure: the
//! data plane is barred from the sandbox, and no socket of it is open there.
//!
//! Workers are asked for that when the silence has lasted as long as an invocation may take: what
//! the data plane had sent before has ended by then. Earlier would end what it may be serving well.
//!
//! A worker that cannot tell whose a socket is ends the sandbox instead. Nobody else's invocations
//! may be in it then: it is called back from its other holders first.

use crate::{
    DataPlaneId, SandboxId, Time,
    control::{
        RECOVERY, cluster::Cluster, function::Function, levels::Level, sandbox::Stage,
        timers::Timer,
    },
    policy::kpa::STABLE_WINDOW,
};

impl Function {
    /// A data plane's stream broke, or it is found to hold more while it is: that makes the silence
    /// no younger.
    pub(crate) fn fell_silent(&mut self, c: &mut Cluster, data_plane: DataPlaneId) {
        if self.level_of(data_plane).is_some_and(|level| level.books > 0 && !level.settling) {
            let at = c.now.after(self.record.settings.timeout);
            c.timers.start(Timer::Silent(self.id(), data_plane), at);
        }
    }

    /// It attached again. What workers were asked to bar it from is of no use to it any more.
    pub(crate) fn spoke_again(&mut self, c: &mut Cluster, data_plane: DataPlaneId) {
        c.timers.cancel(Timer::Silent(self.id(), data_plane));
        let settling = |level: &mut Level| std::mem::take(&mut level.settling);
        let active = self.active.as_deref_mut();
        if active.and_then(|active| active.levels.change(data_plane, settling)) == Some(true) {
            for sandbox in self.held_by(data_plane) {
                self.recall(c, sandbox);
            }
        }
    }

    /// It has been silent for as long as an invocation may take.
    pub(crate) fn silent_for_long(&mut self, c: &mut Cluster, data_plane: DataPlaneId) {
        if c.recovering {
            // Nothing is recalled before everybody has said what is wanted.
            c.timers.set(Timer::Silent(self.id(), data_plane), c.now.after(RECOVERY));
            return;
        }
        let Some(active) = self.active.as_deref_mut() else { return };
        let settling = |level: &mut Level| level.settling = true;
        if c.peers.is_attached(data_plane) || active.levels.change(data_plane, settling).is_none() {
            return;
        }
        for sandbox in self.held_by(data_plane) {
            self.make_sure(c, sandbox);
        }
    }

    /// Sandboxes that an earlier leader started may be held by data planes that have not attached to
    /// this one. They are given a stable window, and what an invocation may take, to do so.
    pub(crate) fn doubt(&mut self, c: &mut Cluster) {
        let Some(active) = self.active.as_deref() else { return };
        let unsure: Vec<SandboxId> =
            active.sandboxes.values().filter(|s| s.unsure.is_some()).map(|s| s.id).collect();
        if unsure.is_empty() {
            return;
        }
        let until = self.doubted_from(c);
        if c.now < until {
            c.timers.set(Timer::Doubted(self.id()), until);
        } else {
            unsure.into_iter().for_each(|sandbox| self.make_sure(c, sandbox));
        }
    }

    fn doubted_from(&self, c: &Cluster) -> Time {
        c.steady_from.after(self.record.settings.timeout.saturating_sub(STABLE_WINDOW))
    }

    /// If a sandbox is held by data planes that have been silent for long, and by nobody else: asks
    /// its worker to make sure that nothing of them is left there. Asking again does no harm.
    pub(crate) fn make_sure(&mut self, c: &mut Cluster, sandbox: SandboxId) {
        let Some(entry) = self.active.as_ref().and_then(|a| a.sandboxes.get(&sandbox)) else {
            return;
        };
        let (stage, lost) = (entry.stage, entry.lost);
        let settling = |id: &DataPlaneId| self.level_of(*id).is_some_and(|level| level.settling);
        let mut silent: Vec<DataPlaneId> =
            entry.holders.iter().map(|(id, _)| *id).filter(settling).collect();
        let mut alone = silent.len() == entry.holders.len();
        if let Some(settled) = &entry.unsure {
            if c.now < self.doubted_from(c) {
                alone = false;
            } else {
                silent.extend(c.peers.unheard().filter(|id| !settled.contains(id)));
            }
        }
        if silent.is_empty() {
            return;
        }
        match stage {
            // Nothing is open at what does not run.
            Stage::Gone => silent.into_iter().for_each(|id| self.settled(c, sandbox, id)),
            // Neither it nor who holds it is heard: they may both be gone for good.
            Stage::Ready | Stage::Recalling if lost && alone => self.bury(c, sandbox),
            Stage::Ready if !lost && (!alone || entry.free() > 0) => self.recall(c, sandbox),
            Stage::Ready | Stage::Recalling if !lost && alone => {
                silent.into_iter().for_each(|id| c.fleet.settle(sandbox, id));
            }
            Stage::Ready | Stage::Recalling | Stage::Wanted | Stage::Starting | Stage::Stopping => {
            }
        }
    }

    /// Nothing of a silent data plane is left in a sandbox, and nothing can come. The address is not
    /// free with that: the data plane may still know it.
    pub(crate) fn settled(&mut self, c: &mut Cluster, sandbox: SandboxId, from: DataPlaneId) {
        if c.peers.is_attached(from) {
            // It says itself what it holds.
            return;
        }
        let taken = self.take_back(from, sandbox, None);
        let Some(active) = self.active.as_deref_mut() else { return };
        let sure = active.change(sandbox, |entry| {
            entry.astray |= taken.is_some() || entry.unsure.is_some();
            entry.unsure.as_mut().is_some_and(|settled| {
                if !settled.contains(&from) {
                    settled.push(from);
                }
                c.peers.unheard().all(|id| settled.contains(&id))
            })
        });
        if sure == Some(true) {
            self.sure(c, sandbox);
        }
        if taken.is_some() {
            self.after_return(c, sandbox, None, false);
        }
    }

    fn level_of(&self, data_plane: DataPlaneId) -> Option<&Level> {
        self.active.as_ref()?.levels.get(data_plane)
    }

    /// The sandboxes of which a data plane holds slots.
    pub(crate) fn held_by(&self, data_plane: DataPlaneId) -> Vec<SandboxId> {
        let holds = self.level_of(data_plane).is_some_and(|level| level.books > 0);
        let active = self.active.iter().filter(|_| holds);
        active
            .flat_map(|active| active.sandboxes.values())
            .filter(|sandbox| sandbox.held_by(data_plane) > 0)
            .map(|sandbox| sandbox.id)
            .collect()
    }
}
