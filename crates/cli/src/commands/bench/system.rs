//! The system under test: a Dirigent of its own in a temporary directory, on free ports, ended
//! and removed with the measurement.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use dirigent_bench::{Answer, Census, Checked, Cluster, etcd::Etcd, warm};
use dirigent_core::{
    Address, RevisionState,
    control::{self, FunctionSummary},
    manifest::Manifest,
};
use http::Method;
use serde_json::Value;

use crate::{
    client::{Client, read_state},
    commands::{
        describe::{ClusterStatus, WorkerOffer},
        path,
    },
    config::PREFIX,
    fail::{Fail, Kind, OrFail as _, Result},
    printer::Printer,
    signals::Signals,
};

/// A running `dirigent up`, or a control plane on an etcd, ended by [`System::run`].
#[derive(Debug)]
pub(crate) struct System {
    launched: Option<Launched>,
    etcd: Option<Etcd>,
    directory: PathBuf,
    /// What a sandbox of each function deployed asks for, in MiB: no list of functions tells it.
    memory_mib: Mutex<HashMap<String, u64>>,
}

/// Ready in under 300 ms where nothing is wrong.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// Its drain, what its sandboxes and tasks may take then, and as much again: longer only one takes
/// that hangs.
const STOPS_WITHIN: Duration = Duration::from_secs(45);

/// How often is looked whether it is ready or has ended.
const LOOK_EVERY: Duration = Duration::from_millis(2);

impl System {
    /// Starts one, measures it, and ends it, however the measurement ends.
    pub(crate) async fn run(
        printer: Printer,
        measure: impl AsyncFnOnce(&mut Self) -> Result,
    ) -> Result {
        Self::run_on(0, printer, measure).await
    }

    /// As [`Self::run`]; with `etcd` members a control plane alone on an etcd of so many.
    pub(crate) async fn run_on(
        etcd: usize,
        printer: Printer,
        measure: impl AsyncFnOnce(&mut Self) -> Result,
    ) -> Result {
        // Before the first process is started, so that none is left behind.
        let mut signals = Signals::new()?;
        let mut system = Self::start(etcd, printer).await?;
        let measured = tokio::select! {
            biased;
            () = signals.next() => Err(Fail::interrupted()),
            measured = measure(&mut system) => measured,
        };
        // The failure of the measurement comes first.
        let ended = system.end().await;
        measured.and(ended)
    }

    async fn start(etcd: usize, printer: Printer) -> Result<Self> {
        let directory = scratch_directory()?;
        // Whatever does not start, what did is ended with this.
        let mut this = Self { launched: None, etcd: None, directory, memory_mib: Mutex::default() };
        if etcd > 0 {
            let scratch = this.directory.join("etcd");
            let started = tokio::task::spawn_blocking(move || Etcd::start(&scratch, etcd)).await;
            let started = started.or_fail(Kind::Internal, || "etcd")?;
            this.etcd = Some(started.or_fail(
                Kind::Unavailable,
                || "etcd does not start; on Debian: apt-get install etcd-server",
            )?);
        }
        this.launched = Some(this.launch(printer).await?);
        Ok(this)
    }

    async fn launch(&self, printer: Printer) -> Result<Launched> {
        launch(&self.state(), self.etcd.as_ref(), printer).await
    }

    /// Ends it and starts it again on what it has stored.
    pub(crate) async fn restart(&mut self, printer: Printer) -> Result {
        self.end().await?;
        self.launched = Some(self.launch(printer).await?);
        Ok(())
    }

    fn launched(&self) -> &Launched {
        self.launched.as_ref().expect("only `stop` and a failed restart end it")
    }

    /// From its start until it was ready.
    pub(crate) fn ready_after(&self) -> Duration {
        self.launched().ready_after
    }

    /// Memory resident now, in bytes.
    pub(crate) fn resident(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.launched().child.id());
        let status = std::fs::read_to_string(&path)?;
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok())
            .ok_or_else(|| Fail::internal(format!("{path} has no VmRSS")))?;
        Ok(kib << 10)
    }

    /// Its state directory.
    pub(crate) fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// Where a measurement may put files; removed with the system.
    pub(crate) fn scratch(&self) -> &Path {
        &self.directory
    }

    /// Drains and ends it, if that was not done yet. It must end well. Its files stay until the
    /// value goes.
    pub(crate) async fn end(&mut self) -> Result {
        match self.launched.take() {
            Some(launched) => launched.stop().await,
            None => Ok(()),
        }
    }

    /// What its workers can do.
    pub(super) async fn offers(&self) -> Result<Vec<WorkerOffer>> {
        let client = &self.launched().client;
        let status: ClusterStatus = client.call(Method::GET, "/v1/status", None::<&()>).await?;
        Ok(status.workers)
    }

    /// Transactions of its store so far, in this life.
    pub(super) async fn transactions(&self) -> Result<u64> {
        let client = &self.launched().client;
        let status: Value = client.call(Method::GET, "/v1/status", None::<&()>).await?;
        let count = status.pointer("/counts/store_transactions").and_then(Value::as_u64);
        count.ok_or_else(|| Fail::internal("the status has no `store_transactions`"))
    }

    async fn ask(&self, method: Method, path: &str) -> anyhow::Result<control::Answer> {
        self.launched().client.ask(method, path).await.map_err(Fail::into_error)
    }

    async fn put(&self, manifest: &Manifest, query: &str) -> anyhow::Result<control::Answer> {
        let memory_mib = manifest.resources.memory.0 >> 20;
        let name = manifest.name.name().to_owned();
        self.memory_mib.lock().expect("no holder panics").insert(name, memory_mib);
        let path = format!("{}?{query}", path(&manifest.name));
        let body = serde_json::json!({ "manifest": manifest, "artifact": null });
        let answer = self.launched().client.call(Method::PUT, &path, Some(&body)).await;
        answer.map_err(Fail::into_error)
    }
}

impl Drop for System {
    fn drop(&mut self) {
        if let Some(launched) = &mut self.launched {
            // Not stopped in order: the measurement panicked.
            let begun = Instant::now();
            if launched.tell_to_end().is_ok() {
                while begun.elapsed() < STOPS_WITHIN
                    && matches!(launched.child.try_wait(), Ok(None))
                {
                    std::thread::park_timeout(LOOK_EVERY);
                }
            }
            // Nothing where it has ended.
            drop(launched.child.kill());
            drop(launched.child.wait());
        }
        drop(std::fs::remove_dir_all(&self.directory));
    }
}

/// One life of `dirigent up`.
#[derive(Debug)]
struct Launched {
    child: Child,
    /// Nobody can be called where the control plane runs alone.
    functions: Option<SocketAddr>,
    client: Client,
    ready_after: Duration,
}

impl Launched {
    fn tell_to_end(&self) -> Result {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .or_fail(Kind::Internal, || "cannot stop `dirigent up`")
    }

    async fn stop(mut self) -> Result {
        self.tell_to_end()?;
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if begun.elapsed() > STOPS_WITHIN {
                self.child.kill()?;
                self.child.wait()?;
                let text = format!("`dirigent up` did not end within {STOPS_WITHIN:?}: killed");
                return Err(Fail::internal(text));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        };
        if !status.success() {
            return Err(Fail::internal(format!("`dirigent up` ended badly: {status}")));
        }
        Ok(())
    }
}

/// Starts `dirigent up`, or a control plane on an etcd, on `state` and free ports, and waits until it
/// is ready.
async fn launch(state: &Path, etcd: Option<&Etcd>, printer: Printer) -> Result<Launched> {
    let exe = std::env::current_exe().or_fail(Kind::Internal, || "where is this program")?;
    // Left by an earlier life, it would be taken for this one's.
    for file in ["functions", "api"] {
        drop(std::fs::remove_file(state.join(file)));
    }
    let begun = Instant::now();
    let mut command = Command::new(exe);
    // What is measured is not configured by what the caller's own `up` is.
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            command.env_remove(name);
        }
    }
    match etcd {
        None => {
            command.args(["up", "--listen", "127.0.0.1:0", "--drain", "5s", "--sandboxes", "5000"])
        }
        Some(etcd) => command
            .args(["control-plane", "--peers", "127.0.0.1:0", "--etcd"])
            .arg(etcd.addresses().join(",")),
    };
    let mut child = command
        .args(["--api", "127.0.0.1:0", "--state"])
        .arg(state)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // Ctrl-C in a terminal goes to the whole group: this one ends it in order.
        .process_group(0)
        .spawn()
        .or_fail(Kind::Internal, || "cannot start `dirigent up`")?;
    let said = listen_to(child.stderr.take(), printer);
    loop {
        if let Some((functions, client)) = found(state, etcd.is_some()).await? {
            let ready_after = begun.elapsed();
            return Ok(Launched { child, functions, client, ready_after });
        }
        if let Some(status) = child.try_wait()? {
            let said = said.lock().expect("no holder panics").clone();
            return Err(Fail::unavailable(format!("`dirigent up` ended: {status}")).details(said));
        }
        if begun.elapsed() > READY_WITHIN {
            child.kill()?;
            child.wait()?;
            return Err(Fail::unavailable("`dirigent up` is not ready after 20 s"));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Where functions are called and the API, once it is ready.
async fn found(state: &Path, alone: bool) -> Result<Option<(Option<SocketAddr>, Client)>> {
    let Ok(client) = Client::find(None, state, None) else { return Ok(None) };
    if alone {
        let status = client.call::<Value>(Method::GET, "/v1/status", None::<&()>).await;
        let leads = status.is_ok_and(|status| status["role"] == "leader");
        return Ok(leads.then_some((None, client)));
    }
    let Ok(functions) = read_state(state, "functions") else { return Ok(None) };
    let text = functions.trim().trim_start_matches("http://").trim_end_matches('/');
    let functions = text.parse().or_fail(Kind::Internal, || format!("`{text}`: where"))?;
    Ok(Some((Some(functions), client)))
}

/// Passes on what it says (with `--verbose`) and keeps the last lines: nobody reading would stop
/// it once the pipe is full.
fn listen_to(stderr: Option<ChildStderr>, printer: Printer) -> Arc<Mutex<Vec<String>>> {
    const KEPT: usize = 20;
    let said = Arc::new(Mutex::new(Vec::new()));
    if let Some(stderr) = stderr {
        let said = Arc::clone(&said);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(std::io::Result::ok) {
                printer.detail(&line);
                let mut said = said.lock().expect("no holder panics");
                if said.len() == KEPT {
                    said.remove(0);
                }
                said.push(line);
            }
        });
    }
    said
}

/// A directory that other users may enter, since sandboxes run as users of their own.
fn scratch_directory() -> Result<PathBuf> {
    let name = format!("dirigent-bench-{}", std::process::id());
    let directory = std::env::temp_dir().join(name);
    std::fs::create_dir(&directory)
        .or_fail(Kind::Unavailable, || format!("cannot create {}", directory.display()))?;
    Ok(directory)
}

impl Cluster for System {
    fn functions(&self) -> SocketAddr {
        self.launched().functions.expect("only registration is measured without a data plane")
    }

    fn deploy(&self, manifest: Manifest) -> Answer<'_, ()> {
        Box::pin(async move { self.put(&manifest, "check=false").await.map(drop) })
    }

    fn deploy_checked(&self, manifest: Manifest) -> Answer<'_, Checked> {
        Box::pin(async move {
            match self.put(&manifest, "check=true&wait=true").await? {
                control::Answer::Settled { revision, state: RevisionState::Live, .. } => {
                    let name = manifest.name.name();
                    Ok(Checked::Live(format!("{name}-{:05}", revision.number)))
                }
                control::Answer::Settled {
                    state: RevisionState::Failed,
                    failure: Some(failure),
                    ..
                } => Ok(Checked::Failed(failure.cause)),
                other => anyhow::bail!("the deploy did not become live: {other:?}"),
            }
        })
    }

    fn remove(&self, name: &str) -> Answer<'_, ()> {
        let name = name.to_owned();
        Box::pin(async move {
            let name = name.parse().context("a benchmark's name")?;
            self.ask(Method::DELETE, &path(&name)).await.map(drop)
        })
    }

    fn census(&self) -> Answer<'_, Census> {
        Box::pin(async move {
            match self.ask(Method::GET, "/v1/top?limit=1000").await? {
                control::Answer::Top(functions) => {
                    Ok(sum(&functions, &self.memory_mib.lock().expect("no holder panics")))
                }
                other => anyhow::bail!("not an answer to `top`: {other:?}"),
            }
        })
    }

    fn addresses(&self, name: &str) -> Answer<'_, Vec<SocketAddr>> {
        let name = name.to_owned();
        Box::pin(async move {
            let name = name.parse().context("a benchmark's name")?;
            let control::Answer::Function(function) = self.ask(Method::GET, &path(&name)).await?
            else {
                anyhow::bail!("not a description of `{name}`");
            };
            let ready = function.sandboxes.into_iter().filter(|one| one.state == "ready");
            let address = |one: control::SandboxDescription| match one.address {
                Some(Address::Tcp(address)) => Ok(address),
                other => anyhow::bail!("{} does not listen on TCP: {other:?}", one.id),
            };
            ready.map(address).collect()
        })
    }

    fn cpu_used(&self) -> Answer<'_, Duration> {
        Box::pin(async move { warm::cpu_of(self.launched().child.id()) })
    }
}

fn sum(functions: &[FunctionSummary], memory_mib: &HashMap<String, u64>) -> Census {
    functions.iter().fold(Census::default(), |sum, function| {
        // The built-in `hello`, which nobody calls here, is none that was deployed.
        let each = memory_mib.get(function.name.name()).copied().unwrap_or_default();
        let all = function.ready + function.starting;
        // Where a sandbox takes one call at a time; else calls would count for sandboxes.
        let busy = function.busy.min(function.ready);
        Census {
            ready: sum.ready + function.ready,
            starting: sum.starting + function.starting,
            busy: sum.busy + function.busy,
            queued: sum.queued + function.queued,
            memory_mib: sum.memory_mib + u64::from(all) * each,
            busy_mib: sum.busy_mib + u64::from(busy) * each,
        }
    })
}
