//! What the cluster is made of: functions, revisions, sandboxes and the records that are kept.

use std::{collections::BTreeMap, fmt, net::SocketAddr, str::FromStr, sync::Arc, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{
    ApiTokens, Bytes, DataPlaneId, Duty, Epoch, FunctionId, FunctionName, MilliCpu, Outbound,
    RevisionId, SandboxId, WorkerId,
    units::{self, UnitError},
};

/// The SHA-256 of an artifact's bytes; its only name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Its digits alone, as files are named after it.
    #[must_use]
    pub fn hex(&self) -> String {
        self.to_string().split_off("sha256:".len())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let bad = || DigestError { text: text.to_owned() };
        let hex = text.strip_prefix("sha256:").ok_or_else(bad)?;
        if hex.len() != 64 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(bad());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_not_utf8| bad())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_not_hex| bad())?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Text that is not a digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a digest of the form `sha256:` and 64 hexadecimal digits")]
pub struct DigestError {
    text: String,
}

/// The kind of runtime that starts a revision's sandboxes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeKind {
    /// A process of the worker's machine.
    Process,
    /// An OCI container.
    Container,
    /// A WebAssembly component.
    Wasm,
    /// A micro virtual machine.
    Microvm,
    /// No sandbox at all: the worker itself answers. For tests and studies of scale.
    Fake,
}

impl fmt::Display for RuntimeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Process => "process",
            Self::Container => "container",
            Self::Wasm => "wasm",
            Self::Microvm => "microvm",
            Self::Fake => "fake",
        })
    }
}

/// What a sandbox speaks on its address.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 with prior knowledge and without TLS, as gRPC wants it.
    H2c,
}

/// How strongly a sandbox is separated; design and limits in `docs/security.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// Against accidents only.
    Plain,
    /// Own view of files, processes and users; shared kernel and network.
    Basic,
    /// Also a network of its own.
    Strict,
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::Basic => "basic",
            Self::Strict => "strict",
        })
    }
}

/// How a process gets its listening socket.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Listen {
    /// It binds `$PORT` itself and is ready when it listens.
    #[default]
    Port,
    /// It is given one as file descriptor 3 (systemd's `LISTEN_FDS` protocol).
    Fd,
}

/// When an image is asked of its registry.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Pull {
    /// If the worker that makes the first sandbox does not have it.
    #[default]
    Missing,
    /// With every deploy, as the tag may name another one by now.
    Always,
    /// Never: it must be there.
    Never,
}

impl Pull {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What runs in a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Which runtime starts it.
    pub runtime: RuntimeKind,
    /// The program and its arguments. `dirigent` as the program is the worker's own binary, so
    /// that built-in examples need no artifact.
    pub command: Vec<String>,
    /// The image, for containers. One of a registry ends in `@` and its digest once that is known; the
    /// digest is then also the spec's `artifact`.
    pub image: Option<String>,
    /// When it is asked of its registry.
    #[serde(default, skip_serializing_if = "Pull::is_default")]
    pub pull: Pull,
    /// Whether the root that an image gives is for reading only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// The runtime handler of containerd, where it is not the worker's usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handler: Option<String>,
    /// The component's path within the artifact, for wasm.
    pub component: Option<String>,
    /// The port that the function would like to have; the truth is in `$PORT`.
    pub port: Option<u16>,
    /// What it speaks.
    pub protocol: Protocol,
    /// The level demanded; `None` takes the worker's best.
    pub isolation: Option<Isolation>,
    /// How it gets its listener.
    pub listen: Listen,
    /// Where it may connect, which demands a network of its own; the default of [`Outbound`] where it
    /// has one and says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Outbound>,
}

impl SandboxSpec {
    /// What runs this command, and asks for nothing else.
    #[must_use]
    pub const fn new(runtime: RuntimeKind, command: Vec<String>) -> Self {
        Self {
            runtime,
            command,
            image: None,
            pull: Pull::Missing,
            read_only: false,
            handler: None,
            component: None,
            port: None,
            protocol: Protocol::Http1,
            isolation: None,
            listen: Listen::Port,
            network: None,
        }
    }

    /// The image, if it is one of a registry.
    #[must_use]
    pub fn registry_image(&self) -> Option<&str> {
        let image = self.image.as_deref().filter(|_| self.runtime == RuntimeKind::Container)?;
        crate::manifest::ImageFiles::of(image).is_none().then_some(image)
    }
}

/// What a sandbox may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// A weight while the machine is busy, and the reservation divided by the worker's overcommit.
    pub cpu: MilliCpu,
    /// Limit and reservation.
    pub memory: Bytes,
}

impl Default for Resources {
    fn default() -> Self {
        Self { cpu: MilliCpu(100), memory: Bytes::mib(128) }
    }
}

/// The immutable part of a function: two specs that are equal are the same revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// What runs.
    pub sandbox: SandboxSpec,
    /// What it may use.
    pub resources: Resources,
    /// Environment given by the user. Values are secrets: never logged or shown.
    pub env: BTreeMap<String, String>,
    /// Invocations at once per sandbox; 0 is no limit.
    pub concurrency: u32,
    /// The files, if any.
    pub artifact: Option<Digest>,
}

impl Spec {
    /// Whether it names an image of a registry by a tag whose digest is not known yet.
    #[must_use]
    pub fn unresolved_image(&self) -> Option<&str> {
        self.sandbox.registry_image().filter(|_| self.artifact.is_none())
    }

    /// The same with the digest that its image's tag stands for from now on.
    #[must_use]
    pub fn pinned(&self, digest: Digest) -> Self {
        let mut spec = self.clone();
        if let Some(image) = &mut spec.sandbox.image
            && !image.contains('@')
        {
            *image = format!("{image}@{digest}");
        }
        spec.artifact = Some(digest);
        spec
    }
}

/// Who may call a function.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Auth {
    /// Whoever reaches a data plane.
    #[default]
    None,
    /// Who shows a token of the API that includes [`Access::Invoke`](crate::Access::Invoke).
    Token,
}

/// For how long an idle sandbox is kept. Written `60s` or `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepAlive {
    /// Exactly so long.
    For(Duration),
    /// As long as it is worth its memory, learned from the function's calls: see
    /// [`policy::adaptive`](crate::policy::adaptive).
    Auto,
}

impl KeepAlive {
    /// What is not told: one minute, which the published system and Knative have as the window over
    /// which they look.
    pub const USUAL: Self = Self::For(Self::UNLEARNED);

    /// Of a sandbox that no data plane holds, which so learns nothing of it.
    const UNLEARNED: Duration = Duration::from_secs(60);

    /// Of a sandbox that no data plane holds.
    #[must_use]
    pub const fn unheld(self) -> Duration {
        match self {
            Self::For(time) => time,
            Self::Auto => Self::UNLEARNED,
        }
    }
}

impl From<Duration> for KeepAlive {
    fn from(time: Duration) -> Self {
        Self::For(time)
    }
}

impl fmt::Display for KeepAlive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::For(time) => humantime::format_duration(*time).fmt(f),
            Self::Auto => f.write_str("auto"),
        }
    }
}

impl FromStr for KeepAlive {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let bad = || UnitError::new(text, "a duration such as \"30s\" or \"5m\", or \"auto\"");
        humantime::parse_duration(text).map(Self::For).map_err(|_reason| bad())
    }
}

units::serde_as_text!(KeepAlive);

/// The mutable part of a function: changes apply without restarting a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Sandboxes kept from the moment of deployment on, called or not.
    pub min: u32,
    /// Sandboxes at most.
    pub max: u32,
    /// Idle time after which a sandbox goes, or `auto`: learned from the function's calls.
    pub keep_alive: KeepAlive,
    /// From the last hop to the beginning of the response; from then on `idle_timeout` counts.
    #[serde(with = "units::duration")]
    pub timeout: Duration,
    /// Waiting for a slot, a start included.
    #[serde(with = "units::duration")]
    pub queue_timeout: Duration,
    /// From create to listening, fetching the artifact not counted.
    #[serde(with = "units::duration")]
    pub start_timeout: Duration,
    /// Silence allowed after an upgrade and in a response that has begun.
    #[serde(with = "units::duration")]
    pub idle_timeout: Duration,
    /// How long a drain waits for upgraded connections and begun responses.
    #[serde(with = "units::duration")]
    pub drain_timeout: Duration,
    /// From SIGTERM to SIGKILL.
    #[serde(with = "units::duration")]
    pub grace: Duration,
    /// Invocations waiting per data plane before the next is refused.
    pub max_queue: u32,
    /// Whether an idempotent invocation that was sent and got no byte back gets one more attempt.
    pub retry: bool,
    /// Who may call it: `none` lets everybody, `token` who shows a token of the API with the role
    /// `invoke`, `deploy` or `admin`.
    #[serde(default)]
    pub auth: Auth,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            min: 0,
            max: 100,
            keep_alive: KeepAlive::USUAL,
            timeout: Duration::from_secs(60),
            queue_timeout: Duration::from_secs(30),
            start_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(300),
            drain_timeout: Duration::from_secs(600),
            grace: Duration::from_secs(10),
            max_queue: 1000,
            retry: true,
            auth: Auth::None,
        }
    }
}

/// The life of a revision.
///
/// ```text
/// Pending -> Checking -> Ready -> Live -> Retiring -> Retired
///                \-> Failed
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RevisionState {
    /// Recorded; nothing was started yet.
    Pending,
    /// Its first sandbox is starting.
    Checking,
    /// A sandbox became ready; capacity is being built up.
    Ready,
    /// Invocations go to it.
    Live,
    /// No longer a target; its sandboxes drain.
    Retiring,
    /// Nothing of it runs. Kept for rollback.
    Retired,
    /// Its check failed.
    Failed,
}

impl RevisionState {
    /// Whether it is on its way to be live.
    #[must_use]
    pub const fn is_going(self) -> bool {
        matches!(self, Self::Pending | Self::Checking | Self::Ready)
    }
}

/// A revision as recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevisionRecord {
    /// From 1, never reused within the function.
    pub number: u32,
    /// What it runs.
    pub spec: Arc<Spec>,
    /// Where it is in its life.
    pub state: RevisionState,
    /// When it was deployed: milliseconds since 1970, as the API's shell saw it.
    pub created_ms: u64,
    /// Why its check failed.
    pub failure: Option<StartFailure>,
    /// The term in which it was deployed. What was started before under its number ran something
    /// else, of which the store knows nothing any more: it was restored from an older copy.
    #[serde(default)]
    pub born: Epoch,
}

/// Where invocations go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The revision's number.
    pub revision: u32,
    /// Its share among the targets.
    pub weight: u32,
}

/// A function as recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionRecord {
    /// Stable for this life of the name.
    pub id: FunctionId,
    /// Its name.
    pub name: FunctionName,
    /// Mutable settings.
    pub settings: Arc<Settings>,
    /// Those that come with the revision that is being deployed, where they differ: what is live
    /// keeps its own if the deploy fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Arc<Settings>>,
    /// The last ten, oldest first.
    pub revisions: Vec<RevisionRecord>,
    /// Where invocations go; empty until a first revision is live.
    pub targets: Vec<Target>,
}

/// A worker as recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerRecord {
    /// Numbered at its first attachment.
    pub id: WorkerId,
    /// Its identity (from its certificate; in `up` a fixed word).
    pub name: Arc<str>,
    /// Whether the operator took it out of placement.
    pub cordoned: bool,
    /// Whether the operator wants it empty. It is cordoned then too, for programs that do not know
    /// this.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub draining: bool,
    /// It was removed. The newest one's record stays until there is a newer one, so that its number
    /// is not given again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub removed: bool,
}

impl WorkerRecord {
    /// One that serves.
    #[must_use]
    pub const fn new(id: WorkerId, name: Arc<str>) -> Self {
        Self { id, name, cordoned: false, draining: false, removed: false }
    }

    /// What operators want of it.
    #[must_use]
    pub const fn duty(&self) -> Duty {
        match (self.cordoned, self.draining) {
            (_, true) => Duty::Draining,
            (true, false) => Duty::Cordoned,
            (false, false) => Duty::InUse,
        }
    }

    /// The same one with that wanted of it.
    #[must_use]
    pub fn on(&self, duty: Duty) -> Self {
        Self { cordoned: duty != Duty::InUse, draining: duty == Duty::Draining, ..self.clone() }
    }
}

/// A data plane as recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataPlaneRecord {
    /// Numbered at its first attachment.
    pub id: DataPlaneId,
    /// Its identity (from its certificate; in `up` a fixed word).
    pub name: Arc<str>,
    /// What operators want of it.
    #[serde(default, skip_serializing_if = "Duty::is_in_use")]
    pub duty: Duty,
    /// It was removed; as with workers.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub removed: bool,
}

impl DataPlaneRecord {
    /// One that serves.
    #[must_use]
    pub const fn new(id: DataPlaneId, name: Arc<str>) -> Self {
        Self { id, name, duty: Duty::InUse, removed: false }
    }
}

/// One change to the store, applied whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Write {
    /// Create or replace.
    PutFunction(Arc<FunctionRecord>),
    /// Remove.
    DeleteFunction(FunctionId),
    /// Create or replace.
    PutWorker(WorkerRecord),
    /// Remove.
    DeleteWorker(WorkerId),
    /// Create or replace.
    PutDataPlane(DataPlaneRecord),
    /// Remove.
    DeleteDataPlane(DataPlaneId),
    /// Replace all.
    PutTokens(Arc<ApiTokens>),
}

/// Everything that the store keeps, as read after taking office.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Records {
    /// All functions, in the order of their ids.
    pub functions: Vec<Arc<FunctionRecord>>,
    /// All workers.
    pub workers: Vec<WorkerRecord>,
    /// All data planes.
    pub data_planes: Vec<DataPlaneRecord>,
    /// The tokens of the API.
    #[serde(default)]
    pub tokens: Arc<ApiTokens>,
    /// The last terms of office, oldest first, the one that begins included. What was made in a term
    /// that is not among them, and not before the first, belongs to a history that the store has lost.
    /// Without any nothing is known to be lost.
    #[serde(default)]
    pub terms: Vec<Epoch>,
}

impl Records {
    /// So many terms are remembered. A loss is found out when the first peer attaches that has seen
    /// more: a handful would do.
    pub const TERMS: usize = 32;

    /// Remembers a term that begins, and forgets the oldest of too many.
    pub fn enter(terms: &mut Vec<Epoch>, epoch: Epoch) {
        terms.push(epoch);
        terms.drain(..terms.len().saturating_sub(Self::TERMS));
    }
}

/// Which cluster this is: made once with the store, so that a peer never obeys a stranger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClusterId(pub u128);

/// The right to lead: which cluster, and the epoch raised in the transaction that took office.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Office {
    /// The cluster led.
    pub cluster: ClusterId,
    /// This term of office.
    pub epoch: Epoch,
}

/// Where a sandbox is reached. Made by its worker, opaque to everybody but the data plane.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Address {
    /// An IP address and port.
    Tcp(SocketAddr),
    /// A socket in the file system, on the same host.
    Unix(String),
    /// Through its worker, which relays what comes encrypted.
    Ingress {
        /// Where the worker is reached.
        at: SocketAddr,
        /// The name in the worker's certificate.
        worker: String,
        /// The sandbox behind it.
        sandbox: SandboxId,
    },
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{path}"),
            Self::Ingress { at, sandbox, .. } => write!(f, "{sandbox} through {at}"),
        }
    }
}

/// Whose fault a failure is: it decides who gets into quarantine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fault {
    /// The function's: the same anywhere.
    Function,
    /// The worker's: another worker may do better.
    Worker,
}

/// Why a sandbox is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cause", rename_all = "snake_case")]
pub enum Cause {
    /// It was told to stop.
    Stopped,
    /// It exited by itself.
    Exited {
        /// The exit status.
        code: i32,
    },
    /// A signal that we did not send ended it.
    Signalled {
        /// Its number.
        signal: i32,
    },
    /// It went over its memory limit.
    OutOfMemory {
        /// The limit.
        limit: Bytes,
    },
    /// It ran but did not listen in time.
    NeverListened {
        /// What was waited for and what was seen instead, for instance another port.
        message: String,
    },
    /// It could not be created.
    CreateFailed {
        /// What went wrong.
        message: String,
    },
    /// Its artifact could not be fetched or unpacked.
    ArtifactFailed {
        /// What went wrong.
        message: String,
    },
    /// Its worker was lost, or came back without it.
    WorkerLost,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => f.write_str("stopped"),
            Self::Exited { code } => write!(f, "exited with status {code}"),
            Self::Signalled { signal } => write!(f, "killed by signal {signal}"),
            Self::OutOfMemory { limit } => write!(f, "went over its memory limit of {limit}"),
            Self::NeverListened { message }
            | Self::CreateFailed { message }
            | Self::ArtifactFailed { message } => f.write_str(message),
            Self::WorkerLost => f.write_str("its worker was lost"),
        }
    }
}

/// A start that failed, as told to users.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartFailure {
    /// Why.
    pub cause: Cause,
    /// Whose fault.
    pub fault: Fault,
    /// The sandbox's last lines, oldest first: at most 20 lines of at most 400 bytes.
    pub log_tail: Vec<String>,
}

/// What a revision's sandboxes look like to a data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevisionView {
    /// Which revision.
    pub id: RevisionId,
    /// Its share of the invocations.
    pub weight: u32,
    /// Invocations at once per sandbox; 0 is no limit.
    pub concurrency: u32,
    /// What it speaks.
    pub protocol: Protocol,
}

/// A function as data planes see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionView {
    /// Its id.
    pub id: FunctionId,
    /// Its name.
    pub name: FunctionName,
    /// Its settings.
    pub settings: Arc<Settings>,
    /// Where invocations go; empty until a first revision is live (they wait in the queue).
    pub targets: Vec<RevisionView>,
}

/// The phases of a cold start before a data plane hears of it, each measured inside one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartPhases {
    /// From the demand's arrival at the control plane to the decision to start.
    pub decide: Duration,
    /// From the decision to the worker being told: waiting for capacity and a start token.
    pub place: Duration,
    /// Fetching and unpacking the artifact, where it was not there yet.
    pub fetch: Duration,
    /// From the worker being told to the program being executed.
    pub create: Duration,
    /// From the program being executed to its listening.
    pub init: Duration,
    /// What no part measured between the worker being told and the control plane hearing that it
    /// listens: frames on their way.
    #[serde(default)]
    pub wire: Duration,
}

impl StartPhases {
    /// All of them together.
    #[must_use]
    pub fn total(&self) -> Duration {
        let Self { decide, place, fetch, create, init, wire } = *self;
        decide + place + fetch + create + init + wire
    }

    /// What the next start will take from its decision on: the artifact is there then.
    #[must_use]
    pub fn again(&self) -> Duration {
        let Self { decide: _, place, fetch: _, create, init, wire } = *self;
        place + create + init + wire
    }
}
