//! The program behind a function, started without Dirigent: the floor of every figure.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};

/// Executes it with `$PORT` and nothing else of ours, silent.
pub(crate) fn spawn(program: &Path, args: &[String], port: u16) -> Result<Child> {
    Command::new(program)
        .args(args)
        .env_clear()
        .env("PORT", port.to_string())
        .env("PATH", "/usr/bin:/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot execute {}", program.display()))
}

/// A port that nobody listens on now.
pub(crate) fn free_port() -> Result<u16> {
    free_ports(1)?.pop().context("no free port")
}

/// So many different ports that nobody listens on now.
pub(crate) fn free_ports(count: usize) -> Result<Vec<u16>> {
    let held: Result<Vec<TcpListener>> = (0..count)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port"))
        .collect();
    held?.iter().map(|held| Ok(held.local_addr().context("no local address")?.port())).collect()
}
