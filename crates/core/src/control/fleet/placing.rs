//! Where a start goes, and which start a freed worker takes.

use std::{collections::BTreeSet, time::Duration};

use super::{
    Booking, Fleet, Output, Promise, Want,
    waiting::{Group, Left, Rank, Shape, Why},
    worker::Need,
};
use crate::{
    FunctionId, Resources, SandboxId, StreamId, Time, WorkerId,
    frame::{StartSandbox, ToWorker},
};

/// Of so many starts given out in a row to those whose callers wait, the next one goes to one for
/// which nobody waits, if there is any: `min` and deploys must not starve under constant load.
/// Ours: an eighth of the starts.
const URGENT_IN_A_ROW: u32 = 7;

/// Starts placed and freed workers looked at in one call, beyond what the event itself asked for.
const STEPS_AT_ONCE: u32 = 64;

/// For how long room is set aside for a start at most, and how long not again after that: as long
/// as callers wait by default (`queue_timeout`). Ours: a start that does not get its room by then
/// must not keep others from growing for ever.
const EARMARK: Duration = Duration::from_secs(30);

/// Roomy workers looked at for one that could be set aside.
const EARMARK_LOOKS: usize = 64;

impl Fleet {
    /// A sandbox is wanted: it is placed now or when a worker has room and a start token.
    pub(crate) fn want(&mut self, now: Time, want: Want) {
        self.now = now;
        let shape = Shape::of(&want);
        let function = want.revision.function;
        let later = self.functions.contains_key(&function);
        // What waits was found to fit nowhere: one like it has nothing to look for.
        let behind = self.waiting.head(&shape).is_some_and(|head| head.later <= later);
        let held = shape.calm && self.storm.is_active();
        let worker = if behind || held { None } else { self.choose(&want, !later) };
        match worker {
            Some(worker) => self.start(now, want, worker),
            None => {
                self.waiting.push(want, later);
                if !behind {
                    self.refresh(&shape, None);
                }
                self.tell(function);
            }
        }
        self.pump(now);
    }

    /// A sandbox that was not placed yet is not wanted any more; whether there was one.
    pub(crate) fn withdraw(&mut self, sandbox: SandboxId) -> bool {
        self.forget_waiting(sandbox)
    }

    /// Callers wait now for a sandbox that was not placed yet; whether there was one.
    pub(crate) fn hasten(&mut self, now: Time, sandbox: SandboxId) -> bool {
        self.now = now;
        let Some(left) = self.waiting.take(sandbox) else { return false };
        self.left(&left);
        self.want(now, Want { urgent: true, ..left.want });
        true
    }

    pub(super) fn forget_waiting(&mut self, sandbox: SandboxId) -> bool {
        match self.waiting.take(sandbox) {
            Some(left) => {
                self.left(&left);
                true
            }
            None => false,
        }
    }

    fn choose(&mut self, want: &Want, first: bool) -> Option<WorkerId> {
        let need = Need::of(&want.spec);
        let view = self.pools.view(&self.workers, need, want.spec.artifact, first);
        self.placement.choose(&view)
    }

    /// Books a sandbox and orders its start.
    fn start(&mut self, now: Time, want: Want, id: WorkerId) {
        let Want { sandbox, revision, name, spec, start_timeout, decided, .. } = want;
        let need = Need::of(&spec);
        let stream = self.book(
            sandbox,
            Booking {
                worker: id,
                function: revision.function,
                memory: need.memory,
                cpu: spec.resources.cpu.0,
                starting: true,
                gone: false,
            },
        );
        let stream = stream.expect("starts are placed on workers that are attached");
        let order = StartSandbox { sandbox, revision, name, spec, start_timeout };
        let frame = ToWorker::StartSandbox(Box::new(order));
        self.outputs.push_back(Output::Send { stream, frame });
        self.outputs.push_back(Output::Placed { sandbox, worker: id, waited: now.since(decided) });
    }

    /// A sandbox takes room on a worker; the stream on which that is told.
    pub(super) fn book(&mut self, sandbox: SandboxId, booking: Booking) -> Option<StreamId> {
        let stream = self.touch(booking.worker, |worker| {
            worker.used.memory = worker.used.memory.saturating_add(booking.memory);
            worker.used.cpu = worker.used.cpu.saturating_add(u64::from(booking.cpu));
            worker.used.sandboxes += 1;
            worker.used.starting += u32::from(booking.starting);
            worker.sandboxes.insert(sandbox);
            worker.stream
        });
        let count = self.functions.entry(booking.function).or_insert(0);
        *count += 1;
        if *count == 1 {
            self.waiting.set_later(booking.function, true);
        }
        self.sandboxes.insert(sandbox, booking);
        stream?
    }

    /// A sandbox takes no room any more; the worker that it was on.
    pub(super) fn unbook(&mut self, sandbox: SandboxId) -> Option<WorkerId> {
        let booking = self.sandboxes.get_mut(&sandbox).filter(|booking| !booking.gone)?;
        booking.gone = true;
        self.stops.remove(&sandbox);
        let (id, function) = (booking.worker, booking.function);
        let (memory, cpu) = (booking.memory, u64::from(booking.cpu));
        let token = u32::from(booking.starting);
        self.touch(id, |worker| {
            worker.used.memory = worker.used.memory.saturating_sub(memory);
            worker.used.cpu = worker.used.cpu.saturating_sub(cpu);
            worker.used.sandboxes = worker.used.sandboxes.saturating_sub(1);
            worker.used.starting = worker.used.starting.saturating_sub(token);
        });
        if let Some(count) = self.functions.get_mut(&function) {
            *count -= 1;
            if *count == 0 {
                self.functions.remove(&function);
                self.waiting.set_later(function, false);
                // It may go now where others may not.
                self.changed.extend(self.earmarked.iter().copied());
            }
        }
        Some(id)
    }

    /// Gives what waits to the workers that changed, up to a bound.
    pub(super) fn pump(&mut self, now: Time) {
        if self.waiting.is_empty() {
            self.changed.clear();
            return;
        }
        let mut steps = STEPS_AT_ONCE;
        while steps > 0
            && let Some(id) = self.changed.pop_first()
        {
            if !self.serve(now, id, &mut steps) {
                self.changed.insert(id);
                return;
            }
            steps = steps.saturating_sub(1);
        }
    }

    /// Gives a worker what it can take; `false` if there is more.
    fn serve(&mut self, now: Time, id: WorkerId, steps: &mut u32) -> bool {
        while let Some(shape) = self.next_for(id) {
            if *steps == 0 {
                return false;
            }
            *steps -= 1;
            let Some(left) = self.waiting.pop(&shape) else { break };
            let row = self.urgent_in_a_row.saturating_add(1);
            self.urgent_in_a_row = if shape.calm { 0 } else { row };
            let (function, released) = (left.want.revision.function, left.released);
            self.start(now, left.want, id);
            self.release(released);
            self.tell(function);
        }
        self.changed.remove(&id);
        let shapes: Vec<Shape> = self.waiting.groups.keys().copied().collect();
        for shape in shapes {
            self.refresh(&shape, Some(id));
        }
        true
    }

    /// The group whose first start is next among those that a worker can take.
    fn next_for(&self, id: WorkerId) -> Option<Shape> {
        let worker = self.workers.get(&id).filter(|worker| worker.is_open())?;
        let held = self.storm.is_active();
        let barred = |shape: &Shape, rank: &Rank| {
            (held && shape.calm) || (rank.later && worker.earmarks > 0)
        };
        let fits =
            |(shape, rank): &(Shape, Rank)| !barred(shape, rank) && worker.has_room(&shape.need);
        let heads = self.waiting.groups.iter();
        let heads = heads.filter_map(|(shape, group)| Some((*shape, group.head()?)));
        let calm_first = self.urgent_in_a_row >= URGENT_IN_A_ROW;
        let order = |(_, rank): &(Shape, Rank)| (rank.calm != calm_first, *rank);
        heads.filter(fits).min_by_key(order).map(|(shape, _)| shape)
    }

    /// Finds out why a group waits, given that only this worker changed (or any).
    pub(super) fn refresh(&mut self, shape: &Shape, only: Option<WorkerId>) {
        let Some(group) = self.waiting.groups.get(shape) else { return };
        let has_room = |id: &WorkerId| {
            let worker = self.workers.get(id);
            worker.is_some_and(|worker| worker.is_ready() && worker.has_room(&shape.need))
        };
        let why = if shape.calm && self.storm.is_active() {
            Why::Held
        } else {
            let found = match (group.why, only) {
                (Why::Token(seen), _) if has_room(&seen) => Some(seen),
                (Why::Room, Some(changed)) => Some(changed).filter(has_room),
                (Why::Room | Why::Token(_) | Why::Held, _) => {
                    self.pools.with_room(&self.workers, &shape.need)
                }
            };
            found.map_or(Why::Room, Why::Token)
        };
        let before = group.why;
        if before != why {
            let functions = if (before == Why::Room) == (why == Why::Room) {
                BTreeSet::new()
            } else {
                group.functions()
            };
            if let Some(group) = self.waiting.groups.get_mut(shape) {
                group.why = why;
            }
            for function in functions {
                self.tell(function);
            }
        }
        self.set_aside(shape);
    }

    /// Keeps room for a function's first sandbox on one worker: until it fits there, others that
    /// have some already do not take what comes free.
    fn set_aside(&mut self, shape: &Shape) {
        let Some(group) = self.waiting.groups.get(shape) else { return };
        let first = group.head().is_some_and(|head| !head.later);
        let wanted = !shape.calm && first && group.why == Why::Room;
        let usable = |id: &WorkerId| {
            let worker = self.workers.get(id);
            worker.is_some_and(|worker| worker.is_ready() && worker.could_run(&shape.need))
        };
        let (now, old) = (self.now, group.earmark);
        let mut rest = group.rest;
        let new = match old {
            Some((_, until)) if wanted && until <= now => {
                rest = now.after(EARMARK);
                None
            }
            Some((id, until)) if wanted && usable(&id) => Some((id, until)),
            _ if wanted && rest <= now => {
                let free = |id: &WorkerId| {
                    let taken = self.workers.get(id).is_none_or(|worker| worker.earmarks > 0);
                    !taken || old.is_some_and(|(mine, _)| mine == *id)
                };
                let mut roomiest = self.pools.roomiest(shape.need.runtime).take(EARMARK_LOOKS);
                roomiest.find(|id| free(id) && usable(id)).map(|id| (id, now.after(EARMARK)))
            }
            _ => None,
        };
        if let Some(group) = self.waiting.groups.get_mut(shape) {
            group.earmark = new;
            group.rest = rest;
        }
        let (old, new) = (old.map(|(id, _)| id), new.map(|(id, _)| id));
        if old == new {
            return;
        }
        if let Some(worker) = new.and_then(|id| self.workers.get_mut(&id)) {
            worker.earmarks += 1;
            self.earmarked.insert(worker.record.id);
        }
        self.release(old);
    }

    /// What is set aside for whom.
    pub(crate) fn promises(&self) -> Vec<Promise> {
        let promise = |(shape, group): (&Shape, &Group)| {
            let (id, _) = group.earmark?;
            let worker = self.workers.get(&id)?;
            let missing = worker.missing_for(&shape.need)?;
            Some(Promise { function: group.head()?.function(), worker: id, missing })
        };
        self.waiting.groups.iter().filter_map(promise).collect()
    }

    /// What was set aside on a worker may be used by all again.
    fn release(&mut self, worker: Option<WorkerId>) {
        let Some(worker) = worker.and_then(|id| self.workers.get_mut(&id)) else { return };
        worker.earmarks = worker.earmarks.saturating_sub(1);
        let id = worker.record.id;
        if worker.earmarks == 0 {
            self.earmarked.remove(&id);
        }
        self.touched(id);
    }

    /// A start left the line without being placed.
    fn left(&mut self, left: &Left) {
        self.release(left.released);
        self.set_aside(&left.shape);
        self.tell(left.want.revision.function);
    }

    /// Says whether a function waits for room, if that changed.
    fn tell(&mut self, function: FunctionId) {
        let lacks = self.waiting.lacks_room(function);
        if lacks == self.roomless.contains(&function) {
            return;
        }
        if lacks {
            let need = self.waiting.example(function).map(|want| want.spec.resources);
            let need: Resources = need.unwrap_or_default();
            self.roomless.insert(function);
            self.outputs.push_back(Output::NoRoom { function, need });
        } else {
            self.roomless.remove(&function);
            self.outputs.push_back(Output::RoomAgain { function });
        }
    }

    /// Decides whether too many workers were lost at once, and what follows from a change.
    pub(super) fn weather(&mut self, now: Time) {
        if !self.storm.judge(now, self.present) {
            return;
        }
        let calm: Vec<Shape> =
            self.waiting.groups.keys().filter(|shape| shape.calm).copied().collect();
        for shape in &calm {
            self.refresh(shape, None);
        }
        if !self.storm.is_active() && !calm.is_empty() {
            self.changed.extend(self.pools.open());
        }
    }
}
