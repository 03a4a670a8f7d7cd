//! A control plane acknowledges a deploy, dies, and its disk with it.

use std::fs;

use anyhow::Result;
use dirigent_rig::functions;
use http::Method;

use crate::stage::Stage;

#[test]
fn a_deploy_outlives_the_control_plane_that_took_it_and_its_disk() -> Result<()> {
    let Some(mut stage) = Stage::set(2)? else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("dirigent.toml"), functions::manifest("filed", ""))?;
    // Larger than a frame: it is fetched in pieces.
    fs::write(folder.path().join("data"), vec![b'x'; 3 << 20])?;
    let leader = stage.cluster.one_leads()?;
    stage.cluster.deploy(leader, folder.path())?;
    stage.cluster.controls[leader].kill();
    fs::remove_dir_all(&stage.cluster.controls[leader].state)?;
    // No worker has ever seen it: nothing was started.
    let started = stage.cluster.call("filed", Method::GET)?;
    assert_eq!(started.failure, None, "{started:?}");
    println!("answered after {:?}", started.latency());
    Ok(())
}
