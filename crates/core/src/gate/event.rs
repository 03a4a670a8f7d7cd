//! What a gate is told and what it orders.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    Address, FunctionView, InvocationId, Protocol, RevisionId, SandboxId, StartFailure,
    StartPhases,
    frame::{FromDataPlane, Grant, Status},
};

/// A fact that a gate learns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The catalogue's newest view of the function, with its version.
    Configured {
        /// Catalogue version; answered by `Applied`.
        version: u64,
        /// The function.
        view: Arc<FunctionView>,
    },
    /// The function was deleted: the queue is refused, slots go back as they become free.
    Deleted,
    /// Slots were granted.
    Granted(Box<Grant>),
    /// Slots are wanted back by number.
    Recalled {
        /// How many.
        n: u32,
        /// Only what is idle now.
        idle_only: bool,
    },
    /// All slots of a sandbox are wanted back.
    SandboxRecalled {
        /// Which.
        sandbox: SandboxId,
        /// It is known to be gone.
        gone: bool,
    },
    /// Why invocations wait.
    StatusChanged(Status),
    /// A bound invocation no longer occupies its slot.
    Finished {
        /// The sandbox it was bound to.
        sandbox: SandboxId,
        /// How it went.
        how: Finish,
    },
    /// A queued invocation's caller went away, or its deadline passed: it is answered (or not) by
    /// its own task, the gate forgets it. Too late if it was bound: then `Finished` must follow.
    Left {
        /// Which.
        invocation: InvocationId,
    },
    /// The stream to the control plane is up: state what is wanted.
    Attached,
    /// The stream to the control plane broke.
    Detached,
}

/// How an invocation left its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Finish {
    /// Its response ended, or the sandbox closed the connection: the slot is free.
    Done,
    /// It was abandoned (caller gone, time-out) and a handler may still run: with one slot the
    /// sandbox must be recycled; above one the shell reports this only once the connection is
    /// closed or the grace is over.
    Abandoned,
    /// The sandbox could not be connected to, or broke the connection before a byte of response.
    Unreachable,
}

/// What an invocation brings to `admit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Attempt {
    /// Its first: it queues at the tail.
    First,
    /// Another one, on another sandbox where there is one: it queues at the head, and is never
    /// refused for a full queue.
    Retry {
        /// The sandbox that failed it.
        avoid: SandboxId,
    },
}

/// The answer of `admit`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// A slot was free.
    Bound(Binding),
    /// It waits: `Effect::Bind` or `Effect::Refuse` will follow, unless it leaves first.
    Queued,
    /// It is answered at once.
    Refused(Refusal),
}

/// A slot taken by an invocation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// What runs in it.
    pub revision: RevisionId,
    /// Where it is. Cheap to clone: the hot path does.
    pub address: Arc<Address>,
    /// What it speaks.
    pub protocol: Protocol,
    /// The phases of the sandbox's start, for the first invocation bound to it.
    pub start: Option<StartPhases>,
}

/// Why an invocation is answered by the platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum Refusal {
    /// The queue holds `max_queue` invocations already: 429.
    QueueFull {
        /// The bound.
        max_queue: u32,
    },
    /// Three starts in a row failed: 502 `crash_loop`.
    CrashLoop(StartFailure),
    /// The function was deleted meanwhile: 404.
    Deleted,
}

/// An order of a gate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// A queued invocation got a slot.
    Bind {
        /// Which.
        invocation: InvocationId,
        /// Its slot.
        binding: Binding,
    },
    /// A queued invocation is answered by the platform.
    Refuse {
        /// Which.
        invocation: InvocationId,
        /// Why.
        refusal: Refusal,
    },
    /// Say this to the control plane. A later `Demand` replaces one not yet sent.
    Send(FromDataPlane),
    /// Nothing of this sandbox is held any more: close the connections kept to it.
    Close {
        /// Which.
        sandbox: SandboxId,
    },
}
