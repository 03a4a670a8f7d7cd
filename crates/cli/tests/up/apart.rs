//! The roles as processes of their own, and what of it goes on while one is dead.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
    process::{Child, Command, ExitStatus},
    sync::Arc,
    thread,
};

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    hello,
    host::{Response, State, call, command, kill, until, verb},
    path,
};

/// In a state directory: what the role there said.
const SAID: &str = "said";

/// A role that runs.
pub(crate) struct Part {
    child: Child,
    ready: Value,
    pub(crate) state: Arc<State>,
}

impl Part {
    pub(crate) fn start(role: &str, state: &Arc<State>, args: &[&str]) -> Self {
        Self::with(command(role, state).args(args), state)
    }

    /// A role with all its arguments; what it says goes to a file in its state directory.
    pub(crate) fn with(command: &mut Command, state: &Arc<State>) -> Self {
        let role = format!("{command:?}");
        let said = std::fs::File::create(state.path().join(SAID)).unwrap();
        let mut child = command.stderr(said).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{role} is not ready"));
        Self { child, ready, state: Arc::clone(state) }
    }

    /// What it has said on standard error.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(self.state.path().join(SAID)).unwrap()
    }

    pub(crate) fn told(&self, key: &str) -> String {
        self.ready[key].as_str().unwrap().replace("http://", "").replace("https://", "")
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Whether it has ended, by itself.
    pub(crate) fn has_ended(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()));
        // Nobody has waited for it: it is there as one that has ended.
        stat.is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")))
    }

    pub(crate) fn kill(mut self) -> Arc<State> {
        kill(self.pid(), Signal::KILL);
        self.child.wait().unwrap();
        Arc::clone(&self.state)
    }

    pub(crate) fn end(mut self) -> ExitStatus {
        kill(self.pid(), Signal::TERM);
        let mut status = None;
        until("a role ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// A control plane, where its peers connect, and the file that lets them.
pub(crate) struct Cluster {
    control: Option<Part>,
    state: Arc<State>,
    peers: String,
    token: String,
}

impl Cluster {
    pub(crate) fn start() -> Self {
        let state = State::new();
        let args = ["--api", "127.0.0.1:0", "--peers", "127.0.0.1:0"];
        let control = Part::start("control-plane", &state, &args);
        let (peers, token) = (control.told("peers"), control.told("peer_token"));
        Self { control: Some(control), state, peers, token }
    }

    /// Kills the control plane.
    pub(crate) fn behead(&mut self) {
        self.control.take().unwrap().kill();
    }

    pub(crate) fn crown(&mut self) {
        let args = ["--api", "127.0.0.1:0", "--peers", &self.peers];
        self.control = Some(Part::start("control-plane", &self.state, &args));
    }

    pub(crate) fn peer(&self, role: &str, state: &Arc<State>, args: &[&str]) -> Part {
        let all = ["--control", &self.peers, "--peer-token", &self.token];
        Part::start(role, state, &[&all, args].concat())
    }

    pub(crate) fn data_plane(&self, state: &Arc<State>) -> Part {
        self.peer("data-plane", state, &["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
    }

    pub(crate) fn cli(&self, args: &[&str]) -> (i32, String, String) {
        verb(self.state.path(), args)
    }

    fn json(&self, args: &[&str]) -> Value {
        let (code, out, err) = self.cli(&[args, &["--json"]].concat());
        assert_eq!(code, 0, "{args:?}: {err}");
        serde_json::from_str(&out).unwrap_or(Value::Null)
    }

    pub(crate) fn deploy(&self, name: &str) {
        let (code, out, err) = self.cli(&["deploy", path(&hello(name, ""))]);
        assert_eq!(code, 0, "{out}\n{err}");
    }
}

pub(crate) fn get(data_plane: &Part, function: &str) -> std::io::Result<Response> {
    call(&data_plane.told("functions"), &format!("GET / HTTP/1.1\r\nhost: {function}\r\n"))
}

pub(crate) fn body(data_plane: &Part, function: &str) -> String {
    let response = get(data_plane, function).unwrap();
    assert_eq!(response.status, 200, "{response:?}");
    response.body
}

pub(crate) fn ready(data_plane: &Part) -> bool {
    let head = "GET /ready HTTP/1.1\r\nhost: x\r\n";
    call(&data_plane.told("admin"), head).is_ok_and(|response| response.status == 200)
}

#[test]
fn any_role_may_die_and_come_back_while_the_others_go_on() {
    let mut cluster = Cluster::start();
    let (first, second, worker_state) = (State::new(), State::new(), State::new());
    let planes = [cluster.data_plane(&first), cluster.data_plane(&second)];
    // One of the loopback network's addresses stands for that of a machine.
    let worker = cluster.peer("worker", &worker_state, &["--address", "127.0.0.2"]);
    until("both have met the control plane", || planes.iter().all(ready));
    cluster.deploy("one");
    for plane in &planes {
        assert!(body(plane, "one").contains("Hello"));
    }
    // In a network of its own it has another address, which is reached from this machine only.
    let described = cluster.cli(&["describe", "one"]).1;
    let own = described.contains("strict, the best there is");
    assert!(own || described.contains("127.0.0.2:"), "it listens there: {described}");

    // Without a control plane what is warm goes on where its slot is; what is not waits for the next.
    cluster.behead();
    for _ in 0..20 {
        body(&planes[1], "one");
    }
    assert!(planes.iter().all(ready), "traffic still comes here");
    cluster.crown();
    cluster.deploy("two");
    let place = planes[0].told("functions");
    cluster.behead();
    let waiting = thread::spawn(move || call(&place, "GET / HTTP/1.1\r\nhost: two\r\n"));
    cluster.crown();
    let answered = waiting.join().unwrap().unwrap();
    assert_eq!(answered.status, 200, "{answered:?}");

    // Sandboxes outlive their worker, and are its own again.
    let process = body(&planes[1], "one");
    worker.kill();
    assert_eq!(body(&planes[1], "one").lines().nth(3), process.lines().nth(3));
    let place = planes[0].told("functions");
    let ended = call(&place, "GET /?exit=9 HTTP/1.1\r\nhost: two\r\n");
    assert_ne!(ended.unwrap().status, 200, "the one that answers ends");
    let worker = cluster.peer("worker", &worker_state, &[]);
    // How one ended while no worker was there is known.
    until("the end is told", || {
        cluster.cli(&["describe", "two"]).1.contains("exited with status 9")
    });
    assert!(worker.ready["adopted"].as_u64().unwrap() >= 1, "{}", worker.ready);
    body(&planes[1], "one");

    // Of a data plane only its own calls are lost.
    let [one, other] = planes;
    one.kill();
    body(&other, "one");
    let one = cluster.data_plane(&first);
    until("it has met the control plane", || ready(&one));
    assert!(body(&one, "two").contains("Hello"));

    assert!(one.end().success() && other.end().success() && worker.end().success());
    assert!(cluster.control.take().unwrap().end().success());
    assert!(!worker_state.processes().is_empty(), "sandboxes are left to the next worker");
    cluster.crown();
    let worker = cluster.peer("worker", &worker_state, &["--stop-sandboxes"]);
    assert!(worker.end().success());
    until("nothing is left", || worker_state.processes().is_empty());
}

#[test]
fn a_second_worker_of_one_name_is_refused_and_the_first_goes_on() {
    let cluster = Cluster::start();
    let (planes, first) = (State::new(), State::new());
    let plane = cluster.data_plane(&planes);
    let worker = cluster.peer("worker", &first, &["--name", "w1", "--stop-sandboxes"]);
    until("it has met the control plane", || ready(&plane));
    cluster.deploy("one");
    let process = body(&plane, "one").lines().nth(3).map(str::to_owned);
    // A machine that was called so by mistake, and one with a copy of the first one's state.
    let (other, copy) = (State::new(), State::new());
    std::fs::create_dir(copy.path().join("worker")).unwrap();
    let identity = "worker/identity.json";
    std::fs::copy(first.path().join(identity), copy.path().join(identity)).unwrap();
    let control = ["--control", &cluster.peers, "--peer-token", &cluster.token];
    let args = [&["worker", "--name", "w1"][..], &control].concat();
    thread::scope(|scope| {
        for state in [&other, &copy] {
            scope.spawn(|| {
                let (code, _, err) = verb(state.path(), &args);
                assert!(code == 2 && err.contains("another worker is called w1"), "{code} {err}");
            });
        }
    });
    assert_eq!(body(&plane, "one").lines().nth(3).map(str::to_owned), process);
    let workers = cluster.json(&["workers"]);
    assert_eq!((&workers["name"], &workers["state"]), (&"w1".into(), &"ready".into()), "{workers}");
    assert!(!worker.said().contains("another worker"), "{}", worker.said());
    assert!(worker.end().success());
}

#[test]
fn a_second_data_plane_of_one_name_is_refused_and_the_first_goes_on() {
    let cluster = Cluster::start();
    let (first, workers) = (State::new(), State::new());
    let listen = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--name", "d1"];
    let plane = cluster.peer("data-plane", &first, &listen);
    let worker = cluster.peer("worker", &workers, &["--stop-sandboxes"]);
    until("it has met the control plane", || ready(&plane));
    cluster.deploy("one");
    let process = body(&plane, "one").lines().nth(3).map(str::to_owned);
    let control = ["--control", &cluster.peers, "--peer-token", &cluster.token];
    let args = [&["data-plane"][..], &listen, &control].concat();
    let (code, _, err) = verb(State::new().path(), &args);
    assert!(code == 2 && err.contains("another data-plane is called d1"), "{code} {err}");
    // The first one has its slots still.
    assert_eq!(body(&plane, "one").lines().nth(3).map(str::to_owned), process);
    assert!(!plane.said().contains("another data plane"), "{}", plane.said());
    // One that was killed comes back at once.
    let state = plane.kill();
    let plane = cluster.peer("data-plane", &state, &listen);
    until("it is back", || ready(&plane));
    assert!(body(&plane, "one").contains("Hello"));
    assert!(plane.end().success() && worker.end().success());
}

#[test]
fn whoever_has_no_token_or_says_nonsense_is_refused_and_harms_nobody() {
    let cluster = Cluster::start();
    let (state, stranger) = (State::new(), State::new());
    let plane = cluster.data_plane(&state);
    until("it has met the control plane", || ready(&plane));
    let wrong = stranger.path().join("token");
    std::fs::write(&wrong, "0123456789abcdef0123456789abcdef").unwrap();
    let admin = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--control", &cluster.peers];
    let args = [&admin[..], &["--peer-token", wrong.to_str().unwrap()]].concat();
    let refused = Part::start("data-plane", &stranger, &args);
    for garbage in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nxx"]
    {
        let mut stream = TcpStream::connect(&cluster.peers).unwrap();
        // It may hang up in the middle.
        drop(stream.write_all(garbage));
    }
    let worker = cluster.peer("worker", &state, &["--emulate", "3"]);
    until("the workers are there", || {
        cluster.cli(&["workers"]).1.lines().filter(|line| line.contains("ready")).count() == 3
    });
    assert!(!ready(&refused), "it was never taken");
    assert!(ready(&plane));
    drop(worker);

    // One process at a time on a state directory; no file, no token; and nothing off loopback.
    for (args, code, says) in [
        (vec!["data-plane", "--peer-token", &cluster.token], 3, "is used by another process"),
        (vec!["worker", "--peer-token", "/nowhere"], 2, "cannot read /nowhere: --peer-token"),
        (vec!["worker", "--control", "192.0.2.1:9092"], 2, "is not a loopback address"),
        (vec!["control-plane", "--peers", "0.0.0.0:9092"], 2, "is not a loopback address"),
    ] {
        let (ended, _, err) = verb(state.path(), &args);
        assert!(ended == code && err.contains(says), "{args:?}: {ended} {err}");
    }
}

#[test]
fn emulated_workers_answer_calls_and_cost_no_process() {
    let cluster = Cluster::start();
    let (state, workers) = (State::new(), State::new());
    let plane = cluster.data_plane(&state);
    let worker = cluster.peer("worker", &workers, &["--emulate", "20"]);
    let manifest = "name = \"fake\"\n[sandbox]\nruntime = \"fake\"\ncommand = [\"x\"]\n";
    let dir = crate::folder(&[("dirigent.toml", manifest)]);
    until("it is live", || cluster.cli(&["deploy", path(&dir)]).0 == 0);
    let answered = get(&plane, "fake").unwrap();
    assert_eq!(answered.status, 200, "{answered:?}");
    let described = cluster.json(&["describe", "fake"]);
    assert!(described["summary"]["ready"].as_u64().unwrap() >= 1, "{described}");
    assert!(worker.end().success());
}
