//! Registration at scale: what the last functions cost beside the first.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use dirigent_core::manifest::{Invocation, Manifest, ManifestResources, Scaling};
use futures_util::stream::{StreamExt as _, TryStreamExt as _, iter};
use serde::Serialize;

use crate::{Cluster, percentiles::ms, replay};

/// What was seen.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Register {
    /// Functions registered.
    pub functions: usize,
    /// The first thousand, in milliseconds.
    pub first_thousand_ms: f64,
    /// The last thousand, in milliseconds.
    pub last_thousand_ms: f64,
    /// All, in milliseconds.
    pub total_ms: f64,
}

/// Registers `functions` (at least 2,000) without a check, so many at once as there are `clients`:
/// each waits for its answer, and writes that wait are committed in groups.
///
/// # Errors
/// If a registration fails.
pub async fn run(cluster: &dyn Cluster, functions: usize, clients: usize) -> Result<Register> {
    let begun = Instant::now();
    let first = batch(cluster, 0..1000, clients).await?;
    batch(cluster, 1000..functions - 1000, clients).await?;
    let last = batch(cluster, functions - 1000..functions, clients).await?;
    Ok(Register {
        functions,
        first_thousand_ms: ms(first),
        last_thousand_ms: ms(last),
        total_ms: ms(begun.elapsed()),
    })
}

async fn batch(
    cluster: &dyn Cluster,
    numbers: std::ops::Range<usize>,
    clients: usize,
) -> Result<Duration> {
    let begun = Instant::now();
    iter(numbers)
        .map(|number| async move { cluster.deploy(manifest(number)?).await })
        .buffer_unordered(clients)
        .try_collect::<()>()
        .await?;
    Ok(begun.elapsed())
}

fn manifest(number: usize) -> Result<Manifest> {
    Ok(Manifest {
        name: format!("registered-{number:06}").parse().context("a benchmark's name")?,
        sandbox: replay::sleeper(),
        resources: ManifestResources::default(),
        scaling: Scaling::default(),
        invocation: Invocation::default(),
        env: std::collections::BTreeMap::new(),
    })
}
