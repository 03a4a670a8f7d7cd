//! One sandbox as its worker knows it.
//!
//! ```text
//! Fetching -> Creating -> Starting -> Ready -> Stopping -> (gone: forgotten)
//!        \----------\-----------\--------------^
//! ```

use std::time::Duration;

use crate::{
    Address, Bytes, Cause, Digest, Fault, MilliCpu, RevisionId, StartFailure, StartPhases, Time,
    frame::{SandboxReport, StartSandbox},
};

use super::Adopted;

/// What an adopted sandbox that does not listen yet is given: its order is not known any more.
const ADOPTED_START_TIMEOUT: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub(super) struct Sandbox {
    pub(super) revision: RevisionId,
    pub(super) memory: Bytes,
    pub(super) cpu: MilliCpu,
    pub(super) artifact: Option<Digest>,
    pub(super) port: Option<u16>,
    pub(super) stage: Stage,
    /// Where it listens; from then on data planes may know it.
    pub(super) address: Option<Address>,
    pub(super) phases: StartPhases,
    pub(super) start_timeout: Duration,
}

/// Where a sandbox is in its life.
#[derive(Debug)]
pub(super) enum Stage {
    /// Its artifact is being fetched.
    Fetching {
        /// Kept until it can be created.
        order: Box<StartSandbox>,
        since: Time,
    },
    /// The runtime was told to create it.
    Creating {
        /// Kept in case that it must be created once more, on another port.
        order: Box<StartSandbox>,
        since: Time,
        until: Time,
    },
    /// Its program runs but does not listen yet.
    Starting { until: Time },
    /// It listens.
    Ready,
    /// The runtime was told to stop it.
    Stopping {
        /// When it will be killed.
        kill_at: Time,
        /// The start timeout that ended it, told as the cause.
        late: Option<StartFailure>,
    },
}

impl Sandbox {
    /// It waits to hear what the tag of its image stands for.
    pub(super) const fn is_resolving(&self) -> bool {
        matches!(self.stage, Stage::Fetching { .. }) && self.artifact.is_none()
    }

    pub(super) fn ordered(now: Time, order: Box<StartSandbox>, port: u16) -> Self {
        let spec = &order.spec;
        Self {
            revision: order.revision,
            memory: spec.resources.memory,
            cpu: spec.resources.cpu,
            artifact: spec.artifact,
            port: Some(port),
            address: None,
            phases: StartPhases::default(),
            start_timeout: order.start_timeout,
            stage: Stage::Fetching { order, since: now },
        }
    }

    pub(super) fn adopted(now: Time, adopted: Adopted) -> Self {
        let Adopted { report, port, artifact } = adopted;
        let stage = if report.address.is_some() {
            Stage::Ready
        } else {
            Stage::Starting { until: now + ADOPTED_START_TIMEOUT }
        };
        Self {
            revision: report.revision,
            memory: report.memory,
            cpu: report.cpu,
            artifact,
            port,
            stage,
            address: report.address,
            phases: StartPhases::default(),
            start_timeout: ADOPTED_START_TIMEOUT,
        }
    }

    /// The port of one that was ordered in this life of the worker.
    pub(super) fn ordered_port(&self) -> u16 {
        self.port.expect("a port is chosen with the order")
    }

    /// When its start is given up.
    pub(super) fn start_deadline(&self) -> Option<Time> {
        match self.stage {
            Stage::Creating { until, .. } | Stage::Starting { until } => Some(until),
            Stage::Fetching { .. } | Stage::Ready | Stage::Stopping { .. } => None,
        }
    }

    pub(super) fn is_stopping(&self) -> bool {
        matches!(self.stage, Stage::Stopping { .. })
    }

    pub(super) fn report(&self, sandbox: crate::SandboxId) -> SandboxReport {
        SandboxReport {
            sandbox,
            revision: self.revision,
            memory: self.memory,
            cpu: self.cpu,
            address: self.address.clone(),
            stopping: self.is_stopping(),
        }
    }

    /// What is told when its start has taken too long.
    pub(super) fn too_late(&self) -> StartFailure {
        let after = humantime::format_duration(self.start_timeout);
        let (cause, fault) = if let Stage::Creating { .. } = self.stage {
            let message = format!("the worker did not get it running within {after}");
            (Cause::CreateFailed { message }, Fault::Worker)
        } else {
            let on = self.port.map_or_else(String::new, |port| format!(" on port {port}"));
            let message = format!(
                "it runs but did not listen{on} within {after}: the program must listen on the \
                 port in $PORT, or `invocation.start_timeout` must be longer"
            );
            (Cause::NeverListened { message }, Fault::Function)
        };
        StartFailure { cause, fault, log_tail: Vec::new() }
    }
}

/// What is told of a sandbox that was ended by its start timeout: what the runtime found out by
/// itself, if it is more than that we killed it.
pub(super) fn judge(late: StartFailure, reported: StartFailure) -> StartFailure {
    match reported.cause {
        Cause::Stopped | Cause::Signalled { .. } | Cause::WorkerLost => {
            StartFailure { log_tail: reported.log_tail, ..late }
        }
        Cause::Exited { .. }
        | Cause::OutOfMemory { .. }
        | Cause::NeverListened { .. }
        | Cause::CreateFailed { .. }
        | Cause::ArtifactFailed { .. } => reported,
    }
}
