//! The functions that are called: the built-in `hello` under many names.

use std::{fs, sync::Arc, time::Duration};

use anyhow::Result;

use crate::{cluster::Cluster, load::Mix};

/// Names of so many functions that are called all the time.
#[must_use]
pub fn steady(count: usize) -> Vec<Arc<str>> {
    (0..count).map(|number| format!("f{number}").into()).collect()
}

/// A load that keeps two cores well below 60 %.
#[must_use]
pub fn mix(name: &str, functions: Vec<Arc<str>>) -> Mix {
    Mix { name: name.to_owned(), functions, per_second: 60, execution: Duration::from_millis(20) }
}

/// The manifest of one, with more lines. Its time-outs end before a call counts as lost.
#[must_use]
pub fn manifest(name: &str, more: &str) -> String {
    format!(
        "name = \"{name}\"\n[sandbox]\ncommand = [\"dirigent\", \"example\", \"hello\"]\n\
         [resources]\ncpu = \"10m\"\nmemory = \"16MiB\"\n\
         [invocation]\ntimeout = \"10s\"\nqueue_timeout = \"20s\"\n{more}"
    )
}

/// Deploys one at a control plane, whichever leads, with more lines of its manifest.
///
/// # Errors
/// If it is refused, with what was said.
pub fn deploy(cluster: &Cluster, at: usize, name: &str, more: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("dirigent.toml"), manifest(name, more))?;
    cluster.deploy(at, folder.path())
}
