//! A control plane's store moved into etcd, under a data plane and a worker that go on.

use std::fs;

use dirigent_bench::etcd::Etcd;

use crate::{
    apart::{Part, body, get, ready},
    hello,
    host::{State, call, until, verb},
    path,
};

#[test]
fn a_store_is_moved_into_etcd_and_nothing_is_deployed_or_started_anew() {
    if !Etcd::is_installed() {
        return println!("{}", Etcd::MISSING);
    }
    let scratch = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(scratch.path(), 1).unwrap();
    let members = etcd.addresses().join(",");
    let state = State::new();
    let control = ["--api", "127.0.0.1:0", "--peers"];
    let old = Part::start("control-plane", &state, &[&control[..], &["127.0.0.1:0"]].concat());
    let (peers, token) = (old.told("peers"), old.told("peer_token"));
    let attach = ["--control", &peers, "--peer-token", &token];
    let listen = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let data_plane = Part::start("data-plane", &State::new(), &[&attach[..], &listen].concat());
    let _worker = Part::start("worker", &State::new(), &attach);
    until("the data plane is there", || ready(&data_plane));

    let files = hello("warm", "[scaling]\nmin = 1\n");
    fs::write(files.path().join("data"), "of a function").unwrap();
    let ok = |args: &[&str]| {
        let (code, out, err) = verb(state.path(), args);
        assert_eq!(code, 0, "{args:?}\n{out}\n{err}");
        out
    };
    ok(&["deploy", path(&files)]);
    let files = hello("cold", "");
    fs::write(files.path().join("data"), "of another one").unwrap();
    ok(&["deploy", path(&files), "--no-check"]);
    let made = ok(&["token", "create", "--role", "view", "--name", "kept"]);
    body(&data_plane, "warm");
    let sandbox = || get(&data_plane, "warm").unwrap().header("x-sandbox").to_owned();
    let described = |name: &str| -> serde_json::Value {
        serde_json::from_str(&ok(&["describe", name, "--json"])).unwrap()
    };
    let (before, ran) = (described("warm"), sandbox());

    let migrate = ["store", "migrate", "--etcd", &members, "--json"];
    let (code, _, err) = verb(state.path(), &migrate);
    assert!(code == 1 && err.contains("is used by another process"), "{code} {err}");
    assert!(old.end().success());
    assert_eq!(sandbox(), ran, "calls go on meanwhile");
    let moved: serde_json::Value = serde_json::from_str(&ok(&migrate)).unwrap();
    for (what, count) in
        [("functions", 2), ("revisions", 2), ("workers", 1), ("data_planes", 1), ("artifacts", 2)]
    {
        assert_eq!(moved[what], count, "{moved}");
    }
    let (code, _, err) = verb(state.path(), &migrate);
    assert!(code == 1 && err.contains("was moved to etcd"), "{code} {err}");
    let (code, _, err) = verb(state.path(), &["control-plane", "--api", "127.0.0.1:0"]);
    assert!(code != 0 && err.contains("with --etcd"), "{code} {err}");

    // On the same directory, at the same address; and another one beside.
    let several = ["--etcd", &members, "--name"];
    let one = [&control[..], &[&peers], &several, &["one"]].concat();
    let one = Part::start("control-plane", &state, &one);
    // The worker knows of no other one: it has to lead.
    until("it leads", || verb(state.path(), &["list"]).0 == 0);
    let other = State::new();
    for file in ["token", "peer-token"] {
        fs::copy(state.path().join(file), other.path().join(file)).unwrap();
    }
    let two = [&control[..], &["127.0.0.1:0"], &several, &["two"]].concat();
    let _two = Part::start("control-plane", &other, &two);
    let workers = || verb(state.path(), &["workers"]).1;
    until("the worker is adopted", || workers().contains("ready"));
    until("its sandbox is known", || {
        let sandboxes = described("warm")["sandboxes"].as_array().map_or(0, Vec::len);
        sandboxes == 1
    });
    let after = described("warm");
    assert_eq!(after["summary"]["id"], before["summary"]["id"]);
    assert_eq!(after["revisions"], before["revisions"]);
    assert_eq!(after["sandboxes"][0]["id"], before["sandboxes"][0]["id"]);
    assert_eq!(sandbox(), ran, "nothing was started anew");
    // What needs files is started, and what is durable is so in etcd.
    body(&data_plane, "cold");
    let head = format!(
        "GET /v1/functions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n",
        made.trim()
    );
    assert_eq!(call(&one.told("api"), &head).unwrap().status, 200);
    ok(&["deploy", path(&hello("new", ""))]);
    body(&data_plane, "new");
}
