//! Sandboxes that other hosts reach. A host is a network namespace with one link to this machine.

#![cfg(test)]

mod common;

use common::{
    Rig, ask,
    host::{Host, possible},
    mode, server, with,
};
use dirigent_core::{Cause, Isolation, Outbound};
use dirigent_runtime::{Runtime as _, process::ProcessConfig};

/// Those of the tests, so that the rules are about them.
fn ports(config: &mut ProcessConfig) {
    config.ports = (10_000, 18_999);
}

/// One after the other: the rules of each are about the same ports.
#[test]
fn sandboxes_are_reached_from_other_hosts() {
    if possible() {
        only_those_that_are_admitted_connect();
        who_listens_on_loopback_is_told_what_to_do();
        a_sandbox_connects_where_it_may();
    }
}

fn only_those_that_are_admitted_connect() {
    let (admitted, stranger) = (Host::new(0), Host::new(1));
    let here = admitted.here;
    let mut rig = Rig::new(|config| {
        ports(config);
        config.address = here;
        config.admitted = vec![std::net::IpAddr::from(admitted.there).into()];
    });
    assert!(!rig.runtime.facts().missing.iter().any(|line| line.starts_with("admission")));
    for level in [None, Some(Isolation::Plain)] {
        let (sandbox, port) = rig.serve(level);
        assert!(admitted.connects(here, port), "{level:?}");
        assert!(!stranger.connects(here, port), "{level:?}");
        assert!(!admitted.connects(stranger.here, port), "it listens at one address only");
        rig.destroy(sandbox);
    }
}

fn a_sandbox_connects_where_it_may() {
    let host = Host::new(3);
    for port in [7000, 7001] {
        host.listens(port);
    }
    let mut rig = Rig::new(ports);
    if !rig.has_strict() {
        return println!("skip: no strict isolation here: {:?}", rig.runtime.facts().missing);
    }
    let listed = Outbound::Only(vec![format!("{}:7000", host.there).parse().expect("an address")]);
    for (policy, reached) in [
        (None, [true, true]),
        (Some(Outbound::Internet), [true, true]),
        (Some(Outbound::None), [false, false]),
        (Some(listed), [true, false]),
    ] {
        let create = with(server(None), |spec| spec.sandbox.network.clone_from(&policy));
        let (sandbox, port) = (create.order.sandbox, create.port);
        rig.runtime.create(create);
        rig.listening(sandbox);
        let connects = |to: u16| ask(port, &format!("connect {}:{to}", host.there)) == "connected";
        assert_eq!([connects(7000), connects(7001)], reached, "{policy:?}");
        rig.destroy(sandbox);
    }
    // Without a network of its own nobody would keep to it.
    let mut rig = Rig::new(|config| {
        ports(config);
        config.max_isolation = Isolation::Basic;
    });
    let create = with(server(None), |spec| spec.sandbox.network = Some(Outbound::None));
    let sandbox = create.order.sandbox;
    rig.runtime.create(create);
    let failure = rig.gone(sandbox);
    assert!(failure.cause.to_string().contains("`strict` does not work here"), "{failure:?}");
}

fn who_listens_on_loopback_is_told_what_to_do() {
    let host = Host::new(2);
    let mut rig = Rig::new(|config| {
        ports(config);
        config.address = host.here;
        config.max_isolation = Isolation::Basic;
    });
    let missing = rig.runtime.facts().missing;
    assert!(missing.iter().any(|line| line.contains("--admit")), "{missing:?}");
    let mut create = mode(server(None), "loopback");
    create.order.start_timeout = std::time::Duration::from_millis(500);
    let (sandbox, port) = (create.order.sandbox, create.port);
    rig.runtime.create(create);
    let failure = rig.gone(sandbox);
    let Cause::NeverListened { message } = failure.cause else { panic!("{failure:?}") };
    assert!(message.contains(&format!("{}:{port} ($HOST:$PORT)", host.here)), "{message}");
    assert!(message.contains(&format!("127.0.0.1:{port} instead")), "{message}");
}
