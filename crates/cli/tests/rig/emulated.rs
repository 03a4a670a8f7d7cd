//! Many workers lose their leader: all come back to the next one, with what they run.

use std::{collections::BTreeSet, fs, time::Instant};

use anyhow::Result;
use dirigent_rig::part::until;

use crate::stage::{Stage, rounds};

/// As many as a round has workers: five rounds are a thousand.
const WORKERS: usize = 200;
const SANDBOXES: usize = 100;

#[test]
fn emulated_workers_come_back_after_a_failover_and_none_of_their_sandboxes_is_stopped() -> Result<()>
{
    let count = WORKERS * rounds();
    let Some(mut stage) = Stage::bare(1, Some(count))? else { return Ok(()) };
    stage.cluster.workers[0].kill();
    let leader = stage.cluster.one_leads()?;
    until("all are missed", || stage.cluster.ready_workers(leader) == 0)?;
    stage.cluster.start_worker(0)?;
    let begun = Instant::now();
    until("all are there", || stage.cluster.ready_workers(leader) == count)?;
    println!("{count} workers were there {:?} after their process was", begun.elapsed());

    let folder = tempfile::tempdir()?;
    let manifest = format!(
        "name = \"many\"\n[sandbox]\nruntime = \"fake\"\ncommand = [\"x\"]\n[resources]\nmemory = \"16MiB\"\n\
         [scaling]\nmin = {SANDBOXES}\nmax = {SANDBOXES}\n"
    );
    fs::write(folder.path().join("dirigent.toml"), manifest)?;
    stage.cluster.deploy(leader, folder.path())?;
    let mut before = BTreeSet::new();
    until("all sandboxes run", || {
        before = sandboxes(&stage);
        before.len() == SANDBOXES
    })?;
    stage.cluster.controls[leader].kill();
    let begun = Instant::now();
    let next = stage.cluster.one_leads()?;
    until("all are back", || stage.cluster.ready_workers(next) == count)?;
    println!("and back {:?} after the leader's death", begun.elapsed());
    until("their sandboxes are known", || sandboxes(&stage).len() >= SANDBOXES)?;
    assert_eq!(sandboxes(&stage), before);
    Ok(())
}

/// The ids of those that are ready.
fn sandboxes(stage: &Stage) -> BTreeSet<String> {
    let told = stage.cluster.describe("many").unwrap_or_default();
    let all = told["sandboxes"].as_array().map_or(&[][..], Vec::as_slice);
    let ready = all.iter().filter(|it| it["state"] == "ready");
    ready.map(|it| it["id"].to_string()).collect()
}
