//! Workers that take calls encrypted.

use std::{io::ErrorKind, net::TcpStream, sync::Arc};

use dirigent_core::{Epoch, SandboxId};
use dirigent_service::{Tasks, tls::Files};
use dirigent_transport::Tunnels;
use serde_json::Value;

use crate::{
    apart::{Part, body, get, ready},
    certificates::{Cluster, ok, outside},
    hello,
    host::{PATIENCE, State, until, verb},
    path,
};

fn sandboxes(cluster: &Cluster, function: &str) -> Vec<Value> {
    let described = ok(&cluster.state, &["describe", function, "--json"]);
    let described: Value = serde_json::from_str(&described).unwrap();
    described["sandboxes"].as_array().unwrap_or_else(|| panic!("{described}")).clone()
}

/// What comes of asking a worker's relay for a sandbox that never was, with the certificate of the
/// data plane of this state directory: refused, for who is let in.
fn met(plane: &State, relay: &str) -> ErrorKind {
    let tls = plane.path().join("tls");
    let files = Files::open(&tls.join("ca.pem"), &tls.join("data-plane.pem")).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let asked = runtime.block_on(async {
        let tunnels = Tunnels::new(files, &Tasks::new());
        let nobody = SandboxId::new(Epoch(1), 1);
        let asked = tunnels.open(relay.parse().unwrap(), "w1", nobody, Arc::default());
        tokio::time::timeout(PATIENCE, asked).await.expect("an answer")
    });
    asked.unwrap_err().kind()
}

/// A worker at this address that encrypts.
fn encrypting(cluster: &Cluster, state: &Arc<State>, ip: &str, port: &str) -> Part {
    cluster.worker(state, &["--address", ip, "--encrypt", "--relay-port", port])
}

#[test]
fn calls_reach_sandboxes_through_their_worker_and_in_no_other_way() {
    let ip = outside().unwrap_or_else(|| {
        println!("skipped in part: this machine has no address but loopback");
        "127.0.0.1".to_owned()
    });
    let cluster = Cluster::on(&ip, &[]);
    let (planes, workers) = (cluster.machine("data-plane", "d1"), cluster.machine("worker", "w1"));
    let plane = cluster.data_plane(&planes);
    let worker = encrypting(&cluster, &workers, &ip, "0");
    until("both have met the control plane", || ready(&plane) && cluster.workers() == 1);
    ok(&cluster.state, &["deploy", path(&hello("one", "[scaling]\nmin = 1\n"))]);
    let first = body(&plane, "one");
    assert!(first.contains("Hello"), "{first}");
    let relay = worker.told("relay");
    assert!(relay.starts_with(&ip), "{relay}");
    let seen = sandboxes(&cluster, "one");
    let address = seen[0]["address"].to_string();
    assert!(address.contains(&relay), "{address}");
    // It listens where only its machine connects.
    if ip != "127.0.0.1" {
        let ports = (20_000..20_100).filter(|port| TcpStream::connect((&*ip, *port)).is_ok());
        assert_eq!(ports.count(), 0);
    }

    // A worker that was killed takes calls to the same sandbox once it is back. On a busy machine it
    // may be back too late, when another sandbox takes its place: not each time.
    let (_, port) = relay.rsplit_once(':').unwrap();
    let names = |seen: &[Value]| seen.iter().map(|one| one["id"].clone()).collect::<Vec<_>>();
    let (mut worker, mut seen) = (Some(worker), names(&seen));
    let was_adopted = (0..5).any(|_| {
        let state = worker.take().unwrap().kill();
        worker = Some(encrypting(&cluster, &state, &ip, port));
        until("it answers again", || get(&plane, "one").is_ok_and(|answer| answer.status == 200));
        let before = std::mem::replace(&mut seen, names(&sandboxes(&cluster, "one")));
        println!("before {before:?}, after {seen:?}");
        seen == before
    });
    assert!(was_adopted);
    let worker = worker.unwrap();

    // Who is no member any more is let in by no worker.
    let plane = plane.kill();
    assert_eq!(met(&plane, &relay), ErrorKind::ConnectionRefused);
    ok(&cluster.state, &["cluster", "remove", "data-plane", "d1"]);
    let refused = met(&plane, &relay);
    assert_ne!(
        refused,
        ErrorKind::ConnectionRefused,
        "its certificate is good, but it was removed"
    );
    let other = cluster.data_plane(&cluster.machine("data-plane", "d2"));
    until("another is ready", || ready(&other));
    assert!(body(&other, "one").contains("Hello"));
    assert!(worker.end().success() && other.end().success() && cluster.control.end().success());
}

#[test]
fn a_worker_that_cannot_encrypt_says_why_and_does_not_start() {
    let cluster = Cluster::on("127.0.0.1", &[]);
    let (bare, joined) = (State::new(), cluster.machine("worker", "w1"));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let encrypt = ["worker", "--control", &cluster.peers, "--encrypt"];
    for (state, more, code, says) in [
        (&joined, &["--admit", "10.0.0.1"][..], 2, "leave --admit out"),
        (&joined, &["--emulate", "2"], 2, "leave --encrypt or --emulate out"),
        (&joined, &["--relay-port", &port], 3, "--relay-port"),
        (&bare, &["--peer-token", "/nonexistent"], 2, "--peer-token"),
    ] {
        let (ended, _, err) = verb(state.path(), &[&encrypt[..], more].concat());
        assert!(ended == code && err.contains(says), "{more:?}: {ended} {err}");
    }
    // With a control plane of this machine, which asks for no certificate.
    let alone = State::new();
    let args = ["--api", "127.0.0.1:0", "--peers", "127.0.0.1:0"];
    let control = Part::start("control-plane", &alone, &args);
    let (peers, token) = (control.told("peers"), control.told("peer_token"));
    let args = ["worker", "--control", &peers, "--peer-token", &token, "--encrypt"];
    let (code, _, err) = verb(bare.path(), &args);
    assert!(code == 2 && err.contains("dirigent join"), "{code} {err}");
}
