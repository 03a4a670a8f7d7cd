//! Threads with a runtime each, for tasks that should stay where they are.
//!
//! A task started on a core is woken there by what it waits for: its sockets are registered with
//! that thread's own event queue, no other thread takes it over, and nobody has to be told to. What
//! is given up is balance: a core that is busy gets no help, so work is spread when it begins.

use std::{
    io,
    num::NonZero,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
};

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// See the module. Cheap to clone; the threads end with the last clone, and so does what still
/// runs on them.
#[derive(Clone, Debug)]
pub struct Cores {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    cores: Vec<Core>,
    _stop: DropGuard,
}

#[derive(Debug)]
struct Core {
    handle: Handle,
    /// What is seated here now.
    load: AtomicUsize,
}

impl Cores {
    /// Starts so many threads, named `name-0` and so on.
    ///
    /// # Errors
    /// If the system gives no more threads or event queues.
    pub fn start(name: &str, count: NonZero<usize>) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        let mut cores = Vec::new();
        for number in 0..count.get() {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let handle = runtime.handle().clone();
            let stop = stop.clone();
            // The thread owns its runtime: it may be dropped only where nothing asynchronous runs.
            thread::Builder::new()
                .name(format!("{name}-{number}"))
                .spawn(move || runtime.block_on(stop.cancelled()))?;
            cores.push(Core { handle, load: AtomicUsize::new(0) });
        }
        Ok(Self { inner: Arc::new(Inner { cores, _stop: guard }) })
    }

    /// A seat where there are fewest taken, the first of several such cores.
    #[must_use]
    pub fn seat(&self) -> Seat {
        let loads = self.inner.cores.iter().map(|core| core.load.load(Relaxed));
        let core = loads.enumerate().min_by_key(|(_, load)| *load).map_or(0, |(core, _)| core);
        self.seat_on(core)
    }

    /// A seat on the first core.
    #[must_use]
    pub fn first(&self) -> Seat {
        self.seat_on(0)
    }

    fn seat_on(&self, core: usize) -> Seat {
        let seat = Seat { cores: self.clone(), core };
        seat.core().load.fetch_add(1, Relaxed);
        seat
    }
}

/// A place on a core, counted until it is dropped.
#[derive(Debug)]
pub struct Seat {
    cores: Cores,
    core: usize,
}

impl Seat {
    fn core(&self) -> &Core {
        self.cores.inner.cores.get(self.core).expect("a seat is made for a core that there is")
    }

    /// Where to start what is seated here.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.core().handle
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.core().load.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cores(count: usize) -> Cores {
        Cores::start("test", NonZero::new(count).unwrap()).unwrap()
    }

    #[test]
    fn seats_are_spread_and_given_back() {
        let cores = cores(3);
        let mut seats: Vec<Seat> = (0..6).map(|_| cores.seat()).collect();
        let taken: Vec<usize> = seats.iter().map(|seat| seat.core).collect();
        assert_eq!(taken, [0, 1, 2, 0, 1, 2]);
        drop(seats.remove(4));
        assert_eq!(cores.seat().core, 1);
    }

    #[tokio::test]
    async fn a_task_stays_on_its_thread_and_ends_with_the_cores() {
        let cores = cores(2);
        let seat = cores.seat();
        let (tx, mut rx) = tokio::sync::mpsc::channel(8);
        let task = seat.handle().spawn(async move {
            loop {
                let name = thread::current().name().map(str::to_owned);
                if tx.send(name).await.is_err() {
                    return;
                }
                tokio::task::yield_now().await;
            }
        });
        for _ in 0..20 {
            assert_eq!(rx.recv().await.unwrap().as_deref(), Some("test-0"));
        }
        drop((seat, cores));
        assert!(task.await.unwrap_err().is_cancelled());
    }
}
