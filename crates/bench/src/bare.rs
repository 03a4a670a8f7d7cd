//! The program behind a function, started without Dirigent: the floor of every figure.

use std::{
    net::{Ipv4Addr, TcpListener},
    ops::Range,
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context as _, Result, bail};

/// A program while it runs; it ends with the value, also if the measurement is interrupted.
#[derive(Debug)]
pub(crate) struct Running(pub(crate) Child);

/// Executes it with what a function has of these in its environment, silent.
pub(crate) fn spawn(program: &Path, args: &[String], port: u16) -> Result<Running> {
    Command::new(program)
        .args(args)
        .env_clear()
        .env("PORT", port.to_string())
        .env("PATH", "/usr/bin:/bin")
        .env("TMPDIR", std::env::temp_dir())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map(Running)
        .with_context(|| format!("cannot execute {}", program.display()))
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; there is nobody left to tell.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Below the ports that the kernel gives to outgoing connections and those of sandboxes. Who
/// connects again and again to an ephemeral port on which nobody listens yet may be given that very
/// port, and be connected to itself.
const PORTS: Range<u16> = 10_000..20_000;

/// A port that nobody listens on now.
pub(crate) fn free_port() -> Result<u16> {
    free_ports(1)?.pop().context("no free port")
}

/// So many different ports that nobody listens on now, not soon given out again.
pub fn free_ports(count: usize) -> Result<Vec<u16>> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    // Processes that measure at once begin elsewhere.
    let begin = std::process::id() as usize * 997;
    let mut held = Vec::new();
    for _ in PORTS {
        if held.len() == count {
            break;
        }
        let place = begin + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = PORTS.start + u16::try_from(place % PORTS.len())?;
        held.extend(TcpListener::bind((Ipv4Addr::LOCALHOST, port)));
    }
    if held.len() < count {
        bail!("of ports {PORTS:?} {} are free, {count} are needed", held.len());
    }
    held.iter().map(|held| Ok(held.local_addr().context("no local address")?.port())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_different_and_not_ephemeral() {
        let first = free_ports(50).unwrap();
        let mut all = free_ports(50).unwrap();
        all.extend(&first);
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 100);
        assert!(all.iter().all(|port| PORTS.contains(port)));
        assert!(TcpListener::bind((Ipv4Addr::LOCALHOST, first[0])).is_ok());
    }
}
