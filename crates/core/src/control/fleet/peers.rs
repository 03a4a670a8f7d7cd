//! Workers that come, are heard, fall silent and return.

use std::{collections::BTreeSet, mem, sync::Arc, time::Duration};

use super::{
    Booking, Fleet, Output,
    worker::{Health, QUARANTINE_FIRST, Worker},
};
use crate::{
    SandboxId, StreamId, Time, WorkerId, WorkerRecord, Write,
    frame::{Load, PROTOCOL, SandboxReport, TAKEN, ToWorker, Welcome, WorkerHello},
};

/// Silence after which nothing more is placed on a worker (design, section 4: reachability): two
/// beats of 400 ms may be missed.
const SUSPECT_AFTER: Duration = Duration::from_secs(1);
/// Silence after which its capacity leaves the books; the same for a stream that stays broken.
const LOST_AFTER: Duration = Duration::from_secs(3);
/// A stream without `Hello` for this long is closed. Ours: long enough for any honest peer.
const GREETING: Duration = Duration::from_secs(10);
/// A deadline that is looked at so much later than it was due tells of a stall of this leader, not
/// of a worker: what workers said meanwhile lies unread, and their silence proves nothing. Ours:
/// above any delay of a healthy host, below a missed beat or two.
const STALL: Duration = Duration::from_millis(500);
/// Timers looked at in one call.
const TIMERS_AT_ONCE: usize = 512;

/// A stream of a worker.
#[derive(Debug)]
pub(super) struct Connection {
    name: Arc<str>,
    /// Known from its `Hello` on.
    worker: Option<WorkerId>,
}

impl Fleet {
    /// A worker's stream is open; its `Hello` follows.
    pub(crate) fn attached(&mut self, now: Time, stream: StreamId, name: Arc<str>) {
        self.now = now;
        self.connections.insert(stream, Connection { name, worker: None });
        self.greetings.push_back((now.after(GREETING), stream));
    }

    /// A worker says who it is and what it has.
    pub(crate) fn hello(&mut self, now: Time, stream: StreamId, hello: WorkerHello) {
        self.now = now;
        let Some(connection) = self.connections.get(&stream) else { return };
        let name = connection.name.clone();
        let acceptable = self.acceptable(stream, &name, &hello);
        let acceptable = acceptable.and_then(|()| self.is_free(stream, &name, &hello));
        if let Err(reason) = acceptable {
            self.connections.swap_remove(&stream);
            self.outputs.push_back(Output::Close { stream, reason });
            return;
        }
        let is_stranger = !self.names.contains_key(&name);
        let id = self.numbered(now, name);
        if let Some(connection) = self.connections.get_mut(&stream) {
            connection.worker = Some(id);
        }
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if let Some(old) = worker.stream.replace(stream) {
            self.connections.swap_remove(&old);
            let reason = format!("worker {} attached anew", worker.record.name);
            self.outputs.push_back(Output::Close { stream: old, reason });
        }
        if worker.incarnation != hello.hello.incarnation {
            // A new life starts with a clean slate.
            worker.failures = 0;
            worker.backoff = QUARANTINE_FIRST;
            worker.quarantine = None;
        }
        worker.refused = None;
        worker.fetching.clear();
        worker.incarnation = hello.hello.incarnation;
        worker.heard = now;
        worker.capacity = Some(hello.capacity);
        let health = mem::replace(&mut worker.health, Health::Live);
        let artifacts = mem::replace(&mut worker.artifacts, hello.artifacts.into_iter().collect());
        for digest in &artifacts {
            self.pools.hold(id, *digest, false);
        }
        for digest in &worker.artifacts {
            self.pools.hold(id, *digest, true);
        }
        if matches!(health, Health::Joining | Health::Lost) {
            self.present += 1;
        }
        self.awaited.remove(&id);
        self.storm.returned(id);
        let welcome = Welcome { cluster: self.office.cluster, epoch: self.office.epoch };
        let frame = ToWorker::Welcome { welcome, you: id };
        self.outputs.push_back(Output::Send { stream, frame });
        let mut missing: BTreeSet<SandboxId> = self.on(id).collect();
        for report in &hello.sandboxes {
            missing.remove(&report.sandbox);
        }
        self.adopt(id, stream, &hello.sandboxes);
        let sandboxes = hello.sandboxes;
        self.outputs.push_back(Output::Joined { worker: id, sandboxes, missing, is_stranger });
        self.rearm(id);
        self.touched(id);
        self.weather(now);
        self.pump(now);
    }

    /// Why a `Hello` is not accepted.
    fn acceptable(
        &self,
        stream: StreamId,
        name: &Arc<str>,
        hello: &WorkerHello,
    ) -> Result<(), String> {
        let common = &hello.hello;
        let (oldest, newest) = common.protocol;
        if !(oldest..=newest).contains(&PROTOCOL) {
            return Err(format!(
                "worker {name} speaks protocol {oldest} to {newest}, this control plane {PROTOCOL}"
            ));
        }
        if common.cluster.is_some_and(|cluster| cluster != self.office.cluster) {
            return Err(format!(
                "worker {name} belongs to another cluster; to move it, empty its state directory"
            ));
        }
        if self.office.epoch.is_over_by(common.highest_epoch) {
            return Err(format!("worker {name} has obeyed a newer leader"));
        }
        let worker = self.names.get(name).and_then(|id| self.workers.get(id));
        if worker.is_some_and(|worker| worker.posting.wanted().is_none()) {
            return Err(format!("worker {name} is being removed"));
        }
        let Some(worker) = worker.filter(|worker| worker.stream.is_some()) else { return Ok(()) };
        let (old, new) = (&worker.incarnation, &common.incarnation);
        if worker.stream == Some(stream) {
            return Err(format!("worker {name} said hello twice"));
        }
        if old.boot == new.boot && new.start < old.start {
            return Err(format!("a newer incarnation of worker {name} is attached"));
        }
        Ok(())
    }

    /// Whether nobody else has the name, or who had it has ended. What proves that is the end of its
    /// stream, or as long a silence as loses a worker: a life that is heard is not driven out by another.
    fn is_free(
        &mut self,
        stream: StreamId,
        name: &Arc<str>,
        hello: &WorkerHello,
    ) -> Result<(), String> {
        let WorkerHello { hello, .. } = hello;
        let worker = self.names.get(name).and_then(|id| self.workers.get(id));
        let Some(worker) = worker.filter(|worker| worker.stream.is_some()) else { return Ok(()) };
        let lives = worker.heard.after(LOST_AFTER) > self.now;
        if worker.incarnation == hello.incarnation || !lives {
            return Ok(());
        }
        if hello.has(TAKEN) {
            self.outputs.push_back(Output::Send { stream, frame: ToWorker::Taken });
        }
        Err(format!("another worker {name} is attached, and was heard just now"))
    }

    /// The worker of this name; a new one is numbered and recorded.
    fn numbered(&mut self, now: Time, name: Arc<str>) -> WorkerId {
        if let Some(id) = self.names.get(&name) {
            return *id;
        }
        self.last_worker += 1;
        let id = WorkerId(self.last_worker);
        self.names.insert(name.clone(), id);
        self.workers.insert(id, Worker::new(now, WorkerRecord::new(id, name)));
        self.record(id);
        for tombstone in mem::take(&mut self.tombstones) {
            // The newer one's record keeps its number from being given again.
            self.persist(Write::DeleteWorker(tombstone));
        }
        id
    }

    /// Books what a worker reports, and repeats what it may not have heard.
    fn adopt(&mut self, id: WorkerId, stream: StreamId, reports: &[SandboxReport]) {
        for report in reports {
            let sandbox = report.sandbox;
            let booked = |known: &Booking| known.worker == id && !known.gone;
            if !self.sandboxes.get(&sandbox).is_some_and(booked) {
                self.forget_waiting(sandbox);
                self.unbook(sandbox);
                self.forget(sandbox);
                self.book(
                    sandbox,
                    Booking {
                        worker: id,
                        function: report.revision.function,
                        memory: report.memory.0,
                        cpu: report.cpu.0,
                        starting: report.address.is_none() && !report.stopping,
                        gone: false,
                    },
                );
                continue;
            }
            let Some(known) = self.sandboxes.get_mut(&sandbox) else { continue };
            if let Some(&grace) = self.stops.get(&sandbox).filter(|_| !report.stopping) {
                let frame = ToWorker::StopSandbox { sandbox, grace };
                self.outputs.push_back(Output::Send { stream, frame });
            }
            if report.address.is_some()
                && mem::replace(&mut known.starting, false)
                && let Some(worker) = self.workers.get_mut(&id)
            {
                worker.used.starting = worker.used.starting.saturating_sub(1);
            }
        }
        let Some(worker) = self.workers.get_mut(&id) else { return };
        for sandbox in mem::take(&mut worker.releases) {
            let frame = ToWorker::ReleaseAddress { sandbox };
            self.outputs.push_back(Output::Send { stream, frame });
        }
    }

    /// A stream broke; whether it was a worker's.
    pub(crate) fn detached(&mut self, now: Time, stream: StreamId) -> bool {
        self.now = now;
        let Some(connection) = self.connections.swap_remove(&stream) else { return false };
        let Some(id) = connection.worker else { return true };
        if let Some(worker) = self.workers.get_mut(&id)
            && worker.stream == Some(stream)
        {
            worker.stream = None;
            if worker.health == Health::Live {
                worker.health = Health::Suspect;
                worker.since = now;
            }
            self.rearm(id);
            self.touched(id);
            self.pump(now);
        }
        true
    }

    /// A worker says how it is.
    pub(crate) fn beat(&mut self, now: Time, stream: StreamId, load: Load) {
        if let Some(id) = self.worker_of(stream)
            && let Some(worker) = self.workers.get_mut(&id)
        {
            worker.load = load;
        }
        self.heard(now, stream);
    }

    /// A worker said something, and which: it lives.
    pub(crate) fn heard(&mut self, now: Time, stream: StreamId) -> Option<WorkerId> {
        self.now = now;
        let id = self.worker_of(stream)?;
        let worker = self.workers.get_mut(&id)?;
        worker.heard = now;
        // The timer stays where it is: it finds the beat when it is due.
        if worker.health == Health::Suspect {
            worker.health = Health::Live;
            self.rearm(id);
            self.touched(id);
            self.pump(now);
        }
        Some(id)
    }

    /// Whether a worker has to attach anew before anything is known of it.
    pub(crate) fn is_away(&self, worker: WorkerId) -> bool {
        self.workers.get(&worker).is_some_and(|worker| worker.stream.is_none())
    }

    /// The worker that said `Hello` on a stream.
    pub(crate) fn worker_of(&self, stream: StreamId) -> Option<WorkerId> {
        self.connections.get(&stream)?.worker
    }

    pub(super) fn expire_greetings(&mut self, now: Time) {
        while let Some((_, stream)) = self.greetings.pop_front_if(|(at, _)| *at <= now) {
            if self.connections.get(&stream).is_some_and(|connection| connection.worker.is_none()) {
                self.connections.swap_remove(&stream);
                let reason = format!("no hello within {GREETING:?}");
                self.outputs.push_back(Output::Close { stream, reason });
            }
        }
    }

    pub(super) fn expire_workers(&mut self, now: Time) {
        let stalled = self.timers.first().is_some_and(|(at, _)| at.after(STALL) <= now);
        for _ in 0..TIMERS_AT_ONCE {
            let Some(&(at, id)) = self.timers.first() else { return };
            if at > now {
                return;
            }
            self.timers.pop_first();
            if let Some(worker) = self.workers.get_mut(&id) {
                worker.timer = None;
            }
            self.expire_worker(now, id, stalled);
            self.rearm(id);
        }
    }

    fn expire_worker(&mut self, now: Time, id: WorkerId, stalled: bool) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if stalled {
            worker.heard = now;
            worker.since = now;
        }
        let passed = |at: &mut Option<Time>| at.take_if(|at| *at <= now).is_some();
        let freed = passed(&mut worker.quarantine) | passed(&mut worker.refused);
        let rewrite = passed(&mut worker.rewrite);
        if worker.health == Health::Live && worker.heard.after(SUSPECT_AFTER) <= now {
            worker.health = Health::Suspect;
            worker.since = worker.heard;
        }
        let silent = worker.since.after(LOST_AFTER) <= now;
        let lost = silent && matches!(worker.health, Health::Joining | Health::Suspect);
        let look = freed || worker.health != Health::Live || worker.earmarks > 0;
        if rewrite {
            self.record(id);
        }
        if lost {
            self.lose(now, id);
        }
        if look {
            self.touched(id);
        }
    }

    fn lose(&mut self, now: Time, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if mem::replace(&mut worker.health, Health::Lost) == Health::Joining {
            // Never seen by this leader: there is nothing to take back.
            return;
        }
        // Should it be heard again, it must say anew what it has.
        if let Some(stream) = worker.stream.take() {
            self.connections.swap_remove(&stream);
            let reason = format!("worker {} was silent for {LOST_AFTER:?}", worker.record.name);
            self.outputs.push_back(Output::Close { stream, reason });
        }
        self.present = self.present.saturating_sub(1);
        self.storm.lost(now, id);
        let sandboxes = worker.sandboxes.iter().copied().collect();
        self.outputs.push_back(Output::Lost { worker: id, sandboxes });
    }

    /// Moves a worker's timer forward if something is due earlier; a timer that is early looks
    /// again by itself.
    pub(super) fn rearm(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let Some(due) = worker.due(SUSPECT_AFTER, LOST_AFTER) else { return };
        match worker.timer {
            Some(armed) if armed <= due => return,
            Some(armed) => {
                self.timers.remove(&(armed, id));
            }
            None => {}
        }
        worker.timer = Some(due);
        self.timers.insert((due, id));
    }
}
