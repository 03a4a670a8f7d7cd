//! Several control planes on etcd, as processes: what goes on while any of them is dead.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use dirigent_bench::etcd::Etcd;
use rustix::process::Signal;
use serde_json::Value;

use crate::{
    apart::{Part, body, get, ready},
    hello,
    host::{State, call, kill, until, verb},
    path,
};

/// Control planes on one etcd, with a data plane and a worker.
pub(crate) struct Cluster {
    pub(crate) etcd: Etcd,
    controls: Vec<Control>,
    token: String,
    data_plane: Option<Part>,
    worker: Option<Part>,
    _scratch: tempfile::TempDir,
}

struct Control {
    state: Arc<State>,
    peers: String,
    part: Option<Part>,
}

impl Cluster {
    /// `None` where etcd is not installed, which is said.
    pub(crate) fn start(members: usize, controls: usize) -> Option<Self> {
        Self::after(members, controls, |_| {})
    }

    /// As [`Self::start`], once something was done to etcd.
    pub(crate) fn after(
        members: usize,
        controls: usize,
        before: impl FnOnce(&Etcd),
    ) -> Option<Self> {
        if !Etcd::is_installed() {
            println!("{}", Etcd::MISSING);
            return None;
        }
        let scratch = tempfile::tempdir().unwrap();
        let etcd = Etcd::start(scratch.path(), members).unwrap();
        before(&etcd);
        let mut this = Self {
            etcd,
            controls: Vec::new(),
            token: String::new(),
            data_plane: None,
            worker: None,
            _scratch: scratch,
        };
        for number in 0..controls {
            this.controls.push(Control {
                state: State::new(),
                peers: "127.0.0.1:0".to_owned(),
                part: None,
            });
            if number > 0 {
                // All have the same tokens.
                for file in ["token", "peer-token"] {
                    let to = this.controls[number].state.path().join(file);
                    fs::copy(this.controls[0].state.path().join(file), to).unwrap();
                }
            }
            this.run(number);
        }
        this.token = fs::read_to_string(this.file("token")).unwrap().trim().to_owned();
        until("one of them leads", || this.leader().is_some());
        let (data_plane, worker) = (State::new(), State::new());
        let args = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
        let data_plane = this.peer("data-plane", &data_plane, &args);
        until("it has met the leader", || ready(&data_plane));
        this.data_plane = Some(data_plane);
        this.worker = Some(this.peer("worker", &worker, &[]));
        Some(this)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.controls[0].state.path().join(name)
    }

    /// Starts a control plane, for the first time or again.
    fn run(&mut self, number: usize) {
        let name = format!("c{number}");
        let etcd = self.etcd.addresses().join(",");
        let control = &mut self.controls[number];
        let args = ["--api", "127.0.0.1:0", "--peers", &control.peers, "--name", &name];
        let args = [&args[..], &["--etcd", &etcd]].concat();
        let part = Part::start("control-plane", &control.state, &args);
        control.peers = part.told("peers");
        control.part = Some(part);
    }

    fn peer(&self, role: &str, state: &Arc<State>, args: &[&str]) -> Part {
        let token = self.file("peer-token").display().to_string();
        let mut all = vec!["--peer-token", &token];
        for control in &self.controls {
            all.extend(["--control", &control.peers]);
        }
        all.extend(args);
        Part::start(role, state, &all)
    }

    pub(crate) fn data_plane(&self) -> &Part {
        self.data_plane.as_ref().unwrap()
    }

    /// What a control plane says of itself, if it runs.
    fn status(&self, number: usize) -> Option<Value> {
        let api = self.controls[number].part.as_ref()?.told("api");
        let head = format!(
            "GET /v1/status HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n",
            self.token
        );
        let response = call(&api, &head).ok()?;
        assert_eq!(response.status, 200, "{response:?}");
        serde_json::from_str(&response.body).ok()
    }

    fn role(&self, number: usize) -> String {
        let status = self.status(number).unwrap_or_default();
        status["role"].as_str().unwrap_or_default().to_owned()
    }

    pub(crate) fn leader(&self) -> Option<usize> {
        (0..self.controls.len()).find(|number| self.role(*number) == "leader")
    }

    pub(crate) fn kill(&mut self, number: usize) {
        self.controls[number].part.take().unwrap().kill();
    }

    /// A verb at one of them, whichever leads.
    pub(crate) fn cli(&self, number: usize, args: &[&str]) -> (i32, String, String) {
        verb(self.controls[number].state.path(), args)
    }

    fn deploy(&self, number: usize, name: &str) {
        let (code, out, err) = self.cli(number, &["deploy", path(&hello(name, ""))]);
        assert_eq!(code, 0, "{out}\n{err}");
    }
}

/// Calls a function on and on until it is told to stop; how many calls failed, and of how many.
struct Caller {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
    thread: thread::JoinHandle<Vec<String>>,
}

impl Caller {
    fn start(place: String, function: &'static str) -> Self {
        let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&made));
        let thread = thread::spawn(move || {
            let mut failed = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                match call(&place, &format!("GET / HTTP/1.1\r\nhost: {function}\r\n")) {
                    Ok(response) if response.status == 200 => {}
                    other => failed.push(format!("{other:?}")),
                }
                count.fetch_add(1, Ordering::Relaxed);
            }
            failed
        });
        Self { stop, made, thread }
    }

    /// So many more calls have been answered.
    fn goes_on(&self, calls: usize) {
        let before = self.made.load(Ordering::Relaxed);
        until("calls go on", || self.made.load(Ordering::Relaxed) >= before + calls);
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        let failed = self.thread.join().unwrap();
        assert_eq!(failed, Vec::<String>::new());
    }
}

#[test]
fn a_leader_is_killed_under_calls_and_none_fails() {
    let Some(mut cluster) = Cluster::start(1, 3) else { return };
    cluster.deploy(0, "warm");
    for name in ["cold-0", "cold-1"] {
        // At any of them: who stands by sends the client on.
        cluster.deploy(2, name);
    }
    let place = cluster.data_plane().told("functions");
    body(cluster.data_plane(), "warm");
    let caller = Caller::start(place, "warm");
    for round in 0..2 {
        let leader = cluster.leader().unwrap();
        let epoch = cluster.status(leader).unwrap()["epoch"].as_u64().unwrap();
        caller.goes_on(50);
        cluster.kill(leader);
        // It waits for the next leader, and is answered.
        assert!(body(cluster.data_plane(), &format!("cold-{round}")).contains("Hello"));
        until("another leads", || cluster.leader().is_some());
        let next = cluster.leader().unwrap();
        let status = cluster.status(next).unwrap();
        assert!(status["epoch"].as_u64().unwrap() > epoch, "{status}");
        let name = format!("new-{round}");
        cluster.deploy(next, &name);
        body(cluster.data_plane(), &name);
        cluster.run(leader);
        until("it stands by", || cluster.role(leader) == "standby");
        // What it says of the leader is the truth, and a deploy there arrives.
        until("it knows the leader", || {
            cluster.status(leader).unwrap()["leader"]["name"] == format!("c{next}")
        });
        cluster.deploy(leader, &name);
    }
    caller.goes_on(50);
    caller.stop();
}

#[test]
fn a_leader_that_stood_still_finds_that_another_leads_and_stands_by() {
    let Some(mut cluster) = Cluster::start(1, 2) else { return };
    cluster.deploy(0, "one");
    let old = cluster.leader().unwrap();
    let pid = cluster.controls[old].part.as_ref().unwrap().pid();
    kill(pid, Signal::STOP);
    let stopped = cluster.controls[old].part.take();
    until("the other leads", || cluster.leader() == Some(1 - old));
    body(cluster.data_plane(), "one");
    cluster.deploy(1 - old, "two");
    cluster.controls[old].part = stopped;
    kill(pid, Signal::CONT);
    until("the old one stands by, in the same process", || cluster.role(old) == "standby");
    cluster.deploy(old, "three");
    for name in ["one", "two", "three"] {
        body(cluster.data_plane(), name);
    }
    assert_eq!(cluster.leader(), Some(1 - old));
}

#[test]
fn without_etcd_everything_goes_on_but_deploys() {
    let Some(mut cluster) = Cluster::start(1, 2) else { return };
    for name in ["warm", "cold"] {
        cluster.deploy(0, name);
    }
    body(cluster.data_plane(), "warm");
    let place = cluster.data_plane().told("functions");
    let caller = Caller::start(place, "warm");
    let leader = cluster.leader().unwrap();
    cluster.etcd.kill(0);
    until("the leader knows", || cluster.role(leader) == "detached");
    assert!(body(cluster.data_plane(), "cold").contains("Hello"), "a cold start");
    let (code, _, err) = cluster.cli(leader, &["deploy", path(&hello("new", ""))]);
    // The second where the write was on its way when the connection broke.
    let told = ["the store does not take writes now", "whether the change was stored is not known"];
    assert!(code == 3 && told.iter().any(|text| err.contains(text)), "{code} {err}");
    assert!(get(cluster.data_plane(), "warm").is_ok());

    cluster.etcd.restart(0).unwrap();
    until("it has its store again", || cluster.role(leader) == "leader");
    cluster.deploy(1 - leader, "new");
    body(cluster.data_plane(), "new");
    caller.stop();
}

/// A function with a file, which whoever starts it must have.
fn with_file() -> tempfile::TempDir {
    let dir = hello("filed", "");
    fs::write(dir.path().join("data"), vec![b'x'; 700 << 10]).unwrap();
    dir
}

#[test]
fn a_deploy_outlives_the_disk_of_the_control_plane_that_took_it() {
    let Some(mut cluster) = Cluster::start(1, 3) else { return };
    let (code, out, err) = cluster.cli(0, &["deploy", path(&with_file()), "--no-check"]);
    assert_eq!(code, 0, "{out}\n{err}");
    let leader = cluster.leader().unwrap();
    let held = |number: usize| {
        let blobs = cluster.controls[number].state.path().join("blobs");
        fs::read_dir(blobs).unwrap().count()
    };
    assert!((0..3).filter(|number| held(*number) == 1).count() >= 2, "not on a majority");
    cluster.kill(leader);
    fs::remove_dir_all(cluster.controls[leader].state.path().join("blobs")).unwrap();
    // A worker that has never seen it.
    cluster.worker.take().unwrap().kill();
    let fresh = State::new();
    let _worker = cluster.peer("worker", &fresh, &[]);
    assert!(body(cluster.data_plane(), "filed").contains("Hello"));
}

#[test]
fn a_deploy_is_refused_where_its_files_would_be_on_a_minority() {
    let Some(mut cluster) = Cluster::start(1, 3) else { return };
    let leader = cluster.leader().unwrap();
    let others: Vec<usize> = (0..3).filter(|number| *number != leader).collect();
    for number in &others {
        cluster.kill(*number);
    }
    let (code, _, err) = cluster.cli(leader, &["deploy", path(&with_file())]);
    assert!(code == 3 && err.contains("held by 1 of 3 control planes"), "{code} {err}");
    // What needs no file is deployed all the same.
    cluster.deploy(leader, "bare");
    cluster.run(others[0]);
    until("it is there again", || cluster.cli(leader, &["deploy", path(&with_file())]).0 == 0);
    body(cluster.data_plane(), "filed");
}

#[test]
fn the_leader_of_etcd_is_killed_and_deploys_go_on() {
    let Some(mut cluster) = Cluster::start(3, 2) else { return };
    cluster.deploy(0, "one");
    let leader = cluster.leader().unwrap();
    let killed = cluster.etcd.leader().unwrap();
    cluster.etcd.kill(killed);
    // Cold, without waiting for etcd.
    assert!(body(cluster.data_plane(), "one").contains("Hello"));
    cluster.deploy(0, "two");
    body(cluster.data_plane(), "two");
    assert_eq!(cluster.leader(), Some(leader), "that is nothing to those who lead here");
}
