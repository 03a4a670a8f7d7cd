//! The simulated store: linearizable, one office, writes that compare the epoch; several members with
//! a disk each, of which a majority has what is acknowledged.
//!
//! It can be slow, refuse, commit and lose the acknowledgement, lose a minority of its disks, and be
//! restored from an older copy.

mod members;

use std::collections::BTreeMap;

use dirigent_core::{
    ApiTokens, DataPlaneId, DataPlaneRecord, Duty, Epoch, FunctionId, FunctionRecord, Records,
    RevisionId, Time, Whom, WorkerId, WorkerRecord, Write, control::Outcome, office::Seat,
};
use std::{sync::Arc, time::Duration};

pub(crate) use self::members::Mark;
use self::members::Members;
use crate::{
    agenda::{Host, StoreAnswer, StoreAsk, What},
    plant::Plant,
    world::World,
};

/// What is recorded.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    pub(crate) seat: Seat,
    revision: u64,
    pub(crate) functions: BTreeMap<FunctionId, Arc<FunctionRecord>>,
    workers: BTreeMap<WorkerId, WorkerRecord>,
    data_planes: BTreeMap<DataPlaneId, DataPlaneRecord>,
    tokens: Arc<ApiTokens>,
    /// The last terms, oldest first.
    terms: Vec<Epoch>,
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pub(crate) state: State,
    members: Members,
    /// How the next writes go.
    pub(crate) mood: Mood,
    /// An older copy.
    copy: Option<State>,
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

impl State {
    pub(crate) fn records(&self) -> Records {
        Records {
            functions: self.functions.values().cloned().collect(),
            workers: self.workers.values().cloned().collect(),
            data_planes: self.data_planes.values().cloned().collect(),
            terms: self.terms.clone(),
            tokens: Arc::clone(&self.tokens),
        }
    }

    /// Whether it has a revision, or a later one of the same function.
    pub(crate) fn has(&self, revision: RevisionId) -> bool {
        let record = self.functions.get(&revision.function);
        let newest = record.and_then(|r| r.revisions.iter().map(|r| r.number).max());
        newest.is_some_and(|newest| newest >= revision.number)
    }

    pub(crate) const fn revision(&self) -> u64 {
        self.revision
    }

    pub(crate) fn knows(&self, data_plane: &str) -> bool {
        self.data_planes.values().any(|r| !r.removed && *r.name == *data_plane)
    }

    /// What is wanted of a worker or a data plane, if it is recorded.
    pub(crate) fn duty_of(&self, whom: &Whom) -> Option<Duty> {
        match whom {
            Whom::Worker(name) => {
                let record = self.workers.values().find(|r| &r.name == name && !r.removed);
                record.map(WorkerRecord::duty)
            }
            Whom::DataPlane(name) => {
                let record = self.data_planes.values().find(|r| &r.name == name && !r.removed);
                record.map(|record| record.duty)
            }
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
            Write::PutTokens(tokens) => self.tokens = tokens,
        }
        self.revision
    }
}

impl Store {
    pub(crate) fn new(members: usize) -> Self {
        let state = State::default();
        let members = Members::new(members, &state);
        Self { state, members, mood: Mood::Well, copy: None }
    }

    /// Keeps a copy.
    pub(crate) fn copy(&mut self) {
        self.copy = Some(self.state.clone());
    }

    /// Becomes the copy again, if there is one that differs.
    fn restore(&mut self, now: Time) -> bool {
        let Some(copy) = self.copy.take_if(|copy| copy.revision < self.state.revision) else {
            return false;
        };
        self.state = copy;
        self.members.restore(now, &self.state);
        true
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
        let (life, knows) = (c.life, c.knows);
        self.agenda.put(at, What::Ask { from: control, life, epoch, knows, ask });
    }

    /// The store hears a question.
    pub(crate) fn store_hears(
        &mut self,
        from: usize,
        life: u64,
        (epoch, knows): (Epoch, u64),
        ask: StoreAsk,
    ) {
        let host = Host::Control(from);
        if self.net.is_cut(host, Host::Store) {
            // It never arrives; the writer gives up and does not know.
            if let StoreAsk::Write(token, _) = ask {
                let answer = StoreAnswer::Wrote(token, Outcome::Unknown);
                self.after(Duration::from_secs(1), What::Answer { to: from, life, epoch, answer });
            }
            return;
        }
        let before = self.store.state.seat;
        // What lacks a write that the leader knows to be taken is an older copy.
        let current = before.epoch == epoch && self.store.state.revision >= knows;
        let blind = self.plant == Some(Plant::OldEpochObeyed);
        let written = self.counts.writes;
        let answer = match ask {
            StoreAsk::Write(token, _)
                if !current && !blind && self.plant != Some(Plant::WriteAfterDeposition) =>
            {
                StoreAnswer::Deposed(Some(token))
            }
            StoreAsk::Beat
                if !current && !blind && self.plant != Some(Plant::WriteAfterDeposition) =>
            {
                StoreAnswer::Deposed(None)
            }
            // So that it leads on: nobody is told that it is over.
            StoreAsk::Write(token, _) if !current && blind => {
                StoreAnswer::Wrote(token, Outcome::Refused)
            }
            StoreAsk::Beat if !current => StoreAnswer::Seat(self.store.state.seat),
            StoreAsk::Write(token, write) => StoreAnswer::Wrote(token, self.write(epoch, write)),
            StoreAsk::Beat => {
                self.store.state.seat.beat += 1;
                StoreAnswer::Seat(self.store.state.seat)
            }
            StoreAsk::Read => StoreAnswer::Seat(self.store.state.seat),
            StoreAsk::Take { over, above } => {
                let taken = self.store.state.seat.epoch == over.epoch;
                if taken {
                    self.take_office(from, above);
                }
                StoreAnswer::Took(taken.then_some(self.store.state.seat))
            }
        };
        if self.store.state.seat != before || self.counts.writes != written {
            self.replicate();
        }
        let (mark, committed) = self.store.members.mark();
        let at = if self.plant == Some(Plant::AcknowledgedEarly) { self.now } else { committed };
        self.agenda.put(at.max(self.now), What::Committed { to: from, life, epoch, answer, mark });
    }

    /// What changed is on its way to the other disks.
    fn replicate(&mut self) {
        let slow = self.store.mood == Mood::Slow;
        let early = self.plant == Some(Plant::AcknowledgedEarly);
        let arrivals: Vec<Time> = (0..self.store.members.count())
            .map(|_| {
                let usual = 50_000 + u64::from(self.random.draw() % 450_000);
                let more = if slow { u64::from(self.random.draw() % 500_000_000) } else { 0 };
                let late = if early { 5_000_000_000 } else { 0 };
                self.now.after(Duration::from_nanos(usual + more + late))
            })
            .collect();
        self.store.members.append(self.now, &self.store.state, &arrivals);
    }

    /// A majority has what was asked for, unless it was lost on the way.
    pub(crate) fn committed(
        &mut self,
        from: usize,
        life: u64,
        epoch: Epoch,
        mut answer: StoreAnswer,
        mark: Mark,
    ) {
        let host = Host::Control(from);
        if self.store.members.is_doubtful(mark) && self.plant != Some(Plant::AcknowledgedEarly) {
            if let StoreAnswer::Wrote(_, outcome) = &mut answer {
                *outcome = Outcome::Unknown;
            } else {
                return;
            }
        }
        if self.net.is_cut(Host::Store, host) {
            // Committed or refused, the answer is lost.
            if let StoreAnswer::Wrote(token, _) | StoreAnswer::Deposed(Some(token)) = answer {
                self.counts.lost_acknowledgements += 1;
                let answer = StoreAnswer::Wrote(token, Outcome::Unknown);
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
            Epoch(self.store.state.seat.epoch.0 + 1)
        } else {
            above.next(random)
        };
        self.store.state.seat = Seat { epoch, holder: control as u64, beat: 0 };
        Records::enter(&mut self.store.state.terms, epoch);
        self.counts.terms += 1;
        self.epoch_given(epoch);
    }

    /// Some disks are lost, and as many stay as make a majority.
    pub(crate) fn lose_disks(&mut self) -> Option<Vec<usize>> {
        let most = self.store.members.may_lose();
        if most == 0 {
            return None;
        }
        let mut whole = self.store.members.whole();
        let mut lost = Vec::new();
        if self.random.draw().is_multiple_of(2) {
            lost.push(self.store.members.first());
        }
        let count = 1 + self.random.below(most);
        while lost.len() < count {
            whole.retain(|n| !lost.contains(n));
            let pick = self.random.below(whole.len());
            lost.push(*whole.get(pick)?);
        }
        self.store.state = self.store.members.lose(self.now, &lost);
        Some(lost)
    }

    /// New disks take the place of those.
    pub(crate) fn replace_disks(&mut self, lost: &[usize]) {
        self.store.members.replace(self.now, lost, &self.store.state);
    }

    /// The store is lost, and restored from an older copy.
    pub(crate) fn restore_store(&mut self) -> Option<&'static str> {
        if !self.store.restore(self.now) {
            return None;
        }
        self.forget_orders();
        for plane in 0..self.planes.len() {
            if !self.store.state.knows(&format!("{:?}", Host::Plane(plane))) {
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
            return Outcome::Ok { revision: self.store.state.revision };
        }
        let revision = self.store.state.apply(write);
        if self.store.mood == Mood::Mumbling && chance == 2 {
            self.counts.lost_acknowledgements += 1;
            return Outcome::Unknown;
        }
        Outcome::Ok { revision }
    }
}
