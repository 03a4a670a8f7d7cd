//! `data_plane.proto`: between a data plane and the control plane.

use dirigent_core::{
    Duty,
    frame::{
        DataPlaneHello, Demand, FromDataPlane, Grant, Holding, Returned, Status, ToDataPlane,
        WhyReturned,
    },
};

use super::{
    choice,
    codec::{
        Boxed, Choice, Codec, Enumeration, List, Maybe, Message, Name, Nanos, Needed, Number,
        Plain, Shared, Word,
    },
    field, frame, kinds, message, variants,
};
use crate::{FrameError, Malformed, Why, limit, v1};

frame! {
    FromDataPlane in from_data_plane {
        Hello(Boxed)
        Resolve { name: Name, }
        Forget { name: Name, }
        Applied { function: Needed, version: Plain, }
        Demand(Message)
        Returned(Message)
        Kept { function: Needed, n: Plain, }
        Unsupported { kind: Word, }
    }
}

message! {
    DataPlaneHello {
        hello: Needed,
        holdings: List<{ limit::SANDBOXES }>,
        names: List<{ limit::FUNCTIONS }, Name>,
        demands: List<{ limit::FUNCTIONS }>,
    }
}

message! {
    Holding {
        sandbox: Needed,
        revision: Needed,
        share: Needed,
        busy: Plain,
        draining: Plain,
        pinned: Plain,
    }
}

message! {
    Demand {
        function: Needed,
        queued: Plain,
        oldest_wait: Nanos,
        held: Plain,
        idle: Plain,
        busy: Plain,
        busy_integral: Plain,
        elapsed: Plain,
        arrivals_total: Plain,
        finished_total: Plain,
        expected: Plain,
    }
}

choice! { WhyReturned { Idle, Drained, Unreachable, Closing } }

message! {
    Returned { sandbox: Needed, share: Needed, serial: Number, why: Choice, }
}

frame! {
    ToDataPlane in to_data_plane {
        Welcome { welcome: Needed, you: Number, }
        Resolved { name: Name, version: Plain, function: Maybe<Shared>, }
        Grant(Boxed)
        Recall { function: Needed, n: Plain, idle_only: Plain, }
        RecallSandbox { sandbox: Needed, gone: Plain, }
        Status { function: Needed, status: Needed, }
        Tokens { tokens: List<{ limit::TOKENS }>, }
        Unsupported { kind: Word, }
        Duty { duty: Choice, }
        Taken()
    } later { Duty Taken }
}

choice! { Duty { InUse, Cordoned, Draining } }

message! {
    Grant {
        sandbox: Needed,
        revision: Needed,
        address: Needed,
        protocol: Choice,
        share: Needed,
        serial: Number,
        pinned: Plain,
        start: Maybe,
    }
}

variants! {
    Status in status {
        Flowing()
        AtMax()
        NoCapacity()
        NotReady()
        StartFailed(Message)
        CrashLoop(Message)
    }
}
