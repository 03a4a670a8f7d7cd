//! The keeper: one small process with one thread, the parent of all sandboxes of a worker.
//!
//! It spawns them, holds their pipes and pidfds, writes their logs and keeps what is known of them,
//! so that a worker can be killed and upgraded while its sandboxes serve, no end of a sandbox is
//! missed, and a start does not pay for the size of the worker. It decides nothing: what is started
//! and stopped, and what is reported to whom, is its worker's business.
//!
//! ```text
//! worker --(Unix socket, protocol.rs)-- keeper --(socketpair)-- init -- function
//!                                         |\--(socketpair)-- init, parked
//!                                          \--(pidfd)-- what an OCI runtime made
//! ```

pub(crate) mod board;
pub(crate) mod cgroup;
pub(crate) mod execute;
pub(crate) mod init;
pub(crate) mod launch;
pub(crate) mod layer;
pub(crate) mod leftover;
pub(crate) mod orphans;
pub(crate) mod output;
pub(crate) mod protocol;
pub(crate) mod root;
pub(crate) mod rules;
mod scope;
pub(crate) mod seccomp;

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{
            fs::{DirBuilderExt as _, OpenOptionsExt as _},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use dirigent_core::Isolation;
use ipnet::Ipv4Net;
use rustix::{
    fs::{FlockOperation, flock},
    process::{Resource, Rlimit, getpid, getrlimit, set_child_subreaper, setrlimit, setsid, umask},
};
use serde::{Deserialize, Serialize};

use self::protocol::Network;
use crate::sys::{
    process::{Forked, fork},
    signal,
};

/// What a keeper is told at its start.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Options {
    /// Where everything is kept: the worker's part of the state directory.
    pub(crate) directory: PathBuf,
    /// Sandboxes kept prepared.
    pub(crate) parked: usize,
    /// The uids of sandboxes are the 65,536 from here on.
    pub(crate) uid_base: u32,
    /// Processes in one sandbox.
    pub(crate) processes: u32,
    /// Bytes of one log file.
    pub(crate) log_file: u64,
    /// Bytes of all log files.
    pub(crate) log_total: u64,
    /// How long a keeper with neither sandboxes nor worker stays.
    pub(crate) idle_ms: u64,
    /// How long sandboxes may go on without a worker.
    pub(crate) abandoned_ms: u64,
    /// The strongest isolation that may be used at all.
    pub(crate) max_isolation: Isolation,
    /// Where sandboxes with a network of their own get their addresses; chosen if none is given.
    pub(crate) range: Option<Ipv4Net>,
    /// Networks kept prepared.
    pub(crate) spaces: usize,
    /// Where sandboxes are, and who reaches them.
    pub(crate) network: Network,
    /// How often the network rules are made anew.
    pub(crate) rules_ms: u64,
}

/// The socket within the directory.
pub(crate) fn socket_path(directory: &Path) -> PathBuf {
    directory.join("keeper.sock")
}

/// The longest path that fits into a socket's address.
const LONGEST_ADDRESS: usize = 107;

/// Do something with the socket by a path that is short enough for its address, however deep the
/// directory is.
pub(crate) fn at_socket<T>(
    directory: &Path,
    act: impl FnOnce(&Path) -> io::Result<T>,
) -> io::Result<T> {
    let path = socket_path(directory);
    if path.as_os_str().len() <= LONGEST_ADDRESS {
        return act(&path);
    }
    let opened = File::open(directory)?;
    act(&socket_path(Path::new(&format!("/proc/self/fd/{}", opened.as_raw_fd()))))
}

/// Be a keeper: `args` are what follows the word `keeper`. To be called first thing in `main`,
/// before any thread is started. Returns in the process that was called, as soon as the keeper
/// answers; the keeper itself goes on in the background and never returns from here.
#[must_use]
pub fn main(args: impl IntoIterator<Item = String>) -> ExitCode {
    let fail = |message: &str| {
        // Whoever starts a keeper reads this.
        let mut stderr = io::stderr();
        match io::Write::write_all(&mut stderr, format!("{message}\n").as_bytes()) {
            Ok(()) | Err(_) => ExitCode::FAILURE,
        }
    };
    let args: Vec<String> = args.into_iter().collect();
    let options: Options = match &args[..] {
        [flag, options] if flag == "--options" => match serde_json::from_str(options) {
            Ok(options) => options,
            Err(error) => return fail(&format!("bad --options: {error}")),
        },
        _ => return fail("a keeper is started by its worker, with `--options JSON`"),
    };
    match start(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("{}: {error}", options.directory.display())),
    }
}

/// Make a directory only for us.
pub(crate) fn private_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn start(options: &Options) -> io::Result<()> {
    if fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("the keeper must be started before any other thread"));
    }
    umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    private_directory(&options.directory)?;
    let lock = File::create(options.directory.join("keeper.lock"))?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        // One is there, or another is being started at this moment: the caller connects to it.
        return Ok(());
    }
    for name in ["artifacts", "sandboxes", "logs", "root"] {
        private_directory(&options.directory.join(name))?;
    }
    raise_open_files();
    let socket = socket_path(&options.directory);
    match fs::remove_file(&socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = at_socket(&options.directory, |path| UnixListener::bind(path))?;
    listener.set_nonblocking(true)?;
    // Connections wait in the socket until the keeper has looked around.
    match fork(0)? {
        Forked::Parent { .. } => Ok(()),
        Forked::Child => {
            let code = match keep(options, listener, lock) {
                Ok(()) => 0,
                Err(error) => {
                    tracing::error!(%error, "keeper ends");
                    1
                }
            };
            crate::sys::process::exit_now(code)
        }
    }
}

fn keep(options: &Options, listener: UnixListener, lock: File) -> io::Result<()> {
    setsid()?;
    for number in [libc::SIGHUP, libc::SIGINT, libc::SIGPIPE] {
        signal::ignore(number);
    }
    redirect(&options.directory)?;
    std::env::set_current_dir("/")?;
    // What OCI runtimes make is theirs until they end, then ours.
    set_child_subreaper(Some(getpid()))?;
    let mut board = board::Board::new(options.clone(), listener, OwnedFd::from(lock))?;
    board.serve()
}

/// Standard input is empty, output goes to a file that is renewed when it is long.
fn redirect(directory: &Path) -> io::Result<()> {
    let path = directory.join("keeper.log");
    let long = fs::metadata(&path).is_ok_and(|m| m.len() > 1 << 20);
    let log = OpenOptions::new()
        .create(true)
        .append(!long)
        .write(true)
        .truncate(long)
        .mode(0o600)
        .open(&path)?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    rustix::stdio::dup2_stdout(&log)?;
    rustix::stdio::dup2_stderr(&log)?;
    Ok(())
}

/// Four descriptors per sandbox: the soft limit of many systems would do for 250.
fn raise_open_files() {
    let now = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: now.maximum, maximum: now.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, wanted) {
        tracing::warn!(%error, "few open files");
    }
}

impl Options {
    pub(crate) fn idle(&self) -> Duration {
        Duration::from_millis(self.idle_ms)
    }

    /// For the pool of networks.
    pub(crate) fn pool(&self) -> crate::network::Settings {
        let Network { address, admitted, forbidden, .. } = &self.network;
        crate::network::Settings {
            range: self.range,
            address: *address,
            admitted: admitted.clone(),
            forbidden: forbidden.clone(),
            ready: self.spaces,
        }
    }

    pub(crate) fn abandoned(&self) -> Duration {
        Duration::from_millis(self.abandoned_ms)
    }
}
