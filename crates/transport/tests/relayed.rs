//! Connections to sandboxes through their worker, over real sockets with real certificates.

#![cfg(test)]

use std::{
    collections::HashMap,
    fs,
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{
            AtomicBool, AtomicUsize,
            Ordering::{Acquire, Release},
        },
    },
    time::{Duration, SystemTime},
};

use dirigent_core::{Address, Epoch, SandboxId};
use dirigent_service::{
    OnCancel, Tasks,
    tls::{Authority, Files, Issue, request},
};
use dirigent_transport::{Reach, Tunnels, relay};
use socket2::SockRef;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixStream},
};

const DEADLINE: Duration = Duration::from_secs(20);
const HOUR: Duration = Duration::from_secs(3600);
/// Where nobody listens.
const NOBODY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("the test's deadline")
}

fn sandbox(number: u64) -> SandboxId {
    SandboxId::new(Epoch(1), number)
}

/// A worker `w` with a relay, whose sandboxes the test has, and a data plane.
struct Rig {
    dir: TempDir,
    authority: Authority,
    tasks: Tasks,
    at: SocketAddr,
    behind: Arc<Mutex<HashMap<SandboxId, Address>>>,
}

impl Rig {
    async fn new() -> Self {
        let (pem, key) = Authority::make("dirigent://test", SystemTime::now()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ca.pem"), &pem).unwrap();
        let authority = Authority::load(pem, &key).unwrap();
        let (tasks, behind) = (Tasks::new(), Arc::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let rig = Self { dir, authority, tasks, at, behind };
        rig.serve(listener, &rig.tasks);
        rig
    }

    fn serve(&self, listener: TcpListener, tasks: &Tasks) {
        let behind = Arc::clone(&self.behind);
        let find = Arc::new(move |sandbox| behind.lock().unwrap().get(&sandbox).cloned());
        let files = self.files("worker/w", HOUR);
        // Nobody is there to say who was removed.
        let reach = Reach::certified(vec![NOBODY], files.clone(), None).unwrap();
        relay(listener, files, find, reach, tasks);
    }

    fn files(&self, member: &str, life: Duration) -> Files {
        let (key, request) = request().unwrap();
        let uri = format!("dirigent://test/{member}");
        let serves = member.starts_with("worker/");
        let issue = Issue { uri: &uri, serves, hosts: &[], life, now: SystemTime::now() };
        let certificate = self.authority.sign(&request, issue).unwrap();
        let path = self.dir.path().join(member.replace('/', "-"));
        fs::write(&path, certificate + &key).unwrap();
        Files::open(&self.dir.path().join("ca.pem"), &path).unwrap()
    }

    fn tunnels(&self, member: &str) -> Tunnels {
        Tunnels::new(self.files(member, HOUR), &self.tasks)
    }

    /// A sandbox of this number; its listener.
    async fn sandbox(&self, number: u64) -> TcpListener {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = Address::Tcp(listener.local_addr().unwrap());
        self.behind.lock().unwrap().insert(sandbox(number), own);
        listener
    }

    async fn open(&self, tunnels: &Tunnels, number: u64) -> io::Result<Tunnel> {
        let broken = Arc::new(AtomicBool::new(false));
        let opened = tunnels.open(self.at, "w", sandbox(number), Arc::clone(&broken));
        let stream = UnixStream::from_std(within(opened).await?)?;
        Ok(Tunnel { stream, broken })
    }

    /// Both ends of a connection to a sandbox of this number.
    async fn joined(&self, tunnels: &Tunnels, number: u64) -> (Tunnel, TcpStream) {
        let listener = self.sandbox(number).await;
        let tunnel = self.open(tunnels, number).await.unwrap();
        let (theirs, _) = within(listener.accept()).await.unwrap();
        (tunnel, theirs)
    }
}

#[derive(Debug)]
struct Tunnel {
    stream: UnixStream,
    broken: Arc<AtomicBool>,
}

impl Tunnel {
    /// What comes until the end, and whether that is one.
    async fn rest(&mut self) -> (Vec<u8>, bool) {
        let mut heard = Vec::new();
        let read = within(self.stream.read_to_end(&mut heard)).await;
        (heard, read.is_ok() && !self.broken.load(Acquire))
    }
}

async fn heard(stream: &mut (impl tokio::io::AsyncRead + Unpin), text: &[u8]) {
    let mut buffer = vec![0; text.len()];
    within(stream.read_exact(&mut buffer)).await.unwrap();
    assert_eq!(buffer, text);
}

#[tokio::test]
async fn bytes_and_ends_go_both_ways_each_on_its_own() {
    let rig = Rig::new().await;
    let tunnels = rig.tunnels("data-plane/d");
    let (mut first, mut one) = rig.joined(&tunnels, 1).await;
    let (mut second, mut two) = rig.joined(&tunnels, 2).await;
    first.stream.write_all(b"ask").await.unwrap();
    second.stream.write_all(b"other").await.unwrap();
    heard(&mut one, b"ask").await;
    heard(&mut two, b"other").await;
    // One direction ends and the other goes on.
    first.stream.shutdown().await.unwrap();
    assert_eq!(within(one.read_u8()).await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    one.write_all(b"answer").await.unwrap();
    drop(one);
    assert_eq!(first.rest().await, (b"answer".to_vec(), true));
    two.write_all(b"still here").await.unwrap();
    heard(&mut second.stream, b"still here").await;
}

#[tokio::test]
async fn a_connection_that_broke_is_not_taken_for_one_that_ended() {
    let rig = Rig::new().await;
    let tunnels = rig.tunnels("data-plane/d");
    let (mut tunnel, mut sandbox) = rig.joined(&tunnels, 1).await;
    sandbox.write_all(b"half of an ans").await.unwrap();
    heard(&mut tunnel.stream, b"half of an ans").await;
    SockRef::from(&sandbox).set_linger(Some(Duration::ZERO)).unwrap();
    drop(sandbox);
    assert!(!tunnel.rest().await.1);
    // Nor is the worker's end.
    let (mut tunnel, _sandbox) = rig.joined(&tunnels, 2).await;
    rig.tasks.stop();
    assert!(!tunnel.rest().await.1);
}

#[tokio::test]
async fn a_caller_who_leaves_is_heard_by_the_sandbox() {
    let rig = Rig::new().await;
    let (tunnel, mut sandbox) = rig.joined(&rig.tunnels("data-plane/d"), 1).await;
    drop(tunnel);
    assert_eq!(within(sandbox.read(&mut [0])).await.unwrap(), 0);
    // As over TCP: told by a reset, once it goes on to answer.
    let told = within(async {
        loop {
            if let Err(error) = sandbox.write_all(&[0; 1 << 16]).await {
                return error;
            }
        }
    });
    assert!(matches!(told.await.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe));
}

#[tokio::test]
async fn an_answer_arrives_from_who_hangs_up_before_it_was_told_everything() {
    let rig = Rig::new().await;
    let (tunnel, mut sandbox) = rig.joined(&rig.tunnels("data-plane/d"), 1).await;
    let (mut reader, mut writer) = tunnel.stream.into_split();
    let telling = async {
        // Until nobody takes it any more.
        while writer.write_all(&[7; 1 << 16]).await.is_ok() {}
    };
    let answering = async {
        heard(&mut sandbox, &[7; 1000]).await;
        sandbox.write_all(b"too large").await.unwrap();
        // Without a reset, which would overtake the answer on any connection.
        SockRef::from(&sandbox).shutdown(Shutdown::Write).unwrap();
        heard(&mut reader, b"too large").await;
        drop((reader, sandbox));
    };
    within(async { tokio::join!(telling, answering) }).await;
}

#[tokio::test]
async fn who_takes_nothing_is_waited_for_and_keeps_nobody_else_waiting() {
    let rig = Rig::new().await;
    let tunnels = rig.tunnels("data-plane/d");
    let (stalled, mut flood) = rig.joined(&tunnels, 1).await;
    let mut sent = 0_usize;
    // As much as lies in between; a second without progress is no condition but the absence of one.
    while let Ok(written) =
        tokio::time::timeout(Duration::from_secs(1), flood.write(&[1; 1 << 16])).await
    {
        sent += written.unwrap();
        assert!(sent < 64 << 20, "nothing holds it up");
    }
    let (mut other, mut quick) = rig.joined(&tunnels, 2).await;
    let body = vec![3; 8 << 20];
    let (told, ()) = tokio::join!(quick.write_all(&body), heard(&mut other.stream, &body));
    told.unwrap();
    // Nothing was lost of what waited.
    drop(flood);
    let mut stalled = stalled;
    let (rest, ended) = stalled.rest().await;
    assert_eq!((rest.len(), ended), (sent, true));
}

#[tokio::test]
async fn sandboxes_that_are_gone_or_take_nothing_refuse_at_once() {
    let rig = Rig::new().await;
    let tunnels = rig.tunnels("data-plane/d");
    let error = rig.open(&tunnels, 1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    drop(rig.sandbox(2).await);
    let error = rig.open(&tunnels, 2).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
}

#[tokio::test]
async fn only_data_planes_are_let_in_and_only_the_worker_that_is_meant_is_met() {
    let rig = Rig::new().await;
    let _listener = rig.sandbox(1).await;
    for member in ["worker/other", "control-plane/c"] {
        rig.open(&rig.tunnels(member), 1).await.unwrap_err();
    }
    let stranger = Rig::new().await;
    rig.open(&stranger.tunnels("data-plane/d"), 1).await.unwrap_err();
    let tunnels = rig.tunnels("data-plane/d");
    let other = tunnels.open(rig.at, "other", sandbox(1), Arc::default());
    assert_eq!(within(other).await.unwrap_err().kind(), ErrorKind::PermissionDenied);
    rig.open(&tunnels, 1).await.unwrap();
}

#[tokio::test]
async fn a_worker_that_was_started_again_is_met_again() {
    let rig = Rig::new().await;
    let mut rig = rig;
    let life = std::mem::take(&mut rig.tasks);
    let tunnels = rig.tunnels("data-plane/d");
    let (mut tunnel, _sandbox) = rig.joined(&tunnels, 1).await;
    life.stop();
    assert!(!tunnel.rest().await.1);
    assert!(life.wait(DEADLINE).await);
    let listener = TcpListener::bind(rig.at).await.unwrap();
    rig.serve(listener, &rig.tasks);
    let (mut tunnel, mut sandbox) = rig.joined(&tunnels, 2).await;
    sandbox.write_all(b"back").await.unwrap();
    heard(&mut tunnel.stream, b"back").await;
}

#[tokio::test]
async fn a_connection_is_made_once_also_where_nobody_waits_as_long_as_that_takes() {
    let rig = Rig::new().await;
    let tunnels = rig.tunnels("data-plane/d");
    // Counts those who come to the relay.
    let door = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (before, came) = (door.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let (count, tasks, behind) = (Arc::clone(&came), rig.tasks.clone(), rig.at);
    rig.tasks.run("door", OnCancel::Abort, async move {
        while let Ok((mut outside, _)) = door.accept().await {
            count.fetch_add(1, Release);
            tasks.run("passage", OnCancel::Abort, async move {
                let mut inside = TcpStream::connect(behind).await.unwrap();
                drop(tokio::io::copy_bidirectional(&mut outside, &mut inside).await);
            });
        }
    });
    let ask = || tunnels.open(before, "w", sandbox(1), Arc::default());
    for _ in 0..20 {
        assert!(tokio::time::timeout(Duration::ZERO, ask()).await.is_err());
    }
    let refused = within(ask()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{refused}");
    assert_eq!(came.load(Acquire), 1);
}

#[tokio::test]
async fn callers_who_leave_before_they_are_heard_cost_nobody_else_the_connection() {
    let rig = Rig::new().await;
    let tunnels = rig.tunnels("data-plane/d");
    let (mut tunnel, mut sandbox) = rig.joined(&tunnels, 1).await;
    for _ in 0..5 {
        let leaving = (0..200).map(async |_| {
            // Asked, and given up before anybody could answer.
            let asked = rig.open(&tunnels, 1);
            drop(tokio::time::timeout(Duration::ZERO, asked).await);
        });
        futures_util::future::join_all(leaving).await;
        sandbox.write_all(b"still").await.unwrap();
        heard(&mut tunnel.stream, b"still").await;
    }
}

#[tokio::test]
async fn many_ask_at_once_before_there_is_a_connection() {
    let rig = Rig::new().await;
    let (tunnels, listener) = (rig.tunnels("data-plane/d"), rig.sandbox(1).await);
    let tasks = rig.tasks.clone();
    rig.tasks.run("sandbox", OnCancel::Abort, async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tasks.run("connection", OnCancel::Abort, async move {
                let (mut reader, mut writer) = stream.split();
                drop(tokio::io::copy(&mut reader, &mut writer).await);
            });
        }
    });
    let asks = (0..500_u32).map(async |number| {
        let mut tunnel = rig.open(&tunnels, 1).await.unwrap();
        tunnel.stream.write_u32(number).await.unwrap();
        tunnel.stream.shutdown().await.unwrap();
        assert_eq!(tunnel.rest().await, (number.to_be_bytes().to_vec(), true));
    });
    futures_util::future::join_all(asks).await;
}
