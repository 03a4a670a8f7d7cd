//! Tasks that are made ahead and wait to be started, for functions that scale: what takes longest of a
//! start is done before it is ordered.
//!
//! One is made when a revision is started for the second time within a minute, a moment after that
//! start, and another one for each that is used. It has everything of a sandbox but a name, a port by
//! which it is reached, and life: file system, control group, network, shim, its first process. It
//! goes when nobody wants it for a while, with its image, and with the next life of the worker.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    os::fd::AsFd as _,
    rc::Rc,
    time::Duration,
};

use dirigent_core::{Digest, Epoch, RevisionId, SandboxId, worker::CreateSandbox};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use super::{
    driver::World,
    images::wall_ms,
    life::{self, Task},
    removal,
};

/// A revision that is started again within this time scales.
const SCALES: Duration = Duration::from_secs(60);

/// Of one revision, waiting or being made.
const EACH: usize = 2;

/// How long after an order one is made: the sandbox that was ordered comes first.
const AFTER: Duration = Duration::from_millis(200);

/// How long one waits for somebody to want it.
const LIFE: Duration = Duration::from_secs(60);

/// Revisions whose last start is remembered.
const REMEMBERED: usize = 4096;

/// One that waits, and how its keeper is told that it does not any more.
#[derive(Debug)]
struct Waiting {
    revision: RevisionId,
    image: Option<Digest>,
    task: Task,
    over: Rc<Notify>,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Shelf {
    most: usize,
    waiting: RefCell<Vec<Waiting>>,
    /// Being made.
    making: RefCell<Vec<RevisionId>>,
    started: RefCell<HashMap<RevisionId, Instant>>,
    /// Whether none is kept any more.
    closing: Cell<bool>,
    /// Makes names that no sandbox has, nor one of an earlier life.
    next: Cell<u64>,
}

impl Shelf {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            waiting: RefCell::default(),
            making: RefCell::default(),
            started: RefCell::default(),
            closing: Cell::new(false),
            next: Cell::new(wall_ms() << 16),
        }
    }

    /// A sandbox is ordered: whether another one is to be made ahead, by [`prepare`].
    pub(super) fn wants(&self, revision: RevisionId) -> bool {
        let now = Instant::now();
        let mut started = self.started.borrow_mut();
        if started.len() >= REMEMBERED {
            started.retain(|_, at| now.duration_since(*at) < SCALES);
        }
        if started.len() >= REMEMBERED && !started.contains_key(&revision) {
            return false;
        }
        let before = started.insert(revision, now);
        let scales = before.is_some_and(|at| now.duration_since(at) < SCALES);
        let (waiting, mut making) = (self.waiting.borrow(), self.making.borrow_mut());
        let own = waiting.iter().filter(|one| one.revision == revision).count()
            + making.iter().filter(|one| **one == revision).count();
        let wants = scales && own < EACH && waiting.len() + making.len() < self.most;
        if wants {
            making.push(revision);
        }
        wants
    }

    /// One of a revision that still lives.
    pub(super) fn take(&self, revision: RevisionId) -> Option<Task> {
        let mut waiting = self.waiting.borrow_mut();
        for dead in waiting.iter().filter(|one| !lives(&one.task)) {
            dead.over.notify_one();
        }
        let at = waiting.iter().position(|one| one.revision == revision && lives(&one.task))?;
        let one = waiting.remove(at);
        one.over.notify_one();
        Some(one.task)
    }

    /// Those of this image are not wanted any more.
    pub(super) fn let_go(&self, image: Digest) {
        for one in self.waiting.borrow().iter().filter(|one| one.image == Some(image)) {
            one.over.notify_one();
        }
    }

    /// None is wanted any more.
    pub(super) fn close(&self) {
        self.closing.set(true);
        for one in self.waiting.borrow().iter() {
            one.over.notify_one();
        }
    }

    fn name(&self) -> SandboxId {
        let number = self.next.get() + 1;
        self.next.set(number);
        // Leaders begin with 1.
        SandboxId::new(Epoch(0), number)
    }

    fn withdraw(&self, name: SandboxId) -> Option<Task> {
        let mut waiting = self.waiting.borrow_mut();
        let at = waiting.iter().position(|one| one.task.place.key == Some(name))?;
        Some(waiting.remove(at).task)
    }
}

/// Nothing has happened to its first process meanwhile.
fn lives(task: &Task) -> bool {
    let mut ended = [PollFd::from_borrowed_fd(task.held.as_fd(), PollFlags::IN)];
    matches!(poll(&mut ended, Some(&Timespec::default())), Ok(0))
}

/// Makes one and keeps it until it is taken, or not wanted any more.
pub(super) async fn prepare(world: Rc<World>, create: CreateSandbox) {
    if keep(&world, &create).await.is_none() {
        world.shelf.made(create.order.revision);
    }
}

impl Shelf {
    fn made(&self, revision: RevisionId) {
        let mut making = self.making.borrow_mut();
        if let Some(at) = making.iter().position(|one| *one == revision) {
            making.swap_remove(at);
        }
    }
}

/// `None` if none could be made.
async fn keep(world: &World, create: &CreateSandbox) -> Option<()> {
    sleep(AFTER).await;
    let name = world.shelf.name();
    let place = world.place(name);
    let made = match world.offer.give_ahead(create, name).await {
        Ok(network) => life::make_task(world, create, place.clone(), network, None).await,
        Err(failure) => Err(failure),
    };
    let task = match made {
        Ok(task) => task,
        Err(failure) => {
            tracing::debug!(cause = %failure.cause, "no task is made ahead");
            removal::remove(world, &place).await;
            return None;
        }
    };
    let over = Rc::new(Notify::new());
    let (revision, image) = (create.order.revision, create.order.spec.artifact);
    let waiting = Waiting { revision, image, task, over: Rc::clone(&over) };
    world.shelf.made(revision);
    world.shelf.waiting.borrow_mut().push(waiting);
    // Who lets go of them knows those that wait, not this one a moment ago.
    let image_is_here = image.is_some_and(|digest| world.images.get(digest).is_some());
    if world.shelf.closing.get() || !image_is_here {
        over.notify_one();
    }
    tokio::select! {
        () = sleep(LIFE) => {}
        () = over.notified() => {}
    }
    if let Some(task) = world.shelf.withdraw(name) {
        removal::remove(world, &task.place).await;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use dirigent_core::FunctionId;

    use super::*;

    fn revision(number: u32) -> RevisionId {
        RevisionId { function: FunctionId::new(Epoch(1), 1), number }
    }

    #[tokio::test(start_paused = true)]
    async fn only_who_is_started_again_soon_has_one_made_ahead() {
        let shelf = Shelf::new(3);
        assert!(!shelf.wants(revision(1)));
        assert!(!shelf.wants(revision(2)));
        assert!(shelf.wants(revision(1)));
        tokio::time::advance(SCALES).await;
        assert!(!shelf.wants(revision(1)), "that was long ago");
        assert!(shelf.wants(revision(1)));
        assert!(!shelf.wants(revision(1)), "it has enough");
        assert!(!shelf.wants(revision(2)));
        assert!(shelf.wants(revision(2)));
        assert!(!shelf.wants(revision(2)), "all have enough");
        shelf.made(revision(1));
        assert!(shelf.wants(revision(2)));
    }
}
