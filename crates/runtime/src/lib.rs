//! Sandboxes: the trait that a worker drives, and those who implement it.
//!
//! The only crate with unsafe code, kept in `sys` modules.

#![warn(missing_docs)]

pub mod absent;
pub mod artifact;
mod claim;
#[cfg(feature = "containerd")]
pub mod container;
pub mod fake;
pub mod keeper;
mod logs;
mod network;
pub mod process;
mod sys;

pub use sys::listener::passed_listener;

use std::{fmt, time::Duration};

use dirigent_core::{
    Bytes, Digest, Fault, Isolation, Pull, RuntimeKind, SandboxId, StartFailure,
    frame::{LogLine, LogQuery},
    worker::{Adopted, ArtifactFailure, CreateSandbox},
};
use tokio::sync::mpsc;

/// What a runtime reports; in order for one sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The sandbox's program was executed.
    Created {
        /// Which.
        sandbox: SandboxId,
    },
    /// It listens, and the listener belongs to it.
    Listening {
        /// Which.
        sandbox: SandboxId,
        /// Where.
        address: dirigent_core::Address,
        /// From execution to listening.
        init: Duration,
    },
    /// It is gone, whole tree and files included; the last event of a sandbox.
    Gone {
        /// Which.
        sandbox: SandboxId,
        /// Why.
        failure: StartFailure,
    },
    /// Nothing was created: another program of the host holds the port. Takes the place of all
    /// other events of this attempt.
    PortTaken {
        /// Which.
        sandbox: SandboxId,
        /// The port in the order.
        port: u16,
    },
    /// An artifact is unpacked.
    Unpacked {
        /// Which.
        digest: Digest,
        /// Or why not.
        result: Result<(), ArtifactFailure>,
    },
    /// An image is being fetched; told once a second.
    Fetching {
        /// Which.
        digest: Digest,
        /// What is here.
        fetched: Bytes,
        /// All of it.
        all: Bytes,
    },
    /// What the tag of an image stands for.
    Resolved {
        /// The sandbox that it was asked for.
        sandbox: SandboxId,
        /// The digest, or why it cannot be said.
        result: Result<Digest, ArtifactFailure>,
    },
    /// An artifact that was unpacked is not there any more: somebody else has removed it.
    Lost {
        /// Which.
        digest: Digest,
    },
}

/// What a runtime can do here, shown to users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Which runtime.
    pub kind: RuntimeKind,
    /// The best isolation that works here as it is promised, so that it may be demanded; `None` if
    /// the runtime does not work at all.
    pub best: Option<Isolation>,
    /// What a function gets that demands nothing: more than `best` where something is missing of a
    /// level, but not all of it.
    pub usual: Option<Isolation>,
    /// What does not work here and why, a line each, with what to do.
    pub missing: Vec<String>,
}

/// How a worker starts and stops sandboxes. Calls return at once; results come as [`Event`]s on
/// the channel that the runtime was made with. Everything survives the caller: after a restart
/// [`Runtime::recover`] says what is left.
pub trait Runtime: Send + Sync + fmt::Debug {
    /// What works here.
    fn facts(&self) -> Facts;

    /// What is left of an earlier life of the worker: running sandboxes are adopted, half-made ones
    /// are removed before this returns. Those that ended meanwhile are among them, and their `Gone`
    /// follows with the cause, where it is known. Called once, first. Blocking.
    ///
    /// # Errors
    /// If what is left cannot be found out; nothing is started then.
    fn recover(&self) -> std::io::Result<Vec<Adopted>>;

    /// Artifacts that are unpacked and complete. Blocking.
    fn artifacts(&self) -> Vec<Digest>;

    /// Unpack the archive at `path` (a tar, or a tar in zstd) as `digest`, removing the archive;
    /// answered by [`Event::Unpacked`].
    fn unpack(&self, digest: Digest, path: std::path::PathBuf);

    /// Find out what the tag of an image stands for; answered by [`Event::Resolved`].
    ///
    /// # Errors
    /// If this runtime has no images; then nothing is answered.
    fn resolve(
        &self,
        _sandbox: SandboxId,
        _image: &str,
        _pull: Pull,
    ) -> Result<(), ArtifactFailure> {
        Err(ArtifactFailure::new("this runtime has no images", Fault::Function))
    }

    /// Get an image from its registry, as `digest`; answered by [`Event::Unpacked`].
    ///
    /// # Errors
    /// If this runtime has no images; then nothing is answered.
    fn pull(&self, _digest: Digest, _image: &str) -> Result<(), ArtifactFailure> {
        Err(ArtifactFailure::new("this runtime has no images", Fault::Function))
    }

    /// Nobody needs an unpacked artifact: remove it, in the background, now or after a while.
    fn discard(&self, digest: Digest);

    /// An artifact is needed that may have been discarded and be there still: if so it is answered
    /// by [`Event::Unpacked`], as if it had been fetched.
    fn revive(&self, _digest: Digest) -> bool {
        false
    }

    /// Start a sandbox; answered by `Created`, `Listening`, `Gone`.
    fn create(&self, create: CreateSandbox);

    /// Stop a sandbox and its whole tree: SIGTERM, after `grace` SIGKILL; answered by `Gone`.
    fn destroy(&self, sandbox: SandboxId, grace: Duration);

    /// Lines that match, oldest first, into `lines`; returns when they are sent, or, for a query
    /// that follows, when the receiver is gone. Blocking.
    fn logs(&self, query: LogQuery, lines: mpsc::Sender<Vec<LogLine>>);
}
