//! The life of one sandbox, as one task: made, watched, ended, removed, each told in this order.
//!
//! Its first process is held by a pidfd. When that ends everything in it has ended, as the process is
//! the first of its pid namespace; what containerd says of it afterwards is only how.

use std::{os::fd::OwnedFd, rc::Rc, time::Duration};

use dirigent_core::{
    Address, Cause, Fault, FunctionId, SandboxId, StartFailure,
    frame::SandboxReport,
    worker::{Adopted, CreateSandbox},
};
use rustix::process::{Pid, Signal, pidfd_send_signal};
use tokio::{
    io::unix::AsyncFd,
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    driver::World,
    made::{Created, Made, Place},
    network::Network,
    output::Reader,
    removal::{bury, remove},
    spec::Plan,
};
use crate::{
    Event,
    claim::Claim,
    keeper::output::Output,
    process::{
        Spaces,
        driver::never_listened,
        listeners::{Listeners, Owner},
    },
    sys::watch as watched,
};

/// How often a starting sandbox is looked at: as fine as timers here are.
const LOOK: Duration = Duration::from_millis(1);

/// How long the output of a dead sandbox may be on its way.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How long the end of a sandbox waits for a containerd that does not answer, before it is told
/// without what only containerd knows. What is left in containerd is removed when it is back.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Between two attempts to reach containerd, at first and at most.
pub(super) const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// The notes that a sandbox has for the next life of the worker.
pub(super) const LISTENS: &str = "listens";
pub(super) const STOPPING: &str = "stopping";

/// When a sandbox that is to stop is killed; `None` while it is not to.
pub(super) type Stop = Option<Instant>;

/// A sandbox that runs.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) sandbox: SandboxId,
    pub(super) place: Place,
    pub(super) stop_signal: i32,
    pub(super) limit: dirigent_core::Bytes,
    pub(super) pid: Pid,
    pub(super) held: AsyncFd<OwnedFd>,
    pub(super) output: Reader,
    /// Whether its network is its own.
    pub(super) has_network: bool,
    /// `None` once it listens, or nobody waits for that any more.
    pub(super) starting: Option<Starting>,
    /// Keeps the port from others until it is gone.
    pub(super) _claim: Option<Claim>,
}

/// A sandbox that does not listen yet.
#[derive(Debug)]
pub(super) struct Starting {
    pub(super) since: Instant,
    /// How long that may take.
    pub(super) timeout: Duration,
    pub(super) network: Network,
    /// Who listens in its own network.
    pub(super) listeners: Option<Listeners>,
}

/// What is reported of a sandbox after a restart, as far as its order says it.
pub(super) fn adopted(create: &CreateSandbox, address: Option<Address>) -> Adopted {
    let order = &create.order;
    Adopted {
        report: SandboxReport {
            sandbox: order.sandbox,
            revision: order.revision,
            memory: order.spec.resources.memory,
            cpu: order.spec.resources.cpu,
            address,
            stopping: false,
        },
        port: Some(create.port),
        artifact: order.spec.artifact,
    }
}

/// From the order to the end; by a task that was made ahead, if there is one.
pub(super) async fn live(
    world: Rc<World>,
    create: CreateSandbox,
    task: Option<Task>,
    claim: Option<Claim>,
    stops: watch::Receiver<Stop>,
) {
    let sandbox = create.order.sandbox;
    let place = world.place(sandbox);
    let mut begun = None;
    if let Some(task) = task {
        let spent = task.place.clone();
        match begin_ahead(&world, &create, task).await {
            Ok(running) => begun = Some(running),
            Err(failure) => {
                tracing::debug!(%sandbox, cause = %failure.cause, "not begun as it was made ahead");
                // Where containerd cannot remove one it makes no other.
                if timeout(PATIENCE, remove(&world, &spent)).await.is_err() {
                    return bury(&world, &spent, sandbox, failure).await;
                }
            }
        }
    }
    let made = match begun {
        Some(running) => Ok(running),
        None => make(&world, &create, &place, &stops).await,
    };
    match made {
        Ok(running) => {
            world.report(Event::Created { sandbox }).await;
            serve(world, Running { _claim: claim, ..running }, stops).await;
        }
        Err(failure) => {
            let is_lost = matches!(failure.cause, Cause::ArtifactFailed { .. });
            let lost = create.order.spec.artifact.filter(|_| is_lost);
            if let Some(digest) = lost {
                world.lost(digest).await;
            }
            bury(&world, &place, sandbox, failure).await;
            if let Some(digest) = lost {
                world.images.let_go_of(digest).await;
            }
        }
    }
}

/// By a task that was made ahead.
async fn begin_ahead(world: &World, create: &CreateSandbox, mut task: Task) -> Made<Running> {
    let missing = |error: std::io::Error| {
        failure(Cause::CreateFailed { message: error.to_string() }, Fault::Worker)
    };
    world.offer.expose(&mut task.network, create.port).await.map_err(missing)?;
    // First: should this process die now, the next one must know whose it is.
    let record = adopted(create, Some(task.network.reached_at.clone()));
    task.place.record(&record).map_err(missing)?;
    task.begin(world, create).await
}

/// Looks between the calls whether it is still wanted: a call that is cut off may be carried out all
/// the same, after what it made was looked for and removed.
async fn make(
    world: &World,
    create: &CreateSandbox,
    place: &Place,
    stops: &watch::Receiver<Stop>,
) -> Made<Running> {
    let wanted = || match *stops.borrow() {
        None => Ok(()),
        Some(_) => Err(failure(Cause::Stopped, Fault::Function)),
    };
    wanted()?;
    let network = world.offer.give(create).await?;
    let record = adopted(create, Some(network.reached_at.clone()));
    let task = make_task(world, create, place.clone(), network, Some(&record)).await?;
    wanted()?;
    task.begin(world, create).await
}

/// One that is made, and waits to be started unless it is known whose it is.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) place: Place,
    pub(super) network: Network,
    pid: Pid,
    pub(super) held: AsyncFd<OwnedFd>,
    /// Whether it is not started yet.
    waits: bool,
    pipes: [OwnedFd; 2],
    stop_signal: i32,
}

/// Everything of a sandbox but its life.
pub(super) async fn make_task(
    world: &World,
    create: &CreateSandbox,
    place: Place,
    network: Network,
    record: Option<&Adopted>,
) -> Made<Task> {
    let spec = &create.order.spec;
    let missing = |message: String| failure(Cause::CreateFailed { message }, Fault::Worker);
    let image = match spec.artifact {
        Some(digest) => world.images.get(digest).ok_or_else(|| {
            missing(format!("image {digest} is not here: it was to be fetched first"))
        })?,
        None => {
            let image = spec.sandbox.image.as_deref().unwrap_or_default();
            return Err(missing(format!("image `{image}` was not sent with the deploy")));
        }
    };
    let pipes = place.pipes()?;
    let names = network.names(&place.directory, create.order.name.name());
    let plan = Plan {
        create,
        program: &image.program,
        group: place.group(),
        network: &network,
        names: names.map_err(|error| missing(error.to_string()))?,
        processes: world.config.processes,
        read_only: spec.sandbox.read_only,
    };
    let Created { pid, held, waits } = place.create(world, &image, &plan, record).await?;
    let held = watched::readable(held).map_err(|error| missing(error.to_string()))?;
    Ok(Task { place, network, pid, held, waits, pipes, stop_signal: image.program.stop_signal })
}

impl Task {
    async fn begin(self, world: &World, create: &CreateSandbox) -> Made<Running> {
        let Self { place, network, pid, held, waits, pipes: [stdout, stderr], stop_signal } = self;
        let (function, sandbox) = (create.order.revision.function, create.order.sandbox);
        let output = world.output(function, sandbox, stdout, stderr).map_err(|error| {
            failure(Cause::CreateFailed { message: error.to_string() }, Fault::Worker)
        })?;
        if waits {
            place.start().await?;
        }
        let init = pid.as_raw_nonzero().get();
        let listeners = network.lent.as_ref().map(|lent| Listeners::of(init, lent.address));
        Ok(Running {
            sandbox,
            place,
            stop_signal,
            limit: create.order.spec.resources.memory,
            pid,
            held,
            output,
            has_network: network.lent.is_some(),
            starting: Some(Starting {
                since: Instant::now(),
                timeout: create.order.start_timeout,
                network,
                listeners,
            }),
            _claim: None,
        })
    }
}

/// What a sandbox writes goes to its function's log.
impl World {
    pub(super) fn output(
        &self,
        function: FunctionId,
        sandbox: SandboxId,
        stdout: OwnedFd,
        stderr: OwnedFd,
    ) -> std::io::Result<Reader> {
        let file = self.logs.borrow_mut().of(function);
        Reader::new(Output::new(sandbox, file, stdout, stderr))
    }
}

/// From the first instruction, or from its adoption, to the end.
pub(super) async fn serve(world: Rc<World>, mut one: Running, mut stops: watch::Receiver<Stop>) {
    let mut verdict = None;
    let mut signalled = false;
    // Kept over the turns: one that writes often ends them sooner than it is looked at.
    let mut look_at = Instant::now() + LOOK;
    let kept = one.has_network || one.place.is_bundle();
    let mut keepers = world.offer.spaces.as_ref().filter(|_| kept).map(Spaces::keepers);
    loop {
        let stop = *stops.borrow_and_update();
        if stop.is_some() && !signalled {
            signalled = true;
            one.place.note(STOPPING);
            one.starting = None;
            one.signal(one.stop_signal).await;
        }
        tokio::select! {
            biased;
            ended = one.held.readable() => {
                if let Err(error) = ended {
                    tracing::error!(sandbox = %one.sandbox, %error, "its end is not seen");
                }
                break;
            }
            changed = stops.changed() => {
                // The driver is gone, and this task goes with it.
                if changed.is_err() {
                    std::future::pending::<()>().await;
                }
            }
            () = another(&mut keepers) => {
                if one.is_lost(&world) {
                    verdict = Some(failure(Cause::WorkerLost, Fault::Worker));
                    one.starting = None;
                    one.signal(libc::SIGKILL).await;
                }
            }
            () = until(stop), if stop.is_some() => {
                one.signal(libc::SIGKILL).await;
                if one.held.readable().await.is_ok() {
                    break;
                }
            }
            () = sleep_until(look_at), if one.starting.is_some() => {
                look_at = Instant::now() + LOOK;
                if let Some(late) = one.look(&world).await {
                    verdict = Some(failure(late, Fault::Function));
                    one.starting = None;
                    one.signal(libc::SIGKILL).await;
                }
            }
            () = one.output.read() => world.logs.borrow_mut().tidy(),
        }
    }
    end(&world, one, verdict, signalled).await;
}

/// There may be another keeper than who lent a network, as at first: that one may have died since.
/// Never, if there is none.
async fn another(keepers: &mut Option<watch::Receiver<u64>>) {
    if let Some(changes) = keepers {
        if changes.changed().await.is_ok() {
            return;
        }
        // The worker ends, and what is lent stays so.
        *keepers = None;
    }
    std::future::pending::<()>().await;
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Running {
    /// Whether its keeper died, which lent it a network and knows how it ends.
    fn is_lost(&self, world: &World) -> bool {
        let is_lent = || self.place.key.is_some_and(|name| world.offer.is_lent(name));
        let is_held =
            || self.place.hands().is_none_or(|hands| hands.held(&self.place.id).is_some());
        self.has_network && !is_lent() || !is_held()
    }

    /// Whether it listens by now; the cause of its end if it took too long.
    async fn look(&mut self, world: &World) -> Option<Cause> {
        let Starting { since, timeout, network, listeners } = self.starting.as_mut()?;
        let owner = Owner { init: self.pid.as_raw_nonzero().get(), uid: None };
        let port = network.listens_at.port();
        let listens = match listeners {
            // Nobody else can listen there.
            Some(own) => own.at(port).is_some(),
            None => {
                let listener = world.listeners.borrow_mut().at(port);
                listener.is_some_and(|listener| owner.owns(&listener))
            }
        };
        let init = since.elapsed();
        if listens {
            let address = network.reached_at.clone();
            self.starting = None;
            // First: should this process die now, the next one must not take it for half made.
            self.place.note(LISTENS);
            let sandbox = self.sandbox;
            world.report(Event::Listening { sandbox, address, init }).await;
            return None;
        }
        if init < *timeout {
            return None;
        }
        let places = owner.listens_at(self.has_network);
        let message = never_listened(network.listens_at, *timeout, &places);
        Some(Cause::NeverListened { message })
    }

    /// Straight to the process where that is one of this kernel, else by who made it.
    async fn signal(&self, signal: i32) {
        let direct = Signal::from_named_raw(signal)
            .map(|signal| pidfd_send_signal(self.held.get_ref(), signal));
        if let Some(Ok(())) = direct {
            return;
        }
        if let Err(error) = self.place.signal(signal).await {
            tracing::debug!(sandbox = %self.sandbox, %error, "not signalled");
        }
    }

    /// What it wrote last is on its way through the shim.
    async fn last_words(mut self) -> Vec<String> {
        let over = Instant::now() + LAST_WORDS;
        while !self.output.has_ended() {
            tokio::select! {
                () = self.output.read() => {}
                () = sleep_until(over) => break,
            }
        }
        self.output.finish()
    }
}

async fn end(world: &World, one: Running, verdict: Option<StartFailure>, stopped: bool) {
    let (sandbox, place, limit) = (one.sandbox, one.place.clone(), one.limit);
    let known = timeout(PATIENCE, exit_status(&place)).await.ok().flatten();
    let failure = match verdict {
        Some(verdict) => verdict,
        None => judge(known, stopped, place.out_of_memory(), limit),
    };
    let log_tail = one.last_words().await;
    let failure = StartFailure { log_tail, ..failure };
    bury(world, &place, sandbox, failure).await;
}

/// How it ended; `None` if nobody knows, as after the death of its keeper or its shim.
pub(super) async fn exit_status(place: &Place) -> Option<u32> {
    let mut pause = RETRY.0;
    loop {
        match place.status().await {
            Ok(status) => return status,
            Err(failure) if failure.is_unreachable() => {}
            Err(failure) => {
                tracing::debug!(id = place.id, %failure, "its exit status is not known");
                return None;
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(RETRY.1);
    }
}

/// Why a sandbox ended, and whose fault that is.
pub(super) fn judge(
    status: Option<u32>,
    stopped: bool,
    out_of_memory: bool,
    limit: dirigent_core::Bytes,
) -> StartFailure {
    if stopped {
        return failure(Cause::Stopped, Fault::Function);
    }
    let Some(status) = status else { return failure(Cause::WorkerLost, Fault::Worker) };
    if out_of_memory && status != 0 {
        return failure(Cause::OutOfMemory { limit }, Fault::Function);
    }
    let status = i32::try_from(status).unwrap_or(255);
    // As shells and shims say that a signal ended it.
    let cause = match status - 128 {
        signal @ 1..=64 => Cause::Signalled { signal },
        _ => Cause::Exited { code: status },
    };
    failure(cause, Fault::Function)
}

pub(super) fn failure(cause: Cause, fault: Fault) -> StartFailure {
    StartFailure { cause, fault, log_tail: Vec::new() }
}

#[cfg(test)]
mod tests {
    use std::{fs::OpenOptions, io::Write as _, net::TcpListener};

    use dirigent_core::{Bytes, Epoch};
    use tokio::{sync::mpsc, task::LocalSet};

    use super::*;
    use crate::container::{ContainerConfig, kept::Stock, made::first};

    /// The clock goes on by less than lies between two looks, with a line each time.
    #[tokio::test(start_paused = true)]
    async fn one_that_writes_all_the_time_is_looked_at_all_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let (events, mut heard) = mpsc::channel(8);
        let mut config = ContainerConfig::new(directory.path());
        config.socket = directory.path().join("nobody");
        let world = Rc::new(World::new(config, events, Stock::default()).unwrap());
        // This process stands for the sandbox.
        let listener = TcpListener::bind((world.config.address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let network = Network::of_machine(world.config.address, port);
        let (pid, held) = first(std::process::id()).unwrap();
        let sandbox = SandboxId::new(Epoch(1), 1);
        let place = world.place(sandbox);
        let [stdout, stderr] = place.pipes().unwrap();
        let mut writes =
            OpenOptions::new().write(true).open(place.directory.join("stdout")).unwrap();
        let function = FunctionId::new(Epoch(1), 1);
        let one = Running {
            sandbox,
            stop_signal: libc::SIGTERM,
            limit: Bytes::mib(64),
            pid,
            held: watched::readable(held).unwrap(),
            output: world.output(function, sandbox, stdout, stderr).unwrap(),
            has_network: false,
            starting: Some(Starting {
                since: Instant::now(),
                timeout: Duration::from_secs(60),
                network,
                listeners: None,
            }),
            place,
            _claim: None,
        };
        let (_stop, stops) = watch::channel(None);
        let tasks = LocalSet::new();
        tasks.spawn_local(serve(Rc::clone(&world), one, stops));
        let goes_on = async {
            for _ in 0..100 {
                writes.write_all(b"still here\n").unwrap();
                tokio::time::advance(LOOK / 4).await;
            }
        };
        tasks.run_until(goes_on).await;
        let event = heard.try_recv();
        assert!(
            matches!(event, Ok(Event::Listening { sandbox: s, .. }) if s == sandbox),
            "{event:?}"
        );
    }

    #[test]
    fn ends_are_told_apart() {
        let limit = Bytes::mib(64);
        let cause = |status, stopped, oom| judge(status, stopped, oom, limit).cause;
        assert_eq!(cause(Some(0), false, false), Cause::Exited { code: 0 });
        assert_eq!(cause(Some(3), false, false), Cause::Exited { code: 3 });
        assert_eq!(cause(Some(255), false, false), Cause::Exited { code: 255 });
        assert_eq!(cause(Some(137), false, false), Cause::Signalled { signal: 9 });
        assert_eq!(cause(Some(137), false, true), Cause::OutOfMemory { limit });
        assert_eq!(cause(Some(0), false, true), Cause::Exited { code: 0 });
        assert_eq!(cause(Some(137), true, true), Cause::Stopped);
        assert_eq!(cause(None, false, false), Cause::WorkerLost);
    }
}
