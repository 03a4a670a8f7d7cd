//! From outside a function is reached through a data plane and nowhere else.

use std::{
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result};
use dirigent_rig::net::Host;
use http::Method;

use crate::stage::Stage;

#[test]
fn only_data_planes_connect_to_sandboxes() -> Result<()> {
    let Some(stage) = Stage::set(1)? else { return Ok(()) };
    assert_eq!(stage.cluster.call("f0", Method::GET)?.failure, None);
    let told = stage.cluster.describe("f0")?["sandboxes"][0]["address"].to_string();
    let address = told.split('"').find_map(|word| word.parse::<SocketAddr>().ok());
    let address = address.with_context(|| format!("no address in {told}"))?;
    let connects = |host: Host| {
        let dial = || TcpStream::connect_timeout(&address, Duration::from_secs(2)).is_ok();
        stage.cluster.net.inside(host, dial)
    };
    for plane in &stage.cluster.planes {
        assert!(connects(plane.host)?, "{address}");
    }
    for host in [stage.cluster.caller, stage.cluster.controls[0].host] {
        assert!(!connects(host)?, "{address}");
    }
    Ok(())
}
