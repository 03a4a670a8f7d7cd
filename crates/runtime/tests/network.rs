//! Sandboxes that other hosts reach. A host is a network namespace with one link to this machine.

#![cfg(test)]

mod common;

use std::{
    net::{Ipv4Addr, TcpListener},
    os::fd::AsFd as _,
    process::{Command, Output},
};

use common::{Rig, ask, is_root, mode, server, with};
use dirigent_core::{Cause, Isolation, Outbound};
use dirigent_runtime::{Runtime as _, process::ProcessConfig};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

fn ip(args: &str) -> Output {
    Command::new("ip").args(args.split(' ')).output().expect("`ip` runs")
}

fn must(args: &str) {
    let output = ip(args);
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Another host; its link goes with it.
struct Host {
    name: String,
    /// This machine's end of the link.
    here: Ipv4Addr,
    there: Ipv4Addr,
}

impl Host {
    /// `number` tells those of one test process apart.
    fn new(number: u8) -> Self {
        let id = std::process::id();
        let name = format!("dt{id}-{number}");
        // From the range that is set aside for tests of networks (RFC 2544).
        let net = u32::from(Ipv4Addr::new(198, 18, 0, 0)) + (id % 8192 * 2 + u32::from(number)) * 4;
        let (here, there) = (Ipv4Addr::from(net + 1), Ipv4Addr::from(net + 2));
        must(&format!("netns add {name}"));
        let host = Self { name, here, there };
        let name = &host.name;
        must(&format!("link add {name} type veth peer name wire netns {name}"));
        must(&format!("addr add {here}/30 dev {name}"));
        must(&format!("link set {name} up"));
        must(&format!("-n {name} addr add {there}/30 dev wire"));
        must(&format!("-n {name} link set wire up"));
        must(&format!("-n {name} route add default via {here}"));
        host
    }

    /// Until this test program ends.
    fn listens(&self, port: u16) {
        let namespace = std::fs::File::open(format!("/run/netns/{}", self.name)).expect("is there");
        let bound = std::thread::spawn(move || {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), kind).expect("enters");
            TcpListener::bind(("0.0.0.0", port)).expect("binds")
        });
        let listener = bound.join().expect("no panic");
        std::thread::spawn(move || listener.incoming().for_each(drop));
    }

    fn connects(&self, address: Ipv4Addr, port: u16) -> bool {
        let connect = format!(": < /dev/tcp/{address}/{port}");
        let status = Command::new("ip")
            .args(["netns", "exec", &self.name, "timeout", "5", "bash", "-c", &connect])
            .output()
            .expect("`ip` runs")
            .status;
        status.success()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The link's other end is removed with the namespace, if later.
        drop(ip(&format!("link del {}", self.name)));
        drop(ip(&format!("netns del {}", self.name)));
    }
}

/// Whether hosts can be made here.
fn possible() -> bool {
    let missing = ["ip", "nft", "bash"].into_iter().find(|program| {
        let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output();
        !found.is_ok_and(|output| output.status.success())
    });
    if let Some(program) = missing {
        println!("skip: `{program}` is not installed");
        return false;
    }
    if !is_root() {
        println!("skip: only root makes network namespaces with links, and network rules");
    }
    is_root()
}

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
