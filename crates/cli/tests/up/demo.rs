//! The first thing that a new user runs, as it is, on a machine without interpreters.

use std::{
    fs,
    io::Read,
    path::Path,
    process::{Child, Command, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::host::{DIRIGENT, State, kill, until};

/// Its own 90 seconds, on a machine that does other things meanwhile.
const DEMO: Duration = Duration::from_secs(300);

/// `dirigent demo`, which finds no other program on its path; its files go below `state`.
fn demo(state: &State, out: &Path) -> Child {
    let empty = state.path().join("empty");
    fs::create_dir(&empty).unwrap();
    Command::new(DIRIGENT)
        .args(["demo", "--out"])
        .arg(out)
        .env_clear()
        .env("PATH", &empty)
        .env("TMPDIR", state.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Nothing runs any more, and nothing lies where it worked but what the test put there.
fn nothing_is_left(state: &State) {
    until("nothing runs", || state.processes().is_empty());
    let left = fs::read_dir(state.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(left.collect::<Vec<_>>(), ["empty"]);
}

fn read(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn pid(child: &Child) -> i32 {
    i32::try_from(child.id()).unwrap()
}

#[test]
fn a_demo_needs_no_other_program_loses_nothing_and_leaves_only_its_report() {
    let state = State::new();
    let out = tempfile::tempdir().unwrap();
    let mut child = demo(&state, out.path());
    // Read while it runs: a full pipe would stop it.
    let said = read(child.stdout.take().unwrap());
    let told = read(child.stderr.take().unwrap());
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > DEMO {
            // What it had printed is in the assertion below.
            kill(pid(&child), Signal::INT);
        }
        thread::park_timeout(Duration::from_millis(50));
    }
    let status = child.wait().unwrap();
    let (said, told) = (said.join().unwrap(), told.join().unwrap());
    assert!(status.success(), "{status}\n{said}\n{told}");
    let last = said.lines().last().unwrap_or_default();
    assert!(last.ends_with(" calls, 0 lost, 0 failed"), "{said}");
    println!("{last}");
    let page = fs::read_to_string(out.path().join("report.html")).unwrap();
    assert!(page.contains("<svg") && !page.contains("<script src"), "self-contained, with plots");
    assert!(out.path().join("report.json").exists());
    nothing_is_left(&state);
}

#[test]
fn a_demo_that_is_interrupted_leaves_nothing() {
    let state = State::new();
    let out = tempfile::tempdir().unwrap();
    let mut child = demo(&state, out.path());
    // Sandboxes run.
    until("it is under way", || state.processes().len() > 12);
    kill(pid(&child), Signal::INT);
    let begun = Instant::now();
    until("it has ended", || child.try_wait().unwrap().is_some());
    println!("ended {:?} after Ctrl-C", begun.elapsed());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    nothing_is_left(&state);
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
}
