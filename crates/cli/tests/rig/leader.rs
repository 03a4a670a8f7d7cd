//! The leading control plane dies, alone, with etcd's leader, or is cut off: no warm call fails, and
//! cold starts wait for the next one.

use anyhow::Result;
use http::Method;

use crate::stage::{Stage, median, rounds};

/// Does something to the leader again and again, under load: a cold start is called at that moment.
fn without_leader(
    harm: impl Fn(&mut Stage, usize) -> Result<()>,
    repair: impl Fn(&mut Stage, usize) -> Result<()>,
) -> Result<()> {
    let Some(mut stage) = Stage::set(2)? else { return Ok(()) };
    let cold: Vec<String> = (0..rounds()).map(|n| format!("cold-{n}")).collect();
    stage.deploy(&cold, "")?;
    let load = stage.load()?;
    let mut delays = Vec::new();
    for name in &cold {
        let leader = stage.cluster.one_leads()?;
        harm(&mut stage, leader)?;
        let started = stage.cluster.call(name, Method::POST)?;
        assert_eq!(started.failure, None, "{started:?}");
        delays.push(started.latency());
        repair(&mut stage, leader)?;
        stage.cluster.settled()?;
        stage.goes_on(&load, 60)?;
    }
    let outcomes = stage.end(load)?;
    assert_eq!(outcomes.failed().count(), 0, "{:?}", outcomes.kinds());
    println!("cold starts meanwhile: median {:?} of {delays:?}", median(&delays));
    Ok(())
}

#[test]
fn the_leader_is_killed_and_no_call_fails() -> Result<()> {
    without_leader(
        |stage, leader| {
            stage.cluster.controls[leader].kill();
            Ok(())
        },
        |stage, leader| stage.cluster.start_control(leader),
    )
}

#[test]
fn the_leader_and_that_of_etcd_are_killed_and_no_call_fails() -> Result<()> {
    without_leader(
        |stage, leader| {
            let member = stage.cluster.etcd_leads()?;
            stage.cluster.controls[leader].kill();
            stage.cluster.etcd[member].kill();
            Ok(())
        },
        |stage, leader| {
            stage.cluster.start_etcd()?;
            stage.cluster.start_control(leader)
        },
    )
}

#[test]
fn the_leaders_host_is_cut_off_and_no_call_fails() -> Result<()> {
    without_leader(
        |stage, leader| {
            stage.cluster.net.isolate(stage.cluster.controls[leader].host);
            Ok(())
        },
        |stage, _| {
            stage.cluster.net.heal();
            Ok(())
        },
    )
}
