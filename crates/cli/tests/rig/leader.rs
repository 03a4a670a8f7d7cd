//! The leading control plane is killed: no warm call fails, and cold starts wait for the next one.

use anyhow::Result;
use http::Method;

use crate::stage::{Stage, median, rounds};

#[test]
fn the_leader_is_killed_and_no_call_fails() -> Result<()> {
    let Some(mut stage) = Stage::set(2)? else { return Ok(()) };
    let cold: Vec<String> = (0..rounds()).map(|n| format!("cold-{n}")).collect();
    stage.deploy(&cold, "")?;
    let load = stage.load()?;
    let mut delays = Vec::new();
    for name in &cold {
        let leader = stage.cluster.one_leads()?;
        stage.cluster.controls[leader].kill();
        let started = stage.cluster.call(name, Method::POST)?;
        assert_eq!(started.failure, None, "{started:?}");
        delays.push(started.latency());
        let net = &stage.cluster.net;
        stage.cluster.controls[leader].start(net)?;
        stage.cluster.controls[leader].ready()?;
        stage.cluster.settled()?;
        stage.goes_on(&load, 60)?;
    }
    let outcomes = stage.end(load)?;
    assert_eq!(outcomes.failed().count(), 0, "{:?}", outcomes.kinds());
    println!(
        "cold starts after the leader's death: median {:?} of {delays:?}",
        median(&mut delays.clone())
    );
    Ok(())
}
