//! A cluster: three control planes with an etcd of three members on the same hosts, data planes,
//! workers, and a host from which everything is called, through HAProxy.

mod setup;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Output,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use dirigent_bench::{
    load::{Call, Sample},
    traces::processes_of,
};
use dirigent_service::tls::Trust;
use http::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    ask,
    load::{self, Mix, Steady},
    net::{Host, Net},
    part::{Part, until},
    witness::Witness,
};

/// Where a control plane's API listens.
pub(crate) const API: u16 = 9091;
const PEERS: u16 = 9092;
const ADMIN: u16 = 9093;
const FUNCTIONS: u16 = 8080;
const BALANCER: u16 = 80;
const ETCD: u16 = 2379;
const ETCD_PEERS: u16 = 2380;

/// Three of each: one may die.
pub const CONTROLS: usize = 3;

/// How large it is, and the program.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The program `dirigent`.
    pub dirigent: PathBuf,
    /// Data planes, of which HAProxy knows two.
    pub planes: usize,
    /// Workers.
    pub workers: usize,
    /// Of what links do.
    pub seed: u64,
}

/// It runs until it is dropped; nothing of it is left then.
#[derive(Debug)]
pub struct Cluster {
    /// Members of etcd, on the hosts of the control planes.
    pub etcd: Vec<Part>,
    /// Control planes.
    pub controls: Vec<Part>,
    /// Data planes.
    pub planes: Vec<Part>,
    /// Workers.
    pub workers: Vec<Part>,
    /// HAProxy, on the caller's host.
    pub balancer: Part,
    /// From where calls are made and the cluster is asked.
    pub caller: Host,
    token: String,
    trust: Option<Trust>,
    dirigent: PathBuf,
    /// After those that run on it.
    pub net: Net,
    scratch: TempDir,
}

impl Cluster {
    /// Everything below is there: every state directory, by the name of its part.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// A verb on a host with the state directory of a part, whose output is kept.
    fn verb(&self, part: &Part, args: &[&str]) -> Result<Output> {
        let mut command = self.net.command(part.host, &self.dirigent);
        command.args(args).env("DIRIGENT_STATE", &part.state);
        command.output().context("cannot start the program")
    }

    /// A verb that must succeed; what it printed.
    fn ok(&self, part: &Part, args: &[&str]) -> Result<String> {
        let output = self.verb(part, args)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if !output.status.success() {
            bail!("{args:?}: {}{}", text(&output.stdout), text(&output.stderr));
        }
        Ok(text(&output.stdout))
    }

    /// Deploys a folder at a control plane, whichever leads. It does not wait for a sandbox.
    ///
    /// # Errors
    /// If it is refused, with what was said.
    pub fn deploy(&self, at: usize, folder: &Path) -> Result<()> {
        let control = self.controls.get(at).context("there is no such control plane")?;
        let folder = folder.display().to_string();
        self.ok(control, &["deploy", &folder, "--no-check"]).map(drop)
    }

    /// What a control plane's API answers.
    ///
    /// # Errors
    /// If it does not, in time.
    pub fn ask(&self, control: usize, path: &str) -> Result<Value> {
        let part = self.controls.get(control).context("there is no such control plane")?;
        let trust = self.trust.as_ref().context("the cluster is not made yet")?;
        self.net.inside(part.host, || ask::api(part.host.ip(), path, trust, &self.token))?
    }

    /// What each control plane says that it is: `leader`, `standby`, `detached`, or nothing.
    #[must_use]
    pub fn roles(&self) -> Vec<String> {
        let role = |control| {
            let status = self.ask(control, "/v1/status").ok()?;
            Some(status["role"].as_str()?.to_owned())
        };
        (0..CONTROLS).map(|control| role(control).unwrap_or_default()).collect()
    }

    /// The control plane that leads by its own word, if it is one alone.
    #[must_use]
    pub fn leader(&self) -> Option<usize> {
        let roles = self.roles();
        let mut leads = (0..CONTROLS).filter(|control| roles[*control] == "leader");
        let leader = leads.next()?;
        let others = leads.next().is_some() || roles.iter().any(|role| role == "detached");
        (!others).then_some(leader)
    }

    /// Waits for [`Self::leader`].
    ///
    /// # Errors
    /// If there is none in time.
    pub fn one_leads(&self) -> Result<usize> {
        let mut leader = None;
        until("one control plane leads", || {
            leader = self.leader();
            leader.is_some()
        })?;
        leader.context("one leads")
    }

    /// What a member of etcd says of itself: whether it leads.
    fn leads_etcd(&self, member: &Part) -> Option<bool> {
        let ip = member.host.ip();
        let ask = || ask::plain(ip, ETCD, "/v3/maintenance/status", Some("{}"));
        let status: Value =
            serde_json::from_str(&self.net.inside(member.host, ask).ok()?.ok()?).ok()?;
        let leader = status["leader"].as_str().filter(|leader| *leader != "0")?;
        Some(status["header"]["member_id"].as_str()? == leader)
    }

    /// The member of etcd that leads, by its own word.
    #[must_use]
    pub fn etcd_leader(&self) -> Option<usize> {
        self.etcd.iter().position(|member| self.leads_etcd(member) == Some(true))
    }

    /// Waits until every part that runs is of use: etcd and the cluster have one leader, it has all
    /// workers, and the load balancer sees all data planes.
    ///
    /// # Errors
    /// If that does not come.
    pub fn settled(&self) -> Result<Duration> {
        until("etcd has a leader", || self.etcd_leader().is_some())?;
        let took = until("all is well", || {
            let Some(leader) = self.leader() else { return false };
            self.ready_workers(leader) == self.workers.len() && self.balanced()
        });
        took.with_context(|| {
            let workers = (0..CONTROLS).map(|control| self.ask(control, "/v1/workers"));
            format!("roles {:?}, workers {:?}", self.roles(), workers.collect::<Vec<_>>())
        })
    }

    fn ready_workers(&self, leader: usize) -> usize {
        let listed = self.ask(leader, "/v1/workers").unwrap_or_default();
        let is_ready = |worker: &&Value| worker["state"] == "ready";
        listed["workers"].as_array().map_or(0, |all| all.iter().filter(is_ready).count())
    }

    /// Whether HAProxy sends calls to all data planes.
    fn balanced(&self) -> bool {
        let ready = |plane: &Part| {
            let ip = plane.host.ip();
            self.net
                .inside(self.caller, || ask::plain(ip, ADMIN, "/ready", None))
                .is_ok_and(|a| a.is_ok())
        };
        self.planes.iter().all(ready) && setup::servers_up(&self.balancer) == self.planes.len()
    }

    fn target(&self) -> SocketAddr {
        (self.caller.ip(), BALANCER).into()
    }

    /// Calls functions on and on, through the load balancer.
    ///
    /// # Errors
    /// If the load cannot be started.
    pub fn load(&self, mix: Mix) -> Result<Steady> {
        Steady::start(self.net.door(self.caller)?, self.target(), mix)
    }

    /// Calls a function once, through the load balancer, and waits for the answer.
    ///
    /// # Errors
    /// If the call cannot be made at all.
    pub fn call(&self, function: &str, method: Method) -> Result<Sample> {
        let call = Call {
            at: Duration::ZERO,
            host: function.into(),
            path: "/once".to_owned(),
            method,
            body: Bytes::new(),
            fresh: true,
        };
        let (door, target) = (self.net.door(self.caller)?, self.target());
        let one = std::thread::spawn(move || {
            load::run(&door, target, std::iter::once(call), Arc::default())
        });
        let samples = one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        samples.into_iter().next().context("a call has an outcome")
    }

    /// What functions say that was executed.
    #[must_use]
    pub fn witness(&self) -> Witness {
        Witness::of(self.scratch())
    }

    /// Ends everything on a worker's host at once, as a power cut would: nothing is said to anybody,
    /// and nothing answers there any more.
    pub fn kill_host(&mut self, worker: usize) {
        let Some(part) = self.workers.get_mut(worker) else { return };
        self.net.isolate(part.host);
        kill_all(&part.state);
        part.kill();
    }
}

/// Everything that belongs to a state directory, and what that started.
fn kill_all(state: &Path) {
    loop {
        let pids = processes_of(state);
        if pids.is_empty() {
            return;
        }
        for pid in pids.into_iter().filter_map(Pid::from_raw) {
            // It may be gone already.
            kill_process(pid, Signal::KILL).unwrap_or_default();
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Only what the rig started has the directory's random name; keepers and sandboxes too.
        kill_all(self.scratch.path());
    }
}
