//! A cluster: three control planes with an etcd of three members on the same hosts, data planes,
//! workers, and a host from which everything is called, through HAProxy.

mod setup;

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Output,
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use dirigent_bench::{
    etcd,
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
    part::{Part, hosts, until, until_some},
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

/// The processes of sandboxes of the built-in functions, by function: their worker and id.
pub type Programs = BTreeMap<String, Vec<(usize, Pid)>>;

/// Three of each: one may die.
pub(crate) const CONTROLS: usize = 3;

/// How large it is, and the program.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The program `dirigent`.
    pub dirigent: PathBuf,
    /// Data planes, of which HAProxy knows two.
    pub planes: usize,
    /// Workers.
    pub workers: usize,
    /// How many emulated workers each of them is, if they are not real.
    pub emulate: Option<usize>,
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
    balancer: Part,
    /// From where calls are made and the cluster is asked.
    pub caller: Host,
    token: String,
    trust: Option<Trust>,
    dirigent: PathBuf,
    emulate: Option<usize>,
    /// After those that run on it.
    pub net: Net,
    scratch: TempDir,
}

impl Cluster {
    /// Everything below is there: every state directory, by the name of its part.
    fn scratch(&self) -> &Path {
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

    /// From now on this is the program `dirigent`: of what is started, and of verbs.
    pub fn install(&mut self, dirigent: PathBuf) {
        self.dirigent = dirigent;
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
    pub(crate) fn ask(&self, control: usize, path: &str) -> Result<Value> {
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
        until_some("one control plane leads", || self.leader())
    }

    /// What a member of etcd says of itself: whether it leads.
    fn leads_etcd(&self, member: &Part) -> Option<bool> {
        let ask = || etcd::status((member.host.ip(), ETCD).into());
        self.net.inside(member.host, ask).ok()??.leads()
    }

    /// The member of etcd that leads, by its own word.
    pub(crate) fn etcd_leader(&self) -> Option<usize> {
        self.etcd.iter().position(|member| self.leads_etcd(member) == Some(true))
    }

    /// Hosts of control planes, data planes and workers that are none of `ours`.
    #[must_use]
    pub fn others(&self, ours: &[Host]) -> Vec<Host> {
        let all = [&self.controls, &self.planes, &self.workers];
        let all = all.into_iter().flat_map(|parts| hosts(parts));
        all.filter(|host| !ours.contains(host)).collect()
    }

    /// Starts a control plane again, and waits until it is ready.
    ///
    /// # Errors
    /// If it does not get ready.
    pub fn start_control(&mut self, number: usize) -> Result<()> {
        again(&mut self.controls, number, &self.net)
    }

    /// Starts a data plane again, and waits until it is ready.
    ///
    /// # Errors
    /// If it does not get ready.
    pub fn start_plane(&mut self, number: usize) -> Result<()> {
        again(&mut self.planes, number, &self.net)
    }

    /// Starts a worker again, and waits until it is ready.
    ///
    /// # Errors
    /// If it does not get ready.
    pub fn start_worker(&mut self, number: usize) -> Result<()> {
        again(&mut self.workers, number, &self.net)
    }

    /// Starts the members of etcd again that do not run, and waits until all follow one leader.
    ///
    /// # Errors
    /// If they do not.
    pub fn start_etcd(&mut self) -> Result<()> {
        for member in &mut self.etcd {
            if !member.is_running() {
                member.start(&self.net)?;
            }
        }
        until("all members of etcd follow one", || {
            let leads: Vec<_> = self.etcd.iter().map(|member| self.leads_etcd(member)).collect();
            !leads.contains(&None)
                && leads.iter().filter(|leads| **leads == Some(true)).count() == 1
        })?;
        Ok(())
    }

    /// Waits until a member of etcd leads, by its own word; which.
    ///
    /// # Errors
    /// If there is none in time.
    pub fn etcd_leads(&self) -> Result<usize> {
        until_some("a member of etcd leads", || self.etcd_leader())
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
            self.ready_workers(leader) == self.worker_count() && self.balanced()
        });
        took.with_context(|| {
            let workers = (0..CONTROLS).map(|control| self.ask(control, "/v1/workers"));
            format!("roles {:?}, workers {:?}", self.roles(), workers.collect::<Vec<_>>())
        })
    }

    /// How many workers there are when all run.
    fn worker_count(&self) -> usize {
        self.workers.len() * self.emulate.unwrap_or(1)
    }

    /// How many of them are ready, by the word of a leader.
    #[must_use]
    pub fn ready_workers(&self, leader: usize) -> usize {
        let listed = self.ask(leader, "/v1/workers").unwrap_or_default();
        let is_ready = |worker: &&Value| worker["state"] == "ready";
        listed["workers"].as_array().map_or(0, |all| all.iter().filter(is_ready).count())
    }

    /// Whether HAProxy sends calls to all data planes.
    fn balanced(&self) -> bool {
        let ready = |plane: &Part| {
            let ip = plane.host.ip();
            self.net
                .inside(self.caller, || ask::plain(ip, ADMIN, "/ready"))
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
        self.begin_call(function, method)?.end()
    }

    /// As [`Self::call`], and does not wait.
    ///
    /// # Errors
    /// If the call cannot be made at all.
    pub fn begin_call(&self, function: &str, method: Method) -> Result<Calling> {
        self.begin(self.target(), function, "/once", method)
    }

    /// Calls a function at a data plane, with this path and query, and does not wait.
    ///
    /// # Errors
    /// If the call cannot be made at all.
    pub fn call_at(
        &self,
        plane: usize,
        function: &str,
        path: &str,
        method: Method,
    ) -> Result<Calling> {
        let plane = self.planes.get(plane).context("there is no such data plane")?;
        self.begin((plane.host.ip(), FUNCTIONS).into(), function, path, method)
    }

    fn begin(
        &self,
        target: SocketAddr,
        function: &str,
        path: &str,
        method: Method,
    ) -> Result<Calling> {
        let call = Call {
            at: Duration::ZERO,
            host: function.into(),
            path: path.to_owned(),
            method,
            body: Bytes::new(),
            fresh: true,
        };
        let door = self.net.door(self.caller)?;
        let one = move || load::run(&door, target, std::iter::once(call), Arc::default());
        Ok(Calling(thread::Builder::new().name("call".to_owned()).spawn(one)?))
    }

    /// What the leader says of a function.
    ///
    /// # Errors
    /// If nobody answers.
    pub fn describe(&self, function: &str) -> Result<Value> {
        let leader = self.leader().context("nobody leads")?;
        let mut answer = self.ask(leader, &format!("/v1/functions/default/{function}"))?;
        Ok(answer["function"].take())
    }

    /// The functions that a control plane knows, each in one line.
    #[must_use]
    pub fn functions(&self, control: usize) -> BTreeMap<String, Value> {
        let mut functions = BTreeMap::new();
        let mut after = String::new();
        while let Ok(mut listed) = self.ask(control, &format!("/v1/functions?limit=500{after}")) {
            let Some(page) = listed["functions"].as_array_mut() else { break };
            let name = |it: &Value| it["name"].as_str().unwrap_or_default().to_owned();
            let Some(last) = page.last() else { break };
            after = format!("&after={}", name(last));
            functions.extend(page.drain(..).map(|it| {
                let name = name(&it);
                (name.rsplit('/').next().unwrap_or(&name).to_owned(), it)
            }));
        }
        functions
    }

    /// Parts that have said this.
    pub(crate) fn said(&self, text: &str) -> Vec<String> {
        let parts = self.controls.iter().chain(&self.planes).chain(&self.workers);
        let said =
            |part: &&Part| fs::read_to_string(part.log()).is_ok_and(|log| log.contains(text));
        parts.filter(said).map(|part| part.name.clone()).collect()
    }

    /// Those that run now.
    #[must_use]
    pub fn programs(&self) -> Programs {
        let mut found = Programs::new();
        for (number, worker) in self.workers.iter().enumerate() {
            for pid in processes_of(&worker.state) {
                let Some((function, pid)) = function_of(pid).zip(Pid::from_raw(pid)) else {
                    continue;
                };
                found.entry(function).or_default().push((number, pid));
            }
        }
        found
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

fn again(parts: &mut [Part], number: usize, net: &Net) -> Result<()> {
    let part = parts.get_mut(number).context("there is no such part")?;
    part.start(net)?;
    part.ready().map(drop)
}

/// A call that was begun.
#[derive(Debug)]
pub struct Calling(thread::JoinHandle<Result<Vec<Sample>>>);

impl Calling {
    /// Waits for its outcome.
    ///
    /// # Errors
    /// If the call could not be made at all.
    pub fn end(self) -> Result<Sample> {
        let samples = self.0.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        samples.into_iter().next().context("a call has an outcome")
    }
}

/// The function whose program this process runs, if it is a built-in one.
fn function_of(pid: i32) -> Option<String> {
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    if !String::from_utf8_lossy(&command).contains("example\0hello") {
        return None;
    }
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let environment = String::from_utf8_lossy(&environment).into_owned();
    let mut names = environment.split('\0').filter_map(|line| line.strip_prefix("K_SERVICE="));
    names.next().map(str::to_owned)
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
