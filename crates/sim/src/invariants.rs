//! What must always hold. One file each, named as in a failure's report; each counts how often its
//! premise was met, since an invariant that was never put to the test proves nothing.

mod acknowledged_deploys_last;
mod answered;
mod at_most_once;
mod books_within_concurrency;
mod bounded;
mod capacity;
mod concurrency;
mod cordoned_gets_nothing;
mod deposed_writes_nothing;
mod drains_end;
mod epoch_given_once;
mod epochs_only_grow;
mod idle_beside_queue;
mod min_and_max;
mod name_of_one_life;
mod no_bind_after_return;
mod one_leader_per_slot;
mod reservations;
mod right_sandbox;
mod rollouts_end;
mod slot_leak;
mod started_once;
mod to_zero;
mod understood;

use std::collections::{BTreeMap, BTreeSet};

use dirigent_core::{DataPlaneId, Epoch, InvocationId, RevisionId, SandboxId, Time};

use crate::{agenda::Host, world::World};

/// All of them by name.
pub const NAMES: [&str; 24] = [
    acknowledged_deploys_last::NAME,
    answered::NAME,
    at_most_once::NAME,
    books_within_concurrency::NAME,
    bounded::NAME,
    capacity::NAME,
    concurrency::NAME,
    cordoned_gets_nothing::NAME,
    deposed_writes_nothing::NAME,
    drains_end::NAME,
    epoch_given_once::NAME,
    epochs_only_grow::NAME,
    idle_beside_queue::NAME,
    min_and_max::NAME,
    name_of_one_life::NAME,
    no_bind_after_return::NAME,
    one_leader_per_slot::NAME,
    reservations::NAME,
    right_sandbox::NAME,
    rollouts_end::NAME,
    slot_leak::NAME,
    started_once::NAME,
    to_zero::NAME,
    understood::NAME,
];

/// An invariant that did not hold.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Which.
    pub invariant: &'static str,
    /// What was seen instead.
    pub what: String,
}

/// What the invariants remember of the past.
#[derive(Debug, Default)]
pub(crate) struct Witness {
    pub(crate) violation: Option<Violation>,
    /// How often each premise was met.
    pub(crate) premises: BTreeMap<&'static str, u64>,
    /// The highest epoch that each peer ever obeyed.
    highest: BTreeMap<Host, Epoch>,
    /// Executions of invocations that are not answered, by whether they broke.
    executions: BTreeMap<InvocationId, Vec<(u32, bool)>>,
    started: BTreeSet<SandboxId>,
    epochs: BTreeSet<Epoch>,
    /// Sandboxes given back by a data plane's life and not granted anew.
    returned: BTreeSet<(usize, SandboxId)>,
    /// Since when slots are in the books that nobody holds.
    leaking: BTreeMap<(SandboxId, DataPlaneId), Time>,
    /// Since when revisions are on their way to be live.
    rolling: BTreeMap<RevisionId, Time>,
    silent: BTreeMap<SandboxId, slot_leak::Silent>,
    idle: idle_beside_queue::Idle,
}

impl World {
    /// A premise was met; what follows from it must hold.
    pub(crate) fn hold(
        &mut self,
        invariant: &'static str,
        holds: bool,
        what: impl FnOnce(&Self) -> String,
    ) {
        *self.witness.premises.entry(invariant).or_default() += 1;
        if !holds && self.witness.violation.is_none() {
            let what = what(self);
            self.witness.violation = Some(Violation { invariant, what });
        }
    }

    /// The full sweep of what is looked at now and then.
    pub(crate) fn sweep(&mut self) {
        self.check_answered();
        self.check_leaders();
        self.check_books();
        self.check_leaks();
        self.check_acknowledged();
        self.check_drains();
        self.check_rollouts();
        self.check_all_queues();
        for plane in 0..self.planes.len() {
            self.sweep_plane(plane);
        }
        self.check_bounds();
    }

    /// What must hold when everything has been quiet for long enough.
    pub(crate) fn check_rest(&mut self) {
        self.check_to_zero();
        self.check_min_and_max();
        self.check_reservations();
        self.check_bounded();
    }
}
