//! The functions that this data plane was asked for, by name; it holds no others.
//!
//! A name is asked of the control plane once and then kept up to date by it, known or not. Names
//! without a function are bounded; what is unused for an hour is forgotten. While no control plane
//! is attached, a name that is not known to have a function waits: it may have one by now. A name
//! without an answer is held only while somebody waits for that.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc, Mutex, RwLock,
        atomic::{
            AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
};

use dirigent_core::{
    FunctionId, FunctionName, FunctionView, SandboxId, frame::FromDataPlane, gate::Event,
};
use tokio::{sync::watch, time::Instant};

use crate::{
    Shared,
    errors::{Code, Failure},
    slot::{FunctionSlot, lock},
};

/// What is known of a name.
#[derive(Clone, Debug)]
enum Known {
    /// It was asked for.
    Asked,
    /// There is no such function.
    Nothing,
    Function(Arc<FunctionSlot>),
}

#[derive(Debug)]
struct Entry {
    known: watch::Sender<Known>,
    used_at: AtomicU64,
}

type Shard = RwLock<HashMap<FunctionName, Arc<Entry>>>;

const SHARDS: usize = 16;

/// See the module.
#[derive(Debug)]
pub(crate) struct Catalogue {
    names: [Shard; SHARDS],
    hasher: RandomState,
    /// Names without a function, in the order in which that was learned.
    nothing: Mutex<VecDeque<FunctionName>>,
    functions: Mutex<HashMap<FunctionId, Arc<FunctionSlot>>>,
    sandboxes: Mutex<HashMap<SandboxId, FunctionId>>,
}

impl Catalogue {
    pub(crate) fn new() -> Self {
        Self {
            names: std::array::from_fn(|_| RwLock::default()),
            hasher: RandomState::new(),
            nothing: Mutex::default(),
            functions: Mutex::default(),
            sandboxes: Mutex::default(),
        }
    }

    fn shard(&self, name: &FunctionName) -> &Shard {
        let hash = usize::try_from(self.hasher.hash_one(name) >> 32).unwrap_or(0);
        self.names.get(hash % SHARDS).unwrap_or(&self.names[0])
    }

    fn entry(&self, name: &FunctionName) -> Option<Arc<Entry>> {
        read(self.shard(name)).get(name).cloned()
    }

    /// The function with this name; asks for it and waits if need be. Cancellation safe.
    pub(crate) async fn resolve(
        &self,
        shared: &Shared,
        name: &FunctionName,
    ) -> Result<Arc<FunctionSlot>, Failure> {
        let (entry, known) = loop {
            let entry = self.entry(name).unwrap_or_else(|| self.ask(shared, name));
            entry.used_at.store(shared.now().0, Relaxed);
            if let Known::Function(slot) = &*entry.known.borrow() {
                return Ok(Arc::clone(slot));
            }
            let known = entry.known.subscribe();
            // It may have been forgotten before it was known that somebody waits; now it is not.
            if self.entry(name).is_some_and(|held| Arc::ptr_eq(&held, &entry)) {
                break (entry, known);
            }
        };
        drop(entry);
        let mut waiting = Waiting { catalogue: self, shared, name, known: Some(known) };
        let deadline = Instant::now() + shared.limits.resolve_timeout;
        while let Some(known) = &mut waiting.known {
            match &*known.borrow_and_update() {
                Known::Function(slot) => return Ok(Arc::clone(slot)),
                Known::Nothing if shared.is_attached() => {
                    return Err(Failure::new(
                        Code::NotFound,
                        format!("there is no function `{name}`"),
                    ));
                }
                Known::Asked | Known::Nothing => {}
            }
            let changed = tokio::time::timeout_at(deadline, known.changed()).await;
            if !matches!(changed, Ok(Ok(()))) {
                break;
            }
        }
        Err(Failure::new(
            Code::NoControlPlane,
            format!("no control plane said in time whether `{name}` is a function"),
        ))
    }

    fn ask(&self, shared: &Shared, name: &FunctionName) -> Arc<Entry> {
        let mut shard = write(self.shard(name));
        if let Some(entry) = shard.get(name) {
            return Arc::clone(entry);
        }
        let entry = Arc::new(Entry {
            known: watch::Sender::new(Known::Asked),
            used_at: AtomicU64::new(shared.now().0),
        });
        shard.insert(name.clone(), Arc::clone(&entry));
        drop(shard);
        shared.say_now(FromDataPlane::Resolve { name: name.clone() });
        entry
    }

    /// The control plane says what a name is.
    pub(crate) fn resolved(
        &self,
        shared: &Shared,
        stream: u64,
        name: &FunctionName,
        version: u64,
        view: Option<Arc<FunctionView>>,
    ) {
        let Some(entry) = self.entry(name) else {
            // Forgotten meanwhile.
            return;
        };
        let now = shared.now();
        let before = match &*entry.known.borrow() {
            Known::Function(slot) => Some(Arc::clone(slot)),
            Known::Asked | Known::Nothing => None,
        };
        let Some(view) = view else {
            entry.known.send_replace(Known::Nothing);
            if let Some(slot) = before {
                slot.retired.store(true, SeqCst);
                slot.handle(shared, now, Event::Deleted);
            }
            self.remember_nothing(shared, name);
            return;
        };
        if let Some(slot) = &before
            && slot.id == view.id
        {
            slot.handle(shared, now, Event::Configured { version, view });
            return;
        }
        let back = lock(&self.functions).get(&view.id).map(Arc::clone);
        let slot = if let Some(slot) = back {
            // It was deleted, and the store was restored from a copy in which it is not. What of it
            // is still in use stays in one account.
            slot.retired.store(false, SeqCst);
            slot.handle(shared, now, Event::Configured { version, view });
            slot
        } else {
            let slot = FunctionSlot::new(shared, now, version, view, stream);
            lock(&self.functions).insert(slot.id, Arc::clone(&slot));
            slot
        };
        entry.known.send_replace(Known::Function(slot));
        if let Some(slot) = before {
            slot.retired.store(true, SeqCst);
            slot.handle(shared, now, Event::Deleted);
        }
    }

    /// Bounds the names without a function: the oldest goes.
    fn remember_nothing(&self, shared: &Shared, name: &FunctionName) {
        let mut nothing = lock(&self.nothing);
        nothing.push_back(name.clone());
        while nothing.len() > shared.limits.unknown_names {
            let Some(oldest) = nothing.pop_front() else { return };
            self.forget(shared, &oldest, |known| matches!(known, Known::Nothing));
        }
    }

    fn forget(&self, shared: &Shared, name: &FunctionName, may: impl Fn(&Known) -> bool) {
        let mut shard = write(self.shard(name));
        let goes = shard
            .get(name)
            .is_some_and(|entry| entry.known.receiver_count() == 0 && may(&entry.known.borrow()));
        if goes {
            shard.remove(name);
            drop(shard);
            shared.say_now(FromDataPlane::Forget { name: name.clone() });
        }
    }

    /// Forgets what was unused for long, and functions deleted whose last slots are back.
    pub(crate) fn sweep(&self, shared: &Shared) {
        let limit = u64::try_from(shared.limits.forget_after.as_nanos()).unwrap_or(u64::MAX);
        let now = shared.now().0;
        let old = |at: &AtomicU64| now.saturating_sub(at.load(SeqCst)) >= limit;
        for shard in &self.names {
            let unused: Vec<FunctionName> = read(shard)
                .iter()
                .filter(|(_, entry)| old(&entry.used_at))
                .map(|(name, _)| name.clone())
                .collect();
            for name in unused {
                self.forget(shared, &name, |known| match known {
                    Known::Asked | Known::Nothing => true,
                    Known::Function(slot) => {
                        // First retired, then looked at: an invocation is noted first and looks
                        // then, so that one of the two sees the other.
                        slot.retired.store(true, SeqCst);
                        let goes = slot.is_unused(now, limit);
                        slot.retired.store(goes, SeqCst);
                        goes
                    }
                });
            }
        }
        let gone: Vec<Arc<FunctionSlot>> = {
            let mut functions = lock(&self.functions);
            let gone: Vec<FunctionId> = functions
                .values()
                .filter(|slot| slot.retired.load(Relaxed) && slot.is_empty())
                .map(|slot| slot.id)
                .collect();
            gone.iter().filter_map(|id| functions.remove(id)).collect()
        };
        for slot in gone {
            shared.metrics.forget(&slot.name);
        }
        let held: Vec<FunctionName> = lock(&self.nothing).drain(..).collect();
        let kept: Vec<FunctionName> =
            held.into_iter().filter(|name| self.entry(name).is_some()).collect();
        lock(&self.nothing).extend(kept);
    }

    pub(crate) fn function(&self, id: FunctionId) -> Option<Arc<FunctionSlot>> {
        lock(&self.functions).get(&id).cloned()
    }

    pub(crate) fn functions(&self) -> Vec<Arc<FunctionSlot>> {
        lock(&self.functions).values().cloned().collect()
    }

    pub(crate) fn names(&self) -> Vec<FunctionName> {
        self.names
            .iter()
            .flat_map(|shard| read(shard).keys().cloned().collect::<Vec<_>>())
            .collect()
    }

    /// Names of which a new leader has to say something.
    pub(crate) fn open_names(&self) -> Vec<FunctionName> {
        let open = |entry: &Arc<Entry>| !matches!(&*entry.known.borrow(), Known::Function(_));
        let of = |shard: &Shard| -> Vec<FunctionName> {
            read(shard).iter().filter(|(_, entry)| open(entry)).map(|(n, _)| n.clone()).collect()
        };
        self.names.iter().flat_map(of).collect()
    }

    /// The stream is new: what was unknown to the old leader is asked anew.
    pub(crate) fn doubt(&self) {
        for shard in &self.names {
            for entry in read(shard).values() {
                entry.known.send_if_modified(|known| {
                    let doubtful = matches!(known, Known::Nothing);
                    if doubtful {
                        *known = Known::Asked;
                    }
                    doubtful
                });
            }
        }
        lock(&self.nothing).clear();
    }

    pub(crate) fn granted(&self, sandbox: SandboxId, function: FunctionId) {
        lock(&self.sandboxes).insert(sandbox, function);
    }

    pub(crate) fn forget_sandbox(&self, sandbox: SandboxId) {
        lock(&self.sandboxes).remove(&sandbox);
    }

    pub(crate) fn of_sandbox(&self, sandbox: SandboxId) -> Option<Arc<FunctionSlot>> {
        let function = lock(&self.sandboxes).get(&sandbox).copied()?;
        self.function(function)
    }
}

/// One who waits to hear what a name is. The last one who goes without an answer takes the name with
/// it: names that nobody waits for must not pile up.
struct Waiting<'a> {
    catalogue: &'a Catalogue,
    shared: &'a Shared,
    name: &'a FunctionName,
    known: Option<watch::Receiver<Known>>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let answered = self.known.take().is_some_and(|k| !matches!(*k.borrow(), Known::Asked));
        if !answered {
            self.catalogue.forget(self.shared, self.name, |known| matches!(known, Known::Asked));
        }
    }
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(std::sync::PoisonError::into_inner)
}
