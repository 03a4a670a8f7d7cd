//! What the packaging promises systemd: units that name what there is, and roles that tell how they are.

use std::{fs, os::unix::net::UnixDatagram, path::Path, process::Command, time::Duration};

use rustix::process::Signal;

use crate::{
    apart::Part,
    host::{State, command, has, kill, output},
};

const PACKAGING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging");
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn systemd_is_told_when_a_role_serves_lives_and_ends() {
    let state = State::new();
    let place = state.path().join("notify");
    let socket = UnixDatagram::bind(&place).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let hear = |what: &str| {
        let mut bytes = [0; 4096];
        loop {
            let length = socket.recv(&mut bytes).unwrap_or_else(|_| panic!("never told: {what}"));
            if String::from_utf8_lossy(&bytes[..length]).lines().any(|line| line == what) {
                return;
            }
        }
    };
    let mut role = command("control-plane", &state);
    role.args(["--api", "127.0.0.1:0", "--peers", "127.0.0.1:0"])
        .env("NOTIFY_SOCKET", &place)
        .env("WATCHDOG_USEC", "200000");
    let part = Part::with(&mut role, &state);
    hear("READY=1");
    hear("WATCHDOG=1");
    hear("WATCHDOG=1");
    kill(part.pid(), Signal::TERM);
    hear("STOPPING=1");
    assert!(part.end().success());
}

#[test]
fn units_start_what_there_is() {
    let scratch = tempfile::tempdir().unwrap();
    let mut copies = Vec::new();
    for entry in fs::read_dir(Path::new(PACKAGING).join("systemd")).unwrap() {
        let unit = entry.unwrap().path();
        let text = fs::read_to_string(&unit).unwrap();
        let start = text.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
        let words: Vec<&str> = start.split_whitespace().collect();
        let [program, verb, "--config", config] = words[..] else { panic!("{start}") };
        assert_eq!(program, "/usr/bin/dirigent");
        let name = Path::new(config).file_name().unwrap();
        let config = Path::new(PACKAGING).join("etc").join(name);
        let dirigent = |args: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_dirigent"));
            output(command.args(args).env_clear(), PATIENCE)
        };
        assert!(dirigent(&[verb, "--help"]).status.success(), "{verb} is no verb");
        let shown = dirigent(&["config", "show", "--config", config.to_str().unwrap()]);
        assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
        // The program need not be installed for the rest to be judged.
        let copy = scratch.path().join(unit.file_name().unwrap());
        fs::write(&copy, text.replace(program, "/bin/true")).unwrap();
        copies.push(copy);
    }
    assert_eq!(copies.len(), 4);
    if !has("systemd-analyze") {
        println!("skip: systemd-analyze is not installed (Debian: systemd)");
        return;
    }
    let mut verify = Command::new("systemd-analyze");
    let verified = output(verify.args(["verify", "--man=no"]).args(&copies), PATIENCE);
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success() && said.is_empty(), "{said}");
}
