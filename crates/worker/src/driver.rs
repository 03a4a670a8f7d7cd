//! The task that owns the machine: events in, effects out.
//!
//! Events reach the machine in the order in which they came; effects are carried out in the
//! machine's order before the next event. Nothing here waits, but for the disk in `Obey`; what
//! `Remember` writes stays in the kernel's memory.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use dirigent_core::{
    Cause, DataPlaneId, Digest, Fault, Pull, RuntimeKind, SandboxId, StartFailure, Time,
    frame::{FromWorker, ToWorker},
    worker::{Adopted, ArtifactFailure, CreateSandbox, Effect, Event, Worker},
};
use dirigent_runtime::{Event as RuntimeEvent, Runtime};
use dirigent_service::{Clock, Outbox};
use tokio::{
    sync::{mpsc, watch},
    time::sleep_until,
};
use tokio_util::sync::CancellationToken;

use crate::{fetch::Fetched, identity::Identity, ingress::Ingress, ports::KnownPorts};

/// What the task is told.
#[derive(Debug)]
pub(crate) enum Input {
    /// A stream to the control plane is up; what is to be said on it goes here.
    Up(Outbox<(), FromWorker>),
    /// That stream is over.
    Down,
    /// The control plane says something.
    Said(ToWorker),
    /// A runtime reports something.
    Runtime(RuntimeEvent),
    /// An archive is here, or cannot be had.
    Fetched(Fetched),
    /// Anything that is the machine's already.
    Core(Event),
    /// Leave the control plane and destroy everything; `left` is told how many are left.
    StopAll { grace: Duration, left: watch::Sender<usize> },
}

/// Another worker has the name.
#[derive(Debug, thiserror::Error)]
#[error("another worker of this name is attached to the control plane, and lives")]
pub(crate) struct NameTaken;

/// How long sandboxes that are to be recycled have from SIGTERM to SIGKILL.
const RECYCLE_GRACE: Duration = Duration::from_secs(10);

/// The runtimes of this worker, by kind.
#[derive(Debug)]
pub(crate) struct Runtimes(Vec<(RuntimeKind, Arc<dyn Runtime>)>);

impl Runtimes {
    pub(crate) fn new(runtimes: Vec<(RuntimeKind, Arc<dyn Runtime>)>) -> Self {
        Self(runtimes)
    }

    pub(crate) fn all(&self) -> Vec<Arc<dyn Runtime>> {
        self.0.iter().map(|(_, runtime)| Arc::clone(runtime)).collect()
    }

    fn get(&self, kind: RuntimeKind) -> Option<&Arc<dyn Runtime>> {
        self.0.iter().find(|(have, _)| *have == kind).map(|(_, runtime)| runtime)
    }
}

/// What the machine has around it.
#[derive(Debug)]
pub(crate) struct Shell {
    pub(crate) identity: Identity,
    pub(crate) ports: KnownPorts,
    pub(crate) runtimes: Runtimes,
    pub(crate) ingress: Option<Ingress>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Driver {
    machine: Worker,
    clock: Clock,
    shell: Shell,
    /// Artifacts that the bulk connection is to get.
    wanted: Outbox<Digest, Digest>,
    /// Those on their way, one fetch per artifact, and which runtime unpacks them.
    unpackers: HashMap<Digest, RuntimeKind>,
    /// Whose each sandbox is, from the order to create it until it is gone.
    owners: HashMap<SandboxId, RuntimeKind>,
    /// Data planes to be reported as barred once the sandbox is gone.
    barred: HashMap<SandboxId, Vec<DataPlaneId>>,
    stream: Option<Outbox<(), FromWorker>>,
    link: CancellationToken,
    leaving: Option<watch::Sender<usize>>,
    /// Set once it gives up.
    name_taken: Arc<AtomicBool>,
}

impl Driver {
    pub(crate) fn new(
        machine: Worker,
        clock: Clock,
        shell: Shell,
        wanted: Outbox<Digest, Digest>,
        adopted: &[(RuntimeKind, Adopted)],
    ) -> Self {
        let owners = adopted.iter().map(|(kind, found)| (found.report.sandbox, *kind)).collect();
        Self {
            machine,
            clock,
            shell,
            wanted,
            unpackers: HashMap::new(),
            owners,
            barred: HashMap::new(),
            stream: None,
            link: CancellationToken::new(),
            leaving: None,
            name_taken: Arc::default(),
        }
    }

    /// Cancelled when the worker leaves its control plane for good.
    pub(crate) fn link_token(&self) -> CancellationToken {
        self.link.clone()
    }

    /// Whether it gave up because another worker has the name.
    pub(crate) fn name_taken(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.name_taken)
    }

    pub(crate) async fn run(mut self, mut inputs: mpsc::Receiver<Input>) -> Result<(), NameTaken> {
        self.carry_out();
        loop {
            let deadline = self.machine.deadline();
            let at = self.clock.instant(deadline.map_or(0, |time| time.0));
            tokio::select! {
                biased;
                // Deadlines first: a flood of events must not keep a beat from being sent.
                () = sleep_until(at), if deadline.is_some() => {
                    self.machine.expire(self.now());
                }
                input = inputs.recv() => {
                    let Some(input) = input else { return Ok(()) };
                    self.take(input);
                }
            }
            self.carry_out();
            if self.name_taken.load(Relaxed) {
                return Err(NameTaken);
            }
        }
    }

    fn now(&self) -> Time {
        Time(self.clock.nanos())
    }

    fn handle(&mut self, event: Event) {
        tracing::trace!(?event, "event");
        self.machine.handle(self.now(), event);
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Up(outbox) => {
                if self.leaving.is_none() {
                    self.stream = Some(outbox);
                    let hello = self.shell.identity.hello();
                    self.handle(Event::Attached { hello });
                }
            }
            Input::Down => {
                self.stream = None;
                self.handle(Event::Detached);
            }
            Input::Said(frame) => self.said(frame),
            Input::Runtime(event) => self.reported(event),
            Input::Fetched(Fetched { digest, result }) => self.fetched(digest, result),
            Input::Core(event) => self.handle(event),
            Input::StopAll { grace, left } => self.stop_all(grace, left),
        }
    }

    fn said(&mut self, frame: ToWorker) {
        // What was still on its way on a stream given up here is not obeyed.
        if self.stream.is_none() {
            return;
        }
        // The machine obeys neither a stranger nor a deposed leader; to find the right one, their
        // stream is left and another dialled.
        if let ToWorker::Welcome { welcome, .. } = &frame
            && let Err(error) = self.shell.identity.accepts(*welcome)
        {
            tracing::warn!(%error, "the control plane is not obeyed");
            self.stream = None;
            return;
        }
        if frame == ToWorker::Taken {
            tracing::warn!("{NameTaken}; it is dialled again");
        }
        self.handle(Event::Said(frame));
    }

    fn reported(&mut self, event: RuntimeEvent) {
        match event {
            RuntimeEvent::Created { sandbox } => self.handle(Event::SandboxCreated { sandbox }),
            RuntimeEvent::Listening { sandbox, address, init } => {
                let address = match &self.shell.ingress {
                    Some(ingress) => ingress.put(sandbox, address),
                    None => address,
                };
                self.handle(Event::SandboxListening { sandbox, address, init });
            }
            RuntimeEvent::Gone { sandbox, failure } => self.gone(sandbox, failure),
            RuntimeEvent::PortTaken { sandbox, port } => {
                // The runtime knows it no more; another order to create it may follow.
                self.owners.remove(&sandbox);
                self.handle(Event::PortTaken { sandbox, port });
            }
            RuntimeEvent::Resolved { sandbox, result } => {
                self.handle(Event::ImageResolved { sandbox, result });
            }
            RuntimeEvent::Fetching { digest, fetched, all } => {
                self.handle(Event::Fetching { digest, fetched, all });
            }
            RuntimeEvent::Lost { digest } => self.handle(Event::ArtifactLost { digest }),
            RuntimeEvent::Unpacked { digest, result } => {
                self.unpackers.remove(&digest);
                self.handle(match result {
                    Ok(()) => Event::ArtifactReady { digest },
                    Err(failure) => Event::ArtifactFailed { digest, failure },
                });
            }
        }
    }

    fn gone(&mut self, sandbox: SandboxId, failure: StartFailure) {
        self.owners.remove(&sandbox);
        if let Some(ingress) = &self.shell.ingress {
            ingress.gone(sandbox);
        }
        self.handle(Event::SandboxGone { sandbox, failure });
        for data_plane in self.barred.remove(&sandbox).unwrap_or_default() {
            self.handle(Event::Settled { sandbox, data_plane });
        }
        if let Some(left) = &self.leaving {
            left.send_replace(self.owners.len());
        }
    }

    fn fetched(&mut self, digest: Digest, result: Result<std::path::PathBuf, ArtifactFailure>) {
        let result = result.and_then(|path| {
            let kind = self.unpackers.get(&digest).copied();
            let runtime = kind.and_then(|kind| self.shell.runtimes.get(kind));
            let runtime = runtime.or_else(|| self.shell.runtimes.0.first().map(|(_, first)| first));
            let runtime = runtime
                .ok_or_else(|| ArtifactFailure::new("no runtime works here", Fault::Worker))?;
            runtime.unpack(digest, path);
            Ok(())
        });
        if let Err(failure) = result {
            self.unpackers.remove(&digest);
            self.handle(Event::ArtifactFailed { digest, failure });
        }
    }

    fn stop_all(&mut self, grace: Duration, left: watch::Sender<usize>) {
        // First the stream: what ends now is not to be replaced.
        self.link.cancel();
        self.stream = None;
        self.handle(Event::Detached);
        self.handle(Event::Closed { grace });
        left.send_replace(self.owners.len());
        self.leaving = Some(left);
    }

    fn carry_out(&mut self) {
        while let Some(effect) = self.machine.poll_effect() {
            tracing::debug!(?effect, "effect");
            match effect {
                Effect::Send(frame) => self.send(frame),
                Effect::Obey(welcome) => {
                    if let Err(error) = self.shell.identity.obey(welcome) {
                        tracing::error!(%error, "the control plane is not obeyed");
                        // Dropping the outbox ends the stream; the link dials again.
                        self.stream = None;
                    }
                }
                Effect::GiveUp => self.name_taken.store(true, Relaxed),
                Effect::Fetch { digest, runtime, image } => self.provide(digest, runtime, image),
                Effect::Resolve { sandbox, runtime, image, pull } => {
                    self.resolve(sandbox, runtime, &image, pull);
                }
                Effect::Create(create) => self.create(*create),
                Effect::Destroy { sandbox, grace } => self.destroy(sandbox, grace),
                Effect::Discard { digest } => {
                    for (_, runtime) in &self.shell.runtimes.0 {
                        runtime.discard(digest);
                    }
                }
                Effect::Remember { port, sandbox } => self.shell.ports.note(port, sandbox),
                Effect::Bar { sandbox, data_plane } => self.bar(sandbox, data_plane),
            }
        }
    }

    fn send(&mut self, frame: FromWorker) {
        let Some(stream) = &self.stream else { return };
        if let Err(error) = stream.push(None, size(&frame), frame) {
            tracing::debug!(%error, "the stream is over");
            self.stream = None;
        }
    }

    fn provide(&mut self, digest: Digest, runtime: RuntimeKind, image: Option<String>) {
        if self.shell.runtimes.get(runtime).is_some_and(|runtime| runtime.revive(digest)) {
            return;
        }
        match image {
            None => self.fetch(digest, runtime),
            Some(image) => self.pull(digest, runtime, &image),
        }
    }

    fn fetch(&mut self, digest: Digest, runtime: RuntimeKind) {
        if self.unpackers.insert(digest, runtime).is_some() {
            return;
        }
        if let Err(error) = self.wanted.push(Some(digest), size_of::<Digest>(), digest) {
            self.unpackers.remove(&digest);
            let message = format!("the artifact cannot be asked for: {error}");
            let failure = ArtifactFailure::new(message, Fault::Worker);
            self.handle(Event::ArtifactFailed { digest, failure });
        }
    }

    /// Images of registries come from there, not over the control plane.
    fn pull(&mut self, digest: Digest, runtime: RuntimeKind, image: &str) {
        let asked = self.shell.runtimes.get(runtime).ok_or_else(|| absent(runtime));
        if let Err(failure) = asked.and_then(|runtime| runtime.pull(digest, image)) {
            self.handle(Event::ArtifactFailed { digest, failure });
        }
    }

    fn resolve(&mut self, sandbox: SandboxId, runtime: RuntimeKind, image: &str, pull: Pull) {
        let asked = self.shell.runtimes.get(runtime).ok_or_else(|| absent(runtime));
        if let Err(failure) = asked.and_then(|runtime| runtime.resolve(sandbox, image, pull)) {
            self.handle(Event::ImageResolved { sandbox, result: Err(failure) });
        }
    }

    fn create(&mut self, create: CreateSandbox) {
        let sandbox = create.order.sandbox;
        let kind = create.order.spec.sandbox.runtime;
        let Some(runtime) = self.shell.runtimes.get(kind) else {
            let message = format!("the {kind} runtime does not work on this worker");
            let cause = Cause::CreateFailed { message };
            let failure = StartFailure { cause, fault: Fault::Worker, log_tail: Vec::new() };
            return self.handle(Event::SandboxGone { sandbox, failure });
        };
        self.owners.insert(sandbox, kind);
        runtime.create(create);
    }

    fn destroy(&self, sandbox: SandboxId, grace: Duration) {
        let owner = self.owners.get(&sandbox);
        if let Some(runtime) = owner.and_then(|kind| self.shell.runtimes.get(*kind)) {
            runtime.destroy(sandbox, grace);
        }
    }

    /// Which sockets at a sandbox are a certain data plane's cannot be told on one host, so the
    /// sandbox is recycled: then none of them is open, and none can be opened.
    fn bar(&mut self, sandbox: SandboxId, data_plane: DataPlaneId) {
        if self.owners.contains_key(&sandbox) {
            self.barred.entry(sandbox).or_default().push(data_plane);
            self.destroy(sandbox, RECYCLE_GRACE);
        } else {
            self.handle(Event::Settled { sandbox, data_plane });
        }
    }
}

fn absent(runtime: RuntimeKind) -> ArtifactFailure {
    let message = format!("the {runtime} runtime does not work on this worker");
    ArtifactFailure::new(message, Fault::Worker)
}

/// About how much memory a frame takes while it waits.
fn size(frame: &FromWorker) -> usize {
    size_of::<FromWorker>()
        + match frame {
            FromWorker::Hello(hello) => {
                hello.sandboxes.len() * 128 + hello.artifacts.len() * size_of::<Digest>()
            }
            FromWorker::SandboxGone { failure, .. } => {
                failure.log_tail.iter().map(String::len).sum()
            }
            FromWorker::Refused { message, .. } => message.len(),
            FromWorker::Beat(_)
            | FromWorker::SandboxReady { .. }
            | FromWorker::Artifact { .. }
            | FromWorker::Fetching { .. }
            | FromWorker::ImageResolved { .. }
            | FromWorker::Settled { .. }
            | FromWorker::Unsupported { .. } => 0,
        }
}
