//! What the published system does otherwise, one thing at a time, for figures beside ours: only in builds
//! with the feature `ablations`, which no release has. The variable `ABLATE` names them, with commas
//! between:
//!
//! | | |
//! |---|---|
//! | `tick` | what data planes ask for is heard every 2 s, as by an autoscaler that looks so often |
//! | `one` | for a function that has nothing one slot is asked for, however many invocations wait |
//! | `persist` | each sandbox is on the disk (of temporary files) before it is ordered, one after the other |
//!
//! They stand between the streams and the owner, so that the machine that decides is the one of every
//! build.

use std::{
    collections::BTreeMap,
    env,
    io::Write as _,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use dirigent_core::{
    FunctionId,
    frame::{Demand, FromDataPlane, FromWorker, StartSandbox, ToDataPlane, ToWorker},
};
use dirigent_service::{End, OnCancel, Tasks};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

/// The published system's autoscaling period.
const TICK: Duration = Duration::from_secs(2);

/// Frames between a stream and what is done to them.
const WAITING: usize = 1024;

/// What is done otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ablations {
    tick: bool,
    one: bool,
    persist: bool,
}

static CHOSEN: LazyLock<Ablations> = LazyLock::new(|| {
    let chosen = Ablations::named(&env::var("ABLATE").unwrap_or_default());
    tracing::warn!(?chosen, "this build can do as the published system does");
    chosen
});

impl Ablations {
    fn named(names: &str) -> Self {
        let mut this = Self::default();
        for name in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            match name {
                "tick" => this.tick = true,
                "one" => this.one = true,
                "persist" => this.persist = true,
                _ => tracing::error!(name, "ABLATE knows tick, one and persist"),
            }
        }
        this
    }

    /// What is heard in the place of what a data plane asks for.
    fn heard(self, demand: Demand) -> Demand {
        let has_nothing = demand.held == 0 && demand.busy == 0;
        let queued = if self.one && has_nothing { demand.queued.min(1) } else { demand.queued };
        Demand { queued, ..demand }
    }
}

/// A data plane's stream, as it is heard.
pub(crate) fn of_data_plane(
    end: End<ToDataPlane, FromDataPlane>,
    tasks: &Tasks,
) -> End<ToDataPlane, FromDataPlane> {
    if *CHOSEN == Ablations::default() {
        return end;
    }
    let End { tx, rx } = end;
    let (heard, hears) = mpsc::channel(WAITING);
    tasks.run("ablations", OnCancel::Abort, delay(*CHOSEN, rx, heard));
    End { tx, rx: hears }
}

async fn delay(
    chosen: Ablations,
    mut said: mpsc::Receiver<FromDataPlane>,
    heard: mpsc::Sender<FromDataPlane>,
) {
    let mut held: BTreeMap<FunctionId, Demand> = BTreeMap::new();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            frame = said.recv() => {
                let frame = match frame {
                    None => return,
                    Some(FromDataPlane::Demand(demand)) => {
                        if chosen.tick {
                            held.insert(demand.function, demand);
                            continue;
                        }
                        FromDataPlane::Demand(chosen.heard(demand))
                    }
                    Some(other) => other,
                };
                if heard.send(frame).await.is_err() {
                    return;
                }
            }
            _ = ticks.tick() => {
                for demand in std::mem::take(&mut held).into_values() {
                    let frame = FromDataPlane::Demand(chosen.heard(demand));
                    if heard.send(frame).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// A worker's stream, as it is spoken to.
pub(crate) fn of_worker(
    end: End<ToWorker, FromWorker>,
    tasks: &Tasks,
) -> End<ToWorker, FromWorker> {
    if !CHOSEN.persist {
        return end;
    }
    let End { tx, rx } = end;
    let (says, mut said) = mpsc::channel(WAITING);
    tasks.run("ablations", OnCancel::Abort, async move {
        while let Some(frame) = said.recv().await {
            if let ToWorker::StartSandbox(order) = &frame {
                write_down(order).await;
            }
            if tx.send(frame).await.is_err() {
                return;
            }
        }
    });
    End { tx: says, rx }
}

/// All sandboxes in one file, as in one store.
async fn write_down(order: &StartSandbox) {
    static FILE: LazyLock<Option<Arc<Mutex<std::fs::File>>>> = LazyLock::new(|| {
        let name = format!("dirigent-sandboxes-{}", std::process::id());
        let path = env::temp_dir().join(name);
        let file = std::fs::File::create(&path).and_then(|file| {
            std::fs::remove_file(&path)?;
            Ok(Arc::new(Mutex::new(file)))
        });
        file.inspect_err(|error| tracing::error!(%error, "sandboxes are not written down")).ok()
    });
    let Some(file) = FILE.as_ref().map(Arc::clone) else { return };
    let line = format!("{} {:?}\n", order.sandbox, order.revision);
    let written = tokio::task::spawn_blocking(move || {
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(line.as_bytes())?;
        file.sync_data()
    });
    if let Ok(Err(error)) = written.await {
        tracing::error!(%error, "a sandbox is not written down");
    }
}

#[cfg(test)]
mod tests {
    use dirigent_core::Epoch;

    use super::*;

    fn demand(queued: u32, held: u32) -> Demand {
        Demand {
            function: FunctionId::new(Epoch(1), 1),
            queued,
            oldest_wait: Duration::ZERO,
            held,
            idle: 0,
            busy: held,
            busy_integral: 0,
            elapsed: 0,
            arrivals_total: 0,
            finished_total: 0,
            expected: 0,
        }
    }

    #[test]
    fn who_has_nothing_asks_for_one() {
        let one = Ablations::named("one");
        assert_eq!(one.heard(demand(200, 0)).queued, 1);
        assert_eq!(one.heard(demand(200, 1)).queued, 200);
        assert_eq!(Ablations::named("").heard(demand(200, 0)).queued, 200);
        let all = Ablations { tick: true, one: true, persist: true };
        assert_eq!(Ablations::named("tick, persist,one,other"), all);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_asked_for_is_heard_at_the_next_tick_and_all_else_at_once() {
        let (says, said) = mpsc::channel(8);
        let (heard, mut hears) = mpsc::channel(8);
        let delaying = async move { delay(Ablations::named("tick"), said, heard).await };
        let heard = async move {
            // The first tick is at once.
            tokio::time::sleep(TICK / 4).await;
            let begun = tokio::time::Instant::now();
            says.send(FromDataPlane::Demand(demand(1, 0))).await.unwrap();
            says.send(FromDataPlane::Demand(demand(7, 0))).await.unwrap();
            says.send(FromDataPlane::Unsupported { kind: "x".to_owned() }).await.unwrap();
            let first = hears.recv().await.unwrap();
            assert!(matches!(first, FromDataPlane::Unsupported { .. }), "{first:?}");
            assert_eq!(begun.elapsed(), Duration::ZERO);
            // The newest of them.
            assert_eq!(hears.recv().await, Some(FromDataPlane::Demand(demand(7, 0))));
            assert_eq!(begun.elapsed(), TICK - TICK / 4);
        };
        tokio::join!(delaying, heard);
    }
}
