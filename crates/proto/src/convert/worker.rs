//! `worker.proto`: between a worker and the control plane.

use dirigent_core::{
    Isolation, RuntimeKind,
    frame::{Capacity, FromWorker, Load, SandboxReport, StartSandbox, ToWorker, WorkerHello},
};

use super::{
    codec::{
        Boxed, Choice, Codec, Exactly, List, Maybe, Message, Name, Nanos, Needed, Number, Plain,
        Shared, Told, Word,
    },
    field, frame, kinds, message, pair,
};
use crate::{FrameError, Malformed, limit, v1};

frame! {
    FromWorker in from_worker {
        Hello(Boxed)
        Beat(Message)
        SandboxReady { sandbox: Needed, address: Needed, phases: Needed, }
        SandboxGone { sandbox: Needed, failure: Needed, }
        Refused { sandbox: Needed, message: Told, }
        Artifact { digest: Exactly, held: Plain, }
        Fetching { digest: Exactly, fetched: Number, all: Number, }
        ImageResolved { sandbox: Needed, digest: Exactly, }
        Settled { sandbox: Needed, data_plane: Number, }
        Unsupported { kind: Word, }
    }
}

message! {
    WorkerHello {
        hello: Needed,
        capacity: Needed,
        sandboxes: List<{ limit::SANDBOXES }>,
        artifacts: List<{ limit::ARTIFACTS }, Exactly>,
    }
}

pair! {
    (RuntimeKind, Isolation) as RuntimeOffer { runtime: Choice, isolation: Choice, }
}

message! {
    Capacity {
        memory: Number,
        cpu: Number,
        cpu_overcommit: Plain,
        sandboxes: Plain,
        starts: Plain,
        runtimes: List<{ limit::RUNTIMES }>,
        missing: List<{ limit::RUNTIMES }, Told>,
    }
}

message! {
    SandboxReport {
        sandbox: Needed,
        revision: Needed,
        memory: Number,
        cpu: Number,
        address: Maybe,
        stopping: Plain,
    }
}

message! {
    Load { sandboxes: Plain, memory_used: Number, cpu_used: Number, }
}

frame! {
    ToWorker in to_worker {
        Welcome { welcome: Needed, you: Number, }
        StartSandbox(Boxed)
        StopSandbox { sandbox: Needed, grace: Nanos, }
        ReleaseAddress { sandbox: Needed, }
        DiscardArtifacts { digests: List<{ limit::ARTIFACTS }, Exactly>, }
        Settle { sandbox: Needed, data_plane: Number, }
        Unsupported { kind: Word, }
        Taken()
    } later { Taken }
}

message! {
    StartSandbox {
        sandbox: Needed,
        revision: Needed,
        name: Name,
        spec: Shared<Needed>,
        start_timeout: Nanos,
    }
}
