//! Operators who cordon, drain, take back and remove workers and data planes.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use dirigent_core::{
    Duty, Epoch, RequestId, Resources, SandboxId, Time, Whom,
    control::{Answer, Call, Event, Refusal},
    gate,
};

use crate::{
    agenda::{Host, What},
    plane::PlaneHost,
    plant::Plant,
    users::LARGEST_KEPT,
    world::World,
};

/// Nobody has more than so many sandboxes of `min`: a worker is drained for good only if the others
/// have room for twice as many.
const ENOUGH: u64 = 10;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Operators {
    requests: BTreeMap<RequestId, Asked>,
    /// Workers that are known to be cordoned or drained, and by which leader that was acknowledged.
    pub(crate) cordoned: BTreeMap<usize, Epoch>,
    /// Workers that are drained since the faults are over, and since when.
    pub(crate) drained: BTreeMap<usize, Time>,
    /// When the last term began.
    pub(crate) led_since: Time,
    /// The one that is left drained at the end.
    last: Option<Host>,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    control: usize,
    host: Host,
    duty: Option<Duty>,
}

fn whom(host: Host) -> Whom {
    let name: Arc<str> = format!("{host:?}").into();
    if matches!(host, Host::Worker(_)) { Whom::Worker(name) } else { Whom::DataPlane(name) }
}

impl World {
    /// An operator looks after workers and data planes.
    pub(crate) fn look_after_hosts(&mut self) {
        let pause = 500 + u64::from(self.random.draw() % 2500);
        self.after(Duration::from_millis(pause), What::Order);
        if self.faulty() {
            self.order_anything();
        } else if self.settled_since_healing(Duration::from_secs(6)) {
            self.order_what_stays();
        }
    }

    fn order_anything(&mut self) {
        let peers = self.peers();
        let Some(&host) = peers.get(self.random.below(peers.len())) else { return };
        let is_worker = matches!(host, Host::Worker(_));
        let alike = peers.iter().filter(|other| matches!(other, Host::Worker(_)) == is_worker);
        let (mut away, mut all) = (0, 0);
        for other in alike {
            all += 1;
            away += usize::from(self.recorded_duty(*other).is_some_and(|d| d != Duty::InUse));
        }
        let duty = match self.random.draw() % 9 {
            0..3 => Duty::InUse,
            3..5 => Duty::Cordoned,
            5..7 => Duty::Draining,
            _ => return self.remove(host),
        };
        // Most serve.
        let duty = if away * 2 >= all { Duty::InUse } else { duty };
        self.order_duty(host, duty);
    }

    /// Everybody serves again, but for one worker that is emptied while calls go on.
    fn order_what_stays(&mut self) {
        for host in self.peers() {
            let serves = self.recorded_duty(host).is_none_or(|duty| duty == Duty::InUse);
            if !serves && self.operators.last != Some(host) {
                return self.order_duty(host, Duty::InUse);
            }
        }
        let workers: Vec<Host> =
            self.peers().into_iter().filter(|host| self.is_here(host)).collect();
        let rest = u64::try_from(workers.len().saturating_sub(1)).unwrap_or(0);
        let room = self.workers.first().map_or(0, |w| {
            let Resources { cpu, memory } = LARGEST_KEPT;
            let memory = w.room.memory.0 / memory.0;
            memory.min(w.room.reservable() / u64::from(cpu.0)).min(u64::from(w.room.sandboxes))
        });
        if self.operators.last.is_none() && rest * room >= ENOUGH {
            self.operators.last = workers.get(self.random.below(workers.len())).copied();
        }
        if let Some(host) = self.operators.last
            && self.recorded_duty(host).is_some_and(|duty| duty != Duty::Draining)
        {
            self.order_duty(host, Duty::Draining);
        }
    }

    fn is_here(&self, host: &Host) -> bool {
        matches!(host, Host::Worker(_)) && !self.left.contains(host)
    }

    fn peers(&self) -> Vec<Host> {
        let planes = (0..self.planes.len()).map(Host::Plane);
        planes.chain((0..self.workers.len()).map(Host::Worker)).collect()
    }

    fn recorded_duty(&self, host: Host) -> Option<Duty> {
        self.store.state.duty_of(&whom(host))
    }

    fn order_duty(&mut self, host: Host, duty: Duty) {
        let heard = match duty {
            Duty::Draining if self.plant == Some(Plant::DrainAsCordon) => Duty::Cordoned,
            duty => duty,
        };
        self.ask_for(host, Some(duty), Call::Order { whom: whom(host), duty: heard });
    }

    fn remove(&mut self, host: Host) {
        // Who says that a machine is gone for good is right.
        let force = self.left.contains(&host);
        self.ask_for(host, None, Call::Remove { whom: whom(host), force });
    }

    fn ask_for(&mut self, host: Host, duty: Option<Duty>, call: Call) {
        let reads = |c: &usize| self.controls.get(*c).is_some_and(|host| host.paused <= self.now);
        let Some(control) = self.leader().filter(reads) else { return };
        if let Host::Worker(worker) = host
            && duty.is_none_or(|duty| duty == Duty::InUse)
        {
            // Whether it is applied or not.
            self.operators.cordoned.remove(&worker);
            self.operators.drained.remove(&worker);
        }
        let request = self.next_request();
        self.operators.requests.insert(request, Asked { control, host, duty });
        self.counts.postings += 1;
        self.tell_control(control, Event::Asked { request, call, wall_ms: 1 });
    }

    /// A leader answers an operator; whether it was one of these.
    pub(crate) fn operator_heard(
        &mut self,
        to: RequestId,
        result: &Result<Answer, Refusal>,
    ) -> bool {
        let Some(Asked { control, host, duty }) = self.operators.requests.remove(&to) else {
            return false;
        };
        let epoch = self.epoch_of(control).filter(|epoch| !self.users.is_deceived(*epoch));
        match (result, host, duty, epoch) {
            (Ok(Answer::Ordered { .. }), Host::Worker(worker), Some(duty), Some(epoch))
                if duty != Duty::InUse =>
            {
                self.operators.cordoned.insert(worker, epoch);
                if duty == Duty::Draining && !self.faulty() {
                    self.operators.drained.entry(worker).or_insert(self.now);
                }
            }
            (Ok(Answer::Removed { .. }), ..) => self.counts.removals += 1,
            _ => {}
        }
        true
    }

    /// The store was restored from an older copy: what was ordered since is lost, and known to be.
    pub(crate) fn forget_postings(&mut self) {
        self.operators.cordoned.clear();
        self.operators.drained.clear();
    }

    /// A control plane died: its askers hear nothing.
    pub(crate) fn forget_operators(&mut self, control: usize) {
        self.operators.requests.retain(|_, asked| asked.control != control);
    }

    /// A data plane hears what is wanted of it.
    pub(crate) fn plane_ordered(&mut self, plane: usize, duty: Duty) {
        let Some(p) = self.planes.get_mut(plane) else { return };
        let before = std::mem::replace(&mut p.duty, duty);
        let life = p.life;
        if duty == Duty::Draining && before != Duty::Draining {
            // The time of two checks of the load balancer.
            self.after(Duration::from_millis(500), What::Leaves { plane, life });
        }
    }

    /// A data plane that leaves: what it has begun ends, what it holds is given back, it ends.
    pub(crate) fn plane_leaves(&mut self, plane: usize, life: u64) {
        let host = Host::Plane(plane);
        let leaves = |p: &&PlaneHost| p.up && p.life == life && p.duty == Duty::Draining;
        let Some(p) = self.planes.get(plane).filter(leaves) else { return };
        if !p.calls.is_empty() || self.paused_until(host).is_some() {
            self.after(Duration::from_millis(100), What::Leaves { plane, life });
            return;
        }
        let held: Vec<_> = p
            .gates
            .iter()
            .flat_map(|(function, f)| f.gate.holdings().into_iter().map(|h| (*function, h.sandbox)))
            .collect();
        if held.is_empty() {
            self.counts.departures += 1;
            self.crash_plane(plane, false);
            self.after(Duration::from_secs(2), What::Restart { host });
            return;
        }
        for (function, sandbox) in held {
            self.give_up(plane, function, sandbox);
        }
        self.after(Duration::from_millis(100), What::Leaves { plane, life });
    }

    fn give_up(&mut self, plane: usize, function: dirigent_core::FunctionId, sandbox: SandboxId) {
        let event = gate::Event::SandboxRecalled { sandbox, gone: false };
        self.tell_gate(plane, function, event);
    }
}
