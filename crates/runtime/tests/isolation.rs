//! `basic` and `strict`, line by line: functions that try to break out. What only `strict` promises is
//! in `strict.rs`. Run as root and as an ordinary user; what
//! only root gives is skipped with a printed reason.

#![cfg(test)]

mod common;

use std::{
    fs,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    path::Path,
    time::Duration,
};

use common::{Rig, ask, create, is_root, mode, refused, run, server, until, with};
use dirigent_core::{Bytes, Cause, Digest, Isolation, Listen, MilliCpu, SandboxId};
use dirigent_runtime::{
    Event, Runtime as _,
    process::{ProcessConfig, ProcessRuntime},
};

const BASIC: Isolation = Isolation::Basic;

/// On each level that promises it, of those that work here: demanded, or, where something of `basic`
/// is missing, what there is without a demand.
fn each(test: impl Fn(&mut Rig, Option<Isolation>)) {
    let Some(mut rig) = rig_with(|config| config.max_isolation = BASIC) else { return };
    let level = rig.basic();
    test(&mut rig, level);
    drop(rig);
    let mut rig = Rig::new(|_| {});
    if !rig.has_strict() {
        return println!("skipped for strict: {:?}", rig.runtime.facts().missing);
    }
    test(&mut rig, Some(Isolation::Strict));
}

fn rig_with(change: impl FnOnce(&mut ProcessConfig)) -> Option<Rig> {
    let rig = Rig::new(change);
    if rig.has_basic() {
        return Some(rig);
    }
    println!("skipped: no basic isolation here: {:?}", rig.runtime.facts().missing);
    None
}

/// Without `nft` there are no network rules: as root that is not all of `basic`.
#[test]
fn what_is_demanded_is_given_in_full_or_refused() {
    if !is_root() {
        return println!("skipped: network rules are promised to root only");
    }
    let without_nft = |min| {
        Rig::new(move |config| {
            config.keeper_command.splice(0..0, ["/usr/bin/env", "PATH="].map(str::to_owned));
            config.min_isolation = min;
        })
    };
    let mut rig = without_nft(Isolation::Plain);
    let facts = rig.runtime.facts();
    if facts.usual != Some(BASIC) {
        return println!("skipped: no basic isolation here: {:?}", facts.missing);
    }
    assert_eq!(facts.best, Some(Isolation::Plain));
    assert!(facts.missing.iter().any(|line| line.contains("package nftables")), "{facts:?}");

    let start = |rig: &mut Rig, demanded| {
        let create = server(demanded);
        let (sandbox, port) = (create.order.sandbox, create.port);
        rig.runtime.create(create);
        (sandbox, port)
    };
    let refused_for = |rig: &mut Rig, demanded| {
        let (sandbox, _) = start(rig, demanded);
        let failure = rig.gone(sandbox);
        let Cause::CreateFailed { message } = failure.cause else { panic!("{failure:?}") };
        assert!(message.contains("`basic` is not complete here: network rules"), "{message}");
    };
    refused_for(&mut rig, Some(BASIC));
    // Who demands nothing gets what there is.
    let (sandbox, port) = start(&mut rig, None);
    rig.listening(sandbox);
    refused(port, "ls /root");
    rig.destroy(sandbox);
    drop(rig);

    let mut rig = without_nft(BASIC);
    refused_for(&mut rig, None);
}

/// The table of nftables in which something stands, as text.
fn table_with(text: &str) -> Option<String> {
    let output = std::process::Command::new("nft").args(["list", "ruleset"]).output().ok()?;
    let rules = String::from_utf8_lossy(&output.stdout).into_owned();
    let table = rules.split("table ").find(|table| table.contains(text))?;
    Some(table.to_owned())
}

#[test]
fn network_rules_that_are_flushed_or_outdated_are_made_anew() {
    if !is_root() {
        return println!("skipped: network rules are made as root only");
    }
    let Some(mut rig) = rig_with(|config| {
        config.rules_every = Duration::from_millis(100);
        config.ports = (23_451, 23_458);
        config.protected_ports = vec![23_449];
    }) else {
        return;
    };
    if rig.basic().is_none() {
        return println!("skipped: no network rules here: {:?}", rig.runtime.facts().missing);
    }
    let table = table_with("23451-23458").expect("rules");
    assert!(table.contains("23449"), "{table}");
    let name = table.split(" {").next().expect("a name").split(' ').next_back().expect("a name");
    let status = std::process::Command::new("nft").args(["delete", "table", "inet", name]).status();
    assert!(status.expect("nft").success());
    until("the rules are back", || table_with("23451-23458").is_some());

    // The next worker's API has another port.
    rig.runtime.detach();
    let mut config = common::config(rig.directory.path());
    config.ports = (23_451, 23_458);
    config.protected_ports = vec![23_450];
    let (events, _unheard) = tokio::sync::mpsc::channel(64);
    rig.runtime = ProcessRuntime::start(config, events).expect("connects");
    until("the rules have the new port", || {
        table_with("23451-23458").is_some_and(|table| table.contains("23450"))
    });
    rig.runtime.close();
    assert_eq!(table_with("23451-23458"), None);
}

#[test]
fn the_machines_files_are_not_there() {
    each(|rig, level| {
        let token = rig.directory.path().join("token");
        fs::write(&token, "secret").expect("writes");
        let (sandbox, port) = rig.serve(level);
        for path in
            ["/root", "/home", "/run", "/var", "/etc/shadow", "/etc/gshadow", "/sys", "/boot"]
        {
            refused(port, &format!("ls {path}"));
        }
        refused(port, &format!("cat {}", token.display()));
        refused(port, &format!("ls {}", rig.directory.path().display()));
        // As a user nothing is mounted there: it is the same user, whom no mode would stop.
        if is_root() {
            refused(port, "ls /.artifacts/all");
        } else {
            assert_eq!(run(port, "ls /.artifacts/all"), "");
        }
        assert_eq!(run(port, "ls -a /tmp"), ".\n..\n");
        assert!(!run(port, "cat /etc/passwd").contains("/home/"));
        rig.destroy(sandbox);
    });
}

#[test]
fn nothing_can_be_written_outside_of_temporary_space() {
    each(|rig, level| {
        let (sandbox, port) = rig.serve(level);
        for path in ["/x", "/usr/x", "/usr/bin/x", "/etc/x", "/etc/hosts", "/dev/x", "/.dirigent/x"]
        {
            refused(port, &format!("echo x > {path}"));
        }
        refused(port, "echo x > /proc/sys/kernel/hostname");
        refused(port, "echo x > /proc/sysrq-trigger");
        for path in ["/tmp/x", "/app/x", "/dev/shm/x", "./y"] {
            run(port, &format!("echo x > {path}"));
        }
        assert_eq!(run(port, "pwd"), "/app\n");
        run(port, "echo x > /dev/null; head -c 4 /dev/urandom; head -c 4 /dev/zero");
        rig.destroy(sandbox);
        assert!(!Path::new("/tmp/x").exists());
    });
}

#[test]
fn standard_output_can_be_opened_by_its_name() {
    each(|rig, level| {
        let script = "set -e; echo out > /dev/stdout; echo err > /dev/stderr; exit 7";
        let create = create(&["/bin/sh", "-c", script], level);
        let (sandbox, function) = (create.order.sandbox, create.order.revision.function);
        rig.runtime.create(create);
        assert_eq!(rig.gone(sandbox).cause, Cause::Exited { code: 7 });
        let lines: Vec<String> = rig.lines(function).into_iter().map(|line| line.text).collect();
        assert!(
            ["out", "err"].iter().all(|text| lines.iter().any(|line| line == text)),
            "{lines:?}"
        );
    });
}

/// The network rules go by the user whose a socket is, and a listener that is passed can be made
/// into a socket that connects.
#[test]
fn a_listener_that_is_passed_is_the_sandboxs_own() {
    each(|rig, level| {
        let create = with(server(level), |spec| spec.sandbox.listen = Listen::Fd);
        let (sandbox, port) = (create.order.sandbox, create.port);
        rig.runtime.create(create);
        rig.listening(sandbox);
        let own = run(port, "id -u").trim().to_owned();
        let strict = level == Some(Isolation::Strict);
        let table = match strict {
            true => run(port, "cat /proc/net/tcp"),
            false => fs::read_to_string("/proc/net/tcp").expect("is there"),
        };
        let host = if strict { "00000000" } else { "0100007F" };
        let listens = |line: &&str| line.contains(&format!(" {host}:{port:04X} 00000000:0000 0A "));
        let line = table.lines().find(listens).expect("it listens");
        let user = line.split_whitespace().nth(7).expect("a user");
        if is_root() {
            assert_eq!(user, own);
            assert_ne!(user, "0");
        } else {
            assert_eq!(
                user,
                rustix::process::geteuid().as_raw().to_string(),
                "it is the same user"
            );
        }
        rig.destroy(sandbox);
    });
}

/// Put an artifact where the runtime finds it.
fn artifact(rig: &mut Rig, number: u8, file: &str) -> Digest {
    use std::io::Write as _;
    let mut archive = Vec::new();
    {
        let mut header = [0_u8; 512];
        let mut put =
            |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(0, file);
        put(100, "0000644\0");
        put(108, "0000000\0");
        put(116, "0000000\0");
        put(124, "00000000005\0");
        put(136, "00000000000\0");
        put(148, "        ");
        put(156, "0");
        put(257, "ustar\x0000");
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        archive.extend(header);
        archive.extend(format!("data{number}").as_bytes());
        archive.resize(512 * 4, 0);
    }
    let digest = Digest(
        sha2::Digest::finalize(sha2::Digest::chain_update(
            <sha2::Sha256 as sha2::Digest>::new(),
            &archive,
        ))
        .into(),
    );
    let path = rig.directory.path().join("archive");
    fs::File::create(&path).and_then(|mut f| f.write_all(&archive)).expect("writes");
    rig.runtime.unpack(digest, path);
    let event = rig.event();
    assert_eq!(event, Event::Unpacked { digest, result: Ok(()) });
    digest
}

#[test]
fn a_function_finds_its_own_artifact_and_cannot_change_it() {
    each(|rig, level| {
        let (mine, others) = (artifact(rig, 1, "mine"), artifact(rig, 2, "others"));
        let create = with(server(level), |spec| spec.artifact = Some(mine));
        let (sandbox, port) = (create.order.sandbox, create.port);
        rig.runtime.create(create);
        rig.listening(sandbox);
        assert_eq!(run(port, "cat mine"), "data1");
        assert_eq!(run(port, "ls"), "mine\n");
        assert_eq!(run(port, "find / -name others 2>/dev/null; true"), "");
        // The layer above it may be changed; what others see is below.
        ask(port, "run rm -f mine; echo changed > mine");
        let directory = rig.directory.path().join("artifacts");
        let kept = directory.join(mine.hex()).join("mine");
        assert_eq!(fs::read_to_string(kept).expect("is there"), "data1");
        assert!(directory.join(others.hex()).exists());
        rig.destroy(sandbox);
    });
}

#[test]
fn a_neighbour_is_neither_seen_nor_signalled() {
    each(|rig, level| {
        let (one, port) = rig.serve(level);
        let (two, other) = rig.serve(level);
        let seen = run(port, "ls /proc | grep -c '^[0-9]'");
        assert!(seen.trim().parse::<u32>().expect("a number") < 10, "{seen}");
        ask(port, "run kill -9 -1");
        assert_eq!(run(other, "echo alive"), "alive\n");
        // Its own init neither dies of it nor lets itself be looked into.
        rig.runtime.destroy(one, Duration::ZERO);
        assert!(matches!(rig.gone(one).cause, Cause::Signalled { signal: 9 } | Cause::Stopped));
        refused(other, "cat /proc/1/environ | grep .");
        refused(other, "cat /proc/1/mem");
        refused(other, "ls /proc/1/root/home");
        rig.destroy(two);
    });
}

/// A message queue of System V, removed with this.
struct Queue(String);

impl Queue {
    fn new() -> Option<Self> {
        let output = std::process::Command::new("ipcmk").arg("-Q").output().ok()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let id = said.rsplit(' ').next()?.trim();
        (!id.is_empty()).then(|| Self(id.to_owned()))
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let removed = std::process::Command::new("ipcrm").args(["-q", &self.0]).status();
        assert!(removed.is_ok_and(|status| status.success()), "queue {} is left", self.0);
    }
}

#[test]
fn queues_of_the_machine_and_of_neighbours_are_not_there() {
    // Debian: util-linux, which is on every system but the smallest.
    let Some(queue) = Queue::new() else { return println!("skipped: ipcmk is not installed") };
    let listed = |text: &str| {
        let id = |line: &str| line.split_whitespace().nth(1) == Some(queue.0.as_str());
        text.lines().skip(1).any(id)
    };
    let here = fs::read_to_string("/proc/sysvipc/msg").expect("the kernel has System V IPC");
    assert!(listed(&here), "{here}");
    each(|rig, level| {
        let (one, port) = rig.serve(level);
        let (two, other) = rig.serve(level);
        for port in [port, other] {
            let seen = run(port, "cat /proc/sysvipc/msg /proc/sysvipc/shm /proc/sysvipc/sem");
            assert_eq!(seen.lines().count(), 3, "nothing but the heads: {seen}");
            refused(port, &format!("ipcrm -q {}", queue.0));
        }
        // A neighbour's are its own.
        let namespace = |port| run(port, "readlink /proc/self/ns/ipc");
        assert_ne!(namespace(port), namespace(other));
        rig.destroy(one);
        rig.destroy(two);
    });
    let here = fs::read_to_string("/proc/sysvipc/msg").expect("it is there still");
    assert!(listed(&here), "{here}");
}

/// What the kernel gives a sandbox's control group of the processor.
fn processor_share(port: u16) -> Option<u64> {
    let groups = run(port, "cat /proc/self/cgroup");
    let places = groups.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let path = path.trim_start_matches('/');
        match controllers {
            "" => Some(format!("/sys/fs/cgroup/{path}/cpu.weight")),
            _ if controllers.split(',').any(|name| name == "cpu") => {
                Some(format!("/sys/fs/cgroup/{controllers}/{path}/cpu.shares"))
            }
            _ => None,
        }
    });
    places.filter_map(|place| fs::read_to_string(place).ok()?.trim().parse().ok()).next()
}

#[test]
fn who_asks_for_more_of_the_processor_gets_more_of_it_where_it_is_scarce() {
    if !is_root() {
        return println!("skipped: control groups are made as root only");
    }
    each(|rig, level| {
        let mut share = |cpu| {
            let create = with(server(level), |spec| spec.resources.cpu = MilliCpu(cpu));
            let (sandbox, port) = (create.order.sandbox, create.port);
            rig.runtime.create(create);
            rig.listening(sandbox);
            let share = processor_share(port).expect("a group of its own");
            rig.destroy(sandbox);
            share
        };
        let (little, much) = (share(100), share(1000));
        assert!(much >= 5 * little, "{little} for 100m, {much} for 1000m");
    });
}

#[test]
fn neither_a_neighbours_port_nor_the_api_can_be_reached() {
    let api = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let api = api.local_addr().expect("bound");
    // Not the default: where the ports of these tests are.
    let mut rig = Rig::new(|config| {
        config.protected_ports = vec![api.port()];
        config.ports = (10_000, 18_999);
    });
    let missing = rig.runtime.facts().missing;
    if missing.iter().any(|line| line.starts_with("network rules") || line.starts_with("uids")) {
        println!("skipped: no network rules here: {missing:?}");
        return;
    }
    let level = rig.basic();
    let mut started = Vec::new();
    for _ in 0..2 {
        started.push(rig.serve(level));
    }
    let [(one, port), (two, other)] = started[..] else { panic!("two were started") };
    assert!(ask(port, &format!("connect 127.0.0.1:{other}")).starts_with("refused"));
    assert!(ask(port, &format!("connect {api}")).starts_with("refused"));
    assert_eq!(run(other, "echo alive"), "alive\n");
    rig.destroy(one);
    rig.destroy(two);
}

#[test]
fn unix_sockets_of_the_machine_and_of_neighbours_have_no_name_here() {
    let name = format!("dirigent-test-{}", std::process::id());
    let here = SocketAddr::from_abstract_name(&name).expect("a name");
    let _listener = UnixListener::bind_addr(&here).expect("nobody has this name");
    UnixStream::connect_addr(&here).expect("it listens");
    each(|rig, level| {
        let missing = rig.runtime.facts().missing;
        if missing.iter().any(|line| line.starts_with("abstract names")) {
            return println!("skipped: this kernel does not keep them apart: {missing:?}");
        }
        let (one, port) = rig.serve(level);
        let (two, other) = rig.serve(level);
        let refused = |answer: &str| answer.starts_with("refused");
        assert!(refused(&ask(port, &format!("connect @{name}"))));
        // A neighbour's are its own.
        assert_eq!(ask(port, &format!("listen @{name}-one")), "listening");
        assert_eq!(ask(port, &format!("connect @{name}-one")), "connected");
        assert!(refused(&ask(other, &format!("connect @{name}-one"))));
        rig.destroy(one);
        rig.destroy(two);
    });
}

#[test]
fn nobody_has_a_capability_or_can_get_one() {
    let mut first = 0;
    let Some(mut rig) = rig_with(|config| first = config.uid_base) else { return };
    let level = rig.basic();
    let (sandbox, port) = rig.serve(level);
    let status = run(port, "cat /proc/self/status");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(status.contains(&format!("{set}:\t0000000000000000")), "{set}: {status}");
    }
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    assert!(status.contains("Seccomp:\t2"), "{status}");
    let id = run(port, "id -u");
    assert_ne!(id, "0\n");
    if is_root() {
        let uid: u32 = id.trim().parse().expect("a number");
        assert!((first..first + 65_536).contains(&uid), "{uid}");
        assert_eq!(run(port, "id -G"), id);
        assert_eq!(run(port, "id -un"), "sandbox\n");
    }
    rig.destroy(sandbox);
}

#[test]
fn forbidden_calls_are_refused() {
    each(|rig, level| {
        let (sandbox, port) = rig.serve(level);
        refused(port, "mount -t tmpfs none /tmp");
        refused(port, "umount /tmp");
        refused(port, "unshare -U true");
        refused(port, "unshare -m true");
        refused(port, "chroot / true");
        refused(port, "mknod /tmp/disk b 8 0");
        refused(port, "hostname other");
        refused(port, "dmesg");
        refused(port, "nsenter -t 1 -m true");
        rig.destroy(sandbox);
    });
}

#[test]
fn a_fork_bomb_ends_at_its_bound() {
    each(|rig, level| {
        let create = with(server(level), |spec| spec.resources.memory = Bytes::mib(512));
        let (sandbox, port) = (create.order.sandbox, create.port);
        rig.runtime.create(create);
        rig.listening(sandbox);
        let (other, other_port) = rig.serve(level);
        let answer =
            ask(port, "run for i in $(seq 1 3000); do sleep 60 >/dev/null 2>&1 & done; echo all");
        assert!(!answer.starts_with("0:all"), "3000 processes: {answer}");
        assert_eq!(run(other_port, "echo alive"), "alive\n");
        rig.destroy(sandbox);
        rig.destroy(other);
    });
}

#[test]
fn a_memory_bomb_is_told_as_such() {
    each(|rig, level| {
        let create = with(mode(server(level), "print=hungry eat=300 never"), |spec| {
            spec.resources.memory = Bytes::mib(32);
        });
        let sandbox = create.order.sandbox;
        rig.runtime.create(create);
        if rig.runtime.facts().missing.iter().any(|line| line.starts_with("memory:")) {
            println!(
                "skipped in part: memory is only watched here, this one is given back too fast"
            );
            rig.runtime.destroy(sandbox, Duration::ZERO);
            rig.gone(sandbox);
            return;
        }
        let failure = rig.gone(sandbox);
        assert_eq!(failure.cause, Cause::OutOfMemory { limit: Bytes::mib(32) });
        assert_eq!(failure.log_tail, ["hungry"]);
    });
}

#[test]
fn memory_that_is_kept_above_the_limit_ends_the_sandbox() {
    each(|rig, level| {
        let create = with(mode(server(level), "hold=300 never"), |spec| {
            spec.resources.memory = Bytes::mib(32);
        });
        let sandbox = create.order.sandbox;
        rig.runtime.create(create);
        assert_eq!(rig.gone(sandbox).cause, Cause::OutOfMemory { limit: Bytes::mib(32) });
    });
}

#[test]
fn temporary_space_is_limited() {
    each(|rig, level| {
        let (sandbox, port) = rig.serve(level);
        for place in ["/tmp", "/app", "/dev/shm"] {
            let answer = refused(port, &format!("head -c 100m /dev/zero > {place}/full"));
            assert!(answer.contains("No space left"), "{answer}");
            run(port, &format!("rm {place}/full"));
        }
        // Empty files take no space and memory all the same.
        let answer =
            refused(port, "i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); : > /tmp/$i; done");
        assert!(answer.contains("No space left"), "{answer}");
        rig.destroy(sandbox);
    });
}

#[test]
fn files_in_temporary_space_count_as_memory() {
    each(|rig, level| {
        let create = with(server(level), |spec| spec.resources.memory = Bytes::mib(64));
        let (sandbox, port) = (create.order.sandbox, create.port);
        rig.runtime.create(create);
        rig.listening(sandbox);
        run(port, "head -c 30m /dev/zero > /tmp/files");
        // Neither is too much alone.
        ask(port, "hold 45");
        assert_eq!(rig.gone(sandbox).cause, Cause::OutOfMemory { limit: Bytes::mib(64) });
    });
}

#[test]
fn two_hundred_sandboxes_leave_nothing_behind() {
    let rig = Rig::new(|config| config.parked = 4);
    if !rig.has_basic() {
        println!("skipped: no basic isolation here");
        return;
    }
    let mut rig = rig;
    for _ in 0..20 {
        let started: Vec<SandboxId> = (0..10)
            .map(|_| {
                let create = server(rig.basic());
                let sandbox = create.order.sandbox;
                rig.runtime.create(create);
                sandbox
            })
            .collect();
        let mut listening = 0;
        while listening < started.len() {
            match rig.event() {
                Event::Listening { .. } => listening += 1,
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
    // The prepared ones come and go in the background.
    until("all but those to be gone", || {
        let (records, processes) = counts(&rig);
        records <= 4 && processes == records + 1
    });
    let directory = rig.directory.path().to_owned();
    rig.runtime.close();
    until("the keeper's end", || !directory.join("keeper.sock").exists());
    assert_eq!(records(&directory), 0);
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("reads");
    assert!(!mounts.contains(&directory.display().to_string()), "{mounts}");
}

/// Of how many sandboxes the next keeper would find traces.
fn records(directory: &Path) -> usize {
    let lines = fs::read_to_string(directory.join("records")).expect("reads");
    lines.lines().filter(|line| !line.trim().is_empty()).count()
}

/// Sandboxes' records, and the keeper's children.
fn counts(rig: &Rig) -> (usize, usize) {
    let mark = format!("\"directory\":\"{}\"", rig.directory.path().display());
    let processes = fs::read_dir("/proc")
        .expect("lists")
        .flatten()
        .filter(|entry| {
            fs::read(entry.path().join("cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&mark))
        })
        .count();
    (records(rig.directory.path()), processes)
}
