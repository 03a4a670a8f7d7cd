//! Functions that are called with a token.

use std::{fs, path::Path};

use dirigent_control::store::{
    SCHEMA,
    etcd::{EtcdConfig, Member, chair},
};

use crate::{
    cluster::Cluster,
    hello,
    host::{DIRIGENT, PATIENCE, Response, State, Up, call, output, until},
    over_h2c, path,
};

const ASKS: &str = "[invocation]\nauth = \"token\"\n";

fn get(place: &str, name: &str, token: &str) -> Response {
    let head = format!("GET / HTTP/1.1\r\nhost: {name}\r\nauthorization: Bearer {token}\r\n");
    call(place, &head).unwrap()
}

/// `dirigent invoke` with this token, or with that of the state directory.
fn invoke(state: &Path, functions: &str, token: Option<&str>) -> (i32, String, String) {
    let mut command = std::process::Command::new(DIRIGENT);
    command
        .args(["invoke", "asks", "--functions", functions])
        .env_clear()
        .env("DIRIGENT_STATE", state)
        .envs(token.map(|token| ("DIRIGENT_TOKEN", token)));
    let output = output(&mut command, PATIENCE);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

#[test]
fn a_function_that_asks_for_a_token_is_started_for_nobody_else() {
    let mut up = Up::start(&[]);
    up.ok(&["deploy", path(&hello("asks", ASKS)), "--no-check"]);
    let place = up.functions.clone();
    let create = |up: &Up, role: &str| {
        up.ok(&["token", "create", "--role", role, "--name", role]).trim().to_owned()
    };
    let (calls, looks) = (create(&up, "invoke"), create(&up, "view"));
    assert_eq!(up.get("asks", "/").status, 401);
    assert_eq!(get(&place, "asks", "nobody's").status, 401);
    assert_eq!(get(&place, "asks", &looks).status, 403);
    let request = http::Request::get("http://asks/").header("authorization", "Bearer wrong");
    assert_eq!(over_h2c(&place, request, b"").0, 401);
    let described = up.json(&["describe", "asks"]);
    assert_eq!(described["settings"]["auth"], "token");
    assert_eq!(described["summary"]["arrivals_total"], 0, "nobody was let in: {described}");
    assert_eq!(up.sandboxes("asks"), (0, 0), "and nothing was started");
    assert!(up.ok(&["describe", "asks"]).contains("who shows a token"));

    let answer = get(&place, "asks", &calls);
    assert_eq!(answer.status, 200, "{answer:?}");
    let request =
        http::Request::get("http://asks/").header("authorization", format!("Bearer {calls}"));
    assert_eq!(over_h2c(&place, request, b"").0, 200);
    // The user's verb sends its token where it is asked to: that of `up`, or one of its own.
    let invoke = |up: &Up, token: Option<&str>| invoke(up.state.path(), &up.functions, token);
    for token in [None, Some(&*calls)] {
        let (code, out, err) = invoke(&up, token);
        assert!(code == 0 && out.starts_with("Hello"), "{code} {out} {err}");
    }
    let (code, _, err) = invoke(&up, Some(&looks));
    assert!(code == 2 && err.contains("may not call `asks`"), "{code} {err}");

    // Revoked it counts no more, nor after the next start; others do.
    let other = up.ok(&["token", "create", "--role", "deploy", "--name", "other"]);
    up.ok(&["token", "revoke", "invoke"]);
    until("it is refused", || get(&place, "asks", &calls).status == 401);
    let (code, _, err) = invoke(&up, Some(&calls));
    assert!(code == 2 && err.contains("token create --role invoke"), "{code} {err}");
    up.signal(rustix::process::Signal::KILL);
    up.wait();
    let up = Up::on(std::sync::Arc::clone(&up.state), &[]);
    assert_eq!(get(&up.functions, "asks", other.trim()).status, 200);
    assert_eq!(get(&up.functions, "asks", &calls).status, 401);

    // It is a setting: nothing is started anew for it.
    let deployed = up.cli(&["deploy", path(&hello("asks", ""))]);
    assert_eq!(deployed.0, 0, "{deployed:?}");
    assert_eq!(up.get("asks", "/").status, 200);
    assert_eq!(up.json(&["describe", "asks"])["summary"]["newest"][0], 1);
}

/// A control plane of another version, as it enters itself.
fn enrol(etcd: &[String], format: u64) {
    let config = EtcdConfig { members: etcd.to_vec(), tls: None, prefix: "/dirigent".to_owned() };
    let member = Member { name: "old".to_owned(), format, ..Member::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { chair(&config, member).unwrap().enrol().await.unwrap() });
}

#[test]
fn tokens_count_over_leaders_and_no_older_control_plane_opens_what_asks_for_them() {
    let Some(mut cluster) = Cluster::after(1, 2, |etcd| enrol(&etcd.addresses(), 1)) else {
        return;
    };
    let asks = hello("asks", ASKS);
    let deploy = |cluster: &Cluster| cluster.cli(0, &["deploy", path(&asks)]);
    let (code, _, err) = deploy(&cluster);
    assert!(code == 3 && err.contains("every control plane runs this version"), "{code} {err}");
    enrol(&cluster.etcd.addresses(), SCHEMA);
    until("it is known that all are of this version", || deploy(&cluster).0 == 0);

    let create = |cluster: &Cluster, name: &str| {
        let leader = cluster.leader().unwrap();
        let made = cluster.cli(leader, &["token", "create", "--role", "invoke", "--name", name]);
        assert_eq!(made.0, 0, "{made:?}");
        made.1.trim().to_owned()
    };
    let (kept, revoked) = (create(&cluster, "kept"), create(&cluster, "revoked"));
    let place = cluster.data_plane().told("functions");
    until("both count", || {
        [&kept, &revoked].iter().all(|token| get(&place, "asks", token).status == 200)
    });
    let leader = cluster.leader().unwrap();
    assert_eq!(cluster.cli(leader, &["token", "revoke", "revoked"]).0, 0);
    cluster.kill(leader);
    // Whoever has not heard of it from the old leader hears it from the next one.
    until("another leads", || cluster.leader().is_some());
    let fresh = create(&cluster, "fresh");
    until("the next leader is heard", || get(&place, "asks", &fresh).status == 200);
    assert_eq!(get(&place, "asks", &revoked).status, 401);
    assert_eq!(get(&place, "asks", &kept).status, 200);
    let state = State::new();
    fs::write(state.path().join("token"), &kept).unwrap();
    let (code, out, err) = invoke(state.path(), &place, None);
    assert!(code == 0 && out.starts_with("Hello"), "{code} {out} {err}");
}
