//! The simulated store: linearizable, one office, writes that compare the epoch.
//!
//! It can be slow, refuse, or commit and lose the acknowledgement.

use std::collections::BTreeMap;

use dirigent_core::{
    DataPlaneId, DataPlaneRecord, Epoch, FunctionId, FunctionRecord, Records, RevisionId, Time,
    WorkerId, WorkerRecord, Write, control::Outcome, office::Seat,
};
use std::{sync::Arc, time::Duration};

use crate::{
    agenda::{Host, StoreAnswer, StoreAsk, What},
    plant::Plant,
    world::World,
};

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Store {
    pub(crate) seat: Seat,
    revision: u64,
    pub(crate) functions: BTreeMap<FunctionId, Arc<FunctionRecord>>,
    workers: BTreeMap<WorkerId, WorkerRecord>,
    data_planes: BTreeMap<DataPlaneId, DataPlaneRecord>,
    /// How the next writes go.
    pub(crate) mood: Mood,
    /// The last terms, oldest first.
    terms: Vec<Epoch>,
    /// An older copy.
    copy: Option<Box<Self>>,
}

/// What is wrong with the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mood {
    #[default]
    Well,
    Slow,
    Refusing,
    /// Commits, and says that it does not know.
    Mumbling,
}

impl Store {
    pub(crate) fn records(&self) -> Records {
        Records {
            functions: self.functions.values().cloned().collect(),
            workers: self.workers.values().cloned().collect(),
            data_planes: self.data_planes.values().cloned().collect(),
            terms: self.terms.clone(),
        }
    }

    /// Whether it has a revision, or a later one of the same function.
    pub(crate) fn has(&self, revision: RevisionId) -> bool {
        let record = self.functions.get(&revision.function);
        let newest = record.and_then(|r| r.revisions.iter().map(|r| r.number).max());
        newest.is_some_and(|newest| newest >= revision.number)
    }

    /// Keeps a copy of itself.
    pub(crate) fn copy(&mut self) {
        self.copy = None;
        self.copy = Some(Box::new(self.clone()));
    }

    /// Becomes the copy again, if there is one that differs.
    fn restore(&mut self) -> bool {
        let Some(copy) = self.copy.take_if(|copy| copy.revision < self.revision) else {
            return false;
        };
        *self = Self { mood: self.mood, ..*copy };
        true
    }

    pub(crate) fn knows(&self, data_plane: &str) -> bool {
        self.data_planes.values().any(|record| *record.name == *data_plane)
    }

    fn apply(&mut self, write: Write) -> u64 {
        self.revision += 1;
        match write {
            Write::PutFunction(record) => {
                self.functions.insert(record.id, record);
            }
            Write::DeleteFunction(id) => {
                self.functions.remove(&id);
            }
            Write::PutWorker(record) => {
                self.workers.insert(record.id, record);
            }
            Write::DeleteWorker(id) => {
                self.workers.remove(&id);
            }
            Write::PutDataPlane(record) => {
                self.data_planes.insert(record.id, record);
            }
            Write::DeleteDataPlane(id) => {
                self.data_planes.remove(&id);
            }
        }
        self.revision
    }
}

impl World {
    /// A control plane asks the store. Questions of one leader keep their order.
    pub(crate) fn ask_store(&mut self, control: usize, epoch: Epoch, ask: StoreAsk) {
        let host = Host::Control(control);
        let delay = self.delay(host, Host::Store);
        let slow = match self.store.mood {
            Mood::Slow => Duration::from_millis(u64::from(self.random.draw() % 800)),
            Mood::Well | Mood::Refusing | Mood::Mumbling => Duration::ZERO,
        };
        let Some(c) = self.controls.get_mut(control) else { return };
        let at = self.now.after(delay + slow).max(Time(c.last_ask.0 + 1));
        c.last_ask = at;
        let life = c.life;
        self.agenda.put(at, What::Ask { from: control, life, epoch, ask });
    }

    /// The store hears a question.
    pub(crate) fn store_hears(&mut self, from: usize, life: u64, epoch: Epoch, ask: StoreAsk) {
        let host = Host::Control(from);
        if self.net.is_cut(host, Host::Store) {
            // It never arrives; the writer gives up and does not know.
            if let StoreAsk::Write(token, _) = ask {
                let answer = StoreAnswer::Wrote(token, Outcome::Unknown);
                self.after(Duration::from_secs(1), What::Answer { to: from, life, epoch, answer });
            }
            return;
        }
        let current = self.store.seat.epoch == epoch;
        let blind = self.plant == Some(Plant::OldEpochObeyed);
        let mut answer = match ask {
            StoreAsk::Write(..) | StoreAsk::Beat
                if !current && !blind && self.plant != Some(Plant::WriteAfterDeposition) =>
            {
                StoreAnswer::Deposed
            }
            // So that it leads on: nobody is told that it is over.
            StoreAsk::Write(token, _) if !current && blind => {
                StoreAnswer::Wrote(token, Outcome::Refused)
            }
            StoreAsk::Beat if !current => StoreAnswer::Seat(self.store.seat),
            StoreAsk::Write(token, write) => StoreAnswer::Wrote(token, self.write(epoch, write)),
            StoreAsk::Beat => {
                self.store.seat.beat += 1;
                StoreAnswer::Seat(self.store.seat)
            }
            StoreAsk::Read => StoreAnswer::Seat(self.store.seat),
            StoreAsk::Take { over, above } => {
                let taken = self.store.seat.epoch == over.epoch;
                if taken {
                    self.take_office(from, above);
                }
                StoreAnswer::Took(taken.then_some(self.store.seat))
            }
        };
        if self.net.is_cut(Host::Store, host) {
            // Committed or not, the acknowledgement is lost.
            if let StoreAnswer::Wrote(_, outcome) = &mut answer {
                self.counts.lost_acknowledgements += 1;
                *outcome = Outcome::Unknown;
                self.after(Duration::from_secs(1), What::Answer { to: from, life, epoch, answer });
            }
            return;
        }
        if self.plant == Some(Plant::StoreSilent)
            && matches!(answer, StoreAnswer::Wrote(..))
            && self.random.draw().is_multiple_of(10)
        {
            return;
        }
        let mut at = self.now.after(self.delay(Host::Store, host));
        if let (StoreAnswer::Wrote(..), Some(c)) = (answer, self.controls.get_mut(from)) {
            at = at.max(Time(c.last_answer.0 + 1));
            c.last_answer = at;
        }
        self.agenda.put(at, What::Answer { to: from, life, epoch, answer });
    }

    fn take_office(&mut self, control: usize, above: Epoch) {
        let random = u64::from(self.random.draw());
        let epoch = if self.plant == Some(Plant::EpochsCounted) {
            Epoch(self.store.seat.epoch.0 + 1)
        } else {
            above.next(random)
        };
        self.store.seat = Seat { epoch, holder: control as u64, beat: 0 };
        self.store.terms.push(epoch);
        let forgotten = self.store.terms.len().saturating_sub(Records::TERMS);
        self.store.terms.drain(..forgotten);
        self.counts.terms += 1;
        self.epoch_given(epoch);
    }

    /// The store is lost, and restored from an older copy.
    pub(crate) fn restore_store(&mut self) -> Option<&'static str> {
        if !self.store.restore() {
            return None;
        }
        self.forget_orders();
        for plane in 0..self.planes.len() {
            if !self.store.knows(&format!("{:?}", Host::Plane(plane))) {
                self.forget_plane(plane);
            }
        }
        Some("store restored from an older copy")
    }

    fn write(&mut self, epoch: Epoch, write: Write) -> Outcome {
        self.counts.writes += 1;
        let chance = self.random.draw() % 4;
        match self.store.mood {
            Mood::Refusing if chance > 0 => return Outcome::Refused,
            Mood::Mumbling if chance == 1 => return Outcome::Unknown,
            Mood::Well | Mood::Slow | Mood::Refusing | Mood::Mumbling => {}
        }
        self.stored(epoch, &write);
        if self.plant == Some(Plant::DeployForgotten)
            && matches!(write, Write::PutFunction(_))
            && chance == 0
        {
            return Outcome::Ok { revision: self.store.revision };
        }
        let revision = self.store.apply(write);
        if self.store.mood == Mood::Mumbling && chance == 2 {
            self.counts.lost_acknowledgements += 1;
            return Outcome::Unknown;
        }
        Outcome::Ok { revision }
    }
}
