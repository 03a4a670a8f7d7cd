//! An etcd that speaks TLS, and only with those who show a certificate by its authority.

use std::{path::PathBuf, time::SystemTime};

use dirigent_bench::etcd::Tls;
use dirigent_service::tls::{Authority, Foreign, Issue, request};
use futures_util::future::join_all;

use super::*;

/// An authority, its certificate in a file, and whatever it signs beside it.
struct Signer {
    dir: PathBuf,
    authority: Authority,
}

impl Signer {
    fn new(host: &Host, name: &str) -> Self {
        let (pem, key) = Authority::make(&format!("test://{name}"), SystemTime::now()).unwrap();
        let dir = host.dir.path().join(name);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("ca.pem"), &pem).unwrap();
        Self { dir, authority: Authority::load(pem, &key).unwrap() }
    }

    fn ca(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// A certificate for this host, and its key, in a file each.
    fn sign(&self, name: &str) -> (PathBuf, PathBuf) {
        let (key, request) = request().unwrap();
        let uri = format!("test://{name}");
        let hosts = ["127.0.0.1".to_owned()];
        let life = Duration::from_secs(3600);
        let issue = Issue { uri: &uri, serves: true, hosts: &hosts, life, now: SystemTime::now() };
        let certificate = self.authority.sign(&request, issue).unwrap();
        let [path, key_path] = ["cert", "key"].map(|kind| self.dir.join(format!("{name}.{kind}")));
        fs::write(&path, certificate).unwrap();
        fs::write(&key_path, key).unwrap();
        (path, key_path)
    }
}

impl Host {
    /// `None` where etcd is not installed, which is said.
    fn encrypted() -> Option<(Self, Signer)> {
        let mut host = Self::start(0)?;
        let signer = Signer::new(&host, "etcd");
        let (certificate, key) = signer.sign("member");
        let tls = Tls { authority: signer.ca(), certificate, key };
        host.etcd = Etcd::encrypted(host.dir.path(), &tls).unwrap();
        Some((host, signer))
    }

    fn secure_chair(&self, members: &[String], tls: Foreign) -> Chair {
        let config =
            EtcdConfig { members: members.to_vec(), tls: Some(tls), prefix: "/test".to_owned() };
        chair(&config, Member { format: SCHEMA, ..Member::default() }).unwrap()
    }
}

fn known(signer: &Signer) -> Foreign {
    let (certificate, key) = signer.sign("us");
    Foreign::open(&signer.ca(), Some((&certificate, &key))).unwrap()
}

/// Waits for an etcd that has just been started.
fn taken(store: &mut EtcdStore) -> Records {
    let begin = Instant::now();
    loop {
        match store.take_office(Epoch(0)) {
            Ok((_, records)) => return records,
            Err(error) => assert!(begin.elapsed() < Duration::from_secs(60), "{error}"),
        }
    }
}

/// Why etcd cannot be looked at: what is meant, unless something else is said for long. On a busy
/// machine a look may have no time to find out.
async fn told(chair: &Chair, meant: &[&str]) -> String {
    let begin = Instant::now();
    loop {
        let text = chair.look().await.unwrap_err().to_string();
        let is_late = begin.elapsed() > Duration::from_secs(60);
        if is_late || meant.iter().all(|part| text.contains(part)) {
            return text;
        }
    }
}

#[test]
fn an_etcd_that_demands_certificates_keeps_records_and_a_renewed_one_serves_the_next_connection() {
    let Some((mut host, signer)) = Host::encrypted() else { return };
    let mut store = host.store(host.secure_chair(&host.etcd.addresses(), known(&signer)));
    taken(&mut store);
    assert!(matches!(apply(&mut store, &[worker(1, "one")]), Outcome::Ok { .. }));
    host.etcd.kill(0);
    // Another key by another life of the same process.
    signer.sign("us");
    host.etcd.restart(0).unwrap();
    let begin = Instant::now();
    while !matches!(apply(&mut store, &[worker(2, "two")]), Outcome::Ok { .. }) {
        assert!(begin.elapsed() < Duration::from_secs(60));
    }
    let mut next = host.store(host.secure_chair(&host.etcd.addresses(), known(&signer)));
    let names: Vec<_> = taken(&mut next).workers.iter().map(|it| it.name.to_string()).collect();
    assert_eq!(names, ["one", "two"]);
}

#[test]
fn whoever_does_not_trust_the_other_says_so_and_what_to_do_and_nothing_is_in_doubt() {
    let Some((host, signer)) = Host::encrypted() else { return };
    let addresses = host.etcd.addresses();
    taken(&mut host.store(host.secure_chair(&addresses, known(&signer))));
    let stranger = Signer::new(&host, "stranger");
    let (certificate, key) = stranger.sign("us");
    let named_otherwise: Vec<String> =
        addresses.iter().map(|at| at.replace("127.0.0.1", "localhost")).collect();
    let cases = [
        (&addresses, known(&stranger), vec!["stranger/ca.pem", "--etcd-ca"]),
        (&addresses, Foreign::open(&signer.ca(), None).unwrap(), vec!["--etcd-cert", "--etcd-key"]),
        (
            &addresses,
            Foreign::open(&signer.ca(), Some((&certificate, &key))).unwrap(),
            vec!["stranger/us.cert", "--trusted-ca-file"],
        ),
        (&named_otherwise, known(&signer), vec!["`localhost`", "--etcd"]),
    ];
    let looks = cases.map(|(members, tls, meant)| {
        let chair = host.secure_chair(members, tls);
        async move { (told(&chair, &meant).await, meant) }
    });
    for (text, meant) in host.runtime.block_on(join_all(looks)) {
        assert!(text.contains("no member of etcd can be reached"), "{text}");
        assert!(meant.iter().all(|part| text.contains(part)), "{meant:?}: {text}");
    }
}

#[test]
fn an_etcd_that_speaks_no_tls_is_told_from_one_that_does() {
    let Some(host) = Host::start(1) else { return };
    let signer = Signer::new(&host, "etcd");
    let encrypted: Vec<String> =
        host.etcd.addresses().iter().map(|at| at.replace("http://", "https://")).collect();
    let chair = host.secure_chair(&encrypted, known(&signer));
    let error = host.runtime.block_on(told(&chair, &["by http://"]));
    assert!(error.contains("by http://"), "{error}");
}
