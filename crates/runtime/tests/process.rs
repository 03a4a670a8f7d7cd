//! The process runtime with a real keeper: starts, ends, logs, adoption.

#![cfg(test)]

mod common;

use std::time::Duration;

use common::{Rig, ask, config, create, mode, next, run, server, until, with};
use dirigent_core::{Cause, Fault, Isolation, Listen, SandboxId};
use dirigent_runtime::{Event, Runtime as _, process::ProcessRuntime};
use tokio::sync::mpsc;

/// What is demanded to get each level that works here.
fn levels(rig: &Rig) -> Vec<Option<Isolation>> {
    let mut levels = vec![Some(Isolation::Plain)];
    if rig.has_basic() {
        levels.push(rig.basic());
    } else {
        println!("skipped for basic: {:?}", rig.runtime.facts().missing);
    }
    if rig.has_strict() {
        levels.push(Some(Isolation::Strict));
    } else {
        println!("skipped for strict: {:?}", rig.runtime.facts().missing);
    }
    levels
}

#[test]
fn a_server_starts_answers_and_is_stopped() {
    let mut rig = Rig::new(|_| {});
    println!("{:#?}", rig.runtime.facts());
    for level in levels(&rig) {
        let (sandbox, port) = rig.serve(level);
        assert_eq!(run(port, "echo hello"), "hello\n");
        rig.runtime.destroy(sandbox, Duration::from_secs(30));
        let failure = rig.gone(sandbox);
        assert_eq!(failure.cause, Cause::Stopped);
        // Once more is no error.
        rig.runtime.destroy(sandbox, Duration::from_secs(30));
    }
}

#[test]
fn the_environment_is_the_contract_and_nothing_else() {
    let mut rig = Rig::new(|_| {});
    for level in levels(&rig) {
        let create = with(server(level), |spec| {
            spec.env.insert("GREETING".into(), "a value with = and spaces".into());
            spec.env.insert("PORT".into(), "1".into());
        });
        let (sandbox, port) = (create.order.sandbox, create.port);
        rig.runtime.create(create);
        rig.listening(sandbox);
        let environment = ask(port, "env");
        let names: Vec<&str> =
            environment.lines().filter_map(|line| line.split('=').next()).collect();
        let want = [
            "DIRIGENT_SANDBOX",
            "GREETING",
            "HOME",
            "HOST",
            "K_CONFIGURATION",
            "K_REVISION",
            "K_SERVICE",
            "LANG",
            "PATH",
            "PORT",
            "TMPDIR",
        ];
        assert_eq!(names, want, "{environment}");
        assert!(environment.contains(&format!("PORT={port}\n")));
        assert!(environment.contains("K_REVISION=hello-00003\n"));
        assert!(environment.contains("GREETING=a value with = and spaces\n"));
        rig.destroy(sandbox);
    }
}

#[test]
fn a_passed_listener_is_ready_at_once() {
    let mut rig = Rig::new(|_| {});
    for level in levels(&rig) {
        let create =
            mode(with(server(level), |spec| spec.sandbox.listen = Listen::Fd), "delay_ms=200");
        let (sandbox, port) = (create.order.sandbox, create.port);
        rig.runtime.create(create);
        rig.listening(sandbox);
        // Sent before the function accepts: it waits in the socket.
        assert_eq!(run(port, "echo hello"), "hello\n");
        rig.destroy(sandbox);
    }
}

#[test]
fn ends_are_told_apart() {
    let mut rig = Rig::new(|_| {});
    for level in levels(&rig) {
        let exits = mode(server(level), "print=starting exit=7");
        let sandbox = exits.order.sandbox;
        rig.runtime.create(exits);
        let failure = rig.gone(sandbox);
        assert_eq!(failure.cause, Cause::Exited { code: 7 });
        assert_eq!(failure.fault, Fault::Function);
        assert_eq!(failure.log_tail, ["starting"]);

        let shell = create(&["sh", "-c", "echo dying >&2; kill -SEGV $$"], level);
        let sandbox = shell.order.sandbox;
        rig.runtime.create(shell);
        let failure = rig.gone(sandbox);
        assert_eq!(failure.cause, Cause::Signalled { signal: 11 });
        assert_eq!(failure.log_tail, ["dying"]);

        let missing = create(&["no-such-program"], level);
        let sandbox = missing.order.sandbox;
        rig.runtime.create(missing);
        let failure = rig.gone(sandbox);
        assert_eq!(failure.fault, Fault::Function);
        let Cause::CreateFailed { message } = failure.cause else { panic!("{failure:?}") };
        assert!(message.starts_with("command `no-such-program`: no such program"), "{message}");

        let mut late = mode(server(level), "never");
        late.order.start_timeout = Duration::from_millis(100);
        let (sandbox, port) = (late.order.sandbox, late.port);
        rig.runtime.create(late);
        let failure = rig.gone(sandbox);
        let Cause::NeverListened { message } = failure.cause else { panic!("{failure:?}") };
        let host = if level == Some(Isolation::Strict) { "0.0.0.0" } else { "127.0.0.1" };
        assert!(message.contains(&format!("{host}:{port} ($HOST:$PORT)")), "{message}");
        assert!(message.contains("listens nowhere"), "{message}");

        let mut wrong = mode(server(level), "wrong_port");
        wrong.order.start_timeout = Duration::from_millis(500);
        let sandbox = wrong.order.sandbox;
        rig.runtime.create(wrong);
        let failure = rig.gone(sandbox);
        let Cause::NeverListened { message } = failure.cause else { panic!("{failure:?}") };
        assert!(message.contains(&format!("it listens on {host}:")), "{message}");
    }
}

#[test]
fn a_listener_of_somebody_else_is_not_taken_for_ready() {
    let mut rig = Rig::new(|_| {});
    for level in levels(&rig) {
        let stranger = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
        let mut create = mode(server(level), "never");
        create.port = stranger.local_addr().expect("bound").port();
        create.order.start_timeout = Duration::from_millis(200);
        let sandbox = create.order.sandbox;
        rig.runtime.create(create);
        let event = rig.event();
        if event == (Event::Created { sandbox }) {
            let failure = rig.gone(sandbox);
            assert!(matches!(failure.cause, Cause::NeverListened { .. }), "{failure:?}");
        } else {
            assert!(matches!(event, Event::PortTaken { .. }), "{event:?}");
        }
    }
}

#[test]
fn who_listens_on_others_ports_again_and_again_is_ended() {
    let mut rig = Rig::new(|_| {});
    // In a network of its own no port is another one's.
    for level in levels(&rig).into_iter().filter(|level| *level != Some(Isolation::Strict)) {
        let (squatter, port) = rig.serve(level);
        let taken: Vec<u16> = (0..9).map(|_| common::free_port()).collect();
        let list: Vec<String> = taken.iter().map(u16::to_string).collect();
        assert_eq!(ask(port, &format!("squat {}", list.join(" "))), "9");
        let attempt = |rig: &mut Rig, port| {
            let mut create = server(level);
            create.port = port;
            let sandbox = create.order.sandbox;
            rig.runtime.create(create);
            (sandbox, rig.event())
        };
        // Each is told to start somewhere else.
        for &port in &taken[..8] {
            let (sandbox, event) = attempt(&mut rig, port);
            assert_eq!(event, Event::PortTaken { sandbox, port });
        }
        let failure = rig.gone(squatter);
        assert_eq!(failure.fault, Fault::Function);
        assert!(failure.cause.to_string().contains("listen on $PORT"), "{failure:?}");
        let (sandbox, event) = attempt(&mut rig, taken[8]);
        assert_eq!(event, Event::Created { sandbox });
        rig.destroy(sandbox);
    }
}

/// What keeps a port for a sandbox is out of the others' reach.
#[test]
fn a_sandbox_cannot_claim_ports() {
    let mut rig = Rig::new(|_| {});
    if !rig.has_basic() {
        return println!("skipped: no basic isolation here: {:?}", rig.runtime.facts().missing);
    }
    let basic = rig.basic();
    let (squatter, port) = rig.serve(basic);
    for place in ["/run/lock/dirigent.claims", "/tmp/dirigent.claims"] {
        assert!(ask(port, &format!("run ls {place}")).starts_with("2:"), "{place} is there");
    }
    rig.destroy(squatter);
}

#[test]
fn what_is_printed_is_kept_in_order() {
    let mut rig = Rig::new(|_| {});
    for level in levels(&rig) {
        let create = server(level);
        let (sandbox, port) = (create.order.sandbox, create.port);
        let function = create.order.revision.function;
        rig.runtime.create(create);
        rig.listening(sandbox);
        for n in 0..50 {
            ask(port, &format!("print line {n}"));
        }
        ask(port, "complain about it");
        until("all lines", || rig.lines(function).len() == 51);
        let lines = rig.lines(function);
        let out: Vec<_> = lines.iter().filter(|l| !l.stderr).map(|l| l.text.clone()).collect();
        assert_eq!(out, (0..50).map(|n| format!("line {n}")).collect::<Vec<_>>());
        assert!(lines.iter().any(|l| l.stderr && l.text == "about it"));
        assert!(lines.iter().all(|l| l.sandbox == sandbox && l.at_ms > 1_600_000_000_000));
        rig.destroy(sandbox);
    }
}

#[test]
fn a_flood_neither_blocks_the_function_nor_fills_the_disk() {
    let mut rig = Rig::new(|config| {
        config.log_file = dirigent_core::Bytes::mib(1);
        config.log_total = dirigent_core::Bytes::mib(4);
    });
    for level in levels(&rig) {
        let (sandbox, port) = rig.serve(level);
        assert_eq!(ask(port, "flood 30"), "ok");
        assert_eq!(run(port, "echo alive"), "alive\n");
        let used: u64 = std::fs::read_dir(rig.directory.path().join("logs"))
            .expect("lists")
            .map(|entry| entry.expect("an entry").metadata().expect("metadata").len())
            .sum();
        assert!(used <= 5 << 20, "{used}");
        rig.destroy(sandbox);
    }
}

/// Whether a process runs, zombies not counted.
fn runs(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// A process that carries a mark, as the host sees it.
fn marked(mark: &str) -> Vec<String> {
    std::fs::read_dir("/proc")
        .expect("lists")
        .flatten()
        .filter(|entry| {
            std::fs::read(entry.path().join("cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(mark))
        })
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|pid| runs(pid))
        .collect()
}

#[test]
fn the_whole_tree_is_killed_daemons_included() {
    let mut rig = Rig::new(|_| {});
    for (n, level) in levels(&rig).into_iter().enumerate() {
        let (sandbox, port) = rig.serve(level);
        let mark = format!("sleep 10{n}{}", std::process::id());
        run(
            port,
            &format!(
                "env -i setsid {mark} >/dev/null 2>&1 & trap '' TERM; (setsid {mark} >/dev/null 2>&1 &)"
            ),
        );
        until("the daemons", || marked(&mark.replace(' ', "\0")).len() == 2);
        rig.destroy(sandbox);
        assert_eq!(marked(&mark.replace(' ', "\0")), Vec::<String>::new());
    }
}

#[test]
fn who_ignores_sigterm_is_killed_after_the_grace() {
    let mut rig = Rig::new(|_| {});
    for level in levels(&rig) {
        let create =
            create(&["sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 1; done"], level);
        let sandbox = create.order.sandbox;
        let function = create.order.revision.function;
        rig.runtime.create(create);
        assert_eq!(rig.event(), Event::Created { sandbox });
        until("its first line", || !rig.lines(function).is_empty());
        rig.runtime.destroy(sandbox, Duration::from_millis(200));
        assert_eq!(rig.gone(sandbox).cause, Cause::Stopped);
    }
}

#[test]
fn who_handles_sigterm_may_finish() {
    let mut rig = Rig::new(|_| {});
    for level in levels(&rig) {
        let script =
            "trap 'sleep 0.2; echo finished; exit 0' TERM; echo up; while :; do sleep 0.05; done";
        let create = create(&["sh", "-c", script], level);
        let sandbox = create.order.sandbox;
        let function = create.order.revision.function;
        rig.runtime.create(create);
        assert_eq!(rig.event(), Event::Created { sandbox });
        until("its first line", || !rig.lines(function).is_empty());
        rig.runtime.destroy(sandbox, common::DEADLINE);
        let failure = rig.gone(sandbox);
        assert_eq!(failure.cause, Cause::Stopped);
        assert_eq!(failure.log_tail.last().map(String::as_str), Some("finished"));
    }
}

#[test]
fn sandboxes_survive_the_death_of_the_worker_and_half_made_ones_do_not() {
    let mut rig = Rig::new(|_| {});
    for level in levels(&rig) {
        let create = server(level);
        let (sandbox, port) = (create.order.sandbox, create.port);
        let function = create.order.revision.function;
        rig.runtime.create(create.clone());
        rig.listening(sandbox);
        let half = mode(server(level), "never");
        let half_made = half.order.sandbox;
        rig.runtime.create(half);
        assert_eq!(rig.event(), Event::Created { sandbox: half_made });
        rig.runtime.detach();
        assert_eq!(ask(port, "print alone"), "ok");

        let (tx, mut events) = mpsc::channel(64);
        let again = ProcessRuntime::start(config(rig.directory.path()), tx).expect("connects");
        let adopted = again.recover().expect("recovers");
        assert_eq!(adopted.len(), 1, "{adopted:?}");
        assert_eq!(adopted[0].report.sandbox, sandbox);
        assert_eq!(adopted[0].report.revision, create.order.revision);
        assert_eq!(adopted[0].port, Some(port));
        let address = dirigent_core::Address::Tcp(common::place(port));
        assert_eq!(adopted[0].report.address, Some(address));
        assert_eq!(ask(port, "print again"), "ok");
        rig.runtime = again;
        until("both lines", || rig.lines(function).len() == 2);
        rig.runtime.destroy(sandbox, Duration::ZERO);
        let Event::Gone { sandbox: gone, failure } = next(&mut events) else { panic!("not gone") };
        assert_eq!((gone, failure.cause), (sandbox, Cause::Stopped));
        rig.events = events;
    }
}

/// The keeper of a directory, found by its argument.
fn keeper_of(rig: &Rig) -> Vec<String> {
    marked(&format!("\"directory\":\"{}\"", rig.directory.path().display()))
}

fn kill_all(pids: &[String]) {
    for pid in pids {
        let pid = rustix::process::Pid::from_raw(pid.parse().expect("a pid")).expect("a pid");
        if let Err(error) = rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
            println!("{pid:?} ended on its own: {error}");
        }
    }
}

#[test]
fn after_the_keeper_is_killed_nothing_is_left_and_all_goes_on() {
    let mut rig = Rig::new(|_| {});
    for level in levels(&rig) {
        let (sandbox, port) = rig.serve(level);
        let mark = format!("sleep 20{}", std::process::id());
        run(port, &format!("setsid {mark} >/dev/null 2>&1 &"));
        until("the daemon", || marked(&mark.replace(' ', "\0")).len() == 1);
        // All at once: its sandboxes' inits, which are copies of it, cannot clean up either.
        kill_all(&keeper_of(&rig));
        assert_eq!(rig.gone(sandbox).cause, Cause::WorkerLost);
        assert_eq!(marked(&mark.replace(' ', "\0")), Vec::<String>::new());
        let (again, port) = rig.serve(level);
        assert_eq!(run(port, "echo hello"), "hello\n");
        rig.destroy(again);
    }
}

#[test]
fn a_state_directory_may_be_deep() {
    let mut rig = Rig::new(|config| {
        config.directory = config.directory.join("deep".repeat(30)).join("down".repeat(30));
        config.max_isolation = Isolation::Plain;
    });
    let (sandbox, _port) = rig.serve(Some(Isolation::Plain));
    rig.destroy(sandbox);
}

#[test]
fn strict_is_refused_with_a_reason() {
    let mut rig = Rig::new(|config| config.max_isolation = Isolation::Basic);
    let create = server(Some(Isolation::Strict));
    let sandbox: SandboxId = create.order.sandbox;
    rig.runtime.create(create);
    let failure = rig.gone(sandbox);
    let Cause::CreateFailed { message } = failure.cause else { panic!("{failure:?}") };
    assert!(message.contains("`strict` does not work here: "), "{message}");
    let missing = rig.runtime.facts().missing;
    assert!(missing.iter().any(|line| line.starts_with("strict: ")), "{missing:?}");
}

#[test]
fn sandboxes_that_no_worker_comes_back_for_end() {
    for level in levels(&Rig::new(|_| {})) {
        let mut rig = Rig::new(|config| {
            config.keeper_idle = Duration::from_millis(50);
            config.abandoned_after = Duration::from_millis(300);
        });
        rig.serve(level);
        rig.runtime.detach();
        until("the keeper's end", || keeper_of(&rig).is_empty());
        nothing_left(&rig);
    }
}

/// Neither files of sandboxes, nor records of them.
fn nothing_left(rig: &Rig) {
    let directory = rig.directory.path();
    let left: Vec<_> = std::fs::read_dir(directory.join("sandboxes")).expect("lists").collect();
    assert!(left.is_empty(), "{left:?}");
    let records = std::fs::read_to_string(directory.join("records")).expect("reads");
    assert_eq!(records.trim(), "");
}

#[test]
fn a_keeper_that_nobody_needs_goes_and_leaves_nothing() {
    let rig = Rig::new(|config| config.keeper_idle = Duration::from_millis(50));
    assert!(!keeper_of(&rig).is_empty());
    rig.runtime.detach();
    until("the keeper's end", || keeper_of(&rig).is_empty());
    nothing_left(&rig);
    assert!(!rig.directory.path().join("keeper.sock").exists());
}
