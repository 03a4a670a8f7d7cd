//! The simulated store: linearizable, one office, writes that compare the epoch.
//!
//! It can be slow, refuse, or commit and lose the acknowledgement.

use std::collections::BTreeMap;

use dirigent_core::{
    DataPlaneId, DataPlaneRecord, Epoch, FunctionId, FunctionRecord, Records, WorkerId,
    WorkerRecord, Write, control::Outcome, office::Seat,
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
        }
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
    pub(crate) fn ask_store(&mut self, control: usize, epoch: u64, ask: StoreAsk) {
        let host = Host::Control(control);
        let delay = self.delay(host, Host::Store);
        let slow = match self.store.mood {
            Mood::Slow => Duration::from_millis(u64::from(self.random.draw() % 800)),
            Mood::Well | Mood::Refusing | Mood::Mumbling => Duration::ZERO,
        };
        let Some(c) = self.controls.get_mut(control) else { return };
        let at = self.now.after(delay + slow).max(dirigent_core::Time(c.last_ask.0 + 1));
        c.last_ask = at;
        let life = c.life;
        self.agenda.put(at, What::Ask { from: control, life, epoch, ask });
    }

    /// The store hears a question.
    pub(crate) fn store_hears(&mut self, from: usize, life: u64, epoch: u64, ask: StoreAsk) {
        let host = Host::Control(from);
        if self.net.is_cut(host, Host::Store) {
            // It never arrives; the writer gives up and does not know.
            if let StoreAsk::Write(token, _) = ask {
                let answer = StoreAnswer::Wrote(token, Outcome::Unknown);
                self.after(Duration::from_secs(1), What::Answer { to: from, life, epoch, answer });
            }
            return;
        }
        let current = self.store.seat.epoch == Epoch(epoch);
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
            StoreAsk::Take(over) => {
                let taken = self.store.seat.epoch == over.epoch;
                if taken {
                    let epoch = Epoch(over.epoch.0 + 1);
                    self.store.seat = Seat { epoch, holder: from as u64, beat: 0 };
                    self.counts.terms += 1;
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
        let delay = self.delay(Host::Store, host);
        self.after(delay, What::Answer { to: from, life, epoch, answer });
    }

    fn write(&mut self, epoch: u64, write: Write) -> Outcome {
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
