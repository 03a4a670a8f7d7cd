//! Measures Dirigent from the outside: one open-loop load generator, and what is built on it.
//!
//! - [`trace`]: a trace in the format of Azure Functions 2019, replayed.
//! - [`image`]: this program as an image, for the same as containers.
//! - [`synthetic`]: a seeded trace drawn from the published distributions, for the demo.
//! - [`cold`]: cold starts beside bare starts of the same program.
//! - [`static_server`]: the program of those.
//! - [`warm`]: the warm path beside rival proxies.
//! - [`bulk`]: large bodies and idle connections beside a rival proxy.
//! - [`sweep`]: a rate raised until what is measured no longer follows.
//! - [`burst`]: many calls at once beside as many bare starts at once.
//! - [`fail`]: a part is killed under load.
//! - [`zero`]: nothing is lost while everything changes.
//! - [`scale`]: cold calls on workers whose sandboxes cost nothing.
//! - [`recover`]: the leader's death with many workers.
//! - [`churn`]: many sandboxes made and gone leave nothing, as [`traces`] counts it.
//! - [`etcd`]: an etcd of one's own, for figures and tests.
//! - [`report`]: what was seen, as JSON and as a page without outside references.
//!
//! It knows a cluster only through [`Cluster`]: the binary says how functions get there.

pub mod bare;
pub mod bulk;
pub mod burst;
pub mod churn;
pub mod cold;
pub mod etcd;
mod exchange;
pub mod fail;
pub mod image;
pub mod latencies;
pub mod load;
mod phases;
pub mod recover;
pub mod register;
pub mod replay;
pub mod report;
pub mod scale;
pub mod static_server;
pub mod sweep;
pub mod traces;
pub mod warm;
mod websocket;
pub mod zero;

pub use dirigent_trace::{arrivals, percentiles, plot, synthetic, trace};

use std::{future::Future, net::SocketAddr, pin::Pin};

use dirigent_core::{Cause, manifest::Manifest};

/// A future that a [`Cluster`] returns.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = anyhow::Result<T>> + Send + 'a>>;

/// The system under test.
pub trait Cluster: Send + Sync {
    /// Where invocations go.
    fn functions(&self) -> SocketAddr;

    /// Deploy without a check, so that nothing of it runs yet.
    fn deploy(&self, manifest: Manifest) -> Answer<'_, ()>;

    /// Deploy and wait until the revision is live or its check has failed.
    fn deploy_checked(&self, manifest: Manifest) -> Answer<'_, Checked>;

    /// Remove a function.
    fn remove(&self, name: &str) -> Answer<'_, ()>;

    /// Sandboxes now.
    fn census(&self) -> Answer<'_, Census>;

    /// Where a function's ready sandboxes listen.
    fn addresses(&self, name: &str) -> Answer<'_, Vec<SocketAddr>>;

    /// The processor time that the system itself has used so far, sandboxes not counted.
    fn cpu_used(&self) -> Answer<'_, std::time::Duration>;
}

/// How a deploy that was waited for ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checked {
    /// Invocations go to the revision of this name, as in `K_REVISION`.
    Live(String),
    /// The revision's check failed; what was live before stays so.
    Failed(Cause),
}

impl Checked {
    /// The name of the revision.
    ///
    /// # Errors
    /// If it failed.
    pub fn live(self) -> anyhow::Result<String> {
        match self {
            Self::Live(revision) => Ok(revision),
            Self::Failed(cause) => anyhow::bail!("the deploy failed: {cause}"),
        }
    }
}

/// Sandboxes at one moment.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Census {
    /// Ready ones.
    pub ready: u32,
    /// Starting ones.
    pub starting: u32,
    /// Invocations in sandboxes.
    pub busy: u32,
    /// Invocations that wait.
    pub queued: u32,
    /// Memory of all, ready or starting, as their functions ask for it.
    pub memory_mib: u64,
    /// Memory of those in which an invocation runs.
    pub busy_mib: u64,
}
