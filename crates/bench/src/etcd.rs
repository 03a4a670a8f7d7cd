//! An etcd of one's own: members on free ports and in a directory of the caller's, which end with it.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Until all members answer.
const START_WITHIN: Duration = Duration::from_secs(30);
/// Until one answers a question.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// See the module.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    dir: PathBuf,
    client: SocketAddr,
    peer: SocketAddr,
    cluster: String,
    tls: Option<Tls>,
    child: Option<Child>,
}

/// Files in PEM of an etcd that speaks TLS with its clients, and only with those who show a
/// certificate.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The certificate of the authority by which it knows them.
    pub authority: PathBuf,
    /// Its own.
    pub certificate: PathBuf,
    /// The key of that.
    pub key: PathBuf,
}

/// What a member says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    id: String,
    leader: Option<String>,
    revision: u64,
}

impl Status {
    /// Whether it leads; nothing while it knows of no leader.
    #[must_use]
    pub fn leads(&self) -> Option<bool> {
        self.leader.as_ref().map(|leader| *leader == self.id)
    }
}

impl Etcd {
    /// What tests say where it is not.
    pub const MISSING: &str = "skip: etcd is not installed (Debian: etcd-server)";

    /// Whether the program is installed.
    #[must_use]
    pub fn is_installed() -> bool {
        std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join("etcd").is_file()))
    }

    /// Starts `count` members, with their data below `scratch`, and waits until they have a leader.
    ///
    /// # Errors
    /// If they do not come up, with the last lines that one wrote.
    pub fn start(scratch: &Path, count: usize) -> Result<Self> {
        let this = Self::begin(scratch, count, None)?;
        let begin = Instant::now();
        while !this.members.iter().all(|member| member.leads().is_some()) {
            if begin.elapsed() > START_WITHIN {
                bail!("etcd does not start:\n{}", this.last_words());
            }
            thread::park_timeout(PAUSE);
        }
        Ok(this)
    }

    /// Starts one member that speaks TLS, with its data below `scratch`. It is not waited for: only
    /// those whom it knows can ask it anything.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn encrypted(scratch: &Path, tls: &Tls) -> Result<Self> {
        Self::begin(scratch, 1, Some(tls))
    }

    fn begin(scratch: &Path, count: usize, tls: Option<&Tls>) -> Result<Self> {
        // Bound together, so that no port is given twice, and freed together.
        let listeners = (0..2 * count)
            .map(|_| TcpListener::bind("127.0.0.1:0"))
            .collect::<Result<Vec<_>, _>>()?;
        let ports = listeners.iter().map(TcpListener::local_addr).collect::<Result<Vec<_>, _>>()?;
        drop(listeners);
        let pairs: Vec<(SocketAddr, SocketAddr)> = ports
            .chunks_exact(2)
            .filter_map(|pair| Some((*pair.first()?, *pair.last()?)))
            .collect();
        let cluster = initial_cluster(pairs.iter().map(|(_, peer)| *peer));
        let members = pairs.into_iter().enumerate().map(|(number, (client, peer))| {
            let dir = scratch.join(format!("m{number}"));
            let (cluster, tls) = (cluster.clone(), tls.cloned());
            Member { dir, client, peer, cluster, tls, child: None }
        });
        let mut this = Self { members: members.collect() };
        for number in 0..count {
            this.restart(number)?;
        }
        Ok(this)
    }

    /// Where it is asked, as `http://HOST:PORT`, or `https://`.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        let address = |member: &Member| {
            let scheme = if member.tls.is_some() { "https" } else { "http" };
            format!("{scheme}://{}", member.client)
        };
        self.members.iter().map(address).collect()
    }

    /// Where a member is asked.
    #[must_use]
    pub fn client(&self, number: usize) -> Option<SocketAddr> {
        self.members.get(number).map(|member| member.client)
    }

    /// The member that leads now.
    #[must_use]
    pub fn leader(&self) -> Option<usize> {
        self.members.iter().position(|member| member.leads() == Some(true))
    }

    /// How often its data has changed: each transaction that changes something counts once.
    #[must_use]
    pub fn revision(&self) -> Option<u64> {
        self.members.iter().find_map(|member| status(member.client)).map(|status| status.revision)
    }

    /// Ends a member as a failing host would.
    pub fn kill(&mut self, number: usize) {
        if let Some(member) = self.members.get_mut(number) {
            member.kill();
        }
    }

    /// Ends all.
    pub fn kill_all(&mut self) {
        self.members.iter_mut().for_each(Member::kill);
    }

    /// Stops a member where it stands, or lets it go on.
    ///
    /// # Errors
    /// If it does not run.
    pub fn freeze(&self, number: usize, frozen: bool) -> Result<()> {
        let child = self.members.get(number).and_then(|member| member.child.as_ref());
        let pid = child.and_then(|child| i32::try_from(child.id()).ok()).and_then(Pid::from_raw);
        let signal = if frozen { Signal::STOP } else { Signal::CONT };
        kill_process(pid.context("that member does not run")?, signal)?;
        Ok(())
    }

    /// Starts a member again, with what it had.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn restart(&mut self, number: usize) -> Result<()> {
        let member = self.members.get_mut(number).context("there is no such member")?;
        std::fs::create_dir_all(&member.dir)?;
        let log = File::create(member.dir.join("log"))?;
        let mut args = arguments(number, &member.cluster, member.client, member.peer);
        if let Some(tls) = &member.tls {
            let client = format!("https://{}", member.client);
            let urls = [
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
            ];
            let files =
                [("trusted-ca", &tls.authority), ("cert", &tls.certificate), ("key", &tls.key)];
            let files = files.map(|(name, path)| format!("--{name}-file={}", path.display()));
            // What is said last counts; that of the data directory has to be.
            let at = args.len() - 1;
            let demand = "--client-cert-auth".to_owned();
            args.splice(at..at, urls.into_iter().chain(files).chain([demand]));
        }
        let child = Command::new("etcd")
            .args(args)
            .arg(member.dir.join("data"))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot start etcd")?;
        member.child = Some(child);
        Ok(())
    }

    fn last_words(&self) -> String {
        let logs = self.members.iter().map(|member| {
            let log = std::fs::read_to_string(member.dir.join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().rev().take(3).collect();
            lines.join("\n")
        });
        logs.collect::<Vec<_>>().join("\n")
    }
}

/// What members are told of each other, from where each listens for the others.
#[must_use]
pub fn initial_cluster(peers: impl IntoIterator<Item = SocketAddr>) -> String {
    let members = peers.into_iter().enumerate();
    let members = members.map(|(number, peer)| format!("m{number}=http://{peer}"));
    members.collect::<Vec<_>>().join(",")
}

/// The arguments of a member that is known to the others as `mNUMBER`, but for its directory, which
/// is the last one; `cluster` is [`initial_cluster`]. All that has to be known from outside is where
/// it listens.
#[must_use]
pub fn arguments(
    number: usize,
    cluster: &str,
    client: SocketAddr,
    peer: SocketAddr,
) -> Vec<String> {
    let (client, peer) = (format!("http://{client}"), format!("http://{peer}"));
    let name = format!("m{number}");
    let args = ["--name", &name, "--initial-cluster", cluster];
    let clients = ["--listen-client-urls", &client, "--advertise-client-urls", &client];
    let peers = ["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer];
    // Half of etcd's defaults, as `docs/guides/cluster.md` advises for hosts of one data center.
    let timers = ["--heartbeat-interval", "50", "--election-timeout", "500"];
    let rest = ["--logger", "zap", "--log-level", "warn", "--data-dir"];
    let all = [&args[..], &clients, &peers, &timers, &rest].concat();
    all.into_iter().map(str::to_owned).collect()
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill_all();
    }
}

impl Member {
    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may be gone already.
            drop(child.kill());
            drop(child.wait());
        }
    }

    fn leads(&self) -> Option<bool> {
        status(self.client)?.leads()
    }
}

/// What the member says that is asked there, if it answers.
#[must_use]
pub fn status(client: SocketAddr) -> Option<Status> {
    let answer = ask(client, "/v3/maintenance/status").ok()?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Some(Status {
        id: text(answer.pointer("/header/member_id")?)?,
        leader: Some(text(answer.get("leader")?)?).filter(|leader| leader != "0"),
        revision: answer.pointer("/header/revision")?.as_str()?.parse().ok()?,
    })
}

fn ask(client: SocketAddr, path: &str) -> Result<Value> {
    let mut stream = TcpStream::connect_timeout(&client, ANSWER_WITHIN)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    // The older version: no chunks.
    let request = format!("POST {path} HTTP/1.0\r\ncontent-length: 2\r\n\r\n{{}}");
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (_, body) = text.split_once("\r\n\r\n").context("an answer without a body")?;
    Ok(serde_json::from_str(body)?)
}
