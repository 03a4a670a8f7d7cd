//! A data plane is killed: only what it had in its hands fails, and its slots come back once its
//! executions have ended.

use anyhow::Result;
use dirigent_rig::part::until;
use http::Method;

use crate::stage::{Stage, rounds};

#[test]
fn a_data_plane_is_killed_and_its_slots_come_back_without_a_second_execution() -> Result<()> {
    let Some(mut stage) = Stage::set(2)? else { return Ok(()) };
    // One sandbox with one slot: whoever is called next has to wait for this very slot.
    stage.deploy(&["single".to_owned()], "[scaling]\nmax = 1\n")?;
    let load = stage.load()?;
    let mut kills = Vec::new();
    for round in 0..rounds() {
        let plane = round % stage.cluster.planes.len();
        let (path, wait) = (format!("/long-{round}?sleep_ms=3000"), format!("/next-{round}"));
        let long = stage.cluster.call_at(plane, "single", &path, Method::POST)?;
        until("it is executed", || stage.executions(&format!("long-{round}")) == 1)?;
        let begun = load.now();
        stage.cluster.planes[plane].kill();
        kills.push((begun, load.now()));
        let next = stage.cluster.call_at(1 - plane, "single", &wait, Method::POST)?;
        assert!(long.end()?.failure.is_some(), "who carried it is dead");
        let next = next.end()?;
        assert_eq!(next.failure, None, "{next:?}");
        println!("the slot came back after {:?}", next.latency());
        stage.cluster.start_plane(plane)?;
        stage.cluster.settled()?;
        for name in ["long", "next"] {
            assert_eq!(stage.executions(&format!("{name}-{round}")), 1, "{name}");
        }
        stage.goes_on(&load, 60)?;
    }
    let outcomes = stage.end(load)?;
    for failed in outcomes.failed() {
        // It was open then: at most as many as a call takes time, and never one called later.
        let was_open = |(begun, ended): &(_, _)| failed.intended <= *ended && failed.done >= *begun;
        assert!(kills.iter().any(was_open), "{kills:?} {failed:?}");
    }
    Ok(())
}
