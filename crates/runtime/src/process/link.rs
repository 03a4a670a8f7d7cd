//! The worker's side of the connection to its keeper.

use std::{
    io::{self, Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    process::{Command, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::lock;
use crate::keeper::{
    Options, at_socket,
    protocol::{Greeting, MAX_FRAME, ToKeeper, VERSION, Welcome, check_version, encode},
};

/// How long a keeper may take to look around, or one that is leaving to be gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a keeper that lives may take to read.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// The half that is written to, by whoever has something to say.
#[derive(Debug)]
pub(super) struct Link {
    stream: Mutex<Option<UnixStream>>,
}

impl Link {
    pub(super) fn new(stream: &UnixStream) -> io::Result<Self> {
        Ok(Self { stream: Mutex::new(Some(stream.try_clone()?)) })
    }

    /// Go on with another connection.
    pub(super) fn replace(&self, stream: &UnixStream) -> io::Result<()> {
        *lock(&self.stream) = Some(stream.try_clone()?);
        Ok(())
    }

    pub(super) fn send<T: Serialize>(&self, message: &T) -> io::Result<()> {
        let frame = encode(message)?;
        let mut guard = lock(&self.stream);
        let stream = guard.as_mut().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
        let sent = stream.write_all(&frame);
        if sent.is_err() {
            // Half a frame may be out: nothing can follow it.
            if let Err(error) = stream.shutdown(Shutdown::Both) {
                tracing::debug!(%error, "was shut already");
            }
            *guard = None;
        }
        sent
    }

    /// Hang up; the reading half sees the end.
    pub(super) fn close(&self) {
        if let Some(stream) = lock(&self.stream).take()
            && let Err(error) = stream.shutdown(Shutdown::Both)
        {
            tracing::debug!(%error, "was shut already");
        }
    }
}

/// Connect to the keeper of a directory, starting one if there is none; what it says first.
pub(super) fn connect(command: &[String], options: &Options) -> io::Result<(UnixStream, Welcome)> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let attempt = match dial(options) {
            Ok(stream) => greet(stream, options),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    start_keeper(command, options)?;
                    dial(options).and_then(|stream| greet(stream, options))
                }
                _ => return Err(error),
            },
        };
        match attempt {
            // One that was about to leave, or not yet there.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound
                        | io::ErrorKind::ConnectionRefused
                        | io::ErrorKind::ConnectionReset
                        | io::ErrorKind::BrokenPipe
                        | io::ErrorKind::UnexpectedEof
                ) && Instant::now() < deadline =>
            {
                std::thread::park_timeout(Duration::from_millis(5));
            }
            other => return other,
        }
    }
}

fn dial(options: &Options) -> io::Result<UnixStream> {
    at_socket(&options.directory, |path| UnixStream::connect(path))
}

fn greet(mut stream: UnixStream, options: &Options) -> io::Result<(UnixStream, Welcome)> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    stream.write_all(&encode(&Greeting { version: VERSION })?)?;
    // Just this frame: what the keeper says next, such as the end of a sandbox, is the driver's to
    // hear.
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let bytes = usize::try_from(u32::from_le_bytes(length)).map_err(io::Error::other)?;
    if bytes > MAX_FRAME {
        return Err(io::Error::other(format!("a message of {bytes} bytes is too long")));
    }
    let mut body = vec![0; bytes];
    stream.read_exact(&mut body)?;
    // Of another version only the number is read.
    check_version(serde_json::from_slice::<Greeting>(&body)?.version)?;
    let welcome: Welcome = serde_json::from_slice(&body)?;
    stream.set_read_timeout(None)?;
    stream.write_all(&encode(&ToKeeper::Network(options.network.clone()))?)?;
    Ok((stream, welcome))
}

/// Start a keeper; returns when it can be connected to, or another one can.
fn start_keeper(command: &[String], options: &Options) -> io::Result<()> {
    let (program, arguments) =
        command.split_first().ok_or_else(|| io::Error::other("no keeper command"))?;
    let output = Command::new(program)
        .args(arguments)
        .arg("--options")
        .arg(serde_json::to_string(options)?)
        // Nothing of the worker's environment reaches a sandbox, not even by mistake.
        .env_clear()
        .env("PATH", crate::keeper::launch::PATH)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("keeper `{program}`: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("the keeper does not start: {}", text.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::protocol::{FromKeeper, Inbox};

    #[test]
    fn what_is_said_right_after_the_welcome_is_not_lost() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let welcome = Welcome {
            version: VERSION,
            abilities: crate::keeper::protocol::Abilities::default(),
            sandboxes: Vec::new(),
            ended: Vec::new(),
            lent: Vec::new(),
            bundles: Vec::new(),
        };
        let sandbox = dirigent_core::SandboxId::new(dirigent_core::Epoch(1), 1);
        let created = FromKeeper::Created { sandbox, init: 7, uid: None, place: None, at_ns: 9 };
        let mut said = encode(&welcome).expect("encodes");
        said.extend(encode(&created).expect("encodes"));
        theirs.write_all(&said).expect("writes");
        let config = crate::process::ProcessConfig::new(std::path::Path::new("/nowhere"), vec![]);
        let options = config.options().expect("options");
        let (mut stream, heard) = greet(ours, &options).expect("greets");
        assert_eq!(heard.version, VERSION);
        let mut inbox = Inbox::default();
        let mut buffer = [0; 1024];
        let length = stream.read(&mut buffer).expect("reads");
        inbox.push(&buffer[..length]);
        let next: Option<FromKeeper> = inbox.next().expect("whole");
        assert!(matches!(next, Some(FromKeeper::Created { init: 7, .. })), "{next:?}");
    }
}
