//! Containers with networks of their own: what they do not reach, what a policy lets through, and what
//! becomes of a network when somebody dies.

#![cfg(test)]

mod common;
#[path = "oci/daemon.rs"]
mod daemon;
#[path = "oci/images.rs"]
mod images;
#[path = "oci/rig.rs"]
mod rig;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::MetadataExt as _,
    time::Duration,
};

use common::{
    ask,
    host::{Host, possible},
    next, place, refused, run, with,
};
use dirigent_core::{Address, Cause, Digest, Fault, Isolation, Outbound, worker::CreateSandbox};
use dirigent_runtime::{Event, Runtime as _, container::Tasks};
use images::{Image, Layer};
use rig::{Rig, WAYS, order, rig_with};
use rustix::process::{Pid, Signal, kill_process};

/// Where networks of their own can be had.
fn rig() -> Option<(Rig, Digest)> {
    rig_ahead(0)
}

/// And so many tasks are made ahead.
fn rig_ahead(ahead: usize) -> Option<(Rig, Digest)> {
    rig_ahead_by(ahead, Tasks::Keeper)
}

fn rig_ahead_by(ahead: usize, tasks: Tasks) -> Option<(Rig, Digest)> {
    let mut rig = rig_with(|config| {
        config.ahead = ahead;
        config.tasks = tasks;
    })?;
    let facts = rig.runtime.facts();
    if facts.best != Some(Isolation::Strict) {
        println!("skip: containers with networks of their own: {:?}", facts.missing);
        return None;
    }
    assert_eq!((facts.usual, facts.missing), (Some(Isolation::Strict), Vec::new()));
    let image = function(&rig);
    let image = rig.take(&image);
    Some((rig, image))
}

/// The function that does what it is told, with a shell.
fn function(rig: &Rig) -> Image {
    let mut layer = Layer::new();
    layer.busybox().directory("tmp", 0o1777);
    let program = images::stripped(common::helper().as_ref(), &rig.dir.path().join("function"));
    layer.program("function", &program);
    Image::new(layer, serde_json::json!({ "Entrypoint": ["/function"], "Cmd": ["serve"] }))
}

fn v4(port: u16) -> Ipv4Addr {
    match place(port).ip() {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => panic!("{address}"),
    }
}

fn limited(create: CreateSandbox, policy: Outbound) -> CreateSandbox {
    with(create, |spec| spec.sandbox.network = Some(policy))
}

#[test]
fn nobody_but_the_public_is_reached() {
    let Some((mut rig, image)) = rig() else { return };
    let machine = TcpListener::bind("[::]:0").unwrap();
    let api = machine.local_addr().unwrap().port();
    let ((one, port), (two, other)) = (rig.serve(order(image)), rig.serve(order(image)));
    assert_ne!(v4(port), v4(other));
    let [a, b, c, _] = v4(port).octets();
    let gateway = Ipv4Addr::new(a, b, c, 0);
    let forbidden: [SocketAddr; 7] = [
        place(other),
        (Ipv4Addr::LOCALHOST, api).into(),
        (Ipv6Addr::LOCALHOST, api).into(),
        (gateway, api).into(),
        (Ipv4Addr::new(169, 254, 169, 254), 80).into(),
        ("fd00:ec2::254".parse::<IpAddr>().unwrap(), 80).into(),
        ("fe80::1".parse::<IpAddr>().unwrap(), api).into(),
    ];
    for address in forbidden {
        let answer = ask(port, &format!("connect {address}"));
        assert!(answer.starts_with("refused"), "{address}: {answer}");
    }
    // What was asked for would have been there.
    drop(TcpStream::connect((gateway, api)).unwrap());
    drop(machine);
    assert_eq!(run(other, "echo alive"), "alive\n");
    for sandbox in [one, two] {
        rig.end(sandbox);
    }
    rig.nothing_left();
}

#[test]
fn it_is_alone_in_its_network_and_cannot_change_it() {
    let Some((mut rig, image)) = rig() else { return };
    let (sandbox, port) = rig.serve(order(image));
    assert_eq!(ask(port, "raw"), "", "sockets that see others' packets");
    let links = run(port, "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '");
    assert!(links.contains("eth0") && !links.contains("dg"), "{links}");
    for setting in ["ip_forward", "conf/eth0/rp_filter", "ip_unprivileged_port_start"] {
        refused(port, &format!("echo 1 > /proc/sys/net/ipv4/{setting}"));
    }
    refused(port, "ip addr add 10.213.0.9/32 dev eth0");
    refused(port, "ip link set eth0 down");
    refused(port, "ip route add 192.0.2.0/24 dev eth0");
    // It finds itself by its name, and everybody else as the machine does.
    let name = run(port, "hostname");
    let hosts = run(port, "cat /etc/hosts");
    assert!(hosts.contains(&format!("{}\t{name}", v4(port))), "{hosts}");
    refused(port, "echo > /etc/hosts");
    refused(port, "echo > /etc/resolv.conf");
    rig.end(sandbox);
}

#[test]
fn it_connects_where_its_policy_lets_it() {
    if !possible() {
        return;
    }
    let Some((mut rig, image)) = rig() else { return };
    let host = Host::new(4);
    for port in [7000, 7001] {
        host.listens(port);
    }
    let listed = Outbound::Only(vec![format!("{}:7000", host.there).parse().unwrap()]);
    for (policy, reached) in [
        (Outbound::Internet, [true, true]),
        (Outbound::None, [false, false]),
        (listed, [true, false]),
    ] {
        let (sandbox, port) = rig.serve(limited(order(image), policy.clone()));
        let connects = |to: u16| ask(port, &format!("connect {}:{to}", host.there)) == "connected";
        assert_eq!([connects(7000), connects(7001)], reached, "{policy:?}");
        rig.end(sandbox);
    }
    rig.nothing_left();
}

#[test]
fn who_listens_on_loopback_is_told_what_to_do() {
    let Some((mut rig, image)) = rig() else { return };
    let mut create = common::mode(order(image), "loopback");
    create.order.start_timeout = Duration::from_secs(1);
    let (sandbox, port) = (create.order.sandbox, create.port);
    rig.runtime.create(create);
    let failure = rig.gone(sandbox);
    let Cause::NeverListened { message } = failure.cause else { panic!("{failure:?}") };
    assert!(message.contains(&format!("127.0.0.1:{port} instead")), "{message}");
    rig.nothing_left();
}

/// As stock images do that listen at 80 and look at no `$PORT`.
#[test]
fn it_may_listen_where_it_wishes() {
    let Some((mut rig, image)) = rig() else { return };
    let wishes = || with(order(image), |spec| spec.sandbox.port = Some(80));
    let ((one, port), (two, other)) = (rig.serve(wishes()), rig.serve(wishes()));
    assert_ne!((port, place(port)), (other, place(other)));
    for (port, says) in [(port, "one"), (other, "two")] {
        assert!(ask(port, "env").lines().any(|line| line == "PORT=80"));
        assert_eq!(run(port, &format!("echo {says}")), format!("{says}\n"));
    }
    // Nobody else's port leads anywhere.
    let wrong = SocketAddr::new(place(port).ip(), other);
    assert!(TcpStream::connect(wrong).is_err());
    rig.restart();
    assert_eq!(rig.runtime.recover().unwrap().len(), 2);
    assert_eq!(run(other, "echo again"), "again\n");
    for sandbox in [one, two] {
        rig.end(sandbox);
    }
    assert!(TcpStream::connect(place(port)).is_err());
    rig.nothing_left();
}

/// The network namespace of a sandbox, asked of the kernel by what it was told.
fn namespace(port: u16) -> u64 {
    let text = run(port, "readlink /proc/self/ns/net");
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

#[test]
fn its_network_is_its_own_until_it_is_gone_whoever_restarts() {
    let Some((mut rig, image)) = rig() else { return };
    let (lives, port) = rig.serve(order(image));
    let own = namespace(port);
    let ours = std::fs::metadata("/proc/self/ns/net").unwrap().ino();
    assert_ne!(own, ours);
    // One that was lent to somebody who was never made.
    let nobody = order(image).order.sandbox;
    let lend = rig.processes.spaces();
    let waits = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    waits.block_on(lend.lend(nobody, &Outbound::Internet, (port, port))).unwrap();
    rig.restart();
    let adopted = rig.runtime.recover().unwrap();
    assert_eq!(adopted.len(), 1);
    let spaces = rig.processes.spaces();
    assert!(spaces.is_lent(lives) && !spaces.is_lent(nobody));
    let (other, second) = rig.serve(order(image));
    assert_ne!(namespace(second), own);
    assert_eq!(namespace(port), own);
    rig.end(other);
    rig.end(lives);
    rig.nothing_left();
}

#[test]
fn with_a_keeper_that_is_killed_go_those_whom_it_lent_networks() {
    let Some((mut rig, image)) = rig() else { return };
    let (sandbox, _) = rig.serve(order(image));
    rig.kill_keeper();
    let failure = rig.gone(sandbox);
    assert_eq!((failure.cause, failure.fault), (Cause::WorkerLost, Fault::Worker));
    rig.nothing_left();
    let (again, port) = rig.serve(order(image));
    assert_eq!(run(port, "echo again"), "again\n");
    rig.end(again);
}

/// As an operator may demand it of a function, to find out what is in its way.
#[test]
fn the_machines_network_is_had_by_who_demands_no_more() {
    let Some((mut rig, image)) = rig() else { return };
    let create = with(order(image), |spec| spec.sandbox.isolation = Some(Isolation::Plain));
    let (sandbox, port) = rig.serve(create);
    assert_eq!(namespace(port), std::fs::metadata("/proc/self/ns/net").unwrap().ino());
    assert_eq!(v4(port), Ipv4Addr::LOCALHOST);
    assert_eq!(rig.processes.spaces().lent(), []);
    rig.end(sandbox);
    // And by all, where there are no others: but not by who demands one.
    let Some(mut rig) = rig_with(|config| config.spaces = None) else { return };
    let image = function(&rig);
    let image = rig.take(&image);
    let (sandbox, port) = rig.serve(order(image));
    assert_eq!(v4(port), Ipv4Addr::LOCALHOST);
    rig.end(sandbox);
    let create = limited(order(image), Outbound::None);
    let sandbox = create.order.sandbox;
    rig.runtime.create(create);
    let Event::Gone { failure, .. } = next(&mut rig.events) else { panic!() };
    assert!(failure.cause.to_string().contains("`strict` does not work here"), "{failure:?}");
    assert!(!rig.processes.spaces().is_lent(sandbox));
}

/// One more of the same revision.
fn another(of: &CreateSandbox) -> CreateSandbox {
    let fresh = order(Digest([0; 32]));
    let mut another = CreateSandbox { port: fresh.port, ..of.clone() };
    another.order.sandbox = fresh.order.sandbox;
    another
}

/// Where one is made ahead, and the next start is by it.
fn scales(rig: &mut Rig, image: Digest) -> CreateSandbox {
    let create = order(image);
    for create in [create.clone(), another(&create)] {
        let (sandbox, _) = rig.serve(create);
        rig.end(sandbox);
    }
    common::until("one is made ahead", || rig.left().tasks == 1);
    another(&create)
}

#[test]
fn one_that_scales_is_started_from_what_was_made_ahead() {
    for tasks in WAYS {
        scales_by(tasks);
    }
}

fn scales_by(tasks: Tasks) {
    let Some((mut rig, image)) = rig_ahead_by(1, tasks) else { return };
    let create = order(image);
    let (first, port) = rig.serve(create.clone());
    let told = |port, what: &str| ask(port, "env").lines().any(|line| line == what);
    assert!(told(port, &format!("PORT={port}")));
    let (second, _) = rig.serve(another(&create));
    common::until("one is made ahead", || rig.left().tasks == 3);
    let (third, port) = rig.serve(another(&create));
    // As nobody knew its port when it was made.
    assert!(told(port, "PORT=8080"));
    assert_eq!(ask(port, "print of the third"), "ok");
    common::until("another one is made ahead", || rig.left().tasks == 4);
    // The next life knows it by its own name, and not the one that waits.
    rig.restart();
    let adopted = rig.runtime.recover().unwrap();
    let mut names: Vec<_> = adopted.iter().map(|one| one.report.sandbox).collect();
    names.sort_unstable();
    assert_eq!(names, [first, second, third]);
    let told = adopted.iter().find(|one| one.report.sandbox == third).unwrap();
    assert_eq!(told.report.address, Some(Address::Tcp(place(port))));
    assert_eq!((rig.left().tasks, rig.processes.spaces().lent().len()), (3, 3));
    assert_eq!(run(port, "echo on"), "on\n");
    rig.runtime.destroy(third, Duration::ZERO);
    let failure = rig.gone(third);
    assert_eq!(failure.cause, Cause::Stopped);
    for sandbox in [first, second] {
        rig.end(sandbox);
    }
    rig.nothing_left();
}

#[test]
fn what_was_made_ahead_and_died_costs_no_start_and_goes_with_its_image() {
    for tasks in WAYS {
        dies_ahead(tasks);
    }
}

fn dies_ahead(tasks: Tasks) {
    let Some((mut rig, image)) = rig_ahead_by(1, tasks) else { return };
    let create = scales(&mut rig, image);
    rig.kill_all();
    let (sandbox, port) = rig.serve(another(&create));
    assert_eq!(run(port, "echo alive"), "alive\n");
    rig.end(sandbox);
    rig.runtime.discard(image);
    common::until("it goes with its image", || {
        let left = rig.left();
        (left.tasks, left.networks, left.shims) == (0, 0, 0)
    });
}

#[test]
fn a_start_by_what_was_made_ahead_is_told_to_have_failed_without_containerd() {
    let Some((mut rig, image)) = rig_ahead_by(1, Tasks::Containerd) else { return };
    let create = scales(&mut rig, image);
    rig.daemon.kill();
    let sandbox = create.order.sandbox;
    rig.runtime.create(create);
    let failure = rig.gone(sandbox);
    assert!(matches!(failure.cause, Cause::CreateFailed { .. }), "{failure:?}");
    assert_eq!(failure.fault, Fault::Worker);
    rig.daemon.restart();
    rig.nothing_left();
}

#[test]
fn a_start_by_what_the_keeper_made_ahead_needs_no_containerd() {
    let Some((mut rig, image)) = rig_ahead(1) else { return };
    let create = scales(&mut rig, image);
    rig.daemon.kill();
    let (sandbox, port) = rig.serve(create);
    assert_eq!(run(port, "echo alone"), "alone\n");
    rig.end(sandbox);
    rig.daemon.restart();
    // With what may have been made ahead after it.
    rig.runtime.discard(image);
    common::until("nothing is left", || {
        let left = rig.left();
        (left.tasks, left.networks) == (0, 0)
    });
}

#[test]
fn a_keeper_that_dies_while_one_is_started_takes_it_along() {
    let Some((mut rig, image)) = rig_ahead_by(1, Tasks::Containerd) else { return };
    let create = scales(&mut rig, image);
    let (sandbox, port) = (create.order.sandbox, create.port);
    let containerd = Pid::from_raw(rig.daemon.pid().try_into().unwrap()).unwrap();
    kill_process(containerd, Signal::STOP).unwrap();
    rig.runtime.create(create);
    let is_exposed = || {
        let lent = rig.processes.spaces().lent();
        lent.iter().any(|lent| matches!(lent.reached_at, Address::Tcp(at) if at.port() == port))
    };
    common::until("only containerd is waited for", is_exposed);
    rig.kill_keeper();
    common::until("another keeper is there", || !is_exposed());
    kill_process(containerd, Signal::CONT).unwrap();
    let failure = rig.gone(sandbox);
    assert_eq!((failure.cause, failure.fault), (Cause::WorkerLost, Fault::Worker));
}
