//! What a worker machine is told and what it orders.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    Address, Bytes, Digest, Fault, Pull, RuntimeKind, SandboxId, StartFailure,
    frame::{FromWorker, Hello, Load, SandboxReport, StartSandbox, ToWorker},
};

/// A fact that a worker machine learns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A stream to a control plane is up; the machine answers with its `Hello` frame.
    Attached {
        /// The common part, made by the shell.
        hello: Hello,
    },
    /// The stream broke.
    Detached,
    /// The control plane says something.
    Said(ToWorker),
    /// An artifact is unpacked and can be used.
    ArtifactReady {
        /// Which.
        digest: Digest,
    },
    /// An artifact could not be had.
    ArtifactFailed {
        /// Which.
        digest: Digest,
        /// Why, and whose fault.
        failure: ArtifactFailure,
    },
    /// An image is being fetched.
    Fetching {
        /// Which.
        digest: Digest,
        /// What is here.
        fetched: Bytes,
        /// All of it.
        all: Bytes,
    },
    /// What the tag of a sandbox's image stands for.
    ImageResolved {
        /// The sandbox.
        sandbox: SandboxId,
        /// The digest; or why it cannot be said, and whose fault that is.
        result: Result<Digest, ArtifactFailure>,
    },
    /// An artifact that was ready is not there any more: somebody else removed it.
    ArtifactLost {
        /// Which.
        digest: Digest,
    },
    /// The port chosen for a sandbox is held by another program of the host, so that nothing was
    /// created. The machine keeps away from it for a while and orders the creation again with
    /// another port; when it has none left the start fails by the worker's fault.
    PortTaken {
        /// The sandbox.
        sandbox: SandboxId,
        /// The port in the `Create`.
        port: u16,
    },
    /// The runtime executed the sandbox's program.
    SandboxCreated {
        /// Which.
        sandbox: SandboxId,
    },
    /// It listens, and the listener belongs to it.
    SandboxListening {
        /// Which.
        sandbox: SandboxId,
        /// Where.
        address: Address,
        /// From execution to listening, as measured by the runtime.
        init: Duration,
    },
    /// It is gone: exited, killed, failed to be created, or destroyed as ordered.
    SandboxGone {
        /// Which.
        sandbox: SandboxId,
        /// Why, whose fault, and its last lines.
        failure: StartFailure,
    },
    /// All connections of a barred data plane are closed.
    Settled {
        /// The sandbox.
        sandbox: SandboxId,
        /// The data plane.
        data_plane: crate::DataPlaneId,
    },
    /// What the host carries, sampled by the shell.
    Sampled(Load),
    /// The worker ends for good: every sandbox is stopped, nothing more is started.
    Closed {
        /// From SIGTERM to SIGKILL.
        grace: Duration,
    },
}

/// Why an artifact could not be had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactFailure {
    /// What went wrong, and what to do.
    pub message: String,
    /// The function's if the artifact would fail the same on every worker: no worker is given up
    /// for that.
    pub fault: Fault,
}

impl ArtifactFailure {
    /// What went wrong, and whose fault it is.
    pub fn new(message: impl Into<String>, fault: Fault) -> Self {
        Self { message: message.into(), fault }
    }
}

/// An order of a worker machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// Say this to the control plane.
    Send(FromWorker),
    /// Obey this epoch from now on: persist cluster and epoch before anything else is done.
    Obey(crate::frame::Welcome),
    /// Get an artifact and unpack it; answered by `ArtifactReady` or `ArtifactFailed`.
    Fetch {
        /// Which.
        digest: Digest,
        /// The runtime that wants it, and unpacks it.
        runtime: RuntimeKind,
        /// The image that it is, with its registry; `None` if the control plane has it.
        image: Option<String>,
    },
    /// Find out what the tag of an image stands for; answered by `ImageResolved`.
    Resolve {
        /// For which sandbox.
        sandbox: SandboxId,
        /// Whose it is.
        runtime: RuntimeKind,
        /// The image.
        image: String,
        /// Whether its registry is asked.
        pull: Pull,
    },
    /// Create a sandbox; answered by `SandboxCreated`, `SandboxListening`, `SandboxGone`.
    Create(Box<CreateSandbox>),
    /// Stop a sandbox: SIGTERM, after `grace` SIGKILL of its whole tree; answered by
    /// `SandboxGone`.
    Destroy {
        /// Which.
        sandbox: SandboxId,
        /// From SIGTERM to SIGKILL.
        grace: Duration,
    },
    /// Remove an artifact from disk.
    Discard {
        /// Which.
        digest: Digest,
    },
    /// Keep for the next life of this worker: data planes may know that this port is a sandbox's, or
    /// nobody does any more. What was kept before is in [`Left::ports`].
    Remember {
        /// The port.
        port: u16,
        /// Whose; `None` once it may be another's.
        sandbox: Option<SandboxId>,
    },
    /// Bar a data plane from a sandbox; answered by `Settled`.
    Bar {
        /// The sandbox.
        sandbox: SandboxId,
        /// The data plane.
        data_plane: crate::DataPlaneId,
    },
    /// End, and tell whoever started this process: another worker has the name, and lives.
    GiveUp,
}

/// A start with everything that the worker adds to the order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateSandbox {
    /// The order.
    pub order: StartSandbox,
    /// The port that was chosen for it, in 20000-29999.
    pub port: u16,
}

/// What an earlier life of a worker left.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// Sandboxes that the runtime still has.
    pub adopted: Vec<Adopted>,
    /// Artifacts on the disk.
    pub artifacts: Vec<Digest>,
    /// Ports that data planes may know, and as whose. Those of sandboxes that are no more rest, all of
    /// their time anew: how much of it is over is not known.
    pub ports: Vec<(u16, SandboxId)>,
}

/// A sandbox that the runtime still had when the worker started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopted {
    /// What is reported of it.
    pub report: SandboxReport,
    /// Its port, where it has one.
    pub port: Option<u16>,
    /// Its artifact, where it has one.
    pub artifact: Option<Digest>,
}
