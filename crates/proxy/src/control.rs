//! The stream to the control plane: dials, introduces everything that is held, obeys, and dials
//! again when it breaks.
//!
//! The cluster and the highest epoch obeyed are on disk before the first frame of a leader is
//! obeyed; one of another cluster or of a lower epoch is never obeyed.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use dirigent_core::{
    ClusterId, Epoch, FunctionId,
    frame::{
        CHECKS_TOKENS, DataPlaneHello, FromDataPlane, FromDataPlaneBulk, Grant, Hello, Incarnation,
        PROTOCOL, Returned, TAKEN, TAKEN_FOR, ToDataPlane, ToDataPlaneBulk, Welcome, WhyReturned,
    },
    gate::Event,
};
use dirigent_service::{Dialer, End, outbox, state};
use serde::{Deserialize, Serialize};

use crate::{Shared, Stream, ids};

/// What outlives the process.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Remembered {
    cluster: Option<ClusterId>,
    epoch: Epoch,
    starts: u64,
}

/// See [`Remembered`].
#[derive(Debug)]
pub(crate) struct Memory {
    path: Option<PathBuf>,
    remembered: Remembered,
    boot: Arc<str>,
    life: u64,
}

impl Memory {
    /// Reads what was remembered and counts this start.
    pub(crate) fn open(dir: Option<&Path>) -> io::Result<Self> {
        let path = dir.map(|dir| dir.join("attachment.json"));
        let mut remembered = Remembered::default();
        if let (Some(dir), Some(path)) = (dir, &path) {
            state::private_dir(dir)?;
            match fs::read(path) {
                Ok(bytes) => {
                    remembered = serde_json::from_slice(&bytes).map_err(|error| {
                        let text = format!("{}: {error}", path.display());
                        io::Error::new(io::ErrorKind::InvalidData, text)
                    })?;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        remembered.starts += 1;
        // Where the kernel has no boot id every start counts as one of another boot.
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map_or_else(|_error| format!("{:016x}", ids::unique()), |id| id.trim().to_owned());
        let this = Self { path, remembered, boot: boot.into(), life: ids::unique() };
        this.save()?;
        Ok(this)
    }

    fn save(&self) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let bytes = serde_json::to_vec(&self.remembered).map_err(io::Error::other)?;
        state::atomic_write(path, &bytes, 0o600)
    }

    fn hello(&self) -> Hello {
        Hello {
            cluster: self.remembered.cluster,
            protocol: (PROTOCOL, PROTOCOL),
            features: vec![CHECKS_TOKENS.to_owned(), TAKEN.to_owned()],
            incarnation: Incarnation {
                boot: Arc::clone(&self.boot),
                start: self.remembered.starts,
                life: self.life,
            },
            highest_epoch: self.remembered.epoch,
        }
    }

    /// Whether that leader may be obeyed; if so it is on disk.
    fn accept(&mut self, welcome: Welcome) -> Result<(), Broken> {
        let known = &self.remembered;
        if known.cluster.is_some_and(|cluster| cluster != welcome.cluster) {
            return Err(Broken::Stranger);
        }
        if welcome.epoch < known.epoch {
            return Err(Broken::Deposed);
        }
        if known.cluster.is_none() || welcome.epoch > known.epoch {
            self.remembered.cluster = Some(welcome.cluster);
            self.remembered.epoch = welcome.epoch;
            self.save().map_err(Broken::Disk)?;
        }
        Ok(())
    }
}

/// Another data plane has the name.
#[derive(Debug, thiserror::Error)]
#[error("another data plane of this name is attached to the control plane, and lives")]
pub(crate) struct NameTaken;

/// Why a stream is over.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the control plane cannot be reached")]
    Unreachable,
    #[error("the control plane did not answer the greeting")]
    NoWelcome,
    #[error("the control plane is one of another cluster")]
    Stranger,
    #[error("the control plane was deposed")]
    Deposed,
    #[error(transparent)]
    Taken(#[from] NameTaken),
    #[error("what is obeyed cannot be remembered: {0}")]
    Disk(#[source] io::Error),
    #[error("the control plane hung up")]
    HungUp,
    #[error("the control plane takes no frames: {0}")]
    Outbox(#[from] dirigent_service::OutboxClosed),
}

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
const WELCOME_WITHIN: Duration = Duration::from_secs(5);
/// Doubling, between half of it and all of it, so that many data planes do not dial at once.
struct Pause(Duration);

impl Pause {
    async fn wait(&mut self) {
        let jitter = u32::try_from(ids::unique() % 512).unwrap_or(0) + 512;
        tokio::time::sleep(self.0 * jitter / 1024).await;
        self.0 = (self.0 * 2).min(LONGEST_PAUSE);
    }
}

/// Keeps a stream up until it is dropped, or another data plane has the name. Who was in use before
/// does not yield: the other one came later.
pub(crate) async fn run(
    shared: Arc<Shared>,
    dialer: Dialer<FromDataPlane, ToDataPlane>,
    mut memory: Memory,
) -> Result<(), NameTaken> {
    let mut pause = Pause(FIRST_PAUSE);
    let mut taken_since = None;
    let mut number = 0;
    loop {
        number += 1;
        let broken = attach(&shared, &dialer, &mut memory, number, &mut pause).await;
        detach(&shared);
        match broken {
            Broken::Unreachable | Broken::HungUp | Broken::NoWelcome => {
                tracing::debug!(error = %broken, "not attached to a control plane");
            }
            Broken::Taken(taken) => {
                let since: Instant = *taken_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= TAKEN_FOR && !shared.met.load(Relaxed) {
                    shared.name_taken.store(true, Relaxed);
                    return Err(taken);
                }
                tracing::warn!("{taken}; it is dialled again");
            }
            _ => tracing::warn!(error = %broken, "not attached to a control plane"),
        }
        pause.wait().await;
    }
}

/// One stream from its greeting to its end.
async fn attach(
    shared: &Arc<Shared>,
    dialer: &Dialer<FromDataPlane, ToDataPlane>,
    memory: &mut Memory,
    number: u64,
    pause: &mut Pause,
) -> Broken {
    let dialled = tokio::time::timeout(WELCOME_WITHIN, dialer.dial()).await;
    let Ok(Ok(End { tx, mut rx })) = dialled else { return Broken::Unreachable };
    // What gates say from now on waits here until the leader is accepted.
    let (out, feed) = outbox(dirigent_service::Limits::default());
    shared.stream.store(Some(Arc::new(Stream { number, out })));
    let hello = introduce(shared, memory, number);
    if tx.send(FromDataPlane::Hello(Box::new(hello))).await.is_err() {
        return Broken::HungUp;
    }
    let welcome = tokio::time::timeout(WELCOME_WITHIN, rx.recv()).await;
    let (welcome, you) = match welcome {
        Ok(Some(ToDataPlane::Welcome { welcome, you })) => (welcome, you),
        Ok(Some(ToDataPlane::Taken)) => return NameTaken.into(),
        Ok(None) => return Broken::HungUp,
        Ok(Some(_)) | Err(_) => return Broken::NoWelcome,
    };
    if let Err(broken) = memory.accept(welcome) {
        return broken;
    }
    tracing::info!(data_plane = %you, epoch = %welcome.epoch, "attached to the control plane");
    pause.0 = FIRST_PAUSE;
    shared.attached.store(true, Relaxed);
    shared.met.store(true, Relaxed);
    for slot in shared.catalogue.functions() {
        slot.handle(shared, shared.now(), Event::Attached);
    }
    for name in shared.catalogue.open_names() {
        shared.say(number, FromDataPlane::Resolve { name });
    }
    let mut forward = std::pin::pin!(feed.forward(&tx));
    loop {
        tokio::select! {
            frame = rx.recv() => match frame {
                Some(frame) => obey(shared, number, frame),
                None => return Broken::HungUp,
            },
            result = &mut forward => return match result {
                Ok(()) => Broken::HungUp,
                Err(error) => error.into(),
            },
        }
    }
}

fn introduce(shared: &Arc<Shared>, memory: &Memory, number: u64) -> DataPlaneHello {
    let mut hello = memory.hello();
    hello.features.extend(shared.orders.feature());
    let mut hello = DataPlaneHello {
        hello,
        holdings: Vec::new(),
        names: shared.catalogue.names(),
        demands: Vec::new(),
    };
    for slot in shared.catalogue.functions() {
        let (holdings, demand) = slot.introduce(number, shared.now());
        hello.holdings.extend(holdings);
        if demand.queued > 0 || demand.held > 0 || demand.arrivals_total > 0 {
            hello.demands.push(demand);
        }
    }
    hello
}

fn detach(shared: &Arc<Shared>) {
    shared.stream.store(None);
    if shared.attached.swap(false, Relaxed) {
        tracing::info!("detached from the control plane");
        shared.catalogue.doubt();
        for slot in shared.catalogue.functions() {
            slot.handle(shared, shared.now(), Event::Detached);
        }
    }
}

fn obey(shared: &Arc<Shared>, number: u64, frame: ToDataPlane) {
    match frame {
        ToDataPlane::Welcome { .. } | ToDataPlane::Taken => {
            tracing::debug!("answered twice who this is");
        }
        ToDataPlane::Duty { duty } => shared.orders.told(duty),
        ToDataPlane::Resolved { name, version, function } => {
            shared.orders.answered(&name);
            shared.catalogue.resolved(shared, number, &name, version, function);
        }
        ToDataPlane::Grant(grant) => {
            let function = grant.revision.function;
            let slot = shared.catalogue.function(function);
            if shared.orders.gives_back() {
                say_returned(shared, number, &grant, WhyReturned::Drained);
            } else if let Some(slot) = slot {
                shared.catalogue.granted(grant.sandbox, function);
                slot.handle(shared, shared.now(), Event::Granted(grant));
            } else {
                // It crossed our forgetting the function: nothing here can use it.
                say_returned(shared, number, &grant, WhyReturned::Idle);
            }
        }
        ToDataPlane::Recall { function, n, idle_only } => {
            tell(shared, function, Event::Recalled { n, idle_only });
        }
        ToDataPlane::RecallSandbox { sandbox, gone } => {
            if let Some(slot) = shared.catalogue.of_sandbox(sandbox) {
                slot.handle(shared, shared.now(), Event::SandboxRecalled { sandbox, gone });
            }
        }
        ToDataPlane::Status { function, status } => {
            tell(shared, function, Event::StatusChanged(status));
        }
        ToDataPlane::Tokens { tokens } => shared.tokens.learn(tokens),
        ToDataPlane::Unsupported { kind } => {
            tracing::warn!(kind, "the control plane did not understand a frame");
        }
    }
}

fn say_returned(shared: &Shared, number: u64, grant: &Grant, why: WhyReturned) {
    let Grant { sandbox, share, serial, .. } = *grant;
    let returned = Returned { sandbox, share, serial, why };
    shared.say(number, FromDataPlane::Returned(returned));
}

fn tell(shared: &Arc<Shared>, function: FunctionId, event: Event) {
    match shared.catalogue.function(function) {
        Some(slot) => slot.handle(shared, shared.now(), event),
        None => tracing::debug!(%function, "a frame about a function that is not held"),
    }
}

/// Answers questions on the second connection until it is dropped.
pub(crate) async fn run_bulk(
    shared: Arc<Shared>,
    dialer: Dialer<FromDataPlaneBulk, ToDataPlaneBulk>,
) {
    let mut pause = Pause(FIRST_PAUSE);
    loop {
        if let Ok(End { tx, mut rx }) = dialer.dial().await {
            while let Some(ToDataPlaneBulk::FindInvocation { id, request_id }) = rx.recv().await {
                pause.0 = FIRST_PAUSE;
                let record = shared.records.find(&request_id).map(Box::new);
                if tx.send(FromDataPlaneBulk::Invocation { id, record }).await.is_err() {
                    break;
                }
            }
        }
        pause.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_epoch_is_on_disk_before_it_is_obeyed_and_never_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut memory = Memory::open(Some(dir.path())).unwrap();
        let welcome = |cluster, epoch| Welcome { cluster: ClusterId(cluster), epoch: Epoch(epoch) };
        assert!(memory.accept(welcome(1, 7)).is_ok());
        let mut memory = Memory::open(Some(dir.path())).unwrap();
        assert_eq!(memory.hello().highest_epoch, Epoch(7));
        assert_eq!(memory.hello().incarnation.start, 2);
        assert!(matches!(memory.accept(welcome(1, 6)), Err(Broken::Deposed)));
        assert!(matches!(memory.accept(welcome(2, 8)), Err(Broken::Stranger)));
        assert!(memory.accept(welcome(1, 7)).is_ok());
    }
}
