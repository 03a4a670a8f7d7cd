use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;

const HOUR: Duration = Duration::from_secs(3600);
const BELOW: &str = "/server/";

/// An authority and the files of those whom it knows.
struct Rig {
    dir: TempDir,
    authority: Authority,
}

impl Rig {
    fn new() -> Self {
        let (pem, key) = Authority::make("test://one", SystemTime::now()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ca.pem"), &pem).unwrap();
        Self { dir, authority: Authority::load(pem, &key).unwrap() }
    }

    fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    fn pem(&self, uri: &str, now: SystemTime) -> (String, String) {
        let (key, request) = request().unwrap();
        let hosts = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let issue = Issue { uri, serves: !hosts.is_empty(), hosts: &hosts, life: HOUR, now };
        (self.authority.sign(&request, issue).unwrap(), key)
    }

    fn files_at(&self, uri: &str, now: SystemTime) -> Files {
        let (certificate, key) = self.pem(uri, now);
        let own = self.dir.path().join(uri.replace(['/', ':'], "-"));
        fs::write(&own, format!("{certificate}{key}")).unwrap();
        Files::open(&self.ca(), &own).unwrap()
    }

    fn files(&self, uri: &str) -> Files {
        self.files_at(uri, SystemTime::now())
    }
}

/// Both ends of a connection, as each sees it.
async fn meet(
    server: &Files,
    caller: Caller,
    trust: &Trust,
    host: &str,
) -> (std::io::Result<Stream>, Result<Stream, ConnectError>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = server.accept(stream, caller).await?;
        stream.write_all(b"x").await?;
        Ok(stream)
    };
    let client = async {
        let stream = TcpStream::connect(address).await.unwrap();
        connect(stream, host, trust, BELOW).await
    };
    tokio::join!(server, client)
}

#[tokio::test]
async fn each_side_is_known_by_the_uri_of_its_certificate() {
    let rig = Rig::new();
    let server = rig.files("test://one/server/a");
    let client = Trust::Files(rig.files("test://one/client/b"));
    let (server, client) = meet(&server, Caller::Known, &client, "192.0.2.1").await;
    let (server, mut client) = (server.unwrap(), client.unwrap());
    assert_eq!(server.peer().unwrap().uri.as_deref(), Some("test://one/client/b"));
    assert_eq!(client.peer().unwrap().uri.as_deref(), Some("test://one/server/a"));
    let mut byte = [0];
    client.read_exact(&mut byte).await.unwrap();
    assert_eq!(&byte, b"x");
}

#[tokio::test]
async fn one_who_is_no_server_is_not_taken_for_one() {
    let rig = Rig::new();
    let impostor = rig.files("test://one/client/b");
    let trust = Trust::Files(rig.files("test://one/client/c"));
    let (_, client) = meet(&impostor, Caller::Known, &trust, "127.0.0.1").await;
    assert!(matches!(client.unwrap_err(), ConnectError::Other(_)));
}

#[tokio::test]
async fn an_authority_is_known_by_its_fingerprint_or_its_file() {
    let (rig, other) = (Rig::new(), Rig::new());
    let server = rig.files("test://one/server/a");
    let pin = Fingerprint::of_pem(rig.authority.pem()).unwrap();
    assert_eq!(pin.to_string().parse(), Ok(pin));
    let trusts = [Trust::Pinned(pin), Trust::file(&rig.ca()).unwrap()];
    for trust in &trusts {
        let (_, client) = meet(&server, Caller::Anybody, trust, "192.0.2.1").await;
        client.unwrap();
    }
    let pin = Fingerprint::of_pem(other.authority.pem()).unwrap();
    for trust in [Trust::Pinned(pin), Trust::file(&other.ca()).unwrap()] {
        let (_, client) = meet(&server, Caller::Anybody, &trust, "127.0.0.1").await;
        assert!(matches!(client.unwrap_err(), ConnectError::Stranger));
    }
    for text in ["", "00", &"zz".repeat(32), &"00".repeat(33)] {
        assert!(text.parse::<Fingerprint>().is_err(), "{text}");
    }
}

/// What the server says against the client's certificate reaches the client.
async fn complaint(server: &Files, client: Files) -> (String, String) {
    let (server, client) = meet(server, Caller::Known, &Trust::Files(client), "127.0.0.1").await;
    let mut client = client.unwrap();
    let complaint = client.complaint();
    client.read_u8().await.unwrap_err();
    (server.unwrap_err().to_string(), complaint.get().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_told_on_both_sides() {
    let (rig, other) = (Rig::new(), Rig::new());
    let server = rig.files("test://one/server/a");
    let now = SystemTime::now();
    // Clocks that are off by an hour: valid for an hour from an hour ago, or from in an hour on.
    for (at, says) in [(now - 2 * HOUR, "expired"), (now + HOUR, "not valid yet")] {
        let client = rig.files_at("test://one/client/b", at);
        let (server, client) = complaint(&server, client).await;
        assert!(server.contains(says), "{server}");
        assert!(client.contains("clock"), "{client}");
    }
    // It knows the authority, but has its certificate from another one.
    let own = other.dir.path().join("test---one-client-b");
    drop(other.files("test://one/client/b"));
    let (_, client) = complaint(&server, Files::open(&rig.ca(), &own).unwrap()).await;
    assert!(client.contains("not by the authority"), "{client}");
    for at in [now - 2 * HOUR, now + HOUR] {
        let server = rig.files_at("test://one/server/a", at);
        let trust = Trust::Files(rig.files("test://one/client/b"));
        let (_, client) = meet(&server, Caller::Known, &trust, "127.0.0.1").await;
        let error = client.unwrap_err();
        assert!(matches!(error, ConnectError::Clock(_)), "{error}");
    }
}

#[tokio::test]
async fn who_shows_no_certificate_is_no_known_caller() {
    let rig = Rig::new();
    let server = rig.files("test://one/server/a");
    let trust = Trust::file(&rig.ca()).unwrap();
    let (server, _) = meet(&server, Caller::Known, &trust, "127.0.0.1").await;
    server.unwrap_err();
}

#[tokio::test]
async fn a_renewed_certificate_serves_the_next_connection() {
    let rig = Rig::new();
    let server = rig.files("test://one/server/a");
    let client = rig.files("test://one/client/b");
    let first = client.certificate();
    assert!(first.renew_at() < first.not_after && first.renew_at() > SystemTime::now());
    let shown = async |client: &Files| {
        let trust = Trust::Files(client.clone());
        let (server, _) = meet(&server, Caller::Known, &trust, "127.0.0.1").await;
        server.unwrap().peer().unwrap().serial.clone()
    };
    assert_eq!(shown(&client).await, first.serial);
    let (certificate, key) = rig.pem("test://one/client/b", SystemTime::now());
    let (_, stray) = rig.pem("test://one/client/b", SystemTime::now());
    client.replace(&certificate, &stray).unwrap_err();
    assert_eq!(shown(&client).await, first.serial, "one that does not fit changes nothing");
    client.replace(&certificate, &key).unwrap();
    let second = Certificate::of_pem(&certificate).unwrap().serial;
    assert_eq!(shown(&client).await, second);
    // By somebody else, too.
    let own = rig.dir.path().join("test---one-client-b");
    let (certificate, key) = rig.pem("test://one/client/b", SystemTime::now());
    crate::state::atomic_write(&own, format!("{certificate}{key}").as_bytes(), 0o600).unwrap();
    assert_eq!(shown(&client).await, Certificate::of_pem(&certificate).unwrap().serial);
    crate::state::atomic_write(&own, b"nonsense", 0o600).unwrap();
    assert_eq!(shown(&client).await, Certificate::of_pem(&certificate).unwrap().serial);
}

#[tokio::test]
async fn nonsense_and_silence_at_the_door_keep_nobody_waiting() {
    let rig = Rig::new();
    let server = rig.files("test://one/server/a");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tasks = crate::Tasks::new();
    let mut taken = incoming(listener, Some(server), &tasks);
    let mut mute = Vec::new();
    for garbage in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", &[0xff; 4096]] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // It may hang up in the middle.
        drop(stream.write_all(garbage).await);
        mute.push(stream);
    }
    let trust = Trust::Files(rig.files("test://one/client/b"));
    let stream = TcpStream::connect(address).await.unwrap();
    let _client = connect(stream, "127.0.0.1", &trust, BELOW).await.unwrap();
    let stream = taken.recv().await.unwrap();
    assert_eq!(stream.peer().unwrap().uri.as_deref(), Some("test://one/client/b"));
    tasks.stop();
}

#[test]
fn only_who_has_the_key_gets_a_certificate_and_says_nothing_about_it() {
    let rig = Rig::new();
    let (_, asked) = request().unwrap();
    let issue = Issue {
        uri: "test://one/x",
        serves: false,
        hosts: &[],
        life: HOUR,
        now: SystemTime::now(),
    };
    let certificate = rig.authority.sign(&asked, issue).unwrap();
    let read = Certificate::of_pem(&certificate).unwrap();
    assert_eq!(read.uri.as_deref(), Some("test://one/x"));
    let (_, other) = request().unwrap();
    // Another request's end has another key's signature.
    let middle = asked.len() / 2;
    let forged = format!("{}{}", &asked[..middle], &other[middle..]);
    let error = rig.authority.sign(&forged, issue).unwrap_err();
    assert!(matches!(error, CertificateError::Request(_)), "{error}");
    assert!(matches!(rig.authority.sign("x", issue), Err(CertificateError::Request(_))));
    assert!(!format!("{:?}", rig.authority).contains("PRIVATE"));
}

#[test]
fn a_file_that_cannot_be_used_is_named() {
    let rig = Rig::new();
    let missing = Files::open(&rig.ca(), Path::new("/nonexistent/own")).unwrap_err();
    assert!(missing.to_string().contains("/nonexistent/own"), "{missing}");
    let error = Files::open(&rig.ca(), &rig.ca()).unwrap_err();
    assert!(error.to_string().contains("ca.pem"), "{error}");
}

/// Both ends of a connection that `foreign` calls at a host of this name.
async fn call(
    server: &Files,
    foreign: &Foreign,
    host: &str,
) -> (std::io::Result<Stream>, Result<Stream, ConnectError>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = server.accept(stream, Caller::Known).await?;
        stream.write_all(b"x").await?;
        Ok(stream)
    };
    let client = async {
        let stream = TcpStream::connect(address).await.unwrap();
        foreign.connect(stream, host, b"h2").await
    };
    tokio::join!(server, client)
}

impl Rig {
    /// A certificate and its key, in a file each.
    fn pair(&self, uri: &str, now: SystemTime) -> (PathBuf, PathBuf) {
        let (certificate, key) = self.pem(uri, now);
        let [certificate_path, key_path] =
            ["cert.pem", "key.pem"].map(|it| self.dir.path().join(it));
        fs::write(&certificate_path, certificate).unwrap();
        fs::write(&key_path, key).unwrap();
        (certificate_path, key_path)
    }
}

#[tokio::test]
async fn a_foreign_server_is_known_by_its_host_and_knows_us_by_a_certificate_of_its_authority() {
    let (theirs, stranger) = (Rig::new(), Rig::new());
    let server = theirs.files("test://one/anybody");
    let (certificate, key) = theirs.pair("test://one/us", SystemTime::now());
    let foreign = Foreign::open(&theirs.ca(), Some((&certificate, &key))).unwrap();
    for host in ["127.0.0.1", "localhost"] {
        let (server, client) = call(&server, &foreign, host).await;
        assert_eq!(server.unwrap().peer().unwrap().uri.as_deref(), Some("test://one/us"));
        // What it said first is there for whoever reads.
        let mut byte = [0];
        client.unwrap().read_exact(&mut byte).await.unwrap();
        assert_eq!(&byte, b"x");
    }
    // Another name than its certificate has; that it has a URI makes no difference.
    for host in ["127.0.0.2", "[::1]", "example.org"] {
        let (_, client) = call(&server, &foreign, host).await;
        assert!(matches!(client.unwrap_err(), ConnectError::Other(_)), "{host}");
    }
    let mistaken = Foreign::open(&stranger.ca(), Some((&certificate, &key))).unwrap();
    let (_, client) = call(&server, &mistaken, "localhost").await;
    assert!(matches!(client.unwrap_err(), ConnectError::Stranger));
}

#[tokio::test]
async fn a_foreign_server_that_does_not_want_our_certificate_says_why() {
    let (theirs, stranger) = (Rig::new(), Rig::new());
    let server = theirs.files("test://one/anybody");
    let (certificate, key) = stranger.pair("test://two/us", SystemTime::now());
    let none = Foreign::open(&theirs.ca(), None).unwrap();
    let wrong = Foreign::open(&theirs.ca(), Some((&certificate, &key))).unwrap();
    for (foreign, said) in [(none, "is needed"), (wrong, "not by the authority")] {
        let (server, client) = call(&server, &foreign, "localhost").await;
        server.unwrap_err();
        let error = client.unwrap_err().to_string();
        assert!(error.contains("does not let this host in") && error.contains(said), "{error}");
    }
}

#[tokio::test]
async fn files_to_be_known_by_are_read_again_and_the_one_that_is_no_good_is_named() {
    let theirs = Rig::new();
    let server = theirs.files("test://one/anybody");
    let (certificate, key) = theirs.pair("test://one/first", SystemTime::now());
    let own = Some((&*certificate, &*key));
    let foreign = Foreign::open(&theirs.ca(), own).unwrap();
    theirs.pair("test://one/second", SystemTime::now());
    let (server, _client) = call(&server, &foreign, "localhost").await;
    assert_eq!(server.unwrap().peer().unwrap().uri.as_deref(), Some("test://one/second"));

    let told = |own| {
        let error = Foreign::open(&theirs.ca(), own).unwrap_err();
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error}: {}", cause.unwrap_or_default())
    };
    theirs.pair("test://one/late", SystemTime::now() - 2 * HOUR);
    assert!(
        told(own).contains("cert.pem cannot be used: this certificate ran out"),
        "{}",
        told(own)
    );
    let (other, _) = request().unwrap();
    theirs.pair("test://one/third", SystemTime::now());
    fs::write(&key, other).unwrap();
    assert!(told(own).contains("key.pem cannot be used"), "{}", told(own));
    fs::remove_file(&key).unwrap();
    assert!(told(own).contains("key.pem cannot be used: No such file"), "{}", told(own));
    fs::write(theirs.ca(), "nothing").unwrap();
    assert!(told(None).contains("ca.pem cannot be used: "), "{}", told(None));
}
