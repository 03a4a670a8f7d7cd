//! What lasts and what must not: after a kill under load everything is there and works; sandboxes
//! that are gone leave nothing.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::process::ExitStatusExt as _,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use dirigent_bench::traces::{Marks, ROUNDS, Settling, Traces};
use rustix::process::Signal;

use crate::{
    hello,
    host::{State, Up, call, kill, until},
    path,
};

/// Of one that has had a sandbox.
fn marks(up: &Up) -> Marks {
    let marks = Marks::of(up.state.path());
    if !marks.has_groups() {
        println!("skip: no control group here: neither groups nor tables are counted");
    }
    marks
}

#[test]
fn after_kill_9_under_load_all_functions_work_and_nothing_is_leaked() {
    let state = State::new();
    let mut up = Up::on(Arc::clone(&state), &[]);
    let names = ["first", "second", "third"];
    for name in names {
        let dir = hello(name, "[scaling]\nmax = 4\n");
        up.ok(&["deploy", path(&dir)]);
    }
    let stop = AtomicBool::new(false);
    let answered = AtomicUsize::new(0);
    let (place, marks) = (up.functions.clone(), marks(&up));
    thread::scope(|scope| {
        for caller in 0..6 {
            let (place, stop, answered) = (&place, &stop, &answered);
            let name = names[caller % names.len()];
            scope.spawn(move || {
                let head = format!("GET /?sleep_ms=20 HTTP/1.1\r\nhost: {name}\r\n");
                // Once it is killed nobody answers: that is not what is judged here.
                while !stop.load(Ordering::SeqCst)
                    && call(place, &head).is_ok_and(|response| response.status == 200)
                {
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        until("calls are answered", || answered.load(Ordering::SeqCst) > 60);
        up.signal(Signal::KILL);
        assert_eq!(up.wait().signal(), Some(9));
        stop.store(true, Ordering::SeqCst);
    });
    let mut up = Up::on(Arc::clone(&state), &[]);
    let ready = Instant::now();
    for name in names {
        assert!(up.body(name, "/").starts_with("Hello"), "{name} is called at once");
    }
    // A figure: how fast a machine is decides no test.
    println!("after the kill, all functions had answered {:?} after readiness", ready.elapsed());
    let list = up.ok(&["list"]);
    assert!(names.iter().all(|name| list.contains(name)), "{list}");
    // Adopted, or gone: what is described is all there is. What an earlier life left and nobody
    // knows would go on for ever.
    let mut seen = (0, 0);
    up.until("as many programs run as sandboxes are described", || {
        let described = names.map(|name| up.sandboxes(name));
        let all: usize = described.iter().map(|(_, all)| *all).sum();
        let ready: u64 = described.iter().map(|(ready, _)| *ready).sum();
        let now = (all, up.programs().len());
        if now != seen {
            println!("{} sandboxes described, {} programs run", now.0, now.1);
        }
        seen = now;
        all > 0 && now.1 == all && usize::try_from(ready).unwrap() == all
    });
    assert!(names.iter().all(|name| up.sandboxes(name).1 <= 4), "no more than allowed");
    up.signal(Signal::TERM);
    assert!(up.wait().success(), "{}", up.said());
    until("nothing is left", || marks.count().is_gone());
}

#[test]
fn a_hundred_sandboxes_made_and_gone_leave_nothing() {
    const AT_ONCE: usize = 25;
    let mut up = Up::start(&[]);
    // Every sandbox is gone soon after its calls.
    let brief = hello("brief", "[scaling]\nmax = 25\nkeep_alive = \"100ms\"\n");
    up.ok(&["deploy", path(&brief)]);
    let marks = marks(&up);
    let made = Mutex::new(BTreeSet::new());
    let burst = |count| {
        thread::scope(|scope| {
            for _ in 0..count {
                scope.spawn(|| {
                    let response = up.get("brief", "/?sleep_ms=500");
                    assert_eq!(response.status, 200, "{response:?}");
                    made.lock().unwrap().insert(response.header("x-sandbox").to_owned());
                });
            }
        });
        up.until("it is at zero", || up.sandboxes("brief") == (0, 0));
    };
    let at_rest = || {
        let (mut now, mut settling) = (marks.count(), Settling::default());
        up.until("it is at rest", || {
            now = marks.count();
            settling.look(now)
        });
        now
    };
    // What is made once, such as pools, is there after the first.
    burst(AT_ONCE);
    let before = at_rest();
    made.lock().unwrap().clear();
    while made.lock().unwrap().len() < 100 {
        burst(AT_ONCE);
    }
    let mut after = vec![at_rest()];
    while !after.last().unwrap().is_back_at(before) {
        assert!(after.len() <= ROUNDS, "before {before:?}, after {after:?}");
        // One more uses one that is prepared, until there are as many of those as before.
        burst(1);
        after.push(at_rest());
    }
    println!("before {before:?}, after {:?}", after.last());
    up.signal(Signal::TERM);
    assert!(up.wait().success(), "{}", up.said());
    until("nothing is left", || marks.count().is_gone());
}

/// Sends a signal to the keeper of a directory, and those of its children that have done nothing.
fn signal_keeper(state: &State, signal: Signal) {
    let is_keeper = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == b"keeper")
    };
    state.processes().into_iter().filter(is_keeper).for_each(|pid| kill(pid, signal));
}

/// Kills the keeper of a directory, and what it keeps dies with it.
fn kill_keeper(state: &State) {
    signal_keeper(state, Signal::KILL);
    until("all its processes are gone", || state.processes().is_empty());
}

#[test]
fn what_a_dead_one_left_is_removed_by_another_and_what_a_living_one_has_stays() {
    if !rustix::process::geteuid().is_root() {
        println!("skip: only root's control groups and network rules outlive all processes");
        return;
    }
    let (mut dead, living) = (Up::start(&[]), Up::start(&[]));
    for up in [&dead, &living] {
        up.body("hello", "/");
    }
    let (left, kept) = (marks(&dead), marks(&living));
    let before = kept.count();
    dead.signal(Signal::KILL);
    assert_eq!(dead.wait().signal(), Some(9));
    kill_keeper(&dead.state);
    // On a directory of its own; it looks around before it is ready.
    let mut another = Up::start(&[]);
    // A third that starts at this moment may be the one that does it.
    until("nothing of the dead one is left", || {
        let Traces { groups, tables, mounts, .. } = left.count();
        (groups, tables, mounts) == (0, 0, 0)
    });
    let after = kept.count();
    assert_eq!((after.tables, after.groups > 0), (before.tables, before.groups > 0));
    assert!(living.body("hello", "/").starts_with("Hello"));
    another.signal(Signal::TERM);
    assert!(another.wait().success(), "{}", another.said());
}

#[test]
fn a_start_that_hangs_can_be_interrupted() {
    let mut up = Up::start(&[]);
    let state = Arc::clone(&up.state);
    up.signal(Signal::KILL);
    up.wait();
    // It takes connections and says nothing.
    signal_keeper(&state, Signal::STOP);
    let api = || fs::read_to_string(state.path().join("api")).unwrap_or_default();
    let former = api();
    let mut command = Up::command(&state, &[]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("the control plane is there", || api() != former);
    let mut status = None;
    until("it ends", || {
        // The second one does not wait for what is being started.
        kill(i32::try_from(child.id()).unwrap(), Signal::INT);
        status = child.try_wait().unwrap();
        status.is_some()
    });
    // Not given up on the keeper, which would be an error.
    assert_eq!(status.unwrap().code(), Some(130));
    kill_keeper(&state);
}
