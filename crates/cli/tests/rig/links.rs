//! Links are late, lossy and slow: everything takes longer, and no call fails by it.

use anyhow::Result;
use dirigent_rig::wire::Link;
use http::Method;

use crate::stage::{Stage, rounds};

#[test]
fn links_are_late_lossy_and_slow_and_no_call_fails() -> Result<()> {
    let Some(stage) = Stage::set(2)? else { return Ok(()) };
    let load = stage.load()?;
    for round in 0..rounds() {
        for (bad, link) in Link::bad() {
            let hosts = stage.cluster.net.hosts();
            stage.cluster.net.between(hosts, hosts, link);
            let cold = format!("cold-{round}-{bad}");
            stage.deploy(&[&cold], "")?;
            assert_eq!(stage.cluster.call(&cold, Method::POST)?.failure, None);
            stage.goes_on(&load, 4 * 60)?;
            stage.cluster.net.heal();
            println!("all is well after {:?}", stage.cluster.settled()?);
        }
    }
    let outcomes = stage.end(load)?;
    assert_eq!(outcomes.failed().count(), 0, "{:?}", outcomes.kinds());
    Ok(())
}
