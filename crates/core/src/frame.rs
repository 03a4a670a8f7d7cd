//! What the parts say to each other. In `up` these types travel over bounded channels; between
//! hosts they are mirrored one to one on the wire.
//!
//! Everyone dials the control plane and keeps one stream. The first frame of a peer is its `Hello`
//! with everything that it holds; the control plane answers `Welcome` or closes. Frames of one
//! stream arrive in order and exactly once; a broken stream loses what was on the way, which is
//! why demand is a level and slots are claimed anew by the next `Hello`.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    Address, Bytes, ClusterId, DataPlaneId, Digest, Duty, Epoch, FunctionId, FunctionName,
    FunctionView, Isolation, MilliCpu, Protocol, RevisionId, RuntimeKind, SandboxId, Serial, Spec,
    StartFailure, StartPhases, TokenView, WorkerId,
};

/// The protocol version spoken here; a peer states the range that it can speak.
pub const PROTOCOL: u16 = 1;

/// What a data plane can do that lets nobody call a function with [`Auth::Token`](crate::Auth) but
/// who shows a token. To others there is no such function.
pub const CHECKS_TOKENS: &str = "checks-tokens";

/// The feature of a data plane that takes [`ToDataPlane::Duty`].
pub const DUTY: &str = "duty";

/// The feature of a worker that takes [`ToWorker::Taken`], and of a data plane that takes
/// [`ToDataPlane::Taken`].
pub const TAKEN: &str = "taken";

/// One that was never welcomed gives up when its name has been taken for so long. An earlier life that
/// ended without a word is given up by the control plane within 5 s, and looked for again within 2 s.
pub const TAKEN_FOR: Duration = Duration::from_secs(10);

/// One life of a peer: a restart of its host changes `boot`, one of its process raises `start` and
/// draws another `life`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation {
    /// The kernel's boot id.
    pub boot: Arc<str>,
    /// Starts of this peer, counted in its state directory.
    pub start: u64,
    /// Drawn at random by each process: of two with copies of one state directory each has its own. 0
    /// where programs do not know it.
    #[serde(default)]
    pub life: u64,
}

/// What every peer says first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The cluster it belongs to; `None` before its first attachment.
    pub cluster: Option<ClusterId>,
    /// Oldest and newest protocol version that it can speak.
    pub protocol: (u16, u16),
    /// Optional abilities, by name.
    pub features: Vec<String>,
    /// Which life of the peer this is.
    pub incarnation: Incarnation,
    /// The highest epoch it ever obeyed. A leader that sees a higher one than its own resigns.
    pub highest_epoch: Epoch,
}

impl Hello {
    /// Whether the peer says that it has this feature.
    #[must_use]
    pub fn has(&self, feature: &str) -> bool {
        self.features.iter().any(|has| has == feature)
    }
}

/// The answer to a `Hello`. The peer persists cluster and epoch before it obeys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The cluster.
    pub cluster: ClusterId,
    /// The leader's epoch.
    pub epoch: Epoch,
}

/// How much of a sandbox is granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Share {
    /// So many slots.
    Slots(u32),
    /// As many invocations at once as come (`concurrency = 0`).
    Open,
}

// ---------------------------------------------------------------- data plane -> control plane

/// What a data plane says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromDataPlane {
    /// First frame.
    Hello(Box<DataPlaneHello>),
    /// Which function has this name? Answered by `Resolved`, then again at each change.
    Resolve {
        /// As in the Host.
        name: FunctionName,
    },
    /// Unused for an hour: no more deltas for it.
    Forget {
        /// The name subscribed to, known or not.
        name: FunctionName,
    },
    /// A `Resolved` of this version was applied: from now on no invocation is bound to a revision
    /// that it does not name.
    Applied {
        /// The function.
        function: FunctionId,
        /// The version in the `Resolved`.
        version: u64,
    },
    /// What is wanted and used now.
    Demand(Demand),
    /// Slots given back. Without a recall before it: the sandbox was idle for its keep-alive.
    Returned(Returned),
    /// The answer to a `Recall` by number that could not be met in full: `n` were not idle.
    Kept {
        /// The function.
        function: FunctionId,
        /// How many of the slots recalled are kept.
        n: u32,
    },
    /// A frame was not understood.
    Unsupported {
        /// Its kind.
        kind: String,
    },
}

/// A data plane's first frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataPlaneHello {
    /// Common part.
    pub hello: Hello,
    /// Every slot held.
    pub holdings: Vec<Holding>,
    /// Every name subscribed to.
    pub names: Vec<FunctionName>,
    /// The demand of every function with any.
    pub demands: Vec<Demand>,
}

/// Slots of one sandbox that a data plane holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// Whose.
    pub revision: RevisionId,
    /// How much of it is held, busy slots included.
    pub share: Share,
    /// Invocations in it now.
    pub busy: u32,
    /// Whether it is being drained.
    pub draining: bool,
    /// Whether it was granted as pinned: not given back for being idle.
    pub pinned: bool,
}

/// What a data plane wants and uses of one function. A level: absolute and cumulative, so that
/// losing one frame, or a leader, costs nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Demand {
    /// The function.
    pub function: FunctionId,
    /// Invocations waiting for a slot.
    pub queued: u32,
    /// How long the first of them has waited.
    pub oldest_wait: Duration,
    /// Slots held; for open grants, sandboxes held.
    pub held: u32,
    /// Of those, how many could be given back now: nothing uses them. Not simply the rest beside
    /// `busy`, which counts invocations in sandboxes that are being drained or have no limit too.
    pub idle: u32,
    /// Invocations in sandboxes.
    pub busy: u32,
    /// Busy nanoseconds (one per invocation in a sandbox and nanosecond) since the data plane first
    /// heard of the function.
    pub busy_integral: u64,
    /// Nanoseconds since the data plane first heard of the function.
    pub elapsed: u64,
    /// Invocations since then, queued ones included.
    pub arrivals_total: u64,
    /// Invocations finished since then.
    pub finished_total: u64,
    /// Slots wanted in all for invocations that are expected soon, those held included; for open
    /// grants, sandboxes.
    #[serde(default)]
    pub expected: u32,
}

/// Slots given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Returned {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// How much of it.
    pub share: Share,
    /// The last grant seen for this sandbox.
    pub serial: Serial,
    /// Why.
    pub why: WhyReturned,
}

/// Why slots are given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhyReturned {
    /// Idle: for keep-alive, or recalled.
    Idle,
    /// The drain asked for is over.
    Drained,
    /// It could not be connected to, or its connection broke before a response.
    Unreachable,
    /// An invocation in it was abandoned: a handler may still run, so it must be recycled.
    Closing,
}

// ---------------------------------------------------------------- control plane -> data plane

/// What a data plane is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToDataPlane {
    /// Answer to the `Hello`.
    Welcome {
        /// Common part.
        welcome: Welcome,
        /// The data plane's own id.
        you: DataPlaneId,
    },
    /// Answer to `Resolve`, and every change after it.
    Resolved {
        /// The name asked for.
        name: FunctionName,
        /// The catalogue's version of this state; a lower one never replaces a higher one.
        version: u64,
        /// The function; `None` if there is none with this name.
        function: Option<Arc<FunctionView>>,
    },
    /// Slots given.
    Grant(Box<Grant>),
    /// Give back slots of a function, answered by `Returned` for each sandbox and `Kept` for the
    /// rest. Late binding decides under the Gate's lock: bound first is kept.
    Recall {
        /// The function.
        function: FunctionId,
        /// How many slots.
        n: u32,
        /// Only what is idle now; otherwise slots are given back as they become free.
        idle_only: bool,
    },
    /// Give back all slots of a sandbox: idle ones at once, busy ones when they end. Answered by
    /// `Returned` when the last slot is free (or with `Unreachable`, if `gone`).
    RecallSandbox {
        /// The sandbox.
        sandbox: SandboxId,
        /// It is known to be gone: nothing new is sent to it, broken ones are not waited for.
        gone: bool,
    },
    /// What operators want of this data plane; a level. Told only to those with the feature [`DUTY`].
    Duty {
        /// What.
        duty: Duty,
    },
    /// Why invocations of a function wait; a level.
    Status {
        /// The function.
        function: FunctionId,
        /// Why.
        status: Status,
    },
    /// The tokens of the API, all of them; a level, told right after the `Welcome` and at each change.
    /// Only to who [`CHECKS_TOKENS`].
    Tokens {
        /// Those that count, as far as they have not expired.
        tokens: Vec<TokenView>,
    },
    /// A frame was not understood.
    Unsupported {
        /// Its kind.
        kind: String,
    },
    /// In place of a `Welcome`, before the stream is closed: another life of a data plane of this name
    /// is attached. For data planes with the feature [`TAKEN`].
    Taken,
}

/// Slots given to a data plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// What runs in it.
    pub revision: RevisionId,
    /// Where it is.
    pub address: Address,
    /// What it speaks.
    pub protocol: Protocol,
    /// Slots added to those held of this sandbox.
    pub share: Share,
    /// Number of this grant on this stream.
    pub serial: Serial,
    /// Keep-alive does not apply: it is one of the function's `min`.
    pub pinned: bool,
    /// The phases of its start, in its first grant.
    pub start: Option<StartPhases>,
}

/// Why the invocations of a function wait.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Status {
    /// Nothing stands in the way: sandboxes are starting or slots will be free.
    #[default]
    Flowing,
    /// The function has `max` sandboxes.
    AtMax,
    /// No worker has room.
    NoCapacity,
    /// No revision is live yet.
    NotReady,
    /// The last start failed; another is tried.
    StartFailed(StartFailure),
    /// Three starts in a row failed by the function's fault: callers are answered at once.
    CrashLoop(StartFailure),
}

// ---------------------------------------------------------------- worker -> control plane

/// What a worker says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromWorker {
    /// First frame.
    Hello(Box<WorkerHello>),
    /// Alive; sent every 400 ms.
    Beat(Load),
    /// A sandbox listens, and the worker saw that the listener belongs to it.
    SandboxReady {
        /// Which.
        sandbox: SandboxId,
        /// Where.
        address: Address,
        /// How long which phase took; `decide` and `place` are zero here.
        phases: StartPhases,
    },
    /// A sandbox is gone, for whatever reason, before or after it was ready.
    SandboxGone {
        /// Which.
        sandbox: SandboxId,
        /// Why, whose fault, and its last lines.
        failure: StartFailure,
    },
    /// A start was refused: the worker has the last word on what fits. Not a failure of anybody.
    Refused {
        /// Which.
        sandbox: SandboxId,
        /// Why.
        message: String,
    },
    /// An artifact is held, or no longer.
    Artifact {
        /// Which.
        digest: Digest,
        /// Whether it is held.
        held: bool,
    },
    /// An image is being fetched; told once a second, to be shown to who waits for it.
    Fetching {
        /// Which.
        digest: Digest,
        /// What is here.
        fetched: Bytes,
        /// All of it.
        all: Bytes,
    },
    /// What the tag of a sandbox's image stands for, as its registry says or as the worker has it.
    ImageResolved {
        /// The sandbox.
        sandbox: SandboxId,
        /// The image's digest.
        digest: Digest,
    },
    /// No socket of that data plane is open at the sandbox any more, and none can be opened.
    Settled {
        /// The sandbox.
        sandbox: SandboxId,
        /// The data plane that was barred.
        data_plane: DataPlaneId,
    },
    /// A frame was not understood.
    Unsupported {
        /// Its kind.
        kind: String,
    },
}

/// A worker's first frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerHello {
    /// Common part.
    pub hello: Hello,
    /// What it offers.
    pub capacity: Capacity,
    /// Every sandbox that it has.
    pub sandboxes: Vec<SandboxReport>,
    /// Every artifact that it holds.
    pub artifacts: Vec<Digest>,
}

/// What a worker offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Memory for sandboxes.
    pub memory: Bytes,
    /// Processors.
    pub cpu: MilliCpu,
    /// By how much `cpu` may be reserved over: 10 is ten times.
    pub cpu_overcommit: u32,
    /// Sandboxes at most, whatever their size.
    pub sandboxes: u32,
    /// Starts that may be outstanding at once: start tokens. Default 4 for each core.
    pub starts: u32,
    /// Runtimes that work here, each with its best isolation.
    pub runtimes: Vec<(RuntimeKind, Isolation)>,
    /// What does not work here and why, a line each: shown to users, never judged.
    #[serde(default)]
    pub missing: Vec<String>,
}

/// A sandbox as its worker knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxReport {
    /// Which.
    pub sandbox: SandboxId,
    /// What runs in it.
    pub revision: RevisionId,
    /// What it reserves.
    pub memory: Bytes,
    /// What it reserves.
    pub cpu: MilliCpu,
    /// Where it listens; `None` while it starts.
    pub address: Option<Address>,
    /// Whether it was told to stop.
    pub stopping: bool,
}

/// How busy a worker is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Sandboxes, starting and stopping ones included.
    pub sandboxes: u32,
    /// Memory used by the host, if known.
    pub memory_used: Bytes,
    /// Processors in use over the last beat, if known.
    pub cpu_used: MilliCpu,
}

// ---------------------------------------------------------------- control plane -> worker

/// What a worker is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToWorker {
    /// Answer to the `Hello`.
    Welcome {
        /// Common part.
        welcome: Welcome,
        /// The worker's own id.
        you: WorkerId,
    },
    /// Start a sandbox. Answered by `SandboxReady`, `SandboxGone` or `Refused`.
    StartSandbox(Box<StartSandbox>),
    /// Stop a sandbox: SIGTERM, after `grace` SIGKILL. Answered by `SandboxGone`.
    StopSandbox {
        /// Which.
        sandbox: SandboxId,
        /// From SIGTERM to SIGKILL; zero kills at once.
        grace: Duration,
    },
    /// Every data plane has returned the slots of this sandbox, which is gone: its address may be
    /// used again.
    ReleaseAddress {
        /// Which.
        sandbox: SandboxId,
    },
    /// These artifacts are needed by no revision any more: they may be removed.
    DiscardArtifacts {
        /// Which.
        digests: Vec<Digest>,
    },
    /// Bar that data plane from the sandbox and say when nothing of it is left there.
    Settle {
        /// The sandbox.
        sandbox: SandboxId,
        /// The silent data plane.
        data_plane: DataPlaneId,
    },
    /// A frame was not understood.
    Unsupported {
        /// Its kind.
        kind: String,
    },
    /// In place of a `Welcome`, before the stream is closed: another life of a worker of this name is
    /// attached, and was heard just now. For workers with the feature [`TAKEN`].
    Taken,
}

/// An order to start a sandbox: everything that the worker needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartSandbox {
    /// Its id, made by the leader.
    pub sandbox: SandboxId,
    /// Whose.
    pub revision: RevisionId,
    /// The function's name, for the environment and logs.
    pub name: FunctionName,
    /// What to run.
    pub spec: Arc<Spec>,
    /// From create to listening.
    pub start_timeout: Duration,
}

// ---------------------------------------------------------------- the second connection

/// Bulk traffic from the control plane: artifacts and questions about logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToWorkerBulk {
    /// A piece of an artifact, in order; `data` empty and `end` for the last.
    Chunk {
        /// Which artifact.
        digest: Digest,
        /// At most 256 KiB.
        data: Vec<u8>,
        /// Whether this was the last piece.
        end: bool,
    },
    /// The artifact cannot be had.
    NoArtifact {
        /// Which.
        digest: Digest,
        /// Why.
        message: String,
    },
    /// Read log lines; answered by `LogLines`, to the end or, if `follow`, until `StopLogs`.
    ReadLogs(LogQuery),
    /// The reader left.
    StopLogs {
        /// The query's id.
        id: u64,
    },
}

/// Bulk traffic from a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromWorkerBulk {
    /// Send this artifact from `offset` on.
    Fetch {
        /// Which.
        digest: Digest,
        /// Bytes that are already here.
        offset: u64,
    },
    /// Lines of a query, oldest first.
    LogLines {
        /// The query's id.
        id: u64,
        /// The lines.
        lines: Vec<LogLine>,
        /// No more will come.
        end: bool,
        /// Why lines are missing, where they are.
        missing: Option<String>,
    },
}

/// Which log lines are wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogQuery {
    /// Chosen by the asker, unique on the connection.
    pub id: u64,
    /// Of this function.
    pub function: FunctionId,
    /// Of this sandbox only.
    pub sandbox: Option<SandboxId>,
    /// Written at or after: milliseconds since 1970.
    pub since_ms: Option<u64>,
    /// Written before: milliseconds since 1970.
    pub until_ms: Option<u64>,
    /// At most so many, the newest ones.
    pub tail: u32,
    /// Go on with new lines.
    pub follow: bool,
}

/// A line that a sandbox wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When: milliseconds since 1970.
    pub at_ms: u64,
    /// Which sandbox.
    pub sandbox: SandboxId,
    /// Standard error, else standard output.
    pub stderr: bool,
    /// The text, cut at 16 KiB, not UTF-8 replaced.
    pub text: String,
}

/// Questions to a data plane on its second connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToDataPlaneBulk {
    /// What is known of the invocation with this request id?
    FindInvocation {
        /// Chosen by the asker, unique on the connection.
        id: u64,
        /// As in `X-Dirigent-Request-Id`.
        request_id: String,
    },
}

/// Answers of a data plane on its second connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromDataPlaneBulk {
    /// Answer to `FindInvocation`.
    Invocation {
        /// The question's id.
        id: u64,
        /// The record, if still remembered.
        record: Option<Box<InvocationRecord>>,
    },
}

/// What a data plane remembers of an invocation: the last 10,000, and as many each of those that
/// failed and that were refused, in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvocationRecord {
    /// As in `X-Dirigent-Request-Id`.
    pub request_id: String,
    /// The function, or the name of none; `None` if the call named nothing.
    pub function: Option<FunctionName>,
    /// Its id, if there was such a function.
    pub function_id: Option<FunctionId>,
    /// Where it ran last.
    pub sandbox: Option<SandboxId>,
    /// What ran.
    pub revision: Option<RevisionId>,
    /// When it arrived: milliseconds since 1970.
    pub arrived_ms: u64,
    /// From arrival to the end of the response.
    pub total: Duration,
    /// The status answered.
    pub status: u16,
    /// The error code, if the platform failed.
    pub code: Option<String>,
    /// Attempts made.
    pub attempts: u32,
    /// Whether it waited for a start.
    pub cold: bool,
    /// Phases by name, in order.
    pub phases: Vec<(String, Duration)>,
}
