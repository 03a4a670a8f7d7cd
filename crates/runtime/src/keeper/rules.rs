//! Network rules of sandboxes: one table of nftables for each keeper that runs as root. The tool
//! `nft` runs at a keeper's start and end, never on the path of a sandbox's start.

use std::{
    io::{self, Write as _},
    process::{Command, Stdio},
};

use super::Options;

/// Rules that keep sandboxes from the protected ports and from each other's, and other hosts from
/// theirs. Made once; `nft` is not on the path of a start.
pub(crate) fn make(options: &Options, table: &str) -> Result<(), String> {
    let first = options.uid_base;
    let last = options.uid_base.saturating_add(u32::from(u16::MAX));
    let (low, high) = options.ports;
    let ports: Vec<String> = options.protected_ports.iter().map(u16::to_string).collect();
    let protected = if ports.is_empty() {
        String::new()
    } else {
        format!("meta skuid {first}-{last} tcp dport {{ {} }} reject\n", ports.join(", "))
    };
    // A sandbox's answers to who called it have its uid and a port of the range too: only packets
    // that open a connection are judged. That needs no connection tracking.
    let opens = "tcp flags & (fin | syn | rst | ack) == syn";
    let rules = format!(
        "table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n\
         chain out {{ type filter hook output priority 0; policy accept;\n{protected}\
         meta skuid {first}-{last} tcp dport {low}-{high} {opens} reject\n}}\n\
         chain in {{ type filter hook input priority 0; policy accept;\n\
         iifname != \"lo\" tcp dport {low}-{high} {opens} reject\n}}\n}}\n"
    );
    nft(&rules)
}

fn nft(rules: &str) -> Result<(), String> {
    let child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "`nft` is not installed (package nftables)".to_owned(),
        _ => format!("nft: {error}"),
    })?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(rules.as_bytes()).map_err(|error| format!("nft: {error}"))?;
    }
    let output = child.wait_with_output().map_err(|error| format!("nft: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(format!("nft: {}", text.lines().next().unwrap_or("failed")))
}

/// Removes a table, if it is there.
pub(crate) fn remove(table: &str) -> Result<(), String> {
    nft(&format!("table inet {table}\ndelete table inet {table}\n"))
}
