//! Every process is ended in order and started again, one after the other, as an upgrade does; where an
//! older program is named to begin with, as the upgrade from that.

use anyhow::Result;

use crate::stage::{Stage, rounds};

#[test]
fn every_process_is_restarted_under_load_and_no_call_fails() -> Result<()> {
    let Some(mut stage) = Stage::set(2)? else { return Ok(()) };
    let load = stage.load()?;
    stage.upgrade();
    for _ in 0..rounds() {
        for control in 0..stage.cluster.controls.len() {
            stage.cluster.etcd[control].end()?;
            stage.cluster.start_etcd()?;
            assert!(stage.cluster.controls[control].end()?.success());
            stage.cluster.start_control(control)?;
            stage.cluster.settled()?;
        }
        for plane in 0..stage.cluster.planes.len() {
            assert!(stage.cluster.planes[plane].end()?.success());
            stage.cluster.start_plane(plane)?;
            stage.cluster.settled()?;
        }
        for worker in 0..stage.cluster.workers.len() {
            let before = stage.cluster.programs();
            assert!(stage.cluster.workers[worker].end()?.success());
            stage.cluster.start_worker(worker)?;
            stage.cluster.settled()?;
            stage.live_on(&before);
        }
    }
    let outcomes = stage.end(load)?;
    assert_eq!(outcomes.failed().count(), 0, "{:?}", outcomes.kinds());
    Ok(())
}
