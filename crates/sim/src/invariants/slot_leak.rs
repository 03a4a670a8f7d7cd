//! A slot that the leader believes to be held, and that its attached holder does not hold, is free
//! again within `timeout` (6 s, as the users' settings say) and 5 s.

use std::{collections::BTreeMap, time::Duration};

use crate::{agenda::Host, world::World};

pub(super) const NAME: &str = "slot_leak";

const LONGEST: Duration = Duration::from_secs(11);

impl World {
    pub(super) fn check_leaks(&mut self) {
        let Some(leader) = self.leader() else { return };
        let now = self.now;
        let booked = self.controls.get(leader).and_then(|c| c.leads.as_ref()).map(|m| m.booked());
        let before = std::mem::take(&mut self.witness.leaking);
        let mut leaking = BTreeMap::new();
        let mut seen = false;
        for entry in booked.into_iter().flatten() {
            for &(id, _) in &entry.holders {
                let Some(plane) = self.plane_of(leader, id) else { continue };
                let hears = self.net.joined(Host::Plane(plane), Host::Control(leader));
                let awake = [Host::Plane(plane), Host::Control(leader)].iter().all(|host| {
                    self.paused_until(*host).is_none() && !self.net.reads_slowly(*host)
                });
                let attached = self.planes.get(plane).is_some_and(|p| p.up && p.attached);
                if !hears || !awake || !attached {
                    continue;
                }
                seen = true;
                let gates = self.planes.get(plane).into_iter().flat_map(|p| p.gates.values());
                let mut held = gates.flat_map(|f| f.gate.holdings());
                if !held.any(|h| h.sandbox == entry.sandbox) {
                    let key = (entry.sandbox, id);
                    leaking.insert(key, before.get(&key).copied().unwrap_or(now));
                }
            }
        }
        let old = leaking.iter().find(|(_, since)| now.since(**since) > LONGEST);
        let old = old.map(|(key, since)| format!("{key:?} since {since}"));
        self.witness.leaking = leaking;
        if seen {
            self.hold(NAME, old.is_none(), |_| format!("held by nobody: {old:?}"));
        }
    }
}
