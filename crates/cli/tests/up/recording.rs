//! `up --record`: what the control plane was told and ordered, followed again by the simulator.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use dirigent_sim::replay;
use rustix::process::Signal;

use crate::{
    hello,
    host::{PATIENCE, State, Up, ended, output},
    path,
};

const SECRET: &str = "open-sesame";

fn lines(recording: &Path) -> Vec<String> {
    let text = fs::read_to_string(recording.join("segment-000001.jsonl")).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_recording_is_followed_to_the_same_orders_and_has_no_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let recording = dir.path().join("recording");
    let record = ["--record", recording.to_str().unwrap()];
    let mut up = Up::start(&record);
    let state = up.state.clone();
    for version in ["one", "two"] {
        let env = format!("[env]\nTOKEN = \"{SECRET}\"\nVERSION = \"{version}\"\n");
        up.ok(&["deploy", path(&hello("noted", &env))]);
        assert!(up.body("noted", "/").contains("Hello"));
    }
    let (code, ..) = up.cli(&["deploy", "--name", "broken", "--command", "false"]);
    assert_eq!(code, 1, "it does not start");
    assert!(up.ok(&["describe", "noted"]).contains("TOKEN"));
    up.signal(Signal::TERM);
    assert!(up.wait().success(), "{}", up.said());

    let followed = replay(&recording).unwrap();
    assert!(followed.events > 30 && followed.effects > 30, "{followed:?}");
    assert_eq!(followed.ended.as_deref(), Some("the control plane ended"));
    let whole = lines(&recording);
    assert!(whole.iter().any(|line| line.contains("TOKEN")));
    assert!(!whole.iter().any(|line| line.contains(SECRET)), "values of [env] are secrets");
    let file = recording.join("segment-000001.jsonl");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    // The records of a store are a beginning as well as an empty one; a recording is never continued.
    let mut taken = Up::command(&state, &record).spawn().unwrap();
    assert!(!ended(&mut taken, PATIENCE).success());
    let again = dir.path().join("again");
    let mut up = Up::on(state, &["--record", again.to_str().unwrap()]);
    assert!(up.body("noted", "/").contains("Hello"));
    up.until("it is on the disk", || lines(&again).iter().any(|l| l.contains("SandboxReady")));
    up.signal(Signal::KILL);
    up.wait();
    let followed = replay(&again).unwrap();
    assert_eq!((followed.segments, followed.ended), (1, None));
    assert!(!lines(&again).iter().any(|line| line.contains(SECRET)));

    // What was ordered otherwise is found, and where.
    let ordered = whole.iter().position(|line| line.contains("StartSandbox")).unwrap();
    let mut changed = whole;
    changed.remove(ordered);
    fs::write(&file, changed.join("\n")).unwrap();
    let error = format!("{:#}", replay(&recording).unwrap_err());
    assert!(error.contains("segment-000001.jsonl:"), "{error}");
    assert!(error.contains("and now it orders"), "{error}");
}

#[test]
fn a_recording_that_cannot_be_made_is_an_error_that_names_the_directory() {
    let state = State::new();
    let mut command = Up::command(&state, &["--record", "/proc/nowhere"]);
    let output = output(&mut command, PATIENCE);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(said.contains("no recording can be made in /proc/nowhere"), "{said}");
}
