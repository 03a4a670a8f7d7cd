//! Network rules of sandboxes: one table of nftables for each keeper that runs as root. The tool
//! `nft` runs at a keeper's start and end, never on the path of a sandbox's start.

use std::{
    io::{self, Write as _},
    process::{Command, Stdio},
};

use ipnet::IpNet;

use super::{Options, protocol::Network};

/// Rules that keep sandboxes from the protected ports and from each other's, and other hosts from
/// theirs, except those that are admitted. Made once; `nft` is not on the path of a start.
pub(crate) fn make(options: &Options, table: &str) -> Result<(), String> {
    nft(&text(options.uid_base, &options.network, table))
}

fn text(first: u32, network: &Network, table: &str) -> String {
    let last = first.saturating_add(u32::from(u16::MAX));
    let (low, high) = network.ports;
    let ports: Vec<String> = network.protected_ports.iter().map(u16::to_string).collect();
    let protected = if ports.is_empty() {
        String::new()
    } else {
        format!("meta skuid {first}-{last} tcp dport {{ {} }} reject\n", ports.join(", "))
    };
    // A sandbox's answers to who called it have its uid and a port of the range too: only packets
    // that open a connection are judged. That needs no connection tracking.
    let opens = "tcp flags & (fin | syn | rst | ack) == syn";
    let (mut sets, mut admitted) = (Vec::new(), Vec::new());
    for (family, set, matches) in [
        ("ip", "admitted4", (|net| matches!(net, IpNet::V4(_))) as fn(&IpNet) -> bool),
        ("ip6", "admitted6", |net| matches!(net, IpNet::V6(_))),
    ] {
        let nets = network.admitted.iter().filter(|net| matches(net));
        let nets: Vec<String> = nets.map(|net| net.trunc().to_string()).collect();
        if !nets.is_empty() {
            let kind = if family == "ip" { "ipv4_addr" } else { "ipv6_addr" };
            let nets = nets.join(", ");
            sets.push(format!(
                "set {set} {{ type {kind}; flags interval; auto-merge; elements = {{ {nets} }}; }}\n"
            ));
            admitted.push(format!("tcp dport {low}-{high} {family} saddr @{set} accept\n"));
        }
    }
    let (sets, admitted) = (sets.concat(), admitted.concat());
    format!(
        "table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n{sets}\
         chain out {{ type filter hook output priority 0; policy accept;\n{protected}\
         meta skuid {first}-{last} tcp dport {low}-{high} {opens} reject\n\
         meta skuid {first}-{last} oifname \"dg*\" reject\n}}\n\
         chain in {{ type filter hook input priority 0; policy accept;\n{admitted}\
         iifname != \"lo\" tcp dport {low}-{high} {opens} reject\n}}\n}}\n"
    )
}

/// Has rules written.
pub(crate) fn nft(rules: &str) -> Result<(), String> {
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn only_hosts_that_are_admitted_connect_from_outside() {
        let admitted = ["10.1.0.0/16", "10.2.0.7/32", "fd00::/8"];
        let mut network = Network {
            address: Ipv4Addr::new(10, 0, 0, 1),
            ports: (20_000, 29_999),
            admitted: admitted.iter().map(|net| net.parse().expect("a network")).collect(),
            protected_ports: vec![9091],
            forbidden: Vec::new(),
        };
        let rules = text(1000, &network, "t");
        let place = |part: &str| rules.find(part).unwrap_or_else(|| panic!("{part}\n{rules}"));
        assert!(rules.contains("elements = { 10.1.0.0/16, 10.2.0.7/32 }"), "{rules}");
        assert!(place("ip saddr @admitted4 accept") < place("iifname != \"lo\""));
        assert!(place("ip6 saddr @admitted6 accept") < place("iifname != \"lo\""));
        network.admitted.clear();
        assert!(!text(1000, &network, "t").contains("accept\niifname"));
    }
}
