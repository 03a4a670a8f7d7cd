//! Other hosts: each is a network namespace with one link to this machine.
#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses a part")]

use std::{
    net::{Ipv4Addr, TcpListener},
    os::fd::AsFd as _,
    process::{Command, Output},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::is_root;

pub(crate) fn ip(args: &str) -> Output {
    Command::new("ip").args(args.split(' ')).output().expect("`ip` runs")
}

pub(crate) fn must(args: &str) {
    let output = ip(args);
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Another host; its link goes with it.
pub(crate) struct Host {
    pub(crate) name: String,
    /// This machine's end of the link.
    pub(crate) here: Ipv4Addr,
    pub(crate) there: Ipv4Addr,
}

impl Host {
    /// `number` tells those of one test process apart.
    pub(crate) fn new(number: u8) -> Self {
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
    pub(crate) fn listens(&self, port: u16) {
        let namespace = std::fs::File::open(format!("/run/netns/{}", self.name)).expect("is there");
        let bound = std::thread::spawn(move || {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), kind).expect("enters");
            TcpListener::bind(("0.0.0.0", port)).expect("binds")
        });
        let listener = bound.join().expect("no panic");
        std::thread::spawn(move || listener.incoming().for_each(drop));
    }

    pub(crate) fn connects(&self, address: Ipv4Addr, port: u16) -> bool {
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
pub(crate) fn possible() -> bool {
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
