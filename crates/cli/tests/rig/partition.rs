//! Links between groups of hosts are cut. Warm calls go on where the path lives, nothing has two
//! masters, and after healing one control plane leads and everything is as it is wanted.

use anyhow::{Context as _, Result};
use dirigent_rig::{
    part::{hosts, until},
    wire::Link,
};
use http::Method;

use crate::stage::{FUNCTIONS, Stage};

/// As wanted of the twenty: at least and at most so many sandboxes each.
const SCALING: &str = "[scaling]\nmin = 1\nmax = 2\n";

fn heal(stage: &Stage) -> Result<()> {
    stage.cluster.net.heal();
    println!("all is well {:?} after healing", stage.cluster.settled()?);
    stage.as_wanted(1, 2)
}

#[test]
fn control_planes_are_cut_from_workers_and_from_data_planes_and_no_call_fails() -> Result<()> {
    let Some(stage) = Stage::set_with(2, SCALING)? else { return Ok(()) };
    let load = stage.load()?;
    for others in [hosts(&stage.cluster.workers), hosts(&stage.cluster.planes)] {
        let before = stage.cluster.programs();
        stage.cluster.net.cut(&hosts(&stage.cluster.controls), &others);
        // Longer than it takes until a worker counts as lost.
        stage.goes_on(&load, 5 * 60)?;
        stage.live_on(&before);
        heal(&stage)?;
    }
    let outcomes = stage.end(load)?;
    assert_eq!(outcomes.failed().count(), 0, "{:?}", outcomes.kinds());
    Ok(())
}

#[test]
fn an_old_leader_with_half_of_the_cluster_is_obeyed_by_nobody_who_knows_a_later_one() -> Result<()>
{
    let Some(mut stage) = Stage::set_with(2, SCALING)? else { return Ok(()) };
    stage.deploy(&["cold".to_owned()], "[scaling]\nmax = 1\n")?;
    let load = stage.load()?;
    let old = stage.cluster.one_leads()?;
    let (controls, planes) = (hosts(&stage.cluster.controls), hosts(&stage.cluster.planes));
    let workers = hosts(&stage.cluster.workers);
    let ours = [controls[old], planes[0], workers[0]];
    stage.cluster.net.cut(&ours, &stage.cluster.others(&ours));
    until("another one leads", || {
        let roles = stage.cluster.roles();
        (0..roles.len()).any(|control| control != old && roles[control] == "leader")
    })?;
    // Each of the two serves those who hear it: two leaders, and no slot that both have.
    for plane in 0..planes.len() {
        let called = stage.cluster.call_at(plane, "cold", "/cold", Method::POST)?.end()?;
        assert_eq!(called.failure, None, "{called:?}");
    }
    let cold = stage.cluster.programs().remove("cold").context("it runs")?;
    assert_eq!(cold.iter().map(|(worker, _)| *worker).collect::<Vec<_>>(), [0, 1]);
    stage.goes_on(&load, 60)?;

    // One that knows the later leader comes to the old one, from its disk even: it is not taken, and
    // the old one hears that it leads no more.
    let before = stage.cluster.programs();
    stage.cluster.workers[1].kill();
    stage.cluster.net.cut(&[workers[1]], &controls);
    stage.cluster.net.between(&[workers[1]], &[controls[old]], Link::default());
    stage.cluster.start_worker(1)?;
    until("the old one stands down", || stage.cluster.roles()[old] == "standby")?;
    stage.live_on(&before);
    heal(&stage)?;
    until("it has one sandbox again", || {
        stage.cluster.programs().get("cold").map_or(0, Vec::len) <= 1
    })?;
    let outcomes = stage.end(load)?;
    // Those that were on the cut links.
    let failed = outcomes.failed().count();
    assert!(failed <= 2 * FUNCTIONS, "{:?}", outcomes.kinds());
    Ok(())
}
