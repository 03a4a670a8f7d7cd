//! What the control machine is told and what it orders.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    Address, ApiToken, ApiTokens, Bytes, DataPlaneId, Digest, Duty, Epoch, Fault, FunctionId,
    FunctionName, MilliCpu, RequestId, RevisionId, RevisionState, SandboxId, Settings, Spec,
    StartFailure, StreamId, Target, Whom, WorkerId, Write, WriteToken,
    frame::{FromDataPlane, FromWorker, ToDataPlane, ToWorker},
};

/// A fact that the control machine learns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A user asks for something; answered by `Effect::Reply` with the same id.
    Asked {
        /// Who waits.
        request: RequestId,
        /// For what.
        call: Call,
        /// The time of day, for records: milliseconds since 1970.
        wall_ms: u64,
    },
    /// The user went away: the reply is no longer wanted. What was begun goes on.
    AskerLeft {
        /// Who.
        request: RequestId,
    },
    /// The store answered a write.
    Persisted {
        /// Which.
        token: WriteToken,
        /// How it went.
        outcome: Outcome,
    },
    /// A worker's stream is open; its `Hello` follows as the first frame.
    WorkerAttached {
        /// The stream.
        stream: StreamId,
        /// Its identity, from its certificate (in `up` a fixed word).
        name: Arc<str>,
    },
    /// A worker says something.
    WorkerSaid {
        /// On which stream.
        stream: StreamId,
        /// What.
        frame: FromWorker,
    },
    /// A data plane's stream is open; its `Hello` follows as the first frame.
    DataPlaneAttached {
        /// The stream.
        stream: StreamId,
        /// Its identity, from its certificate (in `up` a fixed word).
        name: Arc<str>,
    },
    /// A data plane says something.
    DataPlaneSaid {
        /// On which stream.
        stream: StreamId,
        /// What.
        frame: FromDataPlane,
        /// How long ago it reached the control plane: it waited for the machine.
        #[serde(default)]
        waited: Duration,
    },
    /// A stream broke, of whichever kind.
    Detached {
        /// Which.
        stream: StreamId,
    },
}

/// How a write went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It is durable, at this revision of the store.
    Ok {
        /// The store's revision, which only grows: writes are answered in their order, and if it is
        /// lower than before, this is another store, restored from an older copy.
        revision: u64,
    },
    /// It was not applied, and will not be.
    Refused,
    /// It may or may not have been applied: the shell re-reads before it decides anything else.
    Unknown,
}

/// What a user may ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// Create the function, or give it a new revision and settings. Content that is already live
    /// changes nothing. Answered when durable: `Answer::Deployed`.
    Deploy {
        /// Its name.
        name: FunctionName,
        /// What to run. The artifact is held by the blobs already.
        spec: Arc<Spec>,
        /// How to scale and invoke it.
        settings: Arc<Settings>,
        /// Start one sandbox and wait until it is ready before anything switches.
        check: bool,
    },
    /// Wait until a revision is live or failed; answered by `Answer::Settled`.
    AwaitRevision {
        /// Which.
        revision: RevisionId,
    },
    /// Make an earlier revision live again (the one before the live one, if none is named);
    /// answered like a deploy.
    Rollback {
        /// The function.
        name: FunctionName,
        /// The revision's number.
        to: Option<u32>,
    },
    /// Remove a function: slots are recalled, sandboxes drained. Answered when durable.
    Delete {
        /// The function.
        name: FunctionName,
    },
    /// Functions in the order of their names.
    List {
        /// Those after this one.
        after: Option<FunctionName>,
        /// At most so many, and at most 1000.
        limit: u32,
    },
    /// Everything that is known of a function.
    Describe {
        /// The function.
        name: FunctionName,
    },
    /// The values of a revision's environment, which are secrets.
    Environment {
        /// The function.
        name: FunctionName,
        /// The revision's number.
        revision: u32,
    },
    /// The workers.
    Workers,
    /// Everything that is known of a worker.
    DescribeWorker {
        /// Its name.
        name: Arc<str>,
    },
    /// The data planes.
    DataPlanes,
    /// What operators want of a worker or a data plane: obeyed at once, as far as it only takes away,
    /// and whole when it is durable, which is when it is answered.
    Order {
        /// Which.
        whom: Whom,
        /// What.
        duty: Duty,
    },
    /// A worker or data plane is gone for good: its record is forgotten. Answered when durable.
    Remove {
        /// Which.
        whom: Whom,
        /// Also a worker that is lost with sandboxes, which then count as gone.
        force: bool,
    },
    /// Functions that are active now, the busiest first.
    Top {
        /// At most so many, and at most 1000.
        limit: u32,
    },
    /// The tokens of the API.
    Tokens,
    /// Let a token count; answered when durable.
    MakeToken {
        /// Its secret is known to who asks.
        token: ApiToken,
    },
    /// A token does not count any more; answered when durable.
    RevokeToken {
        /// Which.
        name: Arc<str>,
    },
}

/// What a user gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The deploy is durable.
    Deployed {
        /// The function's name.
        name: FunctionName,
        /// The revision that is, or will be, live.
        revision: RevisionId,
        /// Where it is in its life.
        state: RevisionState,
        /// Whether anything was changed.
        changed: bool,
    },
    /// The revision is live (no data plane binds to another one any more) or failed.
    Settled {
        /// Which.
        revision: RevisionId,
        /// `Live`, `Failed`, or `Retired` if a newer one overtook it.
        state: RevisionState,
        /// Why it failed.
        failure: Option<StartFailure>,
    },
    /// The delete is durable.
    Deleted {
        /// The function's id.
        function: FunctionId,
    },
    /// Answer to `List`.
    Functions(Vec<FunctionSummary>),
    /// Answer to `Describe`.
    Function(Box<FunctionDescription>),
    /// Answer to `Environment`. Never logged or recorded.
    Environment(BTreeMap<String, String>),
    /// Answer to `Workers`.
    Workers(Vec<WorkerSummary>),
    /// Answer to `DescribeWorker`.
    Worker(Box<WorkerDescription>),
    /// Answer to `DataPlanes`.
    DataPlanes(Vec<DataPlaneSummary>),
    /// The order is durable.
    Ordered {
        /// To whom.
        whom: Whom,
        /// What.
        duty: Duty,
        /// Whether anything was changed.
        changed: bool,
    },
    /// It is forgotten.
    Removed {
        /// Who.
        whom: Whom,
    },
    /// Answer to `Top`.
    Top(Vec<FunctionSummary>),
    /// Answer to `Tokens`.
    Tokens(Vec<ApiToken>),
    /// The token counts.
    TokenMade {
        /// Which.
        name: Arc<str>,
    },
    /// The token does not count any more.
    TokenRevoked {
        /// Which.
        name: Arc<str>,
    },
}

/// Why a user does not get it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum Refusal {
    /// No such function.
    #[error("there is no function `{name}`; `dirigent list` shows those there are")]
    NotFound {
        /// The name asked for.
        name: FunctionName,
    },
    /// No such revision, or it is not kept any more.
    #[error(
        "`{name}` has no {}; `dirigent revisions {name}` shows those kept",
        match number { 0 => "revision before the live one".to_owned(), n => format!("revision {n}") }
    )]
    NoRevision {
        /// The function.
        name: FunctionName,
        /// The revision asked for; 0 if there is none before the live one.
        number: u32,
    },
    /// It can never work as asked: no worker offers the runtime or isolation, or is large enough.
    #[error("{message}")]
    Impossible {
        /// What is wrong and what to do.
        message: String,
    },
    /// The store does not take writes now.
    #[error("the store does not take writes now; nothing was changed, try again")]
    StoreUnavailable,
    /// Whether the write was applied is not known.
    #[error("whether the change was stored is not known; ask again, deploys are idempotent")]
    InDoubt,
    /// Too many callers wait already.
    #[error("{limit} requests wait already; try again")]
    Busy {
        /// The bound.
        limit: u32,
    },
    /// A token is called so.
    #[error("there is a token `{name}` already: choose another --name, or revoke it first")]
    TokenTaken {
        /// The name.
        name: Arc<str>,
    },
    /// No token is called so.
    #[error("there is no token `{name}`; `dirigent token list` shows those there are")]
    NoToken {
        /// The name.
        name: Arc<str>,
    },
    /// There are too many.
    #[error("there are {limit} tokens already: revoke some")]
    TooManyTokens {
        /// The bound.
        limit: usize,
    },
    /// No worker, or no data plane, is called so.
    #[error(
        "there is no {whom}; `dirigent {}` shows those there are",
        match whom { Whom::Worker(_) => "workers", Whom::DataPlane(_) => "data-planes" }
    )]
    NoPeer {
        /// Who.
        whom: Whom,
    },
    /// It is not forgotten while it is there or something depends on it.
    #[error("{message}")]
    InUse {
        /// What stands in the way and what to do.
        message: String,
    },
    /// It does not understand such an order.
    #[error(
        "{whom} does not take orders: it is of an older version, or one process with the control \
         plane; end it with SIGTERM on its machine, it leaves in the same way"
    )]
    Deaf {
        /// Who.
        whom: Whom,
    },
    /// This control plane does not lead.
    #[error("this control plane does not lead the cluster")]
    NotLeader,
}

/// An order of the control machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// Write to the store; answered by `Persisted`. Writes are applied in order.
    Persist {
        /// Quoted by the answer.
        token: WriteToken,
        /// What.
        write: Write,
    },
    /// Answer a user.
    Reply {
        /// Who.
        to: RequestId,
        /// With what.
        result: Result<Answer, Refusal>,
    },
    /// Say this to a worker.
    ToWorker {
        /// On which stream.
        stream: StreamId,
        /// What.
        frame: ToWorker,
    },
    /// Say this to a data plane.
    ToDataPlane {
        /// On which stream.
        stream: StreamId,
        /// What.
        frame: ToDataPlane,
    },
    /// Close a stream: its peer was replaced by a newer incarnation, or broke the protocol.
    Close {
        /// Which.
        stream: StreamId,
        /// Why, for the log.
        reason: String,
    },
    /// These artifacts are needed by no revision any more.
    DiscardArtifacts {
        /// Which.
        digests: Vec<Digest>,
    },
    /// From now on these tokens of the API count, and no others. Until then those recorded do.
    Admit {
        /// All.
        tokens: Arc<ApiTokens>,
    },
    /// This epoch is over, or the store is not the one that it was: stop leading. The next term must
    /// be above `shown`, of which the store may know nothing.
    Resign {
        /// The highest epoch known to have been obeyed.
        shown: Epoch,
    },
    /// Count something.
    Measure(Measure),
}

/// What is counted when the control machine decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Measure {
    /// A sandbox was decided.
    StartDecided,
    /// A sandbox became ready after so long since its decision.
    SandboxReady {
        /// From decision to ready.
        took: Duration,
    },
    /// A start failed.
    StartFailed {
        /// Whose fault.
        fault: Fault,
    },
    /// A sandbox was told to stop.
    SandboxStopped,
    /// A worker changed state.
    WorkerLost,
    /// Whether the leader left its recovery.
    Recovered,
}

/// A function in one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionSummary {
    /// Its name.
    pub name: FunctionName,
    /// Its id.
    pub id: FunctionId,
    /// The newest revision and its state.
    pub newest: (u32, RevisionState),
    /// Where invocations go.
    pub targets: Vec<Target>,
    /// Sandboxes that are ready.
    pub ready: u32,
    /// Sandboxes that are starting or wait to be placed.
    pub starting: u32,
    /// Invocations in sandboxes.
    pub busy: u32,
    /// Invocations waiting.
    pub queued: u32,
    /// Invocations since this leader took office.
    pub arrivals_total: u64,
}

/// Everything that is known of a function, fit to be shown: the names of its environment, not the
/// values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionDescription {
    /// In one line.
    pub summary: FunctionSummary,
    /// How it scales and is invoked.
    pub settings: Arc<Settings>,
    /// The revisions kept, oldest first.
    pub revisions: Vec<RevisionDescription>,
    /// Its sandboxes, in the order of their ids.
    pub sandboxes: Vec<SandboxDescription>,
    /// Workers that fetch the image of a revision now.
    #[serde(default)]
    pub fetching: Vec<FetchDescription>,
    /// The last failures, newest first, at most 10.
    pub failures: Vec<FailureDescription>,
    /// The last scaling decisions with their inputs, newest first, at most 20.
    pub decisions: Vec<Decision>,
    /// Why invocations wait now.
    pub status: crate::frame::Status,
}

/// A revision, fit to be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevisionDescription {
    /// Its number.
    pub number: u32,
    /// Where it is in its life.
    pub state: RevisionState,
    /// Its share of the invocations; 0 if it is no target.
    pub weight: u32,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// What it runs, with empty values in `env`.
    pub spec: Arc<Spec>,
    /// Why it failed.
    pub failure: Option<StartFailure>,
}

/// A sandbox, fit to be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxDescription {
    /// Which.
    pub id: SandboxId,
    /// What runs in it.
    pub revision: u32,
    /// `wanted`, `starting`, `ready`, `recalling` or `stopping`.
    pub state: String,
    /// Where.
    pub worker: Option<WorkerId>,
    /// Where it listens, once it does.
    pub address: Option<Address>,
    /// Who holds its slots.
    pub holders: Vec<DataPlaneId>,
    /// How long ago it was decided.
    pub age: Duration,
}

/// An image on its way to a worker, fit to be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchDescription {
    /// Which revision's.
    pub revision: u32,
    /// The worker's name.
    pub worker: Arc<str>,
    /// What it has.
    pub fetched: Bytes,
    /// All of it.
    pub all: Bytes,
}

/// A failure, fit to be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureDescription {
    /// How long ago.
    pub ago: Duration,
    /// Which sandbox.
    pub sandbox: SandboxId,
    /// Where.
    pub worker: Option<WorkerId>,
    /// Why, and its last lines.
    pub failure: StartFailure,
}

/// A scaling decision and what it was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// How long ago.
    pub ago: Duration,
    /// Sandboxes before (starting ones included) and after.
    pub from: u32,
    /// See `from`.
    pub to: u32,
    /// Which rule: `queued`, `stable window`, `panic window`, `min`, `max`, `keep-alive`, `deploy`,
    /// `fairness`, `drain`, `expected`.
    pub rule: String,
    /// The inputs by name, as numbers with their units.
    pub inputs: Vec<(String, String)>,
}

/// A worker, fit to be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerSummary {
    /// Which.
    pub id: WorkerId,
    /// Its identity.
    pub name: Arc<str>,
    /// `joining`, `ready`, `cordoned`, `draining`, `drained`, `suspect`, `lost`, `quarantined`.
    pub state: String,
    /// What operators want of it.
    pub duty: Duty,
    /// Sandboxes.
    pub sandboxes: u32,
    /// Memory reserved and offered.
    pub memory: (Bytes, Bytes),
    /// Processors reserved and offered, overcommit included.
    pub cpu: (MilliCpu, MilliCpu),
    /// Starts outstanding.
    pub starting: u32,
}

/// A worker and what is on it, fit to be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerDescription {
    /// In one line.
    pub summary: WorkerSummary,
    /// Its sandboxes in the order of their ids, at most 1000.
    pub sandboxes: Vec<WorkerSandbox>,
}

/// A sandbox on a worker, fit to be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerSandbox {
    /// Which.
    pub id: SandboxId,
    /// Whose.
    pub function: FunctionName,
    /// What runs in it.
    pub revision: u32,
    /// `starting`, `ready`, `recalling`, `stopping`, or `gone` while slots of it are held.
    pub state: String,
    /// Who holds its slots, by name.
    pub holders: Vec<Arc<str>>,
}

/// A data plane, fit to be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataPlaneSummary {
    /// Which.
    pub id: DataPlaneId,
    /// Its identity.
    pub name: Arc<str>,
    /// `joining`, `ready`, `cordoned`, `draining`; `silent` while it does not answer and may hold
    /// slots, `gone` when it holds none.
    pub state: String,
    /// What operators want of it.
    pub duty: Duty,
    /// Slots that it holds; an open grant counts as one.
    pub slots: u32,
    /// Invocations in sandboxes.
    pub busy: u32,
    /// Invocations waiting.
    pub queued: u32,
}
