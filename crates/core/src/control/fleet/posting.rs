//! Workers that operators cordon, drain, take back and remove.

use std::{mem, sync::Arc};

use super::{
    Fleet, Output, TOKEN_BIT,
    waiting::Shape,
    worker::{Health, Worker},
};
use crate::{
    Duty, RequestId, Time, Whom, WorkerId, Write, WriteToken,
    control::{
        Answer, Outcome, REWRITE, Refusal,
        posting::{Settled, To},
    },
};

impl Fleet {
    /// What operators want of a worker; answered when it is durable.
    pub(crate) fn order(&mut self, now: Time, asker: RequestId, name: &Arc<str>, duty: Duty) {
        self.now = now;
        match self.begin(asker, name, To::Duty(duty)) {
            Err(refusal) => self.reply(asker, Err(refusal)),
            Ok(None) => self.reply(asker, Ok(ordered(name, duty, false))),
            Ok(Some(id)) => {
                self.record(id);
                self.touched(id);
                self.pump(now);
            }
        }
    }

    /// A worker is gone for good; answered when that is durable. Until then it gets nothing new.
    pub(crate) fn remove(&mut self, now: Time, asker: RequestId, name: &Arc<str>, force: bool) {
        self.now = now;
        let worker = self.names.get(name).and_then(|id| self.workers.get(id));
        let obstacle = worker.and_then(|worker| worker.why_kept(force));
        let begun = match obstacle {
            Some(message) => Err(Refusal::InUse { message }),
            None => self.begin(asker, name, To::Removed),
        };
        match begun {
            Err(refusal) => self.reply(asker, Err(refusal)),
            Ok(None) => {}
            Ok(Some(id)) => {
                self.record(id);
                self.touched(id);
            }
        }
    }

    /// The worker whose change is to be written; nothing if it is as it should be.
    fn begin(
        &mut self,
        asker: RequestId,
        name: &Arc<str>,
        to: To,
    ) -> Result<Option<WorkerId>, Refusal> {
        let worker = self.names.get(name).and_then(|id| self.workers.get_mut(id));
        let unknown = || Refusal::NoPeer { whom: Whom::Worker(Arc::clone(name)) };
        let worker = worker.ok_or_else(unknown)?;
        Ok(worker.posting.begin(asker, to)?.then_some(worker.record.id))
    }

    fn reply(&mut self, to: RequestId, result: Result<Answer, Refusal>) {
        self.outputs.push_back(Output::Reply { to, result });
    }

    /// Writes a worker's record as it is wanted now; later, if a change of it is on its way.
    pub(super) fn record(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get(&id) else { return };
        if worker.posting.is_on_its_way() {
            return self.write_again(id);
        }
        let write = match worker.posting.wanted() {
            Some(duty) => Write::PutWorker(worker.record.on(duty)),
            // Its number must not be given again, also not by the next leader.
            None if id.0 == self.last_worker => {
                let mut tombstone = worker.record.on(Duty::Draining);
                tombstone.removed = true;
                Write::PutWorker(tombstone)
            }
            None => Write::DeleteWorker(id),
        };
        let token = self.persist(write);
        self.writes.insert(token, id);
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.posting.written_by(token);
        }
    }

    /// Has something written; the store's answer says no more.
    pub(super) fn persist(&mut self, write: Write) -> WriteToken {
        self.tokens += 1;
        let token = WriteToken(TOKEN_BIT | self.tokens);
        self.outputs.push_back(Output::Persist { token, write });
        token
    }

    /// The store answered; whether the write was the fleet's. A record says what is wanted, so that
    /// writing it again settles every doubt.
    pub(crate) fn persisted(&mut self, now: Time, token: WriteToken, outcome: Outcome) -> bool {
        self.now = now;
        if token.0 & TOKEN_BIT == 0 {
            return false;
        }
        let Some(id) = self.writes.remove(&token) else { return true };
        let Some(worker) = self.workers.get_mut(&id) else { return true };
        match worker.posting.written(token, outcome) {
            Settled::Done { to, asker } => self.ordered(now, id, to, asker),
            Settled::Refused { asker } => {
                if let Some(asker) = asker {
                    self.reply(asker, Err(Refusal::StoreUnavailable));
                }
                self.touched(id);
                self.pump(now);
            }
            Settled::Again { asker } => {
                if let Some(asker) = asker {
                    self.reply(asker, Err(Refusal::InDoubt));
                }
                self.write_again(id);
            }
            Settled::Nothing if !matches!(outcome, Outcome::Ok { .. }) => {
                self.write_again(id);
            }
            Settled::Nothing => {}
        }
        true
    }

    fn write_again(&mut self, id: WorkerId) {
        let at = self.now.after(REWRITE);
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.rewrite = Some(at);
        }
        self.rearm(id);
    }

    /// What operators want of a worker is durable.
    fn ordered(&mut self, now: Time, id: WorkerId, to: To, asker: Option<RequestId>) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let name = Arc::clone(&worker.record.name);
        let answer = match to {
            To::Duty(duty) => {
                let sandboxes = worker.sandboxes.iter().copied().collect();
                let leaving = duty == Duty::Draining;
                self.outputs.push_back(Output::Leaving { sandboxes, leaving });
                self.touched(id);
                self.pump(now);
                ordered(&name, duty, true)
            }
            To::Removed => {
                self.strike(now, id);
                Answer::Removed { whom: Whom::Worker(name) }
            }
        };
        if let Some(asker) = asker {
            self.reply(asker, Ok(answer));
        }
    }

    /// Forgets a worker.
    fn strike(&mut self, now: Time, id: WorkerId) {
        let Some(mut worker) = self.workers.swap_remove(&id) else { return };
        self.names.remove(&worker.record.name);
        if id.0 == self.last_worker {
            self.tombstones.push(id);
        }
        self.awaited.remove(&id);
        self.storm.returned(id);
        let health = mem::replace(&mut worker.health, Health::Lost);
        if matches!(health, Health::Live | Health::Suspect) {
            self.present = self.present.saturating_sub(1);
        }
        if let Some(at) = worker.timer {
            self.timers.remove(&(at, id));
        }
        if let Some(stream) = worker.stream.take() {
            self.connections.swap_remove(&stream);
            let reason = format!("worker {} was removed", worker.record.name);
            self.outputs.push_back(Output::Close { stream, reason });
        }
        self.pools.update(&mut worker);
        for digest in &worker.artifacts {
            self.pools.hold(id, *digest, false);
        }
        self.changed.remove(&id);
        self.earmarked.remove(&id);
        let shapes: Vec<Shape> = self.waiting.groups.keys().copied().collect();
        for shape in shapes {
            self.refresh(&shape, None);
        }
        self.outputs.push_back(Output::Removed { worker: id, sandboxes: worker.sandboxes });
        self.weather(now);
        self.pump(now);
    }

    /// Whether a worker is being drained.
    pub(crate) fn is_drained(&self, worker: WorkerId) -> bool {
        self.workers.get(&worker).is_some_and(|worker| worker.posting.duty() == Duty::Draining)
    }
}

fn ordered(name: &Arc<str>, duty: Duty, changed: bool) -> Answer {
    Answer::Ordered { whom: Whom::Worker(Arc::clone(name)), duty, changed }
}

impl Worker {
    /// Why its record is not forgotten.
    fn why_kept(&self, force: bool) -> Option<String> {
        let (name, sandboxes) = (&self.record.name, self.sandboxes.len());
        let many =
            if sandboxes == 1 { "a sandbox".to_owned() } else { format!("{sandboxes} sandboxes") };
        let was_emptied = sandboxes == 0 && self.posting.duty() == Duty::Draining;
        if was_emptied && self.health != Health::Joining {
            return None;
        }
        if self.stream.is_some() {
            return Some(if sandboxes > 0 {
                format!("worker {name} has {many}: `dirigent drain {name}` first")
            } else {
                format!("worker {name} is in use: `dirigent drain {name}` first")
            });
        }
        if self.health != Health::Lost {
            return Some(format!(
                "worker {name} does not answer, and may be back in a moment: try again in 3 s"
            ));
        }
        (!force).then(|| {
            format!(
                "worker {name} is lost, and was not drained: calls may still run there; if its \
                 machine is gone for good, say so with --force"
            )
        })
    }
}
