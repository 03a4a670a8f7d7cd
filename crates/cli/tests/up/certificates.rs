//! A cluster whose members know each other by certificates, off loopback.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpStream, UdpSocket},
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use dirigent_bench::etcd::Etcd;
use dirigent_service::tls::{Authority, Certificate, Issue, request};

use crate::{
    apart::{Part, body, get, ready},
    hello,
    host::{DIRIGENT, PATIENCE, State, command, output, until, verb},
    path,
};

/// An address of this machine that is not loopback.
pub(crate) fn outside() -> Option<String> {
    // Nothing is sent: the kernel says from which address it would be.
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("198.51.100.1:9").ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback() && !ip.is_unspecified()).then(|| ip.to_string())
}

/// A control plane that has made a cluster.
pub(crate) struct Cluster {
    pub(crate) control: Part,
    pub(crate) state: Arc<State>,
    api: String,
    pub(crate) peers: String,
}

/// A verb on a state directory that must succeed; what it printed.
pub(crate) fn ok(state: &State, args: &[&str]) -> String {
    let (code, out, err) = verb(state.path(), args);
    assert_eq!(code, 0, "{args:?}\n{out}\n{err}");
    out
}

impl Cluster {
    /// On this address, with these variables.
    pub(crate) fn on(ip: &str, env: &[(&str, &str)]) -> Self {
        let state = State::new();
        ok(&state, &["cluster", "init", "--name", "c1"]);
        let listen = format!("{ip}:0");
        let control = Part::with(
            command("control-plane", &state)
                .args(["--api", &listen, "--peers", &listen])
                .envs(env.iter().copied()),
            &state,
        );
        let (api, peers) = (control.told("api"), control.told("peers"));
        Self { control, state, api, peers }
    }

    /// On an address that is not loopback, if there is one.
    pub(crate) fn outside() -> Self {
        let ip = outside().unwrap_or_else(|| {
            println!("skipped in part: this machine has no address but loopback");
            "127.0.0.1".to_owned()
        });
        Self::on(&ip, &[])
    }

    fn token(&self, role: &str, more: &[&str]) -> String {
        let all = [&["cluster", "token", "--role", role], more].concat();
        ok(&self.state, &all).trim().to_owned()
    }

    /// A machine that has joined.
    pub(crate) fn machine(&self, role: &str, name: &str) -> Arc<State> {
        let state = State::new();
        let token = self.token(role, &[]);
        ok(&state, &["join", &token, "--server", &self.api, "--name", name]);
        state
    }

    pub(crate) fn data_plane(&self, state: &Arc<State>) -> Part {
        let listen = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
        Part::start("data-plane", state, &[&listen[..], &["--control", &self.peers]].concat())
    }

    pub(crate) fn worker(&self, state: &Arc<State>, args: &[&str]) -> Part {
        Part::start("worker", state, &[args, &["--control", &self.peers]].concat())
    }

    pub(crate) fn workers(&self) -> usize {
        let listed = verb(self.state.path(), &["workers"]).1;
        listed.lines().filter(|line| line.contains("ready")).count()
    }
}

#[test]
fn members_of_a_cluster_work_together_off_loopback_and_nobody_else_is_let_in() {
    let cluster = Cluster::outside();
    let (planes, workers) = (cluster.machine("data-plane", "d1"), cluster.machine("worker", "w1"));
    let plane = cluster.data_plane(&planes);
    let worker = cluster.worker(&workers, &["--stop-sandboxes"]);
    until("both have met the control plane", || ready(&plane) && cluster.workers() == 1);
    ok(&cluster.state, &["deploy", path(&hello("one", ""))]);
    assert!(body(&plane, "one").contains("Hello"));
    let listed = ok(&cluster.state, &["cluster", "members"]);
    for (role, name) in [("control-plane", "c1"), ("data-plane", "d1"), ("worker", "w1")] {
        assert!(listed.lines().any(|line| line.contains(role) && line.contains(name)), "{listed}");
    }

    // Nothing is said without TLS, nor with it without a token.
    for place in [&cluster.api, &cluster.peers] {
        let mut stream = TcpStream::connect(place).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.write_all(b"GET /v1/functions HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        // It hangs up, one way or the other.
        drop(stream.read_to_end(&mut answer));
        assert!(!String::from_utf8_lossy(&answer).contains("HTTP/1.1"), "{answer:?}");
        let mut stream = TcpStream::connect(place).unwrap();
        drop(stream.write_all(&[0xff; 4096]));
    }
    fs::rename(cluster.state.path().join("token"), cluster.state.path().join("hidden")).unwrap();
    let (code, _, err) = verb(cluster.state.path(), &["list"]);
    assert!(code == 2 && err.contains("Authorization"), "{code} {err}");
    fs::rename(cluster.state.path().join("hidden"), cluster.state.path().join("token")).unwrap();

    // Who was removed is let in no more, and says why; the others go on.
    ok(&cluster.state, &["cluster", "remove", "worker", "w1"]);
    until("it says so", || worker.said().contains("worker w1 is refused: it was removed"));
    until("it is gone", || cluster.workers() == 0);
    assert!(ready(&plane));
    // It may join again.
    worker.end();
    let token = cluster.token("worker", &[]);
    ok(&workers, &["join", &token, "--server", &cluster.api, "--name", "w1"]);
    let worker = cluster.worker(&workers, &["--stop-sandboxes"]);
    until("it is back", || cluster.workers() == 1);
    assert_eq!(get(&plane, "one").unwrap().status, 200);
    assert!(worker.end().success() && plane.end().success() && cluster.control.end().success());
}

#[test]
fn who_was_removed_is_refused_by_every_control_plane_and_by_its_next_life() {
    if !Etcd::is_installed() {
        return println!("{}", Etcd::MISSING);
    }
    let scratch = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(scratch.path(), 1).unwrap();
    let members = etcd.addresses().join(",");
    let env = [("DIRIGENT_ETCD", members.as_str())];
    let first = Cluster::on("127.0.0.1", &env);
    until("it leads", || verb(first.state.path(), &["list"]).0 == 0);
    let other = first.machine("control-plane", "c2");
    let stand_by = || {
        let listen = ["--api", "127.0.0.1:0", "--peers", "127.0.0.1:0"];
        Part::with(command("control-plane", &other).args(listen).envs(env), &other)
    };
    let second = stand_by();
    let (removed, good) = (first.machine("worker", "w1"), first.machine("worker", "w2"));
    // To both, and to the second one alone, which does not lead.
    let to = |state: &Arc<State>, control: &[&str]| {
        let control: Vec<_> = control.iter().flat_map(|at| ["--control", at]).collect();
        Part::start("worker", state, &[&["--emulate", "1"], &control[..]].concat())
    };
    let worker = to(&removed, &[&first.peers, &second.told("peers")]);
    until("it is there", || first.workers() == 1);
    ok(&first.state, &["cluster", "remove", "worker", "w1"]);
    until("it is gone", || first.workers() == 0);
    worker.kill();
    let refused = |peers: &str| {
        let worker = to(&removed, &[peers]);
        until("it is refused", || worker.said().contains("worker w1 is refused: it was removed"));
        worker.kill();
    };
    refused(&second.told("peers"));
    // The authority dies, and the other one leads; then it comes again.
    let Cluster { control, .. } = first;
    control.kill();
    let led = |state: &State| verb(state.path(), &["workers"]);
    until("the other one leads", || led(&other).0 == 0);
    refused(&second.told("peers"));
    second.kill();
    let second = stand_by();
    refused(&second.told("peers"));
    let _good = to(&good, &[&second.told("peers")]);
    until("another worker is let in", || led(&other).1.contains("w2"));
    assert!(!led(&other).1.lines().any(|line| line.contains("w1") && line.contains("ready")));
}

#[test]
fn who_may_not_join_is_told_why() {
    let (cluster, other) = (Cluster::on("127.0.0.1", &[]), Cluster::on("127.0.0.1", &[]));
    let used = cluster.token("worker", &[]);
    ok(&State::new(), &["join", &used, "--server", &cluster.api, "--name", "w1"]);
    let good = cluster.token("worker", &["--many"]);
    let foreign = other.token("worker", &[]);
    let named = cluster.token("worker", &["--name", "w7"]);
    let late = cluster.token("worker", &["--ttl", "0s"]);
    let mut forged = good.clone();
    let last = if forged.pop() == Some('0') { '1' } else { '0' };
    forged.push(last);
    for (token, name, code, says) in [
        ("nonsense", "w2", 2, "not a join token"),
        (&used, "w2", 2, "used up or has run out"),
        (&late, "w2", 2, "used up or has run out"),
        (&forged, "w2", 2, "unknown"),
        (&foreign, "w2", 3, "another authority"),
        (&good, "w1", 1, "there is a worker w1 already"),
        (&good, "w/1", 1, "is not a name"),
        (&named, "w8", 1, "for the name `w7`"),
    ] {
        let state = State::new();
        let args = ["join", token, "--server", &cluster.api, "--name", name];
        let (ended, _, err) = verb(state.path(), &args);
        assert!(ended == code && err.contains(says), "{name} {says}: {ended} {err}");
        assert!(!state.path().join("tls").exists(), "nothing is kept");
    }
    ok(&State::new(), &["join", &good, "--server", &cluster.api, "--name", "w2"]);
    let (code, _, err) = verb(cluster.state.path(), &["cluster", "init"]);
    assert!(code == 1 && err.contains("belongs to a cluster"), "{code} {err}");
}

/// Puts a certificate of a worker into its state directory, made at another time or for another
/// role by the cluster's authority.
fn put(cluster: &Cluster, state: &State, subject: &str, now: SystemTime) {
    let tls = cluster.state.path().join("tls");
    let read = |file: &str| fs::read_to_string(tls.join(file)).unwrap();
    let authority = Authority::load(read("ca.pem"), &read("ca.key")).unwrap();
    let (key, asked) = request().unwrap();
    let uri = format!("{}/{subject}", authority.uri());
    let issue =
        Issue { uri: &uri, serves: false, hosts: &[], life: Duration::from_secs(3600), now };
    let certificate = authority.sign(&asked, issue).unwrap();
    fs::create_dir_all(state.path().join("tls")).unwrap();
    fs::write(state.path().join("tls/ca.pem"), authority.pem()).unwrap();
    fs::write(state.path().join("tls/worker.pem"), certificate + &key).unwrap();
}

#[test]
fn a_certificate_that_is_no_good_is_refused_with_what_to_do() {
    let cluster = Cluster::on("127.0.0.1", &[]);
    let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
    for (at, says) in [(now + hour, "set the clock"), (now - 2 * hour, "ran out")] {
        let state = State::new();
        put(&cluster, &state, "worker/w1", at);
        let worker = cluster.worker(&state, &["--emulate", "1"]);
        until("it says so", || worker.said().contains(says));
        assert!(worker.said().contains("dirigent join"), "{}", worker.said());
    }
    let state = State::new();
    put(&cluster, &state, "data-plane/d1", now);
    let (code, _, err) = verb(state.path(), &["worker", "--control", &cluster.peers]);
    assert!(code == 2 && err.contains("which is no worker"), "{code} {err}");
    // Of another cluster: its authority is not the one that the control plane shows.
    let other = Cluster::on("127.0.0.1", &[]);
    let state = other.machine("worker", "w1");
    let worker = cluster.worker(&state, &["--emulate", "1"]);
    until("it says so", || worker.said().contains("another authority"));
    // One that is good is let in meanwhile.
    let state = cluster.machine("worker", "w2");
    let _worker = cluster.worker(&state, &["--emulate", "3"]);
    until("it is there, three times", || cluster.workers() == 3);
}

fn serial(state: &State, role: &str) -> String {
    let text = fs::read_to_string(state.path().join(format!("tls/{role}.pem"))).unwrap();
    Certificate::of_pem(&text).unwrap().serial
}

#[test]
fn certificates_are_renewed_again_and_again_while_calls_go_on() {
    let cluster = Cluster::on("127.0.0.1", &[("DIRIGENT_CERTIFICATE_LIFE", "9s")]);
    let (planes, workers) = (cluster.machine("data-plane", "d1"), cluster.machine("worker", "w1"));
    let plane = cluster.data_plane(&planes);
    let worker = cluster.worker(&workers, &["--stop-sandboxes"]);
    until("both have met the control plane", || ready(&plane) && cluster.workers() == 1);
    ok(&cluster.state, &["deploy", path(&hello("one", "[scaling]\nmin = 1\n"))]);
    for (state, role) in [
        (&planes, "data-plane"),
        (&workers, "worker"),
        (&planes, "data-plane"),
        (&workers, "worker"),
    ] {
        let before = serial(state, role);
        until("it is renewed", || {
            body(&plane, "one");
            serial(state, role) != before
        });
    }
    until("both are still there", || ready(&plane) && cluster.workers() == 1);
    assert!(worker.end().success());
}

#[test]
fn off_loopback_nothing_runs_without_certificates() {
    let state = State::new();
    for (args, says) in [
        (&["worker", "--control", "192.0.2.1:9092"][..], "this machine has no certificate"),
        (&["data-plane", "--control", "192.0.2.1:9092"], "this machine has no certificate"),
        (&["control-plane", "--peers", "0.0.0.0:0"], "dirigent cluster init"),
        (
            &["control-plane", "--api", "0.0.0.0:0", "--peers", "127.0.0.1:0"],
            "dirigent cluster init",
        ),
        (&["up", "--api", "0.0.0.0:0", "--listen", "127.0.0.1:0"], "dirigent cluster init"),
    ] {
        let (code, _, err) = verb(state.path(), args);
        assert!(code == 2 && err.contains(says), "{args:?}: {code} {err}");
    }
    assert!(!Path::new(&state.path().join("api")).exists());
}

/// A verb of somebody on another machine, who has only this file of contexts.
fn from_afar(contexts: &Path, args: &[&str]) -> (i32, String, String) {
    let mut command = std::process::Command::new(DIRIGENT);
    command.args(args).env_clear().env("DIRIGENT_CONTEXTS", contexts);
    let output = output(&mut command, PATIENCE);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

#[test]
fn a_cluster_is_used_from_afar_with_a_context_and_a_token_of_a_role() {
    let cluster = Cluster::outside();
    let away = tempfile::tempdir().unwrap();
    let contexts = away.path().join("contexts.toml");
    let ca = cluster.state.path().join("tls/ca.pem");
    let server = format!("https://{}", cluster.api);
    for role in ["deploy", "view"] {
        let token = ok(&cluster.state, &["token", "create", "--role", role, "--expires", "1h"]);
        let file = away.path().join(role);
        fs::write(&file, token).unwrap();
        let (file, ca) = (file.to_str().unwrap(), ca.to_str().unwrap());
        let args = ["context", "add", role, "--server", &server, "--ca", ca, "--token-file", file];
        let (code, _, err) = from_afar(&contexts, &args);
        assert_eq!(code, 0, "{err}");
    }
    // The first one is used, until another one is chosen.
    let one = hello("one", "");
    let plane = cluster.data_plane(&cluster.machine("data-plane", "d1"));
    let worker = cluster.worker(&cluster.machine("worker", "w1"), &["--stop-sandboxes"]);
    until("both have met the control plane", || ready(&plane) && cluster.workers() == 1);
    let (code, _, err) = from_afar(&contexts, &["deploy", path(&one)]);
    assert_eq!(code, 0, "{err}");
    let (code, out, err) = from_afar(&contexts, &["list"]);
    assert!(code == 0 && out.contains("one"), "{code} {out} {err}");
    let (code, _, err) = from_afar(&contexts, &["token", "list"]);
    assert!(code == 2 && err.contains("role `admin`"), "{code} {err}");
    assert_eq!(from_afar(&contexts, &["context", "use", "view"]).0, 0);
    let (code, _, err) = from_afar(&contexts, &["rm", "one"]);
    assert!(code == 2 && err.contains("role `deploy`"), "{code} {err}");
    let (code, _, err) = from_afar(&contexts, &["rm", "one", "--context", "deploy"]);
    assert_eq!(code, 0, "{err}");

    // Without the authority's certificate nobody is trusted; nor is a name that there is not.
    let (code, _, err) = from_afar(&contexts, &["list", "--server", &server]);
    assert!(code != 0 && !err.contains("Authorization"), "{code} {err}");
    let (code, _, err) = from_afar(&contexts, &["list", "--context", "prod"]);
    assert!(code == 2 && err.contains("no context `prod`"), "{code} {err}");

    // What is revoked counts no more.
    let listed = ok(&cluster.state, &["token", "list", "--json"]);
    for line in listed.lines() {
        let token: serde_json::Value = serde_json::from_str(line).unwrap();
        ok(&cluster.state, &["token", "revoke", token["name"].as_str().unwrap()]);
    }
    let (code, _, err) = from_afar(&contexts, &["list"]);
    assert!(code == 2 && err.contains("token that counts"), "{code} {err}");
    for name in ["deploy", "view"] {
        assert_eq!(from_afar(&contexts, &["context", "remove", name]).0, 0);
    }
    let (_, out, _) = from_afar(&contexts, &["context", "list"]);
    assert!(!out.contains("deploy"), "{out}");
    assert!(worker.end().success());
}
