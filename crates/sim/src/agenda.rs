//! What happens when: every step of a run comes from here, in the order of (time, number).

use std::{
    collections::BTreeMap,
    fmt::{self, Debug},
};

use dirigent_core::{
    Cause, Epoch, FunctionId, InvocationId, SandboxId, StreamId, Time, Write, WriteToken, control,
    office::Seat,
};

use crate::store::Mark;

/// A machine's host, or the store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// A control plane.
    Control(usize),
    /// A data plane.
    Plane(usize),
    /// A worker.
    Worker(usize),
    /// The store.
    Store,
}

impl Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Control(n) => write!(f, "control{n}"),
            Self::Plane(n) => write!(f, "plane{n}"),
            Self::Worker(n) => write!(f, "worker{n}"),
            Self::Store => f.write_str("store"),
        }
    }
}

/// An invocation in one life of its data plane, and which attempt of it is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Attempted {
    pub(crate) plane: usize,
    pub(crate) life: u64,
    pub(crate) invocation: InvocationId,
    pub(crate) attempt: u32,
}

/// How an attempt ends at its data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Its response is complete.
    Response,
    /// No connection: nothing was sent.
    Refused,
    /// It was sent, and the connection broke without a byte of response.
    Broken,
}

/// One answer of the store to a control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreAnswer {
    Wrote(WriteToken, control::Outcome),
    /// The epoch of what was asked for is over, or its store was replaced by an older copy; of a
    /// write, its token.
    Deposed(Option<WriteToken>),
    Seat(Seat),
    Took(Option<Seat>),
}

/// One question to the store.
#[derive(Clone, Debug)]
pub(crate) enum StoreAsk {
    Write(WriteToken, Write),
    Beat,
    Read,
    Take { over: Seat, above: Epoch },
}

/// Whose deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Clockwork {
    Control(usize),
    Worker(usize),
    Gate(usize, FunctionId),
}

/// What happens at a point in time.
#[derive(Debug)]
pub(crate) enum What {
    /// The next packet of a stream arrives, upwards (to the control plane) or down.
    Deliver {
        stream: StreamId,
        up: bool,
    },
    /// One end of a stream may notice that the other does not answer.
    Silent {
        stream: StreamId,
        up: bool,
    },
    Dial {
        host: Host,
        life: u64,
    },
    Expire {
        of: Clockwork,
        life: u64,
    },
    Ask {
        from: usize,
        life: u64,
        epoch: Epoch,
        /// The revision of the last write that the asker knows to be taken in this epoch.
        knows: u64,
        ask: StoreAsk,
    },
    Answer {
        to: usize,
        life: u64,
        epoch: Epoch,
        answer: StoreAnswer,
    },
    /// A majority of the store's members has what was asked for.
    Committed {
        to: usize,
        life: u64,
        epoch: Epoch,
        answer: StoreAnswer,
        mark: Mark,
    },
    /// Somebody copies the store, for the day when it is needed.
    Copy,
    /// A control plane looks after the office.
    Office {
        control: usize,
        life: u64,
    },
    Arrive,
    Connect {
        at: Attempted,
        slot: SandboxId,
    },
    HandlerEnds {
        worker: usize,
        sandbox: SandboxId,
        handler: u64,
    },
    Ends {
        at: Attempted,
        slot: SandboxId,
        end: End,
    },
    QueueLate {
        at: Attempted,
    },
    Late {
        at: Attempted,
    },
    ClientGone {
        at: Attempted,
    },
    /// The time that the handler of an abandoned attempt is given is over.
    Grace {
        at: Attempted,
        slot: SandboxId,
        function: FunctionId,
    },
    Created {
        worker: usize,
        sandbox: SandboxId,
        boot: u64,
    },
    Listening {
        worker: usize,
        sandbox: SandboxId,
        boot: u64,
    },
    Gone {
        worker: usize,
        sandbox: SandboxId,
        boot: u64,
        cause: Cause,
    },
    /// What a barred data plane left in a sandbox has had its time.
    Settles {
        worker: usize,
        sandbox: SandboxId,
        boot: u64,
    },
    User,
    /// An operator looks after workers and data planes.
    Order,
    /// A data plane that is to leave looks whether it can.
    Leaves {
        plane: usize,
        life: u64,
    },
    Fault,
    Restart {
        host: Host,
    },
    Mend {
        number: u64,
    },
    Heal,
    Quiet,
    Sweep,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Agenda {
    entries: BTreeMap<(Time, u64), What>,
    number: u64,
}

impl Agenda {
    pub(crate) fn put(&mut self, at: Time, what: What) {
        self.number += 1;
        self.entries.insert((at, self.number), what);
    }

    pub(crate) fn next(&mut self) -> Option<(Time, What)> {
        self.entries.pop_first().map(|((at, _), what)| (at, what))
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}
