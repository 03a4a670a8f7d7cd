//! A slot that the leader believes to be held, and that nobody uses, is free again in time.
//!
//! A holder that is attached and does not hold it: within `timeout` and 5 s.
//!
//! A holder that is silent (it died, left for good, or is cut off) may still have a handler there: its
//! slot comes free when the worker has made sure, `timeout` after its stream broke, and 5 s for that. If
//! others hold slots of the sandbox too, it is called back from them first, which may take a call and
//! a drain more. Counted is from when the leader could act: it is recovered, it hears the worker or
//! takes it for lost, the other holders hear it; and from the last of them that fell silent.
//!
//! Of a function that was deleted while its worker was away nothing is known: the default `timeout` counts.
//!
//! Who has not attached to this leader at all is given a stable window to do so.

use std::{collections::BTreeMap, time::Duration};

use dirigent_core::{
    DataPlaneId, Epoch, SandboxId, Settings, StreamId, Time,
    control::{Booked, Control},
};

use crate::{agenda::Host, world::World};

pub(super) const NAME: &str = "slot_leak";

/// As the users' settings say.
const TIMEOUT: Duration = Duration::from_secs(6);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);
/// Beyond it, for whoever has to be asked.
const MORE: Duration = Duration::from_secs(5);
const LONGEST: Duration = TIMEOUT.saturating_add(MORE);
/// With a call and a drain of those who use the same sandbox before it.
const LONGEST_SHARED: Duration = LONGEST.saturating_add(TIMEOUT).saturating_add(DRAIN_TIMEOUT);
/// A leader recalls nothing before it is recovered, and looks again after as long.
const RECOVERED: Duration = Duration::from_secs(2 * 3);
/// For those who have not attached yet; `timeout` is part of it.
const STABLE_WINDOW: Duration = Duration::from_secs(60);

/// A sandbox of which the slots of a silent data plane are in the books.
#[derive(Debug)]
pub(super) struct Silent {
    since: Time,
    /// Others who are attached held slots of it meanwhile.
    shared: bool,
    /// Its function is in no record.
    unknown: bool,
    state: State,
}

/// What it depends on how long that may last. When it changes, the time begins anew.
#[derive(Debug, PartialEq, Eq)]
struct State {
    leader: Epoch,
    lost: bool,
    worker: Option<StreamId>,
    silent: Vec<DataPlaneId>,
    unsure: bool,
}

impl World {
    pub(super) fn check_leaks(&mut self) {
        let Some(leader) = self.leader() else { return };
        let Some(machine) = self.controls.get(leader).and_then(|c| c.leads.as_ref()) else {
            return;
        };
        let booked = machine.booked();
        let silent = self.held_by_silent(leader, machine, &booked);
        self.check_attached(leader, booked);
        let most = |one: &Silent| match (one.unknown, one.shared) {
            (false, false) => LONGEST,
            (false, true) => LONGEST_SHARED,
            (true, _) => Settings::default().timeout + MORE,
        };
        let now = self.now;
        let old = silent.iter().find(|(_, one)| now.since(one.since) > most(one));
        let old = old.map(|(sandbox, one)| format!("{sandbox}: {one:?}"));
        self.counts.silences += silent.len() as u64;
        let seen = !silent.is_empty();
        self.witness.silent = silent;
        if seen {
            self.hold(NAME, old.is_none(), |world| {
                let machine = world.controls.get(leader).and_then(|c| c.leads.as_ref());
                format!("held by the silent: {old:?}; {:?}", machine.map(Control::booked))
            });
        }
    }

    /// Those who are attached hold what the leader believes that they hold.
    fn check_attached(&mut self, leader: usize, booked: Vec<Booked>) {
        let now = self.now;
        let before = std::mem::take(&mut self.witness.leaking);
        let mut leaking = BTreeMap::new();
        let mut seen = false;
        for entry in booked {
            for &(id, _) in &entry.holders {
                let Some(plane) = self.plane_of(leader, id) else { continue };
                let attached = self.planes.get(plane).is_some_and(|p| p.up && p.attached);
                if !attached || !self.talks(Host::Plane(plane), leader) {
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

    /// Sandboxes of which silent data planes hold slots, and since when somebody could have made sure.
    fn held_by_silent(
        &self,
        leader: usize,
        machine: &Control,
        booked: &[Booked],
    ) -> BTreeMap<SandboxId, Silent> {
        let now = self.now;
        let mut all = BTreeMap::new();
        let recovered = now >= self.operators.led_since.after(RECOVERED);
        if !recovered || !self.talks(Host::Control(leader), leader) {
            return all;
        }
        let workers = machine.workers();
        for entry in booked {
            let attached = |id: &DataPlaneId| machine.is_attached(*id);
            let (others, silent): (Vec<_>, Vec<_>) =
                entry.holders.iter().map(|(id, _)| *id).partition(attached);
            let name = workers.iter().find(|w| Some(w.id) == entry.worker).map(|w| &w.name);
            let worker = name.and_then(|name| self.worker_named(name));
            let stream = worker.and_then(|w| self.stream_of(Host::Worker(w)));
            let acts = entry.lost
                || worker.is_some_and(|w| {
                    self.attached_at(Host::Worker(w)) == Some(leader)
                        && self.talks(Host::Worker(w), leader)
                });
            let heard = others.iter().all(|id| {
                let plane = self.plane_of(leader, *id).map(Host::Plane);
                plane.is_some_and(|plane| {
                    self.attached_at(plane) == Some(leader) && self.talks(plane, leader)
                })
            });
            // What is on a worker that is not heard stays with who may use it.
            let stays = entry.lost && !others.is_empty();
            if (silent.is_empty() && !entry.unsure) || !acts || !heard || stays {
                continue;
            }
            let (leader, lost, unsure) = (machine.epoch(), entry.lost, entry.unsure);
            let state = State { leader, lost, worker: stream, silent, unsure };
            let before = self.witness.silent.get(&entry.sandbox).filter(|b| b.state == state);
            let doubted = self.operators.led_since.after(STABLE_WINDOW.saturating_sub(TIMEOUT));
            let since = before.map_or(now, |before| before.since);
            let since = if unsure { since.max(doubted.min(now)) } else { since };
            let shared = !others.is_empty() || before.is_some_and(|before| before.shared);
            let unknown = !self.store.state.functions.contains_key(&entry.revision.function);
            // By default a drain takes longer than a run.
            if !(unknown && shared) {
                all.insert(entry.sandbox, Silent { since, shared, unknown, state });
            }
        }
        all
    }

    /// Whether a host and a control plane hear each other, and neither stands still nor reads slowly.
    fn talks(&self, host: Host, control: usize) -> bool {
        let control = Host::Control(control);
        let awake = |host| self.paused_until(host).is_none() && !self.net.reads_slowly(host);
        self.net.joined(host, control) && awake(host) && awake(control)
    }

    /// The control plane at the other end of a host's stream.
    fn attached_at(&self, host: Host) -> Option<usize> {
        let stream = self.net.streams.get(&self.stream_of(host)?)?;
        (stream.control_open && stream.peer_open).then_some(stream.control)
    }
}
