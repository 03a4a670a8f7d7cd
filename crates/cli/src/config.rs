//! The configuration of `up` and of the roles that run apart: defaults < file < `DIRIGENT_*` < flags,
//! and where each value came from.

mod flags;
mod hosts;

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use dirigent_core::{Bytes, Isolation, RuntimeKind, units};
use dirigent_proxy::Limits;
use dirigent_service::{
    config::{ConfigError, Loaded, Sources, load},
    telemetry::Format,
};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

#[cfg(test)]
pub(crate) use self::flags::every_flag;
pub(crate) use self::flags::{Flagged, Flags};
use self::hosts::Admitted;

use crate::{
    client::default_state,
    fail::{Fail, Kind, OrFail as _, Result},
    printer::Printer,
};

/// What the names of its variables start with.
pub(crate) const PREFIX: &str = "DIRIGENT_";
/// Variables of the client verbs, which are no keys here.
const RESERVED: [&str; 7] = [
    "DIRIGENT_CA",
    "DIRIGENT_CONFIG",
    "DIRIGENT_CONTEXT",
    "DIRIGENT_CONTEXTS",
    "DIRIGENT_FUNCTIONS",
    "DIRIGENT_SERVER",
    "DIRIGENT_TOKEN",
];

/// Where a control plane meets its peers if nothing is said.
const PEERS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9092);

/// What `up` is told, and each role that runs apart: one file can serve all roles of a machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Where functions are called.
    pub(crate) listen: SocketAddr,
    /// Where the [API](api.md) listens. Off loopback only with a certificate (`dirigent cluster init`).
    pub(crate) api: SocketAddr,
    /// Where the control plane takes the connections of data planes and workers, where roles run
    /// apart. Off loopback only with certificates.
    pub(crate) peers: SocketAddr,
    /// Where data planes and workers that run apart connect, one after the other until one answers.
    pub(crate) control: Vec<SocketAddr>,
    /// How long the certificates are valid that this control plane signs, if it has the cluster's
    /// authority. They are renewed with a third of that left.
    #[serde(with = "units::duration")]
    pub(crate) certificate_life: Duration,
    /// The file with the token that opens `peers` where there are no certificates; if nothing is said `peer-token` in the state
    /// directory, where the control plane makes it.
    pub(crate) peer_token: Option<PathBuf>,
    /// The name of a role that runs apart, which no other one of its kind has; the machine's if
    /// nothing is said.
    pub(crate) name: Option<String>,
    /// Members of an etcd, as `http://HOST:PORT`, or `https://HOST:PORT` with `etcd_ca`: several control
    /// planes share it as their store, and one of them leads. If nothing is said, the one control plane
    /// keeps a file.
    pub(crate) etcd: Vec<String>,
    /// The file with the certificate, in PEM, of the authority that signed those of the members of
    /// etcd. It is read again for each connection, as the next two are.
    pub(crate) etcd_ca: Option<PathBuf>,
    /// The file with the certificate by which etcd knows a control plane, in PEM, if it asks for one.
    pub(crate) etcd_cert: Option<PathBuf>,
    /// The file with its key, in PEM.
    pub(crate) etcd_key: Option<PathBuf>,
    /// What the keys in etcd begin with; another cluster in the same etcd has another one.
    pub(crate) etcd_prefix: String,
    /// Where the other control planes reach `peers`, if that is not where it listens.
    pub(crate) advertise: Option<SocketAddr>,
    /// Where a data plane that runs apart tells its metrics and whether it is ready.
    pub(crate) admin: SocketAddr,
    /// Where functions are called, for users to see: of a data plane that runs apart, or of what
    /// stands before several.
    pub(crate) functions_url: Option<SocketAddr>,
    /// A worker that runs apart is so many whose sandboxes are not real; 0 is a real one.
    pub(crate) emulate: u32,
    /// Whether a worker that runs apart stops its sandboxes at its end.
    pub(crate) stop_sandboxes: bool,
    /// Where data planes reach sandboxes: an address of this machine. They listen there, unless they have a network of their own.
    pub(crate) address: Ipv4Addr,
    /// Other hosts that may connect to sandboxes: addresses, or networks such as `10.1.0.0/16`. As
    /// an ordinary user, any may.
    pub(crate) admit: Vec<Admitted>,
    /// Whether data planes reach the sandboxes of a worker that runs apart through the worker, which
    /// takes TLS from data planes of its cluster only, at `relay_port` of `address`; sandboxes listen on
    /// loopback then. It takes a certificate (`dirigent join`).
    pub(crate) encrypt: bool,
    /// Where encrypted calls come to.
    pub(crate) relay_port: u16,
    /// The state directory; if nothing is said `/var/lib/dirigent` as root, else
    /// `~/.local/state/dirigent`. One Dirigent at a time.
    pub(crate) state: Option<PathBuf>,
    /// How long calls may go on after SIGTERM or Ctrl-C.
    #[serde(with = "units::duration")]
    pub(crate) drain: Duration,
    /// How long a data plane that runs apart goes on to take calls after that while it says that it is
    /// not ready, if anybody ever asked: two checks of what stands before it.
    #[serde(with = "units::duration")]
    pub(crate) leave: Duration,
    /// Domains under which functions are called, as `NAME.DOMAIN`; the flag adds to `localhost`.
    pub(crate) domains: Vec<String>,
    /// Hosts that are no function's: there, as at an IP address, the path names it,
    /// `/fn/NAME/...`.
    pub(crate) gateways: Vec<String>,
    /// Proxies that are believed what they say in `Forwarded` and `X-Forwarded-*`, as addresses and
    /// networks such as `10.1.0.0/16`; from all others these are replaced.
    pub(crate) trusted_proxies: Vec<Admitted>,
    /// Functions are refused rather than run with less: `plain`, `basic`, `strict`.
    pub(crate) min_isolation: Option<Isolation>,
    /// Addresses for sandboxes that have a network of their own, such as `10.213.0.0/16`: nothing of the
    /// machine may have a route there. If nothing is said, one of several ranges that are seldom used.
    pub(crate) sandbox_range: Option<Ipv4Net>,
    /// What starts sandboxes: `process`, or `fake` for tests.
    pub(crate) runtime: RuntimeKind,
    /// Memory for sandboxes; four fifths of what this process may use if nothing is said.
    pub(crate) memory: Option<Bytes>,
    /// By how much the machine's processors may be reserved over.
    pub(crate) cpu_overcommit: u32,
    /// Sandboxes at most.
    pub(crate) sandboxes: u32,
    /// Starts that may be outstanding at once; four for each core if nothing is said.
    pub(crate) starts: Option<u32>,
    /// The first port for sandboxes; best outside the range that the kernel hands out.
    pub(crate) first_port: u16,
    /// The last port for sandboxes.
    pub(crate) last_port: u16,
    /// Whether the function `hello` is there from the beginning.
    pub(crate) hello: bool,
    /// What to log: a level such as `info`, or levels by target such as
    /// `warn,dirigent_control=debug`.
    pub(crate) log: String,
    /// `text` or `json`.
    pub(crate) log_format: Format,
    /// A directory for a [recording](../concepts/simulation.md#recordings) of what the control plane
    /// is told and orders; none is made if nothing is said.
    pub(crate) record: Option<PathBuf>,
    /// What the data plane bounds.
    pub(crate) limits: LimitsConfig,
    /// What runs sandboxes with `runtime = "container"`.
    pub(crate) containerd: ContainerdConfig,
    /// Registration as the published system does it.
    pub(crate) compat: CompatConfig,
}

/// `[limits]`: bounds of the data plane, each with what is answered when it is reached.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LimitsConfig {
    /// Client connections at once; the next is answered 503 and closed.
    pub(crate) connections: usize,
    /// Calls at once, waiting ones included; the next is answered 503.
    pub(crate) in_flight: usize,
    /// Bytes of a call's head; more is answered 431.
    pub(crate) head: Bytes,
    /// From the first byte of a head to its last; longer is answered 408.
    #[serde(with = "units::duration")]
    pub(crate) head_timeout: Duration,
    /// Bytes of a call's body; more is answered 413. No limit if nothing is said: bodies are
    /// streamed, not kept.
    pub(crate) body: Option<Bytes>,
    /// Silence between two calls of a connection, then it is closed.
    #[serde(with = "units::duration")]
    pub(crate) idle_connection: Duration,
    /// How long a client may refuse to take bytes of an answer, then it is cut.
    #[serde(with = "units::duration")]
    pub(crate) client_stall: Duration,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            connections: limits.connections,
            in_flight: limits.in_flight,
            head: Bytes(limits.head_bytes as u64),
            head_timeout: limits.head_timeout,
            body: limits.body_bytes.map(Bytes),
            idle_connection: limits.idle_connection,
            client_stall: limits.client_stall,
        }
    }
}

impl LimitsConfig {
    /// As the data plane takes them.
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            connections: self.connections,
            in_flight: self.in_flight,
            head_bytes: usize::try_from(self.head.0).unwrap_or(usize::MAX),
            head_timeout: self.head_timeout,
            body_bytes: self.body.map(|body| body.0),
            idle_connection: self.idle_connection,
            client_stall: self.client_stall,
            ..Limits::default()
        }
    }
}

/// `[containerd]`: the containerd of this machine, for `runtime = "container"`. A build has it with
/// the feature `containerd`, and only root uses it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ContainerdConfig {
    /// Whether functions may be containers, where a containerd answers.
    pub(crate) enabled: bool,
    /// Where it listens.
    pub(crate) socket: PathBuf,
    /// The namespace of containerd that is ours: its other users have others.
    pub(crate) namespace: String,
    /// The snapshotter that holds the files of images.
    pub(crate) snapshotter: String,
    /// The runtime handler: `io.containerd.runc.v2`, or one that containerd knows besides, such as
    /// `io.containerd.runsc.v1` or `io.containerd.kata.v2`.
    pub(crate) handler: String,
    /// The program that a handler of the `runc` kind runs; if nothing is said, crun where it is
    /// installed and works, else containerd's own choice, runc.
    pub(crate) program: Option<String>,
    /// Sandboxes that are made ahead and wait to be started, of functions that scale; up to 15 MiB of
    /// memory each. 0: none.
    pub(crate) ahead: usize,
    /// How long images are kept that no revision needs any more.
    #[serde(with = "units::duration")]
    pub(crate) keep_images: Duration,
    /// How full the disk of containerd may get, in percent, before they go earlier, oldest first.
    pub(crate) disk_full: u8,
    /// How full it may be when no more of them go.
    pub(crate) disk_freed: u8,
    /// Where what sandboxes write to their root goes: `memory`, as theirs, half of their limit at most; or
    /// `disk`, where nothing bounds it.
    pub(crate) writes: Writes,
    /// Who runs sandboxes of the default handler: `keeper`, which executes the program itself, or
    /// `containerd`, by its task service with a shim for each, as it runs those of all other handlers and
    /// those that write to the disk.
    pub(crate) tasks: Tasks,
    /// How registries are spoken to that are private, or have an authority of their own, by their names as
    /// references to images have them.
    pub(crate) registries: BTreeMap<String, RegistryConfig>,
}

/// `containerd.writes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Writes {
    Memory,
    Disk,
}

/// `containerd.tasks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Tasks {
    Keeper,
    Containerd,
}

/// `[containerd.registries."NAME"]`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RegistryConfig {
    /// As whom; nobody if nothing is said.
    pub(crate) user: Option<String>,
    /// The file with the password or token.
    pub(crate) password_file: Option<PathBuf>,
    /// The file with the certificate, in PEM, of the authority that signed the registry's.
    pub(crate) ca: Option<PathBuf>,
    /// Whether it is spoken to without TLS. Those on loopback without a `ca` are anyway.
    pub(crate) plain_http: bool,
}

impl Default for ContainerdConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            socket: "/run/containerd/containerd.sock".into(),
            namespace: "dirigent".to_owned(),
            snapshotter: "overlayfs".to_owned(),
            handler: "io.containerd.runc.v2".to_owned(),
            program: None,
            ahead: 4,
            keep_images: Duration::from_secs(24 * 3600),
            disk_full: 85,
            disk_freed: 80,
            writes: Writes::Memory,
            tasks: Tasks::Keeper,
            registries: BTreeMap::new(),
        }
    }
}

/// `[compat]`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct CompatConfig {
    /// Take the registration of the published system, on loopback.
    pub(crate) enabled: bool,
    /// Which command stands for which image.
    pub(crate) images: BTreeMap<String, Vec<String>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 8080).into(),
            api: (Ipv4Addr::LOCALHOST, 9091).into(),
            peers: PEERS,
            control: vec![PEERS],
            certificate_life: dirigent_control::membership::LIFE,
            peer_token: None,
            name: None,
            etcd: Vec::new(),
            etcd_ca: None,
            etcd_cert: None,
            etcd_key: None,
            etcd_prefix: "/dirigent".to_owned(),
            advertise: None,
            admin: (Ipv4Addr::LOCALHOST, 9093).into(),
            functions_url: None,
            emulate: 0,
            stop_sandboxes: false,
            address: Ipv4Addr::LOCALHOST,
            admit: Vec::new(),
            encrypt: false,
            relay_port: 9094,
            state: None,
            drain: Duration::from_secs(30),
            leave: Duration::from_secs(3),
            domains: vec!["localhost".to_owned()],
            gateways: Vec::new(),
            trusted_proxies: dirigent_proxy::loopback().into_iter().map(Admitted).collect(),
            min_isolation: None,
            sandbox_range: None,
            runtime: RuntimeKind::Process,
            memory: None,
            cpu_overcommit: 50,
            sandboxes: 2000,
            starts: None,
            first_port: 20_000,
            last_port: 29_999,
            hello: true,
            log: "warn".to_owned(),
            log_format: Format::Text,
            record: None,
            limits: LimitsConfig::default(),
            containerd: ContainerdConfig::default(),
            compat: CompatConfig::default(),
        }
    }
}

impl Config {
    /// The state directory, whoever chose it.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.state.clone().unwrap_or_else(|| {
            default_state(rustix::process::geteuid().is_root(), |name| std::env::var_os(name))
        })
    }
}

/// Reads everything that the user said, and checks what no type can.
pub(crate) fn read(args: &dyn Flagged) -> Result<Loaded<Config>> {
    let text = match args.file() {
        Some(path) => Some(
            fs::read_to_string(path)
                .or_fail(Kind::Config, || format!("cannot read {}", path.display()))?,
        ),
        None => None,
    };
    let env = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let loaded: Loaded<Config> = load(Sources {
        file: args.file().zip(text.as_deref()),
        prefix: PREFIX,
        env: env.collect(),
        reserved: &RESERVED,
        flags: Flags::of(args),
    })
    .map_err(|error| fail(&error))?;
    check(&loaded.value)?;
    Ok(loaded)
}

fn fail(error: &ConfigError) -> Fail {
    Fail::config(error).hint("`dirigent config show --origin` lists every setting")
}

fn check(config: &Config) -> Result {
    // Off loopback a role shows a certificate or does not start: see `dirigent_control::start` and
    // `apart`.
    if config.certificate_life < Duration::from_secs(1) {
        return Err(Fail::config("certificate_life must be at least 1s"));
    }
    if config.etcd_prefix.trim_matches('/').is_empty() {
        return Err(Fail::config("etcd_prefix: it is empty")
            .hint("name one, such as /dirigent: an etcd may be used by others too"));
    }
    if !matches!(config.runtime, RuntimeKind::Process | RuntimeKind::Fake) {
        return Err(Fail::config(format!("runtime: `{}` cannot be run yet", config.runtime))
            .hint("use `process`"));
    }
    let ContainerdConfig { namespace, snapshotter, handler, disk_full, disk_freed, .. } =
        &config.containerd;
    if !(disk_freed <= disk_full && *disk_full <= 100) {
        return Err(Fail::config(format!(
            "containerd.disk_full and containerd.disk_freed: {disk_full} and {disk_freed} are not two \
             shares in percent, the second no larger than the first"
        )));
    }
    for (key, value) in
        [("namespace", namespace), ("snapshotter", snapshotter), ("handler", handler)]
    {
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if value.is_empty() || !value.chars().all(known) {
            return Err(Fail::config(format!(
                "containerd.{key}: {value:?} has other characters than letters, digits, `.`, `-`, `_`"
            )));
        }
    }
    if config.first_port < 1024 || config.last_port < config.first_port {
        return Err(Fail::config(format!(
            "first_port and last_port: {} to {} is no range of unprivileged ports",
            config.first_port, config.last_port
        )));
    }
    if config.cpu_overcommit == 0 || config.sandboxes == 0 || config.starts == Some(0) {
        return Err(Fail::config("cpu_overcommit, sandboxes and starts must be at least 1"));
    }
    if config.limits.connections == 0 || config.limits.in_flight == 0 {
        return Err(Fail::config("limits.connections and limits.in_flight must be at least 1"));
    }
    if !(Bytes(1 << 10)..=Bytes(16 << 20)).contains(&config.limits.head) {
        return Err(Fail::config(format!(
            "limits.head: {} is not from 1 KiB to 16 MiB",
            config.limits.head
        )));
    }
    Ok(())
}

/// `config show`.
pub(crate) fn show(args: &dyn Flagged, origin: bool, printer: Printer) -> Result {
    let settings = read(args)?.settings().map_err(|error| fail(&error))?;
    if printer.is_json() {
        return settings.iter().try_for_each(|setting| {
            printer.json(&serde_json::json!({
                "key": setting.key,
                "value": value(&setting.value),
                "origin": setting.origin.to_string(),
            }))
        });
    }
    let rows = settings.into_iter().map(|setting| {
        let value = if setting.value.is_empty() { "-".to_owned() } else { setting.value };
        let mut row = vec![setting.key, value];
        if origin {
            row.push(setting.origin.to_string());
        }
        row
    });
    let head: &[&str] = if origin { &["KEY", "VALUE", "FROM"] } else { &["KEY", "VALUE"] };
    printer.table(head, rows.collect())
}

/// A value that is written as TOML; nothing where nothing is set.
fn value(text: &str) -> serde_json::Value {
    let table: Option<toml::Table> = toml::from_str(&format!("value = {text}")).ok();
    let value = table.and_then(|table| serde_json::to_value(table.get("value")?).ok());
    value.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{ControlPlaneFlags, DataPlaneFlags, UpArgs, WorkerFlags};

    #[test]
    fn flags_are_values_with_an_origin() {
        let args = UpArgs {
            data_plane: DataPlaneFlags {
                listen: Some("127.0.0.1:0".parse().unwrap()),
                drain: Some("5s".to_owned()),
                domain: vec!["example.org".to_owned()],
            },
            worker: WorkerFlags { memory: Some(Bytes::mib(64)), ..WorkerFlags::default() },
            control_plane: ControlPlaneFlags { compat: true, ..ControlPlaneFlags::default() },
            ..UpArgs::default()
        };
        let loaded: Loaded<Config> =
            load(Sources { flags: Flags::of(&args), ..Sources::default() }).unwrap();
        let config = &loaded.value;
        assert_eq!(config.listen.port(), 0);
        assert_eq!(config.drain, Duration::from_secs(5));
        assert_eq!(config.domains, ["example.org", "localhost"]);
        assert_eq!(config.memory, Some(Bytes::mib(64)));
        assert!(config.compat.enabled);
        let settings = loaded.settings().unwrap();
        let drain = settings.iter().find(|setting| setting.key == "drain").unwrap();
        assert_eq!(
            (drain.value.as_str(), drain.origin.to_string().as_str()),
            ("\"5s\"", "--drain")
        );
    }

    #[test]
    fn values_are_shown_as_json_has_them() {
        assert_eq!(value("\"30s\""), serde_json::json!("30s"));
        assert_eq!(value("[\"a\", \"b\"]"), serde_json::json!(["a", "b"]));
        assert_eq!(value("8080"), serde_json::json!(8080));
        assert_eq!(value(""), serde_json::Value::Null);
    }
}
