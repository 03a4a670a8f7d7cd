//! The command line. Help texts are the doc comments here.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use dirigent_core::{Access, Bytes, FunctionName, Isolation, KeepAlive, MilliCpu, Protocol, Role};
use dirigent_service::tls::Trust;

use crate::{
    client::{Client, Place, default_state, read_state},
    commands::{BenchArgs, DemoArgs},
    context::{self, Context},
    fail::{EXIT_CODES, Fail, Kind, OrFail as _, Result},
};

/// A lightweight serverless orchestrator: deploy functions, call them, and have them scaled with
/// the load down to zero.
#[derive(Debug, Parser)]
#[command(name = "dirigent", version, max_term_width = 100, after_help = EXIT_CODES)]
#[command(disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// Print data as JSON, one value per line
    #[arg(long, global = true, display_order = 900)]
    pub(crate) json: bool,
    /// Say more about what is going on
    #[arg(short, long, global = true, display_order = 901)]
    pub(crate) verbose: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run everything in one process on this machine
    // The last of a flag wins, so that scripts can put the user's behind their own.
    #[command(args_override_self = true)]
    Up(Box<UpArgs>),
    /// Run the control plane alone: functions, scale, placement; the API
    #[command(args_override_self = true)]
    ControlPlane(Box<ControlPlaneArgs>),
    /// Run a data plane alone: where functions are called
    #[command(args_override_self = true)]
    DataPlane(Box<DataPlaneArgs>),
    /// Run a worker alone: the sandboxes of a machine
    #[command(args_override_self = true)]
    Worker(Box<WorkerArgs>),
    /// Make a cluster of machines, and let others in
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Get this machine a certificate of a cluster
    Join(JoinArgs),
    /// Move a control plane's records
    #[command(subcommand)]
    Store(StoreCommand),
    /// Make, list and revoke tokens of the API
    #[command(subcommand)]
    Token(TokenCommand),
    /// Choose which cluster the other verbs talk to
    #[command(subcommand)]
    Context(ContextCommand),
    /// Show what Dirigent does, in 90 seconds and a temporary directory
    Demo(DemoArgs),
    /// Measure Dirigent beside its floor or a rival
    Bench(BenchArgs),
    /// Deploy a function from a folder, a file or flags
    Deploy(Box<DeployArgs>),
    /// Write functions into a folder, from which `deploy` makes them again
    Export(ExportArgs),
    /// Make an earlier revision live again
    Rollback(RollbackArgs),
    /// List a function's revisions
    Revisions(FunctionArgs),
    /// List functions
    #[command(visible_alias = "ls")]
    List(ApiArgs),
    /// Show everything that is known of a function
    Describe(FunctionArgs),
    /// Call a function
    Invoke(InvokeArgs),
    /// Show what a function wrote, or one call's record
    Logs(LogsArgs),
    /// Remove a function
    Rm(RmArgs),
    /// Watch the busiest functions
    Top(TopArgs),
    /// List workers
    Workers(ApiArgs),
    /// List data planes
    DataPlanes(ApiArgs),
    /// Give a worker nothing new, or have a data plane say that it is not ready
    Cordon(PeerArgs),
    /// Take a worker or data plane back that was cordoned or drained
    Uncordon(PeerArgs),
    /// Empty a worker, or have a data plane leave, without losing a call
    Drain(DrainArgs),
    /// Forget a worker or data plane that was drained or is lost, and refuse its certificate
    Remove(RemoveArgs),
    /// Show the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Check what this machine can do for functions
    Doctor(DoctorArgs),
    /// Print a shell's completion script
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the version
    Version,
}

/// Where the API is.
#[derive(Clone, Debug, Args)]
pub(crate) struct ApiArgs {
    /// The API, as HOST:PORT or URL [default: the one running on the state directory]
    #[arg(long = "server", value_name = "ADDR", env = "DIRIGENT_SERVER")]
    #[arg(hide_env_values = true, display_order = 800)]
    api: Option<String>,
    /// The certificates of the authority to trust there, PEM [default: the state directory's, else the system's]
    #[arg(long, value_name = "FILE", env = "DIRIGENT_CA")]
    #[arg(hide_env_values = true, display_order = 800)]
    ca: Option<PathBuf>,
    #[command(flatten)]
    place: WhereArgs,
}

/// Which cluster is meant, and what opens it.
#[derive(Clone, Debug, Args)]
pub(crate) struct WhereArgs {
    /// A cluster from `dirigent context list`, if neither --server nor --state is given [default: the one chosen by `context use`]
    #[arg(long, value_name = "NAME", env = "DIRIGENT_CONTEXT")]
    #[arg(hide_env_values = true, display_order = 800)]
    context: Option<String>,
    #[command(flatten)]
    state: StateArgs,
    /// Set by the environment only: a flag could be read by anybody who lists processes
    #[arg(long, env = "DIRIGENT_TOKEN", hide = true, hide_env_values = true)]
    pub(crate) token: Option<String>,
}

/// Where state is.
#[derive(Clone, Debug, Args)]
pub(crate) struct StateArgs {
    /// The state directory [default: /var/lib/dirigent as root, else ~/.local/state/dirigent]
    #[arg(long, env = "DIRIGENT_STATE", hide_env_values = true, display_order = 801)]
    state: Option<PathBuf>,
}

impl StateArgs {
    /// The context that counts: one that is named, or the current one where no directory is.
    pub(crate) fn context(&self, name: Option<&str>) -> Result<Option<Context>> {
        if self.state.is_some() { Ok(None) } else { context::chosen(name) }
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.state.clone().unwrap_or_else(|| {
            default_state(rustix::process::geteuid().is_root(), |name| std::env::var_os(name))
        })
    }
}

impl WhereArgs {
    /// The context that counts, if one does.
    pub(crate) fn context(&self) -> Result<Option<Context>> {
        self.state.context(self.context.as_deref())
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.state.dir()
    }

    /// Where functions are called, if the context or a local `up` says so.
    pub(crate) fn functions_url(&self) -> Result<String> {
        self.functions_of(self.context()?)
    }

    fn functions_of(&self, context: Option<Context>) -> Result<String> {
        match context {
            Some(context) => context.functions.ok_or_else(|| {
                Fail::config("the context does not say where functions are called")
                    .hint("name it with --functions, here or at `dirigent context add`")
            }),
            None => Ok(read_state(&self.dir(), "functions")?.trim().to_owned()),
        }
    }
}

impl ApiArgs {
    pub(crate) fn client(&self) -> Result<Client> {
        let trust = self.ca.as_deref().map(Trust::file).transpose();
        let trust = trust.or_fail(Kind::Config, || "--ca")?;
        let token = self.place.token.clone();
        let client = match self.context()? {
            Some(context) => {
                let place = Place::parse(&context.server)?;
                Client::new(place, context.trust()?, token.or(context.token))
            }
            None => Client::find(self.api.as_deref(), &self.place.dir(), token)?,
        };
        Ok(match trust {
            Some(trust) => client.trusting(trust),
            None => client,
        })
    }

    /// None where the API is named itself.
    fn context(&self) -> Result<Option<Context>> {
        if self.api.is_some() { Ok(None) } else { self.place.context() }
    }

    /// Where functions are called, if the context or a local `up` says so.
    pub(crate) fn functions_url(&self) -> Result<String> {
        self.place.functions_of(self.context()?)
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Move the store of a single control plane, which is stopped, into an etcd for several; nothing is
    /// deployed anew
    Migrate(MigrateArgs),
}

#[derive(Debug, Args)]
pub(crate) struct MigrateArgs {
    /// A member of the etcd, as http://HOST:PORT or https://HOST:PORT; may be repeated
    #[arg(long, value_name = "URL", value_delimiter = ',', required = true)]
    #[arg(env = "DIRIGENT_ETCD", hide_env_values = true)]
    pub(crate) etcd: Vec<String>,
    /// The certificate of the authority that signed those of etcd, for https://
    #[arg(long, value_name = "FILE", env = "DIRIGENT_ETCD_CA", hide_env_values = true)]
    pub(crate) etcd_ca: Option<PathBuf>,
    /// The certificate by which etcd knows a control plane, if it asks for one
    #[arg(long, value_name = "FILE", env = "DIRIGENT_ETCD_CERT", hide_env_values = true)]
    pub(crate) etcd_cert: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", env = "DIRIGENT_ETCD_KEY", hide_env_values = true)]
    pub(crate) etcd_key: Option<PathBuf>,
    /// What the keys in etcd begin with; there must be none yet
    #[arg(long, value_name = "PREFIX", default_value = "/dirigent")]
    #[arg(env = "DIRIGENT_ETCD_PREFIX", hide_env_values = true)]
    pub(crate) etcd_prefix: String,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

#[derive(Debug, Args)]
pub(crate) struct FunctionArgs {
    /// NAME or NAMESPACE/NAME
    pub(crate) name: FunctionName,
    #[command(flatten)]
    pub(crate) api: ApiArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// NAME or NAMESPACE/NAME
    #[arg(required = true)]
    pub(crate) names: Vec<FunctionName>,
    #[command(flatten)]
    pub(crate) api: ApiArgs,
}

/// A worker or a data plane.
#[derive(Clone, Debug, Args)]
pub(crate) struct PeerArgs {
    /// The name of a worker or data plane
    pub(crate) name: String,
    /// Which is meant, where both are called so
    #[arg(long, value_enum)]
    pub(crate) role: Option<PeerRole>,
    #[command(flatten)]
    pub(crate) api: ApiArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PeerRole {
    Worker,
    DataPlane,
}

#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    #[command(flatten)]
    pub(crate) peer: PeerArgs,
    /// How long to wait until it is empty, or gone; the drain goes on after that
    #[arg(long, default_value = "15m", value_parser = humantime::parse_duration)]
    pub(crate) timeout: std::time::Duration,
    /// Say what is wanted, and do not wait
    #[arg(long)]
    pub(crate) no_wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    #[command(flatten)]
    pub(crate) peer: PeerArgs,
    /// Also a worker that is lost and was not drained: its machine is gone for good
    #[arg(long)]
    pub(crate) force: bool,
    /// Leave its certificate good: it comes back when it connects again
    #[arg(long)]
    pub(crate) keep_certificate: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    /// NAME or NAMESPACE/NAME
    pub(crate) name: FunctionName,
    /// The revision to go back to [default: the one before the live one]
    #[arg(long)]
    pub(crate) to: Option<u32>,
    #[command(flatten)]
    pub(crate) api: ApiArgs,
}

#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// Show so many functions
    #[arg(long, default_value_t = 20)]
    pub(crate) limit: u32,
    /// Print once and end, also on a terminal
    #[arg(long)]
    pub(crate) once: bool,
    #[command(flatten)]
    pub(crate) api: ApiArgs,
}

#[derive(Debug, Args)]
pub(crate) struct InvokeArgs {
    /// NAME or NAMESPACE/NAME
    pub(crate) name: FunctionName,
    /// The body; `@FILE` reads a file, `@-` standard input
    #[arg(short, long)]
    pub(crate) data: Option<String>,
    /// A header, as `Name: value`
    #[arg(short = 'H', long = "header")]
    pub(crate) headers: Vec<String>,
    /// The method [default: GET, or POST with a body]
    #[arg(short = 'X', long)]
    pub(crate) method: Option<String>,
    /// Path and query
    #[arg(long, default_value = "/")]
    pub(crate) path: String,
    /// Where functions are called, as HOST:PORT or URL [default: what the context in use says, else the running `up`]
    #[arg(long, env = "DIRIGENT_FUNCTIONS", hide_env_values = true)]
    pub(crate) functions: Option<String>,
    #[command(flatten)]
    pub(crate) place: WhereArgs,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// NAME or NAMESPACE/NAME
    #[arg(required_unless_present = "request_id", conflicts_with = "request_id")]
    pub(crate) name: Option<FunctionName>,
    /// Go on with new lines
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// The newest lines only
    #[arg(long, default_value_t = 1000)]
    pub(crate) tail: u32,
    /// Lines since then: `10m` ago, or a time such as 2026-01-31T12:00:00Z
    #[arg(long)]
    pub(crate) since: Option<String>,
    /// Of one sandbox
    #[arg(long)]
    pub(crate) sandbox: Option<dirigent_core::SandboxId>,
    /// The call with this X-Dirigent-Request-Id: its phases, and the lines written meanwhile
    #[arg(long)]
    pub(crate) request_id: Option<String>,
    #[command(flatten)]
    pub(crate) api: ApiArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DeployArgs {
    /// A folder (with dirigent.toml, one that can be recognised, or an export), a manifest, or a
    /// program
    pub(crate) path: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) flags: ManifestFlags,
    /// Make it live at once instead of starting one sandbox first
    #[arg(long)]
    pub(crate) no_check: bool,
    #[command(flatten)]
    pub(crate) api: ApiArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The folder, which is made
    pub(crate) folder: PathBuf,
    /// NAME or NAMESPACE/NAME [default: all functions]
    pub(crate) names: Vec<FunctionName>,
    /// Write the values of environments too, which are secrets
    #[arg(long, conflicts_with = "without_env")]
    pub(crate) with_env: bool,
    /// Leave environments out
    #[arg(long)]
    pub(crate) without_env: bool,
    #[command(flatten)]
    pub(crate) api: ApiArgs,
}

/// Flags that stand for keys of the manifest, and win over them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub(crate) struct ManifestFlags {
    /// NAME or NAMESPACE/NAME [default: the manifest's, or made from the path]
    #[arg(long)]
    pub(crate) name: Option<FunctionName>,
    /// What to run, such as "python3 app.py"
    #[arg(long)]
    pub(crate) command: Option<String>,
    /// A variable of the function's environment, as NAME=VALUE
    #[arg(short, long = "env", value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// Sandboxes kept, called or not
    #[arg(long)]
    pub(crate) min: Option<u32>,
    /// Sandboxes at most
    #[arg(long)]
    pub(crate) max: Option<u32>,
    /// Calls at once per sandbox; 0 is no limit
    #[arg(long)]
    pub(crate) concurrency: Option<u32>,
    /// Idle time after which a sandbox goes, such as 60s, or `auto`: learned from the calls
    #[arg(long)]
    pub(crate) keep_alive: Option<KeepAlive>,
    /// From the last hop to the beginning of the response, such as 60s
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) timeout: Option<std::time::Duration>,
    /// Waiting for a sandbox, such as 30s
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) queue_timeout: Option<std::time::Duration>,
    /// From start to listening, such as 60s
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) start_timeout: Option<std::time::Duration>,
    /// Calls waiting before the next is refused
    #[arg(long)]
    pub(crate) max_queue: Option<u32>,
    /// Limit and reservation, such as 128MiB
    #[arg(long)]
    pub(crate) memory: Option<Bytes>,
    /// Processor share, such as 100m
    #[arg(long)]
    pub(crate) cpu: Option<MilliCpu>,
    /// The isolation demanded
    #[arg(long, value_enum)]
    pub(crate) isolation: Option<IsolationArg>,
    /// What the function speaks
    #[arg(long, value_enum)]
    pub(crate) protocol: Option<ProtocolArg>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum IsolationArg {
    Plain,
    Basic,
    Strict,
}

impl From<IsolationArg> for Isolation {
    fn from(arg: IsolationArg) -> Self {
        match arg {
            IsolationArg::Plain => Self::Plain,
            IsolationArg::Basic => Self::Basic,
            IsolationArg::Strict => Self::Strict,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProtocolArg {
    Http1,
    H2c,
}

impl From<ProtocolArg> for Protocol {
    fn from(arg: ProtocolArg) -> Self {
        match arg {
            ProtocolArg::Http1 => Self::Http1,
            ProtocolArg::H2c => Self::H2c,
        }
    }
}

/// `up`: the flags of all roles. Every value is also a key of the configuration file and a variable
/// `DIRIGENT_*`.
#[derive(Debug, Default, Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) data_plane: DataPlaneFlags,
    #[command(flatten)]
    pub(crate) control_plane: ControlPlaneFlags,
    #[command(flatten)]
    pub(crate) worker: WorkerFlags,
    #[command(flatten)]
    pub(crate) process: ProcessFlags,
}

/// Every value is also a key of the configuration file and a variable `DIRIGENT_*`.
#[derive(Debug, Args)]
pub(crate) struct ControlPlaneArgs {
    #[command(flatten)]
    pub(crate) role: ControlPlaneFlags,
    /// Where data planes and workers connect [default: 127.0.0.1:9092]
    #[arg(long, value_name = "ADDR")]
    pub(crate) peers: Option<SocketAddr>,
    #[command(flatten)]
    pub(crate) shared: SharedFlags,
    #[command(flatten)]
    pub(crate) process: ProcessFlags,
}

/// One of several control planes.
#[derive(Debug, Default, Args)]
pub(crate) struct SharedFlags {
    /// A member of the etcd that several control planes share; may be repeated [default: a file, and
    /// one control plane]
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    pub(crate) etcd: Vec<String>,
    #[command(flatten)]
    pub(crate) etcd_files: EtcdFiles,
    /// What the keys in etcd begin with [default: /dirigent]
    #[arg(long, value_name = "PREFIX")]
    pub(crate) etcd_prefix: Option<String>,
    /// Where the other control planes reach this one [default: what --peers says]
    #[arg(long, value_name = "ADDR")]
    pub(crate) advertise: Option<SocketAddr>,
    /// A name that no other control plane has [default: the machine's]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// The file with the token that opens --peers, the same for all [default: peer-token in the
    /// state directory]
    #[arg(long, value_name = "FILE")]
    pub(crate) peer_token: Option<PathBuf>,
}

/// How etcd is known, and knows a control plane, where it is met by https://.
#[derive(Debug, Default, Args)]
pub(crate) struct EtcdFiles {
    /// The certificate of the authority that signed those of etcd, for https://
    #[arg(long, value_name = "FILE")]
    pub(crate) etcd_ca: Option<PathBuf>,
    /// The certificate by which etcd knows a control plane, if it asks for one
    #[arg(long, value_name = "FILE")]
    pub(crate) etcd_cert: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE")]
    pub(crate) etcd_key: Option<PathBuf>,
}

/// Every value is also a key of the configuration file and a variable `DIRIGENT_*`.
#[derive(Debug, Args)]
pub(crate) struct DataPlaneArgs {
    #[command(flatten)]
    pub(crate) role: DataPlaneFlags,
    /// Where its metrics and readiness are told [default: 127.0.0.1:9093]
    #[arg(long, value_name = "ADDR")]
    pub(crate) admin: Option<SocketAddr>,
    /// How long to go on taking calls at the end while saying that it is not ready: two checks of
    /// the load balancer [default: 3s]
    #[arg(long, value_name = "DURATION")]
    pub(crate) leave: Option<String>,
    #[command(flatten)]
    pub(crate) peer: PeerFlags,
    #[command(flatten)]
    pub(crate) process: ProcessFlags,
}

/// Every value is also a key of the configuration file and a variable `DIRIGENT_*`.
#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    #[command(flatten)]
    pub(crate) role: WorkerFlags,
    /// Be so many workers whose sandboxes are not real, for studies of scale
    #[arg(long, value_name = "COUNT")]
    pub(crate) emulate: Option<u32>,
    /// Stop all sandboxes at the end, instead of leaving them to the next start
    #[arg(long)]
    pub(crate) stop_sandboxes: bool,
    /// Where data planes reach sandboxes: an address of this machine [default: 127.0.0.1]
    #[arg(long, value_name = "IP")]
    pub(crate) address: Option<Ipv4Addr>,
    /// Other hosts that may connect to sandboxes, such as 10.1.2.3 or 10.1.0.0/16; may be repeated
    #[arg(long, value_name = "NET")]
    pub(crate) admit: Vec<String>,
    /// Take calls encrypted, from data planes of the cluster only; sandboxes listen on loopback
    #[arg(long)]
    pub(crate) encrypt: bool,
    /// The port of --address that encrypted calls come to [default: 9094]
    #[arg(long, value_name = "PORT")]
    pub(crate) relay_port: Option<u16>,
    #[command(flatten)]
    pub(crate) peer: PeerFlags,
    #[command(flatten)]
    pub(crate) process: ProcessFlags,
}

/// Who connects to a control plane.
#[derive(Debug, Default, Args)]
pub(crate) struct PeerFlags {
    /// Where the control plane takes connections; may be repeated [default: 127.0.0.1:9092]
    #[arg(long, value_name = "ADDR")]
    pub(crate) control: Vec<SocketAddr>,
    /// The file with the token that the control plane made [default: peer-token in the state
    /// directory]
    #[arg(long, value_name = "FILE")]
    pub(crate) peer_token: Option<PathBuf>,
    /// A name that no other one of its role has [default: the machine's]
    #[arg(long)]
    pub(crate) name: Option<String>,
}

/// What every process has.
#[derive(Debug, Default, Args)]
pub(crate) struct ProcessFlags {
    /// The state directory [default: /var/lib/dirigent as root, else ~/.local/state/dirigent]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// A configuration file in TOML
    #[arg(long, value_name = "FILE", env = "DIRIGENT_CONFIG", hide_env_values = true)]
    pub(crate) config: Option<PathBuf>,
    /// What to log, such as `info` or `warn,dirigent_control=debug` [default: warn]
    #[arg(long, value_name = "FILTER")]
    pub(crate) log: Option<String>,
}

#[derive(Debug, Default, Args)]
pub(crate) struct ControlPlaneFlags {
    /// Where the API listens [default: 127.0.0.1:9091]
    #[arg(long, value_name = "ADDR")]
    pub(crate) api: Option<SocketAddr>,
    /// Also take registrations as the published system does (loopback only)
    #[arg(long)]
    pub(crate) compat: bool,
    /// Record what the control plane is told and orders, for the simulator to follow
    #[arg(long, value_name = "DIR")]
    pub(crate) record: Option<PathBuf>,
}

#[derive(Debug, Default, Args)]
pub(crate) struct DataPlaneFlags {
    /// Where functions are called [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<SocketAddr>,
    /// How long calls may go on after SIGTERM or Ctrl-C [default: 30s]
    #[arg(long, value_name = "TIME")]
    pub(crate) drain: Option<String>,
    /// A domain under which functions are called, as NAME.DOMAIN; may be repeated
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) domain: Vec<String>,
}

#[derive(Debug, Default, Args)]
pub(crate) struct WorkerFlags {
    /// Refuse to run functions with less isolation
    #[arg(long, value_enum)]
    pub(crate) min_isolation: Option<IsolationArg>,
    /// What starts sandboxes; `fake` answers itself, for tests [default: process]
    #[arg(long, value_enum)]
    pub(crate) runtime: Option<RuntimeArg>,
    /// Memory for sandboxes [default: four fifths of what this process may use]
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<Bytes>,
    /// Sandboxes at most
    #[arg(long, value_name = "COUNT")]
    pub(crate) sandboxes: Option<u32>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum RuntimeArg {
    Process,
    Fake,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print every value, as `up` with the same flags would use it
    Show {
        /// Say where each value comes from
        #[arg(long)]
        origin: bool,
        #[command(flatten)]
        up: Box<UpArgs>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// What `up` would be told.
    #[command(flatten)]
    pub(crate) up: Box<UpArgs>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token; it is printed once, and kept as a hash only
    Create(CreateTokenArgs),
    /// List tokens, without their secrets
    List(ApiArgs),
    /// Let a token count no more
    Revoke(RevokeTokenArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CreateTokenArgs {
    /// What it allows
    #[arg(long, value_enum)]
    pub(crate) role: AccessArg,
    /// What it is called [default: made from its role]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// How long it counts, such as 30d [default: until it is revoked]
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) expires: Option<std::time::Duration>,
    #[command(flatten)]
    pub(crate) api: ApiArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RevokeTokenArgs {
    /// What it is called
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) api: ApiArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum AccessArg {
    /// Everything: also tokens and members
    Admin,
    /// Deploying and removing functions, calling them, looking at everything
    Deploy,
    /// Calling functions, and nothing else
    Invoke,
    /// Looking at everything
    View,
}

impl From<AccessArg> for Access {
    fn from(arg: AccessArg) -> Self {
        match arg {
            AccessArg::Admin => Self::Admin,
            AccessArg::Deploy => Self::Deploy,
            AccessArg::Invoke => Self::Invoke,
            AccessArg::View => Self::View,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum ContextCommand {
    /// Add a cluster, or replace it; the first one is used from then on
    Add(AddContextArgs),
    /// Talk to this one if nothing else is said
    Use {
        /// Its name
        name: String,
    },
    /// List them
    List,
    /// Forget one
    Remove {
        /// Its name
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct AddContextArgs {
    /// What to call it
    pub(crate) name: String,
    /// The API's URL, such as https://10.0.0.1:9091
    #[arg(long, value_name = "URL")]
    pub(crate) server: String,
    /// Where its functions are called, for `invoke`
    #[arg(long, value_name = "URL")]
    pub(crate) functions: Option<String>,
    /// The certificate of the cluster's authority, `tls/ca.pem` of its first control plane
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// A file with a token of the API [default: DIRIGENT_TOKEN]
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Set by the environment only: a flag could be read by anybody who lists processes
    #[arg(long, env = "DIRIGENT_TOKEN", hide = true, hide_env_values = true)]
    pub(crate) token: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Make a cluster: its authority and this control plane's certificate, in the state directory
    Init(InitArgs),
    /// Make a token with which one machine may join
    Token(JoinTokenArgs),
    /// List who has a certificate
    Members(ApiArgs),
    /// Refuse a member's certificates from now on
    Remove(RemoveMemberArgs),
}

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// What this control plane is called [default: the machine's name]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// A host name or IP address at which users reach its API, beside this machine's name and
    /// loopback; may be repeated. Members need none, they know control planes by their certificate
    #[arg(long = "host", value_name = "HOST")]
    pub(crate) hosts: Vec<String>,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

#[derive(Debug, Args)]
pub(crate) struct JoinTokenArgs {
    /// What the new member is to do
    #[arg(long, value_enum)]
    pub(crate) role: RoleArg,
    /// How long the token is good
    #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
    pub(crate) ttl: std::time::Duration,
    /// Only for who is called so; it takes the place of one of that name
    #[arg(long, conflicts_with = "many")]
    pub(crate) name: Option<String>,
    /// For any number of machines, not one
    #[arg(long)]
    pub(crate) many: bool,
    #[command(flatten)]
    pub(crate) api: ApiArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RemoveMemberArgs {
    /// What it does
    #[arg(value_enum)]
    pub(crate) role: RoleArg,
    /// What it is called
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) api: ApiArgs,
}

#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// The token, from `dirigent cluster token`
    pub(crate) token: String,
    /// The API of the control plane that has the cluster's authority, as HOST:PORT or URL
    #[arg(long, value_name = "ADDR")]
    pub(crate) server: String,
    /// A name that no other one of its role has [default: the machine's]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Of a control plane: where users reach its API, as with `cluster init`
    #[arg(long = "host", value_name = "HOST")]
    pub(crate) hosts: Vec<String>,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum RoleArg {
    Worker,
    DataPlane,
    ControlPlane,
}

impl From<RoleArg> for Role {
    fn from(arg: RoleArg) -> Self {
        match arg {
            RoleArg::Worker => Self::Worker,
            RoleArg::DataPlane => Self::DataPlane,
            RoleArg::ControlPlane => Self::ControlPlane,
        }
    }
}
