//! The leader of etcd dies: cold starts do not notice, and deploys wait for the next one.

use std::time::Instant;

use anyhow::Result;
use http::Method;

use crate::stage::{Stage, median, rounds};

#[test]
fn the_leader_of_etcd_is_killed_and_only_deploys_wait() -> Result<()> {
    let Some(mut stage) = Stage::set(2)? else { return Ok(()) };
    let cold: Vec<String> = (0..rounds()).map(|n| format!("cold-{n}")).collect();
    stage.deploy(&cold, "")?;
    let load = stage.load()?;
    let (mut starts, mut deploys) = (Vec::new(), Vec::new());
    for (number, name) in cold.iter().enumerate() {
        let leader = stage.cluster.one_leads()?;
        let member = stage.cluster.etcd_leads()?;
        stage.cluster.etcd[member].kill();
        let started = stage.cluster.call(name, Method::POST)?;
        assert_eq!(started.failure, None, "{started:?}");
        starts.push(started.latency());
        let begun = Instant::now();
        let new = format!("new-{number}");
        stage.deploy(std::slice::from_ref(&new), "")?;
        deploys.push(begun.elapsed());
        assert_eq!(stage.cluster.call(&new, Method::GET)?.failure, None);
        stage.cluster.start_etcd()?;
        stage.cluster.settled()?;
        assert_eq!(stage.cluster.leader(), Some(leader), "that is nothing to those who lead here");
    }
    let outcomes = stage.end(load)?;
    assert_eq!(outcomes.failed().count(), 0, "{:?}", outcomes.kinds());
    println!("cold starts: median {:?} of {starts:?}", median(&starts));
    println!("deploys: median {:?} of {deploys:?}", median(&deploys));
    Ok(())
}
