//! Roles as processes of their own: what `up` joins by channels is joined here by a transport, and
//! nothing else differs. Any of them may die and come back while the others go on.

mod admin;
mod others;
mod relayed;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use dirigent_control::{
    StoreKind,
    membership::{self, Membership},
    office::Shared,
    token::Token,
};
use dirigent_core::{Duty, Member, Role};
use dirigent_service::{
    StateLock, Tasks, listen, telemetry,
    tls::{Certificate, Files},
};
use dirigent_transport::{Doors, Entrance, Members, Reach, serve};
use dirigent_worker::{Durability, Meter};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    args::{ControlPlaneArgs, DataPlaneArgs, WorkerArgs},
    config::{self, Config, Flagged},
    fail::{Fail, Kind, OrFail as _, Result},
    format::duration,
    printer::Printer,
    roles::{self, End, Started},
    service_manager,
    signals::Signals,
};

/// What opens `peers`, in the state directory of a control plane.
const PEER_TOKEN: &str = "peer-token";
/// After a second Ctrl-C.
const STOP_AT_ONCE: Duration = Duration::from_secs(1);

/// What a role that runs apart has.
struct Host {
    config: Config,
    dir: PathBuf,
    tasks: Tasks,
    signals: Signals,
    printer: Printer,
    begin: Instant,
}

/// Runs a role until a signal comes or it fails.
fn host(
    args: &dyn Flagged,
    printer: Printer,
    role: impl AsyncFnOnce(&mut Host) -> Result,
) -> Result {
    let begin = Instant::now();
    let config = config::read(args)?.value;
    telemetry::init(config.log_format, &config.log).or_fail(Kind::Config, || "--log")?;
    roles::raise_open_files();
    let runtime = roles::threads()?;
    let result = runtime.block_on(async {
        let (dir, tasks, signals) = (config.state_dir(), Tasks::new(), Signals::new()?);
        let mut host = Host { config, dir, tasks, signals, printer, begin };
        let result = role(&mut host).await;
        host.tasks.stop();
        if !host.tasks.wait(roles::STOP_TASKS).await {
            tracing::warn!("some tasks did not end in {:?}", roles::STOP_TASKS);
        }
        result
    });
    runtime.shutdown_timeout(Duration::from_millis(500));
    result
}

impl Host {
    /// Tells users, or programs, that it is ready.
    fn announce(&self, what: &str, lines: &[String], report: Value) -> Result {
        service_manager::ready(&format!("{what} serves"), &self.tasks);
        if self.printer.is_json() {
            let mut report = report;
            report["state"] = json!(self.dir);
            report["pid"] = json!(std::process::id());
            return self.printer.json(&report);
        }
        self.printer.problem(&format!("{what} is ready ({})", duration(self.begin.elapsed())));
        for line in lines {
            self.printer.problem(&format!("  {line}"));
        }
        Ok(())
    }

    /// Returns at a signal, or fails when the role does.
    async fn until_end(&mut self) -> Result {
        tokio::select! {
            () = self.signals.next() => {
                service_manager::stopping();
                Ok(())
            }
            () = self.tasks.shutdown().cancelled() => {
                let reason = self.tasks.failure().unwrap_or("it was told to stop");
                Err(Fail::internal(format!("the role failed: {reason}")))
            }
        }
    }

    /// Its part of the state directory, which one process at a time uses.
    fn part(&self, name: &str) -> Result<(PathBuf, StateLock)> {
        let dir = self.dir.join(name);
        dirigent_service::state::private_dir(&dir)
            .or_fail(Kind::Unavailable, || "the state directory cannot be used")?;
        let lock = StateLock::acquire(&dir, "--state")
            .or_fail(Kind::Unavailable, || "the state directory is in use")?;
        Ok((dir, lock))
    }

    /// How this role reaches the control plane, and what it is called there: by its certificate, if
    /// it has joined a cluster; by a token, if the control plane is on this machine. `number` tells
    /// several apart that are one process.
    fn reach(&self, role: Role, number: Option<u32>) -> Result<(Reach, String)> {
        let addresses = self.config.control.clone();
        let unreachable = || "this control plane cannot be reached";
        if let Some(files) = membership::files(&self.dir, role)
            .or_fail(Kind::Config, || "the certificate cannot be used")?
        {
            let name = called(&files, role)?;
            if let Some(other) = self.config.name.as_deref().filter(|other| *other != name) {
                return Err(Fail::config(format!(
                    "--name: the certificate is that of {role} {name}, not {other}"
                ))
                .hint("leave --name out, or join again under the other name"));
            }
            let reach = Reach::certified(addresses, files, number);
            return Ok((reach.or_fail(Kind::Config, unreachable)?, name));
        }
        loopback(&addresses, "--control", || {
            format!(
                "let this machine join: `dirigent cluster token --role {role}` there, `dirigent join` here"
            )
        })?;
        let name = self.config.name.clone().unwrap_or_else(|| roles::own_name(&self.dir));
        let path = self.token_path();
        let token = fs::read_to_string(&path).or_fail(Kind::Config, || {
            format!("cannot read {}: --peer-token names the control plane's file", path.display())
        })?;
        let numbered = number.map_or_else(|| name.clone(), |number| format!("{name}-{number}"));
        let reach = Reach::new(addresses, &numbered, token.trim());
        Ok((reach.or_fail(Kind::Config, unreachable)?, name))
    }

    fn token_path(&self) -> PathBuf {
        self.config.peer_token.clone().unwrap_or_else(|| self.dir.join(PEER_TOKEN))
    }

    /// What opens this control plane to its peers, where no certificate does: then they are on this
    /// machine.
    fn peer_token(&self) -> Result<Option<Token>> {
        if membership::own(&self.dir, Role::ControlPlane).exists() {
            return Ok(None);
        }
        loopback(&[self.config.peers], "--peers", || {
            "make a cluster first: `dirigent cluster init`".to_owned()
        })?;
        dirigent_service::state::private_dir(&self.dir)
            .or_fail(Kind::Unavailable, || "the state directory cannot be used")?;
        let token = Token::load_or_make(&self.token_path());
        token.map(Some).or_fail(Kind::Unavailable, || "--peer-token")
    }

    /// What makes this control plane one of several.
    fn shared(&self, peers: SocketAddr) -> Result<Shared> {
        let config = &self.config;
        let peers = config.advertise.unwrap_or(peers);
        let (reach, name) = self.reach(Role::ControlPlane, None)?;
        Ok(Shared {
            etcd: roles::etcd::configured(roles::etcd::Said {
                members: &config.etcd,
                prefix: &config.etcd_prefix,
                ca: config.etcd_ca.as_deref(),
                cert: config.etcd_cert.as_deref(),
                key: config.etcd_key.as_deref(),
            })?,
            name,
            peers,
            others: Arc::new(others::Neighbours(reach)),
        })
    }

    fn control(&self) -> String {
        self.config.control.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

/// What a certificate calls who has it.
fn called(files: &Files, role: Role) -> Result<String> {
    let uri = files.certificate().uri.unwrap_or_default();
    let (_, name) = uri.rsplit_once('/').unwrap_or_default();
    if uri.ends_with(&format!("/{role}/{name}")) {
        return Ok(name.to_owned());
    }
    Err(Fail::config(format!("the certificate is that of `{uri}`, which is no {role}"))
        .hint(format!("join with a token for a {role}")))
}

/// Without certificates nothing is said to other machines.
fn loopback(addresses: &[SocketAddr], flag: &str, hint: impl FnOnce() -> String) -> Result {
    match addresses.iter().find(|address| !address.ip().is_loopback()) {
        None => Ok(()),
        Some(off) => Err(Fail::config(format!(
            "{flag}: {off} is not a loopback address, and this machine has no certificate"
        ))
        .hint(hint())),
    }
}

/// The members of a cluster as the entrance of its control plane sees them.
#[derive(Debug)]
struct Register(Membership);

impl Members for Register {
    fn admit(&self, certificate: &Certificate) -> Result<Member, String> {
        self.0.admit(certificate).map_err(|error| error.to_string())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes()
    }

    fn renew(&self, certificate: &Certificate, request: &str) -> Result<String, String> {
        self.0.renew(certificate, request).map_err(|error| error.to_string())
    }
}

/// What lets peers in, and how that is told.
fn entrance(
    host: &Host,
    membership: Option<Membership>,
    token: Option<Token>,
) -> Result<(Entrance, String)> {
    if let Some(membership) = membership {
        let files = membership.files().clone();
        if !membership.signs() {
            // It has its own certificate renewed by one that does.
            let reach = Reach::certified(host.config.control.clone(), files.clone(), None);
            reach.or_fail(Kind::Config, || "--control")?.keep_renewed(&host.tasks);
        }
        let entrance = Entrance::Certificates(files, Arc::new(Register(membership)));
        return Ok((entrance, "opened by certificates of the cluster".to_owned()));
    }
    let token = token.ok_or_else(|| Fail::internal("neither certificate nor token"))?;
    let opens = Entrance::Token(Arc::new(move |offered| token.is(offered)));
    Ok((opens, format!("opened by the token in {}", host.token_path().display())))
}

/// `dirigent control-plane`.
pub(crate) fn control_plane(args: &ControlPlaneArgs, printer: Printer) -> Result {
    host(args, printer, async |host| {
        let Host { config, dir, tasks, .. } = &*host;
        let token = host.peer_token()?;
        let listener = listen::bind(config.peers, "--peers")
            .await
            .or_fail(Kind::Unavailable, || "peers cannot connect")?;
        let peers = listener.local_addr()?;
        let mut own = roles::control_plane(config, dir);
        if !config.etcd.is_empty() {
            own.store = StoreKind::Etcd(Box::new(host.shared(peers)?));
        }
        let control = dirigent_control::start(own, tasks).await.map_err(roles::control_failed)?;
        if let Some(address) = config.functions_url {
            control.set_functions(address);
        }
        let doors = Doors {
            workers: control.workers.clone(),
            workers_bulk: control.workers_bulk.clone(),
            data_planes: control.data_planes.clone(),
            data_planes_bulk: control.data_planes_bulk.clone(),
            depot: Arc::new(others::Own(control.artifacts.clone())),
        };
        let (entrance, opened) = entrance(host, control.membership.clone(), token)?;
        serve(listener, doors, control.leads.clone(), entrance, tasks);
        let api = control.api_url();
        let mut lines = vec![format!("API    {api}"), format!("peers  {peers}, {opened}")];
        if !config.etcd.is_empty() {
            let (etcd, prefix) = (config.etcd.join(", "), &config.etcd_prefix);
            lines.push(format!("etcd   {etcd}, under {prefix}"));
        }
        let path = host.token_path();
        let report = json!({ "api": api, "peers": peers.to_string(), "peer_token": path });
        host.announce("The control plane", &lines, report)?;
        host.until_end().await
    })
}

/// `dirigent data-plane`.
pub(crate) fn data_plane(args: &DataPlaneArgs, printer: Printer) -> Result {
    host(args, printer, async |host| {
        let (_, _lock) = host.part("data-plane")?;
        let (reach, name) = host.reach(Role::DataPlane, None)?;
        let Host { config, dir, tasks, .. } = &*host;
        reach.keep_renewed(tasks);
        let (frames, bulk) = reach.data_plane(tasks);
        let own = dirigent_proxy::Config {
            takes_orders: true,
            tunnels: relayed::tunnels(host)?,
            ..roles::data_plane(config, dir)
        };
        let started = dirigent_proxy::start(own, frames, bulk, tasks);
        let proxy = Arc::new(started.await.map_err(roles::proxy_failed)?);
        let admin = admin::start(config.admin, &proxy, tasks).await?;
        let drain = config.drain;
        let lines = [
            format!("functions  http://{}", proxy.address),
            format!("metrics    http://{}/metrics, readiness at /ready", admin.address),
            format!("control    {} (as {name})", host.control()),
        ];
        let functions = format!("http://{}", proxy.address);
        let report = json!({
            "functions": functions,
            "admin": admin.address.to_string(),
            "name": name,
        });
        host.announce("The data plane", &lines, report)?;
        let leave = config.leave;
        let mut orders = proxy.orders();
        tokio::select! {
            end = host.until_end() => {
                if proxy.is_name_taken() {
                    return Err(name_taken(Role::DataPlane, &name));
                }
                end?;
            }
            // Who gives orders is gone with the role only.
            Ok(_) = orders.wait_for(|duty| *duty == Duty::Draining) => {
                host.printer.note(&"the control plane orders this data plane to leave");
            }
        }
        host.printer.note(&format_args!(
            "stopping: calls may go on for {}; press Ctrl-C again to stop at once",
            duration(drain)
        ));
        let leaving = async {
            proxy.leave();
            // Whatever asks whether it is ready sends calls here until it has heard that it is not.
            if admin.is_checked() {
                tokio::time::sleep(leave).await;
            }
            proxy.drain(drain).await
        };
        tokio::select! {
            all = leaving => {
                if !all {
                    let drain = duration(drain);
                    host.printer
                        .problem(&format!("warning: calls went on after {drain} and were cut"));
                }
                Ok(())
            }
            () = host.signals.next() => Err(Fail::interrupted()),
        }
    })
}

/// `dirigent worker`.
pub(crate) fn worker(args: &WorkerArgs, printer: Printer) -> Result {
    host(args, printer, async |host| match host.config.emulate {
        0 => real_worker(host).await,
        count => emulated_workers(host, count).await,
    })
}

async fn real_worker(host: &mut Host) -> Result {
    let (_, _lock) = host.part("worker")?;
    let (reach, name) = host.reach(Role::Worker, None)?;
    let Host { config, dir, tasks, .. } = &*host;
    reach.keep_renewed(tasks);
    let (frames, bulk) = reach.worker(tasks);
    let ports =
        |addresses: &[SocketAddr]| addresses.iter().map(SocketAddr::port).collect::<Vec<_>>();
    let mut protected = ports(&[config.api, config.peers, config.admin]);
    protected.extend(ports(&config.control));
    protected.extend(config.encrypt.then_some(config.relay_port));
    protected.sort_unstable();
    protected.dedup();
    let relay = relayed::Relay::of(host, &name).await?;
    let inside = relay.as_ref().map(|_| relayed::inside(config));
    let started = roles::runtimes(inside.as_ref().unwrap_or(config), dir, protected).await;
    let Started { runtimes, kept } = started?;
    let ingress = relay.as_ref().map(|relay| relay.ingress.clone());
    let own = dirigent_worker::Config { ingress, ..roles::worker(config, dir) };
    let worker = match dirigent_worker::start(own, runtimes, frames, bulk, tasks).await {
        Ok(worker) => worker,
        Err(error) => {
            roles::leave(kept, End::Detach).await;
            return Err(roles::worker_failed(error));
        }
    };
    let mut lines: Vec<String> = worker
        .facts
        .iter()
        .flat_map(crate::up::facts)
        .map(|line| line.trim_start().to_owned())
        .collect();
    lines.push(format!("control    {} (as {name})", host.control()));
    let at = relay.as_ref().map(|relay| relay.at.to_string());
    if let (Some(relay), Some(at)) = (relay, &at) {
        lines.push(format!("calls      {at}, encrypted, from data planes of the cluster"));
        relay.start(reach, tasks);
    }
    if worker.adopted > 0 {
        lines.push(format!("adopted    {} sandboxes of an earlier life", worker.adopted));
    }
    let report = json!({ "name": name, "adopted": worker.adopted, "relay": at });
    host.announce("The worker", &lines, report)?;
    let ended = host.until_end().await;
    let ended = if worker.is_name_taken() { Err(name_taken(Role::Worker, &name)) } else { ended };
    let end = if host.config.stop_sandboxes && ended.is_ok() {
        tokio::select! {
            left = worker.stop_all(roles::STOP_SANDBOXES) => if left > 0 {
                host.printer.problem(&format!("warning: {left} sandboxes did not stop in time: killed"));
            },
            () = host.signals.next() => {
                worker.stop_all(STOP_AT_ONCE).await;
            }
        }
        End::Close
    } else {
        host.printer.note(&"sandboxes are left running; the next start adopts them");
        End::Detach
    };
    roles::leave(kept, end).await;
    ended
}

/// Workers with a stream each, whose sandboxes answer and cost nothing.
async fn emulated_workers(host: &mut Host, count: u32) -> Result {
    if host.config.encrypt {
        return Err(Fail::config("--encrypt: emulated sandboxes are reached directly")
            .hint("leave --encrypt or --emulate out"));
    }
    let (dir, _lock) = host.part("emulated")?;
    let (all, name) = host.reach(Role::Worker, None)?;
    all.keep_renewed(&host.tasks);
    let (mut workers, meter) = (Vec::new(), Meter::default());
    for number in 1..=count {
        let (reach, _) = host.reach(Role::Worker, Some(number))?;
        let (frames, bulk) = reach.worker(&host.tasks);
        let Started { runtimes, .. } = roles::fake(own_address(&host.config, number));
        let config = dirigent_worker::Config {
            durability: Durability::None,
            meter: meter.clone(),
            ..roles::worker(&host.config, &dir.join(number.to_string()))
        };
        let started = dirigent_worker::start(config, runtimes, frames, bulk, &host.tasks);
        workers.push(started.await.map_err(roles::worker_failed)?);
    }
    let lines = [format!("control    {} (as {name}-1 to {name}-{count})", host.control())];
    host.announce(&format!("{count} emulated workers"), &lines, json!({ "emulated": count }))?;
    let ended = host.until_end().await;
    let is_taken = workers.iter().any(dirigent_worker::Running::is_name_taken);
    if is_taken { Err(name_taken(Role::Worker, &name)) } else { ended }
}

/// Where the sandboxes of this emulated worker listen. On loopback each worker has an address of its
/// own, as each host has, else all of them would try the same ports.
fn own_address(config: &Config, number: u32) -> Ipv4Addr {
    let Config { address, .. } = config;
    let own = address.to_bits().checked_add(number).map(Ipv4Addr::from_bits);
    own.filter(|own| address.is_loopback() && own.is_loopback()).unwrap_or(*address)
}

/// Why it gave up.
fn name_taken(role: Role, name: &str) -> Fail {
    Fail::config(format!(
        "another {role} is called {name}, and lives: it goes on, this one does not"
    ))
    .hint(
        "give each a name of its own (--name), and a certificate of its own (`dirigent join`); a \
         copy of a state directory has its certificate",
    )
}
