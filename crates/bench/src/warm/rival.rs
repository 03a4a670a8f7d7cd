//! The proxies that ours is measured beside: each in front of the same sandboxes, with as many
//! threads, kept connections on both sides, and the header with a request's id that ours sets too.

use std::{
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::bare::Port;

/// Which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// HAProxy.
    HaProxy,
    /// nginx.
    Nginx,
}

impl Kind {
    /// What it is called, also as a program.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HaProxy => "haproxy",
            Self::Nginx => "nginx",
        }
    }

    /// Its program, where it is installed.
    #[must_use]
    pub fn installed(self) -> Option<PathBuf> {
        let places = ["/usr/sbin", "/usr/bin", "/usr/local/sbin"].map(Path::new);
        places.iter().map(|place| place.join(self.name())).find(|path| path.exists())
    }

    const fn template(self) -> &'static str {
        match self {
            Self::HaProxy => include_str!("haproxy.cfg"),
            Self::Nginx => include_str!("nginx.conf"),
        }
    }

    fn server(self, number: usize, address: SocketAddr, concurrency: u32) -> String {
        match self {
            Self::HaProxy => {
                let limit = if concurrency == 0 { "" } else { " maxconn 1" };
                format!("    server s{number} {address}{limit}")
            }
            Self::Nginx => {
                let limit = if concurrency == 0 { "" } else { " max_conns=1" };
                format!("        server {address}{limit};")
            }
        }
    }

    fn command(self, program: &Path, config: &Path, scratch: &Path) -> Command {
        let mut command = Command::new(program);
        match self {
            Self::HaProxy => command.arg("-db").arg("-q").arg("-f").arg(config),
            Self::Nginx => {
                let log = scratch.join("nginx.log");
                command.arg("-p").arg(scratch).arg("-e").arg(log).arg("-c").arg(config)
            }
        };
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }
}

/// From its start until it listens.
const LISTENS_WITHIN: Duration = Duration::from_secs(4);
/// From SIGTERM to its end, with all its processes.
const ENDS_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A proxy that runs; ended with the value.
#[derive(Debug)]
pub(crate) struct Rival {
    child: Child,
    port: Port,
}

impl Rival {
    /// Starts one in front of these sandboxes, its files in `scratch`.
    pub(crate) fn start(
        kind: Kind,
        program: &Path,
        sandboxes: &[SocketAddr],
        concurrency: u32,
        scratch: &Path,
    ) -> Result<Self> {
        let server = |(number, address): (_, &_)| kind.server(number, *address, concurrency);
        let servers: Vec<String> = sandboxes.iter().enumerate().map(server).collect();
        let port = Port::keep()?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let config = kind
            .template()
            .replace("@THREADS@", &threads.to_string())
            .replace("@PORT@", &port.number().to_string())
            .replace("@SCRATCH@", &scratch.display().to_string())
            .replace("@SERVERS@", &servers.join("\n"));
        let path = scratch.join(kind.name()).with_extension("conf");
        std::fs::write(&path, config)
            .with_context(|| format!("cannot write {}", path.display()))?;
        let child = kind
            .command(program, &path, scratch)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let address = port.address();
        let mut rival = Self { child, port };
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            let ended = rival.child.try_wait().context("cannot wait for it")?;
            if ended.is_some() || begun.elapsed() > LISTENS_WITHIN {
                let config = path.display();
                bail!("{} does not listen at {address}; its configuration: {config}", kind.name());
            }
            std::thread::park_timeout(LOOK_EVERY);
        }
        Ok(rival)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.port.address()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        // One that has processes below it ends them only if it is asked.
        let pid = rustix::process::Pid::from_child(&self.child);
        if matches!(self.child.try_wait(), Ok(None)) {
            let sent = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            // Whom this does not reach is killed below.
            sent.unwrap_or(());
        }
        let begun = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && begun.elapsed() < ENDS_WITHIN {
            std::thread::park_timeout(LOOK_EVERY);
        }
        // It may have ended; there is nobody left to tell.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
