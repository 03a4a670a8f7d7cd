//! Workers as a policy sees them, with the rules of the product: what is reserved, start tokens, and
//! who holds which artifact.

use std::{cell::Cell, collections::BTreeSet};

use dirigent_core::{
    WorkerId,
    policy::placement::{Candidate, Field},
};

/// What a start takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Need {
    /// Whose artifact it is.
    pub(super) function: usize,
    /// MiB.
    pub(super) memory: u64,
    /// Thousandths of a processor.
    pub(super) cpu: u64,
}

/// Starts at once on a worker.
const TOKENS: u64 = 8;
/// As workers have it by default.
const OVERCOMMIT: u64 = 10;

#[derive(Clone, Debug, Default)]
struct Worker {
    memory: u64,
    cpu: u64,
    memory_used: u64,
    cpu_used: u64,
    starts: u64,
    /// Its place among the open ones, while it is one of them.
    place: Option<usize>,
}

impl Worker {
    fn fits(&self, need: Need) -> bool {
        self.memory_used + need.memory <= self.memory && self.cpu_used + need.cpu <= self.cpu
    }

    fn shares(&self) -> (u32, u32, u32) {
        let milli = |part: u64, all: u64| u32::try_from(part * 1000 / all.max(1)).unwrap_or(1000);
        let memory = milli(self.memory_used, self.memory);
        let cpu = milli(self.cpu_used, self.cpu);
        (memory.max(cpu).max(milli(self.starts, TOKENS)), memory, cpu)
    }
}

/// All workers.
#[derive(Debug)]
pub(super) struct Cluster {
    workers: Vec<Worker>,
    open: Vec<usize>,
    by_memory: BTreeSet<(u64, usize)>,
    holders: Vec<Vec<usize>>,
    held: BTreeSet<(usize, usize)>,
    /// Candidates that were asked for since it was set to 0.
    pub(super) looks: Cell<u64>,
}

impl Cluster {
    pub(super) fn new(workers: usize) -> Self {
        let mut this = Self {
            workers: Vec::new(),
            open: Vec::new(),
            by_memory: BTreeSet::new(),
            holders: Vec::new(),
            held: BTreeSet::new(),
            looks: Cell::new(0),
        };
        for number in 0..workers {
            let memory = (16 * 1024) << (number % 3);
            let cpu = memory / 4096 * 1000 * OVERCOMMIT;
            this.workers.push(Worker { memory, cpu, ..Worker::default() });
            this.enter(number);
        }
        this
    }

    /// MiB of all workers.
    pub(super) fn memory(&self) -> u64 {
        self.workers.iter().map(|worker| worker.memory).sum()
    }

    /// Share of it in use.
    pub(super) fn full(&self) -> f64 {
        let used: u64 = self.workers.iter().map(|worker| worker.memory_used).sum();
        used as f64 / self.memory().max(1) as f64
    }

    /// Of each worker, in thousandths. Start tokens count only while a start is chosen: they come and go.
    pub(super) fn loads(&self) -> impl Iterator<Item = u32> {
        self.workers.iter().map(|worker| worker.shares()).map(|(_, memory, cpu)| memory.max(cpu))
    }

    pub(super) fn holds(&self, worker: WorkerId, need: Need) -> bool {
        number(worker).is_some_and(|number| self.held.contains(&(need.function, number)))
    }

    pub(super) const fn field(&self, need: Need) -> View<'_> {
        View { cluster: self, need }
    }

    /// Begins a start.
    pub(super) fn start(&mut self, worker: WorkerId, need: Need) {
        let Some(number) = number(worker) else { return };
        if self.held.insert((need.function, number)) {
            self.holders.resize(self.holders.len().max(need.function + 1), Vec::new());
            if let Some(holders) = self.holders.get_mut(need.function) {
                holders.push(number);
            }
        }
        self.change(number, |worker| {
            worker.memory_used += need.memory;
            worker.cpu_used += need.cpu;
            worker.starts += 1;
        });
    }

    /// A start is over: its token is free.
    pub(super) fn started(&mut self, worker: WorkerId) {
        if let Some(number) = number(worker) {
            self.change(number, |worker| worker.starts -= 1);
        }
    }

    /// A sandbox has ended.
    pub(super) fn end(&mut self, worker: WorkerId, need: Need) {
        if let Some(number) = number(worker) {
            self.change(number, |worker| {
                worker.memory_used -= need.memory;
                worker.cpu_used -= need.cpu;
            });
        }
    }

    fn change(&mut self, number: usize, change: impl FnOnce(&mut Worker)) {
        self.leave(number);
        if let Some(worker) = self.workers.get_mut(number) {
            change(worker);
        }
        self.enter(number);
    }

    fn leave(&mut self, number: usize) {
        let Some(worker) = self.workers.get_mut(number) else { return };
        let free = worker.memory - worker.memory_used;
        if let Some(place) = worker.place.take() {
            self.by_memory.remove(&(free, number));
            self.open.swap_remove(place);
            let moved = self.open.get(place).copied();
            if let Some(moved) = moved.and_then(|moved| self.workers.get_mut(moved)) {
                moved.place = Some(place);
            }
        }
    }

    fn enter(&mut self, number: usize) {
        let Some(worker) = self.workers.get_mut(number).filter(|w| w.starts < TOKENS) else {
            return;
        };
        worker.place = Some(self.open.len());
        self.by_memory.insert((worker.memory - worker.memory_used, number));
        self.open.push(number);
    }

    fn candidate(&self, number: usize, need: Need) -> Option<Candidate> {
        self.looks.set(self.looks.get() + 1);
        let worker = self.workers.get(number).filter(|w| w.place.is_some() && w.fits(need))?;
        let (load_milli, memory_milli, cpu_milli) = worker.shares();
        let holds_artifact = self.held.contains(&(need.function, number));
        let worker = WorkerId(number as u64);
        Some(Candidate { worker, load_milli, memory_milli, cpu_milli, holds_artifact })
    }
}

/// All workers, for one start.
#[derive(Debug)]
pub(super) struct View<'a> {
    cluster: &'a Cluster,
    need: Need,
}

impl View<'_> {
    fn of_holders(&self) -> &[usize] {
        self.cluster.holders.get(self.need.function).map_or(&[], Vec::as_slice)
    }
}

impl Field for View<'_> {
    fn len(&self) -> usize {
        self.cluster.open.len()
    }

    fn at(&self, index: usize) -> Option<Candidate> {
        self.cluster.candidate(self.cluster.open.get(index).copied()?, self.need)
    }

    fn holders(&self) -> usize {
        self.of_holders().len()
    }

    fn holder(&self, index: usize) -> Option<Candidate> {
        self.cluster.candidate(self.of_holders().get(index).copied()?, self.need)
    }

    fn tightest(&self) -> Option<Candidate> {
        let fitting = self.cluster.by_memory.range((self.need.memory, 0)..);
        fitting.map(|(_, number)| *number).find_map(|n| self.cluster.candidate(n, self.need))
    }
}

fn number(worker: WorkerId) -> Option<usize> {
    usize::try_from(worker.0).ok()
}
