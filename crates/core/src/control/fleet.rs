//! The workers: who is there, what each has room for, and where a sandbox is started.

use std::{sync::Arc, time::Duration};

use crate::{
    FunctionId, FunctionName, Office, Resources, RevisionId, SandboxId, Spec, StreamId, Time,
    WorkerId, WorkerRecord, Write, WriteToken,
    control::{Outcome, WorkerSummary},
    frame::{Load, SandboxReport, ToWorker, WorkerHello},
    model::Fault,
};

/// A sandbox that is wanted and has no worker yet.
#[derive(Clone, Debug)]
pub(crate) struct Want {
    /// Its id.
    pub(crate) sandbox: SandboxId,
    /// What runs in it.
    pub(crate) revision: RevisionId,
    /// The function's name.
    pub(crate) name: FunctionName,
    /// What it needs.
    pub(crate) spec: Arc<Spec>,
    /// From create to listening.
    pub(crate) start_timeout: Duration,
    /// Queued callers wait for it.
    pub(crate) urgent: bool,
    /// When it was decided.
    pub(crate) decided: Time,
}

/// What the fleet has to say, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// A worker said what it has; what the books have there and is not reported is gone.
    Joined { worker: WorkerId, sandboxes: Vec<SandboxReport> },
    /// A wanted sandbox has a worker; the order to start it was sent just before.
    Placed { sandbox: SandboxId, worker: WorkerId, waited: Duration },
    /// A function waits because no worker has room.
    NoRoom { function: FunctionId, need: Resources },
    /// It no longer waits for room.
    RoomAgain { function: FunctionId },
    /// A worker is lost, with these sandboxes.
    Lost { worker: WorkerId, sandboxes: Vec<SandboxId> },
    /// Say this to a worker.
    Send { stream: StreamId, frame: ToWorker },
    /// Write this; the answer goes to `persisted`.
    Persist { token: WriteToken, write: Write },
    /// Close this stream.
    Close { stream: StreamId, reason: String },
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Fleet {
    office: Office,
}

impl Fleet {
    pub(crate) fn new(now: Time, seed: u64, office: Office, records: Vec<WorkerRecord>) -> Self {
        drop((now, seed, records));
        Self { office }
    }
    pub(crate) fn attached(&mut self, now: Time, stream: StreamId, name: Arc<str>) {
        drop((now, stream, name, self.office));
    }
    pub(crate) fn hello(&mut self, now: Time, stream: StreamId, hello: WorkerHello) {
        drop((now, stream, hello));
    }
    pub(crate) fn detached(&mut self, now: Time, stream: StreamId) -> bool {
        now.0 == stream.0
    }
    pub(crate) fn beat(&mut self, _now: Time, _stream: StreamId, _load: Load) {}
    pub(crate) fn worker_of(&self, _stream: StreamId) -> Option<WorkerId> {
        None
    }
    pub(crate) fn artifact(&mut self, _stream: StreamId, _digest: crate::Digest, _held: bool) {}
    pub(crate) fn persisted(&mut self, _now: Time, token: WriteToken, _outcome: Outcome) -> bool {
        token.0 >> 63 == 1
    }
    pub(crate) fn want(&mut self, _now: Time, want: Want) {
        drop(want);
    }
    pub(crate) fn withdraw(&mut self, _sandbox: SandboxId) -> bool {
        false
    }
    pub(crate) fn ready(&mut self, _now: Time, _sandbox: SandboxId) {}
    pub(crate) fn failed(&mut self, _now: Time, _sandbox: SandboxId, _fault: Option<Fault>) {}
    pub(crate) fn gone(&mut self, _now: Time, _sandbox: SandboxId) {}
    pub(crate) fn stop(&mut self, _sandbox: SandboxId, _grace: Duration) {}
    pub(crate) fn release_address(&mut self, _sandbox: SandboxId, _worker: WorkerId) {}
    pub(crate) fn possible(&self, _spec: &Spec) -> Result<(), String> {
        Ok(())
    }
    pub(crate) fn expire(&mut self, _now: Time) {}
    pub(crate) fn deadline(&self) -> Option<Time> {
        None
    }
    pub(crate) fn poll(&mut self) -> Option<Output> {
        None
    }
    pub(crate) fn summaries(&self) -> Vec<WorkerSummary> {
        Vec::new()
    }
    pub(crate) fn all_recorded_attached(&self) -> bool {
        true
    }
    pub(crate) fn is_suspect(&self, _worker: WorkerId) -> bool {
        false
    }
}
