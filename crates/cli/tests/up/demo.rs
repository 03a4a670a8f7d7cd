//! The first thing that a new user runs, as it is, on a machine without interpreters.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::host::{DIRIGENT, PATIENCE, State, ended, kill, output, until};

/// Its own 90 seconds, on a machine that does other things meanwhile.
const DEMO: Duration = Duration::from_secs(300);

/// `dirigent demo`, which finds no other program on its path; its files go below `state`.
fn demo(state: &State, out: &Path, args: &[&str]) -> Command {
    let empty = state.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let mut command = Command::new(DIRIGENT);
    command
        .args(["demo", "--out"])
        .arg(out)
        .args(args)
        .env_clear()
        .env("PATH", &empty)
        .env("TMPDIR", state.path())
        .stdin(Stdio::null());
    command
}

/// Nothing runs any more, and nothing lies where it worked but what the test put there.
fn nothing_is_left(state: &State) {
    until("nothing runs", || state.processes().is_empty());
    let left = fs::read_dir(state.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(left.collect::<Vec<_>>(), ["empty"]);
}

fn pid(child: &Child) -> i32 {
    i32::try_from(child.id()).unwrap()
}

/// What it printed, on standard output and error; it must end well.
fn finished(demo: &mut Command) -> (String, String) {
    let output = output(demo, DEMO);
    let [said, told] =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success(), "{}\n{said}\n{told}", output.status);
    (said, told)
}

#[test]
fn a_demo_needs_no_other_program_loses_nothing_and_leaves_only_its_report() {
    let state = State::new();
    let out = tempfile::tempdir().unwrap();
    let (said, _) = finished(&mut demo(&state, out.path(), &[]));
    let last = said.lines().last().unwrap_or_default();
    assert!(last.ends_with(" calls, 0 lost, 0 failed"), "{said}");
    println!("{last}");
    let page = fs::read_to_string(out.path().join("report.html")).unwrap();
    assert!(page.contains("<svg") && !page.contains("<script src"), "self-contained, with plots");
    for plot in ["Sandboxes over time", "Cold starts over time", "Errors over time"] {
        assert!(page.contains(plot), "{plot}");
    }
    let report = fs::read_to_string(out.path().join("report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    for what in ["calls", "cold"] {
        let due = report["due"].as_array().unwrap().iter();
        assert_eq!(due.map(|due| due[what].as_u64().unwrap()).sum::<u64>(), report[what]);
    }
    // All sandboxes are alike here: their memory says what their number says.
    let ratio = report["all_to_busy"].as_f64().unwrap();
    assert!((1.0..50.0).contains(&ratio), "{ratio}");
    nothing_is_left(&state);
}

#[test]
fn with_json_a_demo_prints_values_and_nothing_else() {
    let state = State::new();
    let out = tempfile::tempdir().unwrap();
    let (said, told) = finished(&mut demo(&state, out.path(), &["--json", "--minutes", "0"]));
    let values: Vec<serde_json::Value> =
        said.lines().map(|line| serde_json::from_str(line).expect(&said)).collect();
    let names = values.iter().map(|value| value.as_object().unwrap().keys().collect::<Vec<_>>());
    let wanted =
        [&["burst"][..], &["cold"], &["replay"], &["report"], &["calls", "failed", "lost"]];
    assert!(names.eq(wanted), "{said}");
    assert_eq!(values[4], serde_json::json!({ "calls": 250, "lost": 0, "failed": 0 }));
    assert!(told.contains("200 calls at once"), "how it goes is no data: {told}");
    nothing_is_left(&state);
}

/// Then so does whatever is started from here, which is as it should be.
fn ignores_hangup() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap() & 1 != 0
}

#[test]
fn a_demo_that_is_interrupted_or_loses_its_terminal_leaves_nothing() {
    for signal in [Signal::INT, Signal::HUP] {
        if signal == Signal::HUP && ignores_hangup() {
            println!("skipped in part: SIGHUP is ignored here, as under nohup");
            continue;
        }
        let state = State::new();
        let out = tempfile::tempdir().unwrap();
        let mut command = demo(&state, out.path(), &[]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Sandboxes run.
        until("it is under way", || state.processes().len() > 12);
        kill(pid(&child), signal);
        let begun = Instant::now();
        assert_eq!(ended(&mut child, PATIENCE).code(), Some(130));
        println!("ended {:?} after {signal:?}", begun.elapsed());
        nothing_is_left(&state);
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
    }
}
