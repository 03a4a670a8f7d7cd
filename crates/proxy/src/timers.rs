//! When gates want to be called: an ordered set and one task.
//!
//! A gate is entered only when its deadline gets earlier; when it got later meanwhile, the call
//! comes too early, does no harm and enters the new one. So warm invocations never come here.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, Weak},
};

use tokio::sync::Notify;

use crate::{
    Shared,
    slot::{FunctionSlot, lock},
};

/// An entry: when, and a number that makes it unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Alarm {
    pub(crate) at: u64,
    number: u64,
}

#[derive(Debug, Default)]
struct Due {
    alarms: BTreeMap<Alarm, Weak<FunctionSlot>>,
    last: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    due: Mutex<Due>,
    earlier: Notify,
}

impl Timers {
    /// Enters an earlier deadline in place of the one before.
    pub(crate) fn arm(
        &self,
        before: Option<Alarm>,
        deadline: u64,
        slot: &Arc<FunctionSlot>,
    ) -> Alarm {
        let mut due = lock(&self.due);
        if let Some(before) = before {
            due.alarms.remove(&before);
        }
        let is_first = due.alarms.first_key_value().is_none_or(|(first, _)| deadline < first.at);
        due.last += 1;
        let alarm = Alarm { at: deadline, number: due.last };
        due.alarms.insert(alarm, Arc::downgrade(slot));
        drop(due);
        if is_first {
            self.earlier.notify_one();
        }
        alarm
    }

    fn take_due(&self, now: u64) -> Result<(Alarm, Weak<FunctionSlot>), Option<u64>> {
        let mut due = lock(&self.due);
        match due.alarms.first_entry() {
            Some(first) if first.key().at <= now => Ok(first.remove_entry()),
            Some(first) => Err(Some(first.key().at)),
            None => Err(None),
        }
    }

    /// Calls gates until dropped.
    pub(crate) async fn run(shared: Arc<Shared>) {
        loop {
            match shared.timers.take_due(shared.now().0) {
                Ok((alarm, slot)) => {
                    if let Some(slot) = slot.upgrade() {
                        slot.expire(&shared, alarm);
                    }
                }
                Err(next) => {
                    let earlier = shared.timers.earlier.notified();
                    match next {
                        Some(at) => {
                            let at = shared.clock.instant(at);
                            // Either way the set is looked at again.
                            drop(tokio::time::timeout_at(at, earlier).await);
                        }
                        None => earlier.await,
                    }
                }
            }
        }
    }
}
