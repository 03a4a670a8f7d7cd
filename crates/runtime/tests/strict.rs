//! What `strict` promises beyond `basic`: a network of its own. As root; what else a machine lacks for
//! it is a skip with the reason printed.

#![cfg(test)]

mod common;

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    time::Duration,
};

use common::{DEADLINE, Rig, ask, place, refused, run, server, until};
use dirigent_core::{Epoch, Isolation, Outbound, SandboxId};
use dirigent_runtime::{
    Event, Runtime as _,
    process::{ProcessConfig, ProcessRuntime},
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::mpsc;

const STRICT: Option<Isolation> = Some(Isolation::Strict);

fn rig_with(change: impl FnOnce(&mut ProcessConfig)) -> Option<Rig> {
    let rig = Rig::new(change);
    if rig.has_strict() {
        return Some(rig);
    }
    println!("skipped: no strict isolation here: {:?}", rig.runtime.facts().missing);
    None
}

fn v4(port: u16) -> Ipv4Addr {
    match place(port).ip() {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => panic!("{address}"),
    }
}

/// The machine's end of a sandbox's link.
fn gateway(port: u16) -> Ipv4Addr {
    let [a, b, c, _] = v4(port).octets();
    Ipv4Addr::new(a, b, c, 0)
}

/// Links of this machine to sandboxes that have addresses from the same block.
fn links_beside(address: Ipv4Addr) -> BTreeSet<String> {
    let [a, b, c, _] = address.octets();
    let prefix = format!("dg{a:02x}{b:02x}{c:02x}");
    let all = std::fs::read_dir("/proc/sys/net/ipv4/conf").expect("lists");
    let names = all.map(|entry| entry.expect("an entry").file_name().into_string().expect("text"));
    names.filter(|name| name.starts_with(&prefix)).collect()
}

fn tables() -> BTreeSet<String> {
    let output = Command::new("nft").args(["list", "tables", "inet"]).output().expect("nft runs");
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// The addresses by which programs of this machine reach each other.
fn machine_addresses(port: u16) -> Vec<IpAddr> {
    let mut all = vec![gateway(port).into()];
    // Nothing is sent: only a way is looked for.
    for far in ["192.0.2.255:9", "[2001:db8::1]:9"] {
        let any = if far.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
        let socket = UdpSocket::bind(any).expect("binds");
        if socket.connect(far).is_ok() {
            all.push(socket.local_addr().expect("bound").ip());
        }
    }
    all
}

#[test]
fn nobody_but_the_public_is_reached() {
    let Some(mut rig) = rig_with(|_| {}) else { return };
    let api = TcpListener::bind("[::]:0").expect("binds").local_addr().expect("bound").port();
    let machine = TcpListener::bind(("::", api)).expect("binds");
    let ((one, port), (two, other)) = (rig.serve(STRICT), rig.serve(STRICT));
    let (basic, shared) = rig.serve(Some(Isolation::Basic));
    assert_ne!(v4(port), v4(other));
    let mut forbidden: Vec<SocketAddr> = vec![
        place(other),
        (Ipv4Addr::LOCALHOST, api).into(),
        (Ipv6Addr::LOCALHOST, api).into(),
        (Ipv4Addr::LOCALHOST, shared).into(),
        (Ipv4Addr::new(169, 254, 169, 254), 80).into(),
        ("fd00:ec2::254".parse::<IpAddr>().expect("an address"), 80).into(),
        ("fe80::1".parse::<IpAddr>().expect("an address"), api).into(),
    ];
    for address in machine_addresses(port) {
        forbidden.push((address, api).into());
        forbidden.push((address, shared).into());
    }
    for address in &forbidden {
        let answer = ask(port, &format!("connect {address}"));
        assert!(answer.starts_with("refused"), "{address}: {answer}");
    }
    // Nor does one that shares the machine's network reach them.
    for target in [port, other] {
        let answer = ask(shared, &format!("connect {}", place(target)));
        assert!(answer.starts_with("refused"), "{answer}");
    }
    // What was asked for would have been there.
    drop(TcpStream::connect((Ipv6Addr::LOCALHOST, api)).expect("connects"));
    drop(machine);
    assert_eq!(run(other, "echo alive"), "alive\n");
    for sandbox in [one, two, basic] {
        rig.destroy(sandbox);
    }
}

#[test]
fn it_is_alone_in_its_network_and_cannot_change_it() {
    let Some(mut rig) = rig_with(|_| {}) else { return };
    let (sandbox, port) = rig.serve(STRICT);
    let links = run(port, "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '");
    let links: BTreeSet<&str> = links.lines().collect();
    assert!(links.contains("lo") && links.contains("eth0"), "{links:?}");
    assert_eq!(ask(port, "raw"), "", "sockets that see others' packets");
    for setting in ["ip_forward", "conf/eth0/rp_filter", "ip_unprivileged_port_start"] {
        refused(port, &format!("echo 1 > /proc/sys/net/ipv4/{setting}"));
    }
    refused(port, "echo 0 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6");
    if ask(port, "run command -v ip").starts_with("0:") {
        refused(port, "ip addr add 10.213.0.9/32 dev eth0");
        refused(port, "ip link set eth0 address 02:00:00:00:00:09");
        refused(port, "ip route add 192.0.2.0/24 dev eth0");
        refused(port, "ip link add other type dummy");
    }
    // The last line of `/proc/net/if_inet6`, if there is one, is the loopback's.
    assert_eq!(run(port, "grep -vc ' lo$' /proc/net/if_inet6 || true"), "0\n");
    rig.destroy(sandbox);
}

/// `DIRIGENT_TEST_SANDBOXES=1000` for more.
#[test]
fn many_sandboxes_leave_nothing_behind() {
    let count = std::env::var("DIRIGENT_TEST_SANDBOXES").map_or(Ok(200), |text| text.parse());
    let mut left: usize = count.expect("a number");
    let Some(mut rig) = rig_with(|config| (config.parked, config.spaces) = (4, 8)) else { return };
    let mut used = BTreeSet::new();
    while left > 0 {
        let started: Vec<SandboxId> = (0..left.min(20))
            .map(|_| {
                let create = server(STRICT);
                let sandbox = create.order.sandbox;
                rig.runtime.create(create);
                sandbox
            })
            .collect();
        left -= started.len();
        let mut listening = 0;
        while listening < started.len() {
            match rig.event() {
                Event::Listening { address: dirigent_core::Address::Tcp(at), .. } => {
                    listening += 1;
                    used.insert(at.ip());
                }
                Event::Created { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        for sandbox in &started {
            rig.runtime.destroy(*sandbox, Duration::ZERO);
        }
        for _ in &started {
            assert!(matches!(rig.event(), Event::Gone { .. }));
        }
    }
    assert!(used.len() <= 100, "networks are not lent again: {}", used.len());
    let blocks: BTreeSet<Ipv4Addr> = used
        .iter()
        .map(|address| match address {
            IpAddr::V4(address) => *address,
            IpAddr::V6(address) => panic!("{address}"),
        })
        .collect();
    rig.runtime.close();
    until("all links to be gone", || blocks.iter().all(|block| links_beside(*block).is_empty()));
}

#[test]
fn what_a_killed_keeper_left_is_removed() {
    let Some(mut rig) = rig_with(|_| {}) else { return };
    let before = tables();
    let (_, port) = rig.serve(STRICT);
    let address = v4(port);
    assert!(!links_beside(address).is_empty());
    let mark = format!("\"directory\":\"{}\"", rig.directory.path().display());
    rig.runtime.detach();
    // Found by what it was started with; its sandboxes' first processes are copies of it.
    for entry in std::fs::read_dir("/proc").expect("lists").flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(&mark) {
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let pid = pid.and_then(rustix::process::Pid::from_raw).expect("a pid");
            if let Err(error) = rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
                println!("{pid:?} ended on its own: {error}");
            }
        }
    }
    until("the links to go", || links_beside(address).is_empty());
    // Of this keeper: no other made them after `before` was read, or they are others' of this file.
    let other = Rig::new(|_| {});
    let name = own_tables(&before, rig.directory.path());
    assert_eq!(name.len(), 2, "{before:?}");
    until("the tables to go", || tables().is_disjoint(&name));
    drop(other);
}

/// `nft`, which does not write while `broken` is there, and counts there how often it was to.
fn fragile_nft(directory: &std::path::Path) -> String {
    use std::os::unix::fs::PermissionsExt as _;
    let (program, broken) = (directory.join("nft"), directory.join("broken"));
    let broken = broken.display();
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = -f ] && [ -e {broken} ]; then echo >> {broken}; exit 1; fi\n\
         PATH=${{PATH#*:}} exec nft \"$@\"\n"
    );
    std::fs::write(&program, script).expect("writes");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("its mode");
    format!("PATH={}:{}", directory.display(), std::env::var("PATH").expect("a path"))
}

#[test]
fn settings_that_could_not_be_written_are_written_later() {
    let programs = tempfile::tempdir().expect("a directory");
    let broken = programs.path().join("broken");
    let path = fragile_nft(programs.path());
    let change = move |config: &mut ProcessConfig| {
        config.keeper_command.splice(0..0, ["/usr/bin/env".to_owned(), path]);
        config.rules_every = Duration::from_millis(100);
    };
    let Some(mut rig) = rig_with(change.clone()) else { return };
    // The next worker has another control plane.
    rig.runtime.detach();
    std::fs::write(&broken, "").expect("writes");
    let mut config = common::config(rig.directory.path());
    change(&mut config);
    config.forbidden = vec![Ipv4Addr::new(192, 0, 2, 77)];
    let (events, _unheard) = mpsc::channel(64);
    rig.runtime = ProcessRuntime::start(config, events).expect("connects");
    // More often than what was under way may have been; one attempt is to write two tables.
    let tries = || std::fs::metadata(&broken).map_or(0, |found| found.len());
    let before = tries();
    until("some attempts to fail", || tries() > before + 4);
    std::fs::remove_file(&broken).expect("it is there");
    let names = own_tables(&tables(), rig.directory.path());
    let name = names.iter().find(|name| !name.ends_with(char::is_numeric)).expect("a table");
    let name = name.trim_start_matches("table inet ");
    until("the rules to know it", || {
        let listed = Command::new("nft").args(["list", "table", "inet", name]).output();
        String::from_utf8_lossy(&listed.expect("nft runs").stdout).contains("192.0.2.77")
    });
}

/// The two tables of a directory's keeper.
fn own_tables(all: &BTreeSet<String>, directory: &std::path::Path) -> BTreeSet<String> {
    use std::os::unix::fs::MetadataExt as _;
    let found = std::fs::metadata(directory).expect("is there");
    let mut hash = <sha2::Sha256 as sha2::Digest>::new();
    sha2::Digest::update(&mut hash, found.dev().to_le_bytes());
    sha2::Digest::update(&mut hash, found.ino().to_le_bytes());
    let hash = sha2::Digest::finalize(hash);
    let name: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    all.iter().filter(|table| table.contains(&name)).cloned().collect()
}

/// A sandbox of another runtime: a thread in the network, with a server.
fn served(namespace: &std::path::Path, port: u16) {
    let namespace = std::fs::File::open(namespace).expect("a namespace");
    let listener = std::thread::spawn(move || {
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), kind).expect("enters");
        TcpListener::bind(("0.0.0.0", port)).expect("binds")
    });
    let listener = listener.join().expect("no panic");
    std::thread::spawn(move || {
        let (mut connection, _) = listener.accept().expect("a call");
        connection.write_all(b"served").expect("writes");
    });
}

#[test]
fn networks_are_lent_to_other_runtimes_and_outlive_the_worker() {
    let Some(mut rig) = rig_with(|_| {}) else { return };
    let sandbox = SandboxId::new(Epoch(7), 1);
    let ask = |rig: &Rig, sandbox, outbound: &Outbound, ports| {
        let waits = tokio::runtime::Builder::new_current_thread().enable_time().build();
        waits.expect("a runtime").block_on(rig.runtime.spaces().lend(sandbox, outbound, ports))
    };
    let lend = |rig: &Rig| ask(rig, sandbox, &Outbound::None, (20_001, 8080));
    let lent = lend(&rig).expect("a network");
    assert_eq!(lent.reached_at, dirigent_core::Address::Tcp((lent.address, 20_001).into()));
    served(&lent.namespace, 8080);
    let mut stream = TcpStream::connect((lent.address, 20_001)).expect("connects");
    stream.set_read_timeout(Some(DEADLINE)).expect("a time-out");
    let mut word = String::new();
    stream.read_to_string(&mut word).expect("reads");
    assert_eq!(word, "served");
    // As one that died before it had the answer.
    assert_eq!(lend(&rig).expect("the same"), lent);

    rig.runtime.detach();
    let (events, _unheard) = mpsc::channel(64);
    rig.runtime =
        ProcessRuntime::start(common::config(rig.directory.path()), events).expect("connects");
    assert_eq!(rig.runtime.spaces().lent(), std::slice::from_ref(&lent));
    assert!(rig.runtime.spaces().is_lent(sandbox));
    let other = ask(&rig, SandboxId::new(Epoch(7), 2), &Outbound::Internet, (1, 1));
    assert_ne!(other.expect("another").address, lent.address);
    rig.runtime.spaces().give_back(sandbox);
    assert_eq!(rig.runtime.spaces().lent().len(), 1);
    let again = lend(&rig).expect("a network");
    assert_ne!(again.namespace, lent.namespace, "the first is at the end of the line");
}
