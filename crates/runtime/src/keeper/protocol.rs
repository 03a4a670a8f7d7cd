//! What worker and keeper say to each other, and what the keeper says to a sandbox's init.
//!
//! Worker and keeper may be of different builds (a keeper outlives upgrades of its worker): the
//! first message of each side carries a version, and nothing else is read if they differ. Frames on
//! the Unix stream are a length (u32, little endian) and JSON. Init is a fork of the keeper, so that
//! protocol has no version.

use std::{io, net::Ipv4Addr, path::PathBuf};

use dirigent_core::{Address, Isolation, Outbound, SandboxId, StartFailure, worker::Adopted};
use ipnet::IpNet;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Raised with every change of this file, or of a core type used in it.
pub(crate) const VERSION: u32 = 5;

/// The longest frame.
pub(crate) const MAX_FRAME: usize = 16 << 20;

/// The first message of the worker. Its form never changes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Greeting {
    /// The sender's [`VERSION`].
    pub(crate) version: u32,
}

/// The first message of the keeper. The form of `version` never changes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Welcome {
    /// The sender's [`VERSION`].
    pub(crate) version: u32,
    /// What works here.
    pub(crate) abilities: Abilities,
    /// The sandboxes that it holds.
    pub(crate) sandboxes: Vec<Adopted>,
    /// Those that ended and no worker is known to have heard of it.
    pub(crate) ended: Vec<Ended>,
    /// Networks that sandboxes of other runtimes have.
    pub(crate) lent: Vec<Lent>,
    /// What OCI runtimes have made here.
    pub(crate) bundles: Vec<Bundle>,
}

/// A sandbox that is no more, and why.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// As it was.
    pub(crate) adopted: Adopted,
    /// Its end.
    pub(crate) failure: StartFailure,
}

/// Where sandboxes are, and who reaches them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Network {
    /// Where they listen.
    pub(crate) address: Ipv4Addr,
    /// Their ports, first and last.
    pub(crate) ports: (u16, u16),
    /// Other hosts that may connect to them.
    pub(crate) admitted: Vec<IpNet>,
    /// Ports of this machine that they must not reach.
    pub(crate) protected_ports: Vec<u16>,
    /// Hosts that those with a network of their own must not reach.
    pub(crate) forbidden: Vec<Ipv4Addr>,
}

/// A network that a sandbox of another runtime has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lent {
    /// Whose it is.
    pub sandbox: SandboxId,
    /// The sandbox's address, in it and from this machine.
    pub address: Ipv4Addr,
    /// The network namespace, as long as its keeper lives.
    pub namespace: PathBuf,
    /// Where data planes reach it.
    pub reached_at: Address,
}

/// The first process of what an OCI runtime has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct First {
    /// Its number, which somebody else may have once it has ended.
    pub pid: i32,
    /// When it started, as `/proc` tells it: with that it is nobody else.
    pub started: u64,
}

/// What an OCI runtime has made, by the name that its worker gave it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Bundle {
    pub(crate) name: String,
    pub(crate) first: First,
    /// `None` while it runs.
    pub(crate) end: Option<End>,
}

/// How a first process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// By itself.
    Code(i32),
    /// By a signal.
    Signal(i32),
    /// Somebody else was told.
    Unknown,
}

/// What is executed for a bundle: an OCI runtime.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Execute {
    /// The name of the bundle.
    pub bundle: String,
    /// The program.
    pub program: PathBuf,
    /// What follows its name.
    pub arguments: Vec<String>,
    /// The mount namespace in which it runs, a file of `/proc`.
    pub mounts: PathBuf,
    /// What it is to make, if it makes one.
    pub makes: Option<Makes>,
}

/// What is ready before an OCI runtime makes a bundle's first process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Makes {
    /// The bundle: here are the named pipes `stdout` and `stderr`, and here the program writes the
    /// number of the first process, into `pid`.
    pub directory: PathBuf,
    /// What is at `rootfs` in it.
    pub root: Layered,
}

/// Layers of an image with a writable one in memory above them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Layered {
    /// Where the paths of the layers begin.
    pub base: PathBuf,
    /// The layers, the uppermost first.
    pub layers: Vec<PathBuf>,
    /// What else `overlayfs` is told.
    pub options: Vec<String>,
    /// Bytes of the writable one.
    pub size: u64,
}

/// Tells which question an answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Question(pub(crate) u64);

/// What the keeper found out about its machine.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Abilities {
    /// Why `strict` does not work; `None` if it does.
    pub(crate) no_strict: Option<String>,
    /// Why `basic` does not work; `None` if it does.
    pub(crate) no_basic: Option<String>,
    /// What of `basic` is missing although it works otherwise, a line each, with what to do.
    pub(crate) basic_lacks: Vec<String>,
    /// What else is missing, a line each, with what to do.
    pub(crate) missing: Vec<String>,
}

/// What the worker tells the keeper.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum ToKeeper {
    /// Start a sandbox; answered by `Created` and `Gone`, or `Gone` alone.
    Start(Box<Start>),
    /// SIGTERM, after the grace SIGKILL; answered by `Gone`. Unknown sandboxes are ignored.
    Stop { sandbox: SandboxId, grace_ms: u64 },
    /// A keeper may be older than the configuration of its worker. The first message.
    Network(Network),
    /// It listens; kept for the next worker.
    Listening { sandbox: SandboxId, address: Address },
    /// The ends of these were heard of.
    Heard { sandboxes: Vec<SandboxId> },
    /// A network for a sandbox of another runtime, reached at `port`, if that is not 0, and listening
    /// at `inside`; answered by `Lent`.
    Lend { sandbox: SandboxId, outbound: Outbound, port: u16, inside: u16 },
    /// One that was lent without is reached at this port from now on; answered by `Lent`.
    Expose { sandbox: SandboxId, port: u16 },
    /// It is gone. Unknown sandboxes are ignored.
    GiveBack { sandbox: SandboxId },
    /// Execute an OCI runtime; answered by `Executed`.
    Execute { question: Question, execute: Box<Execute> },
    /// Say how a bundle's first process ended, once it has; answered by `Ended`.
    Await { question: Question, bundle: String },
    /// End a bundle and forget it; answered by `Ended` once nothing is executed for it any more and
    /// its first process is gone.
    Release { question: Question, bundle: String },
    /// Kill everything, remove what is left, exit. Answered by closing the connection.
    Exit,
}

/// What the keeper tells the worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum FromKeeper {
    /// The program was executed.
    Created {
        sandbox: SandboxId,
        /// The sandbox's first process.
        init: i32,
        /// The uid that nobody else has, where it has one.
        uid: Option<u32>,
        /// Its address, where it has a network of its own.
        place: Option<Ipv4Addr>,
        /// When: nanoseconds of the machine's monotonic clock.
        at_ns: u64,
    },
    /// The network that was asked for, or why there is none.
    Lent { sandbox: SandboxId, lent: Result<Lent, String> },
    /// The program has ended well, and this is the first process of what it made; or what it said.
    Executed { question: Question, result: Result<Option<First>, String> },
    /// How a first process ended; `None` if the keeper has none of that name.
    Ended { question: Question, end: Option<End> },
    /// The last word on a sandbox; answered by `Heard`.
    Gone { sandbox: SandboxId, failure: StartFailure },
}

/// Everything needed to start a sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    /// What the next worker is told of it.
    pub(crate) adopted: Adopted,
    /// How it is separated.
    pub(crate) isolation: Isolation,
    /// The program and its arguments.
    pub(crate) command: Vec<String>,
    /// Whether the program is the keeper's own binary.
    pub(crate) builtin: bool,
    /// Its whole environment, apart from what only the keeper knows.
    pub(crate) environment: Vec<(String, String)>,
    /// The unpacked artifact.
    pub(crate) artifact: Option<PathBuf>,
    /// Where `$PORT` points; bound by the keeper if `pass_listener`.
    pub(crate) port: u16,
    /// Whether a listener is passed.
    pub(crate) pass_listener: bool,
    /// Where it may connect, if it has a network of its own.
    pub(crate) outbound: Outbound,
}

/// What the keeper tells an init.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum ToInit {
    /// Start the function. Comes with descriptors: stdout, stderr, the network namespace and the
    /// listener, each if there is one.
    Run(Box<Run>),
    /// SIGTERM to the function.
    Terminate,
    /// SIGKILL to everything.
    Kill,
}

/// What an init needs to start its function.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) command: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) artifact: Option<PathBuf>,
    /// Bytes of temporary space.
    pub(crate) temporary: u64,
    /// Run as this uid and gid.
    pub(crate) uid: Option<u32>,
    pub(crate) pass_listener: bool,
    /// Whether it gets a network of its own.
    pub(crate) own_network: bool,
    /// Bound of the number of its user's processes, where that user is its own.
    pub(crate) processes: Option<u64>,
    /// Where it finds itself, for `plain`.
    pub(crate) home: PathBuf,
}

/// What an init tells the keeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromInit {
    /// Namespaces, mounts and cgroups are ready.
    Parked,
    /// They cannot be had.
    Unable(String),
    /// The program was executed.
    Started { at_ns: u64 },
    /// It could not be: whose fault, and why.
    NotStarted { function: bool, message: String },
    /// It ended.
    Exited(Exit),
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Exit {
    Code(i32),
    Signal(i32),
}

/// A message as a frame.
pub(crate) fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - 4;
    if length > MAX_FRAME {
        return Err(io::Error::other(format!("a message of {length} bytes is too long")));
    }
    let length = u32::try_from(length).map_err(io::Error::other)?;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    Ok(frame)
}

/// Bytes that have come, cut into frames.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
}

impl Inbox {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole message.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let Some(body) = self.body()? else { return Ok(None) };
        let (message, end) = (serde_json::from_slice(body)?, body.len() + 4);
        self.bytes.drain(..end);
        Ok(Some(message))
    }

    fn body(&self) -> io::Result<Option<&[u8]>> {
        let Some((length, rest)) = self.bytes.split_first_chunk::<4>() else { return Ok(None) };
        let length = usize::try_from(u32::from_le_bytes(*length)).map_err(io::Error::other)?;
        if length > MAX_FRAME {
            return Err(io::Error::other(format!("a message of {length} bytes is too long")));
        }
        Ok(rest.get(..length))
    }
}

/// Whether the other side speaks our version.
///
/// # Errors
/// If not, saying what to do.
pub(crate) fn check_version(theirs: u32) -> io::Result<()> {
    if theirs == VERSION {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "the keeper that runs here speaks version {theirs} of its protocol, this dirigent {VERSION}: \
         stop its sandboxes with the dirigent that started it (`dirigent up`, then Ctrl-C), or end \
         the process `dirigent keeper`, which ends its sandboxes"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_cut_wherever_they_arrive() {
        let mut bytes = encode(&FromInit::Parked).expect("encodes");
        bytes.extend(encode(&FromInit::Exited(Exit::Code(3))).expect("encodes"));
        let mut inbox = Inbox::default();
        let mut seen = Vec::new();
        for byte in bytes {
            inbox.push(&[byte]);
            while let Some(message) = inbox.next::<FromInit>().expect("reads") {
                seen.push(message);
            }
        }
        assert_eq!(seen, [FromInit::Parked, FromInit::Exited(Exit::Code(3))]);
    }

    #[test]
    fn a_frame_too_long_is_an_error() {
        let mut inbox = Inbox::default();
        inbox.push(&u32::MAX.to_le_bytes());
        assert!(inbox.next::<FromInit>().is_err());
    }

    #[test]
    fn another_version_is_told_with_what_to_do() {
        assert!(check_version(VERSION).is_ok());
        let error = check_version(VERSION + 1).expect_err("differs").to_string();
        assert!(error.contains("dirigent keeper"), "{error}");
    }
}
