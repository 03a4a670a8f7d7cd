//! Who may do what with which certificate, over real connections.

#![cfg(test)]

mod shelf;

use std::{
    collections::BTreeSet,
    fs,
    future::ready,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use dirigent_core::{
    Epoch, Member,
    frame::{FromWorker, ToWorker},
};
use dirigent_proto::v1::control_plane_client::ControlPlaneClient;
use dirigent_service::{
    Acceptor, End, Tasks,
    tls::{Authority, Certificate, Files, Issue, Trust, connect, request},
};
use dirigent_transport::{Entrance, Members, Reach, serve};
use futures_util::stream::pending;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tempfile::TempDir;
use tokio::{net::TcpStream, sync::watch};
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};

const DEADLINE: Duration = Duration::from_secs(20);
const HOUR: Duration = Duration::from_secs(3600);

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("the test's deadline")
}

/// Members, of whom some were removed.
#[derive(Debug)]
struct Book {
    authority: Authority,
    removed: Mutex<BTreeSet<String>>,
    changes: watch::Sender<u64>,
    /// Of the certificates that it renews.
    life: Duration,
}

impl Members for Book {
    fn admit(&self, certificate: &Certificate) -> Result<Member, String> {
        let uri = certificate.uri.as_deref().unwrap_or_default();
        let member = Member::of(uri, self.authority.uri()).map_err(|error| error.to_string())?;
        if self.removed.lock().unwrap().contains(member.name()) {
            return Err(format!("{member} was removed"));
        }
        Ok(member)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn renew(&self, certificate: &Certificate, request: &str) -> Result<String, String> {
        let uri = self.admit(certificate)?.uri(self.authority.uri());
        let issue =
            Issue { uri: &uri, serves: false, hosts: &[], life: self.life, now: SystemTime::now() };
        self.authority.sign(request, issue).map_err(|error| error.to_string())
    }
}

struct Rig {
    dir: TempDir,
    tasks: Tasks,
    address: SocketAddr,
    book: Arc<Book>,
    workers: Acceptor<ToWorker, FromWorker>,
}

impl Rig {
    async fn new() -> Self {
        let (pem, key) = Authority::make("dirigent://test", SystemTime::now()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ca.pem"), &pem).unwrap();
        let book = Arc::new(Book {
            authority: Authority::load(pem, &key).unwrap(),
            removed: Mutex::default(),
            changes: watch::Sender::new(0),
            life: HOUR,
        });
        let tasks = Tasks::new();
        let (listener, doors, (workers, _)) = shelf::doors().await;
        let address = listener.local_addr().unwrap();
        let rig = Self { dir, tasks, address, book, workers };
        let files = rig.files("control-plane/c1", SystemTime::now(), HOUR);
        let members = Arc::clone(&rig.book);
        let leads = watch::channel(Some(Epoch(1))).1;
        serve(listener, doors, leads, Entrance::Certificates(files, members), &rig.tasks);
        rig
    }

    fn path(&self, member: &str) -> PathBuf {
        self.dir.path().join(member.replace('/', "-"))
    }

    /// The certificate of `ROLE/NAME`, made at this time for so long.
    fn files(&self, member: &str, now: SystemTime, life: Duration) -> Files {
        let (key, request) = request().unwrap();
        let hosts = if member.starts_with("control") { &["x".to_owned()][..] } else { &[] };
        let uri = format!("dirigent://test/{member}");
        let serves = !hosts.is_empty();
        let issue = Issue { uri: &uri, serves, hosts, life, now };
        let certificate = self.book.authority.sign(&request, issue).unwrap();
        fs::write(self.path(member), certificate + &key).unwrap();
        Files::open(&self.dir.path().join("ca.pem"), &self.path(member)).unwrap()
    }

    fn reach(&self, files: Files, number: Option<u32>) -> Reach {
        Reach::certified(vec![self.address], files, number).unwrap()
    }

    /// To call whatever it likes.
    async fn client(
        &self,
        files: Files,
    ) -> Result<ControlPlaneClient<Channel>, tonic::transport::Error> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let stream = connect(stream, "x", &Trust::Files(files), "/control-plane/").await.unwrap();
        let mut once = Some(TokioIo::new(stream));
        let connector = tower::service_fn(move |_uri| ready(once.take().ok_or("once only")));
        let endpoint = Endpoint::from_static("https://x");
        endpoint.connect_with_connector(connector).await.map(ControlPlaneClient::new)
    }

    /// Dials as a worker; how it is called on the other side.
    async fn attach(&mut self, reach: &Reach) -> (String, End<FromWorker, ToWorker>) {
        let ours = within(reach.worker(&self.tasks).0.dial()).await.unwrap();
        let (name, theirs) = within(self.workers.accept()).await.unwrap();
        // Both ends of a test's connection go with ours.
        self.tasks.run("theirs", dirigent_service::OnCancel::Abort, async move {
            let mut theirs = theirs;
            while theirs.rx.recv().await.is_some() {}
        });
        (name.to_string(), ours)
    }
}

#[tokio::test]
async fn a_peer_is_who_its_certificate_names_whatever_it_says() {
    let mut rig = Rig::new().await;
    let files = rig.files("worker/w1", SystemTime::now(), HOUR);
    let (name, _ours) = rig.attach(&rig.reach(files.clone(), None)).await;
    assert_eq!(name, "w1");
    // Several that share it are told apart, and are nobody else.
    let (name, _ours) = rig.attach(&rig.reach(files, Some(7))).await;
    assert_eq!(name, "w1/7");
}

#[tokio::test]
async fn a_certificate_opens_the_doors_of_its_role_only() {
    let mut rig = Rig::new().await;
    let now = SystemTime::now();
    for other in ["data-plane/d1", "control-plane/c2"] {
        let reach = rig.reach(rig.files(other, now, HOUR), None);
        let mut refused = within(reach.worker(&rig.tasks).0.dial()).await.unwrap();
        assert_eq!(within(refused.rx.recv()).await, None, "{other}");
    }
    let reach = rig.reach(rig.files("worker/w1", now, HOUR), None);
    let mut refused = within(reach.data_plane(&rig.tasks).0.dial()).await.unwrap();
    assert_eq!(within(refused.rx.recv()).await, None);
    // A second connection goes after the first one, which has to be let in: called directly.
    let refused = rig.client(rig.files("worker/w1", now, HOUR)).await;
    let refused = within(refused.unwrap().data_plane_bulk(pending())).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    // The doors are there for who may pass.
    assert_eq!(rig.attach(&reach).await.0, "w1");
}

#[tokio::test]
async fn clocks_that_are_off_by_an_hour_are_refused_on_the_side_that_sees_it() {
    let mut rig = Rig::new().await;
    let now = SystemTime::now();
    for at in [now - 2 * HOUR, now + HOUR] {
        let reach = rig.reach(rig.files("worker/w1", at, HOUR), None);
        let mut refused = within(reach.worker(&rig.tasks).0.dial()).await.unwrap();
        assert_eq!(within(refused.rx.recv()).await, None);
    }
    let reach = rig.reach(rig.files("worker/w1", now, HOUR), None);
    assert_eq!(rig.attach(&reach).await.0, "w1");
}

#[tokio::test]
async fn who_is_removed_has_to_leave_and_does_not_come_back() {
    let mut rig = Rig::new().await;
    let now = SystemTime::now();
    let (first, second) = (rig.files("worker/w1", now, HOUR), rig.files("worker/w2", now, HOUR));
    let (first, second) = (rig.reach(first, None), rig.reach(second, None));
    let (_, mut gone) = rig.attach(&first).await;
    let (_, mut stays) = rig.attach(&second).await;
    rig.book.removed.lock().unwrap().insert("w1".to_owned());
    rig.book.changes.send_modify(|changes| *changes += 1);
    assert_eq!(within(gone.rx.recv()).await, None);
    let mut refused = within(first.worker(&rig.tasks).0.dial()).await.unwrap();
    assert_eq!(within(refused.rx.recv()).await, None);
    assert!(
        stays
            .rx
            .try_recv()
            .is_err_and(|error| error != tokio::sync::mpsc::error::TryRecvError::Disconnected)
    );
}

#[tokio::test]
async fn a_certificate_is_renewed_before_it_runs_out() {
    let mut rig = Rig::new().await;
    // A third of its life is left, and a bit.
    let files = rig.files("worker/w1", SystemTime::now() - 60 * HOUR / 100, HOUR);
    let first = files.certificate();
    let reach = rig.reach(files.clone(), None);
    // Over a connection that stands nothing happens when it is renewed.
    let (_, ours) = rig.attach(&reach).await;
    rig.files("worker/w1", SystemTime::now() - 70 * HOUR / 100, HOUR);
    let second = files.certificate();
    assert_ne!(first.serial, second.serial, "read again");
    assert!(second.renew_at() < SystemTime::now());
    reach.keep_renewed(&rig.tasks);
    within(async {
        while files.certificate().serial == second.serial {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let third = files.certificate();
    assert_eq!(third.uri, first.uri);
    assert!(third.not_after > second.not_after);
    assert!(!ours.tx.is_closed());
    assert_eq!(rig.attach(&reach).await.0, "w1");
}

#[tokio::test]
async fn a_stream_ends_when_its_certificate_runs_out_and_goes_on_with_the_next_one() {
    let mut rig = Rig::new().await;
    let files = rig.files("worker/w1", SystemTime::now(), Duration::from_secs(6));
    let reach = rig.reach(files, None);
    let (_, mut ours) = rig.attach(&reach).await;
    assert_eq!(within(ours.rx.recv()).await, None, "it ran out");
    rig.files("worker/w1", SystemTime::now(), HOUR);
    assert_eq!(rig.attach(&reach).await.0, "w1");
}

/// One call of the worker's stream with a body of our own making, until it is answered.
async fn call(address: SocketAddr, tasks: &Tasks, files: Files, body: &'static [u8]) {
    let stream = TcpStream::connect(address).await.unwrap();
    let stream = connect(stream, "127.0.0.1", &Trust::Files(files), "/control-plane/").await;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream.unwrap()))
            .await
            .unwrap();
    tasks.run("connection", dirigent_service::OnCancel::Abort, async {
        drop(connection.await);
    });
    let request = http::Request::post(format!("https://{address}/dirigent.v1.ControlPlane/Worker"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from_static(body)))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    response.into_body().collect().await.unwrap();
}

#[tokio::test]
async fn a_frame_of_a_gigabyte_ends_the_stream_of_who_sent_it_and_nobody_elses() {
    let mut rig = Rig::new().await;
    let now = SystemTime::now();
    let good = rig.reach(rig.files("worker/w1", now, HOUR), None);
    let (_, ours) = rig.attach(&good).await;
    let bad = rig.files("worker/w2", now, HOUR);
    // Not compressed, 2^30 bytes, of which the first ones follow.
    let Rig { address, tasks, workers, .. } = &mut rig;
    // Nobody hears of one that begins with it.
    within(call(*address, tasks, bad.clone(), b"\0\x40\0\0\0xxxxxxxx")).await;
    // Behind a batch of nothing, by which a conversation begins.
    let called = call(*address, tasks, bad, b"\0\0\0\0\0\0\x40\0\0\0xxxxxxxx");
    let heard = async {
        let (name, mut theirs) = workers.accept().await.unwrap();
        assert_eq!(&*name, "w2");
        assert_eq!(theirs.rx.recv().await, None, "nothing of it is heard");
    };
    within(async { tokio::join!(called, heard) }).await;
    assert!(!ours.tx.is_closed());
    assert_eq!(rig.attach(&good).await.0, "w1");
}
