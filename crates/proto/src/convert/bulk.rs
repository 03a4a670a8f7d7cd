//! `bulk.proto`: the second connection of a peer.

use std::time::Duration;

use dirigent_core::frame::{
    FromDataPlaneBulk, FromWorkerBulk, InvocationRecord, LogLine, LogQuery, ToDataPlaneBulk,
    ToWorkerBulk,
};

use super::{
    codec::{
        Boxed, Codec, Exactly, List, Maybe, Message, Name, Nanos, Needed, Plain, Short, Told, UpTo,
        Word,
    },
    field, frame, kinds, message, pair,
};
use crate::{FrameError, Malformed, limit, v1};

frame! {
    ToWorkerBulk in to_worker_bulk {
        Chunk { digest: Exactly, data: UpTo<{ limit::CHUNK }>, end: Plain, }
        NoArtifact { digest: Exactly, message: Told, }
        ReadLogs(Message)
        StopLogs { id: Plain, }
    }
}

frame! {
    FromWorkerBulk in from_worker_bulk {
        Fetch { digest: Exactly, offset: Plain, }
        LogLines { id: Plain, lines: List<{ limit::LOG_LINES }>, end: Plain, missing: Maybe<Told>, }
    }
}

message! {
    LogQuery {
        id: Plain,
        function: Needed,
        sandbox: Maybe,
        since_ms: Plain,
        until_ms: Plain,
        tail: Plain,
        follow: Plain,
    }
}

message! {
    LogLine { at_ms: Plain, sandbox: Needed, stderr: Plain, text: Told, }
}

frame! {
    ToDataPlaneBulk in to_data_plane_bulk {
        FindInvocation { id: Plain, request_id: Told<{ limit::WORD }>, }
    }
}

frame! {
    FromDataPlaneBulk in from_data_plane_bulk {
        Invocation { id: Plain, record: Maybe<Boxed>, }
    }
}

pair! {
    (String, Duration) as Phase { name: Word, took: Nanos, }
}

message! {
    InvocationRecord {
        request_id: Told<{ limit::WORD }>,
        function: Maybe<Name>,
        function_id: Maybe,
        sandbox: Maybe,
        revision: Maybe,
        arrived_ms: Plain,
        total: Nanos,
        status: Short,
        code: Maybe<Word>,
        attempts: Plain,
        cold: Plain,
        phases: List<{ limit::PHASES }, Message>,
    }
}
