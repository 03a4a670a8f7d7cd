//! Control planes on an etcd that speaks TLS, and only with those whom it knows.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use dirigent_bench::etcd::{Etcd, Tls};
use dirigent_service::tls::{Authority, Issue, request};
use serde_json::Value;

use crate::{
    apart::Part,
    hello,
    host::{State, call, until, verb},
    path,
};

/// An authority's certificate, and one that it signed for this host with its key, in a file each.
fn signed(dir: &Path, name: &str) -> [PathBuf; 3] {
    let (pem, authority_key) = Authority::make("test://etcd", SystemTime::now()).unwrap();
    let authority = Authority::load(pem.clone(), &authority_key).unwrap();
    let (key, request) = request().unwrap();
    let hosts = ["127.0.0.1".to_owned()];
    let (uri, life) = ("test://etcd/all", Duration::from_secs(3600));
    let issue = Issue { uri, serves: true, hosts: &hosts, life, now: SystemTime::now() };
    let certificate = authority.sign(&request, issue).unwrap();
    [("ca", pem), ("cert", certificate), ("key", key)].map(|(kind, text)| {
        let path = dir.join(format!("{name}.{kind}"));
        fs::write(&path, text).unwrap();
        path
    })
}

fn role(control: &Part) -> String {
    let token = fs::read_to_string(control.state.path().join("token")).unwrap();
    let token = token.trim();
    let head = format!("GET /v1/status HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n");
    let answer = call(&control.told("api"), &head).unwrap();
    let status: Value = serde_json::from_str(&answer.body).unwrap();
    status["role"].as_str().unwrap().to_owned()
}

#[test]
fn a_control_plane_leads_on_an_etcd_that_demands_a_certificate_and_says_what_it_lacks() {
    if !Etcd::is_installed() {
        return println!("{}", Etcd::MISSING);
    }
    let scratch = tempfile::tempdir().unwrap();
    let [authority, certificate, key] = signed(scratch.path(), "ours");
    let [stranger, ..] = signed(scratch.path(), "stranger");
    let tls =
        Tls { authority: authority.clone(), certificate: certificate.clone(), key: key.clone() };
    let etcd = Etcd::encrypted(scratch.path(), &tls).unwrap();
    let etcd = etcd.addresses().join(",");
    let [ca, other_ca, cert, key] =
        [&authority, &stranger, &certificate, &key].map(|path| path.to_str().unwrap());
    let place = ["--api", "127.0.0.1:0", "--peers", "127.0.0.1:0", "--etcd", &etcd];
    let start = |name: &str, files: &[&str]| {
        Part::start(
            "control-plane",
            &State::new(),
            &[&place[..], &["--name", name], files].concat(),
        )
    };
    let known = ["--etcd-ca", ca, "--etcd-cert", cert, "--etcd-key", key];
    let control = start("c0", &known);
    until("it leads", || role(&control) == "leader");
    let deployed = verb(control.state.path(), &["deploy", path(&hello("one", "")), "--no-check"]);
    assert_eq!(deployed.0, 0, "{deployed:?}");

    let nobody = start("c1", &["--etcd-ca", ca]);
    until("it says what etcd demands", || nobody.said().contains("--etcd-cert"));
    let mistaken = start("c2", &["--etcd-ca", other_ca, "--etcd-cert", cert, "--etcd-key", key]);
    until("it says whom it does not know", || mistaken.said().contains("--etcd-ca"));
    for shut_out in [nobody, mistaken] {
        assert_eq!(role(&shut_out), "standby");
        assert!(shut_out.end().success());
    }
    assert_eq!(role(&control), "leader");
}
