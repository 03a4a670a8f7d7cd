//! After healing nobody queues longer than four round trips at one data plane beside a slot that has
//! been idle all the while at another. A slot that was moved rests there first. Slots that the
//! leader may not give to anybody else, since their worker is lost or somebody who has not attached may
//! hold them too, do not count.

use std::{collections::BTreeMap, time::Duration};

use dirigent_core::{FunctionId, SandboxId, Time, frame::Share};

use crate::{
    agenda::Host,
    net::SLOWEST,
    world::{HEALED, World},
};

pub(super) const NAME: &str = "idle_beside_queue";

/// Four round trips, and as long as a gate may keep to itself that its queue grew.
const LONGEST: Duration = SLOWEST.saturating_mul(8).saturating_add(Duration::from_millis(1));
/// Those who took office in the last moments of the faults have heard everybody by then.
const CALM: Duration = Duration::from_secs(10);

/// Since when which sandboxes of a function have idle slots at a data plane.
pub(super) type Idle = BTreeMap<(FunctionId, usize), BTreeMap<SandboxId, Time>>;

impl World {
    /// A gate may have changed.
    pub(crate) fn check_beside(&mut self, plane: usize, function: FunctionId) {
        let now = self.now;
        if !self.settled_since_healing(CALM) {
            return;
        }
        let before = self.witness.idle.remove(&(function, plane)).unwrap_or_default();
        let gate = self.planes.get(plane).and_then(|p| p.gates.get(&function));
        let Some(f) = gate.filter(|f| !f.retired) else { return };
        let mut idle = BTreeMap::new();
        for held in f.gate.holdings() {
            let target = f.gate.view().targets.iter().any(|t| t.id == held.revision);
            let free = matches!(held.share, Share::Slots(slots) if slots > held.busy);
            if target && free && !held.draining {
                let since = before.get(&held.sandbox).copied().unwrap_or(now);
                idle.insert(held.sandbox, since);
            }
        }
        if !idle.is_empty() {
            self.witness.idle.insert((function, plane), idle);
        }
        self.check_queues(function);
    }

    pub(super) fn check_all_queues(&mut self) {
        let functions: Vec<FunctionId> = self.witness.idle.keys().map(|(f, _)| *f).collect();
        for function in functions {
            self.check_queues(function);
        }
    }

    fn check_queues(&mut self, function: FunctionId) {
        let mut longest: Option<(Duration, usize, SandboxId)> = None;
        let mut withheld = Vec::new();
        let leader = self.leader().and_then(|c| self.controls.get(c)?.leads.as_ref());
        for (queues, p) in self.planes.iter().enumerate().filter(|(_, p)| p.attached) {
            let Some(f) = p.gates.get(&function) else { continue };
            let demand = f.gate.demand(self.now);
            if demand.queued == 0 {
                continue;
            }
            let since = self.now.before(demand.oldest_wait).max(p.attached_since);
            let since = since.max(HEALED.after(CALM));
            let of_it = self.witness.idle.range((function, 0)..=(function, usize::MAX));
            for (&(_, idles), sandboxes) in of_it.filter(|((_, idles), _)| *idles != queues) {
                let Some(there) = self.planes.get(idles).filter(|p| p.attached) else { continue };
                let rests = self.rests_until(function, idles).max(there.attached_since);
                for (&sandbox, &idle) in sandboxes {
                    if leader.is_none_or(|machine| machine.withholds(sandbox)) {
                        withheld.push((idles, sandbox));
                        continue;
                    }
                    let beside = self.now.since(since.max(idle).max(rests));
                    longest = longest.max(Some((beside, queues, sandbox)));
                }
            }
        }
        let now = self.now;
        for (plane, sandbox) in withheld {
            // It is idle for others from when it is given to them.
            if let Some(idle) = self.witness.idle.get_mut(&(function, plane)) {
                idle.insert(sandbox, now);
            }
        }
        if let Some((beside, queues, sandbox)) = longest {
            self.hold(NAME, beside <= LONGEST, |_| {
                format!("{function} queued at plane{queues} for {beside:?} beside {sandbox}, idle")
            });
        }
    }

    /// Until when what a data plane holds of a function rests.
    fn rests_until(&self, function: FunctionId, plane: usize) -> Time {
        let leader = self.leader().and_then(|c| self.controls.get(c));
        let Some(machine) = leader.and_then(|c| c.leads.as_ref()) else { return Time(u64::MAX) };
        machine.rests_until(function, &format!("{:?}", Host::Plane(plane)))
    }
}
