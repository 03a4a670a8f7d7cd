//! Who resolves names for sandboxes that have a network of their own: the machine's resolvers, but
//! none that listens on the machine's loopback, where they cannot reach it.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
};

/// What resolvers are read from: the first file that names one that can be reached. The second is
/// systemd's, which names those behind its own resolver at 127.0.0.53.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// The machine's resolvers.
pub(super) fn of_this_machine() -> Vec<Ipv4Addr> {
    usable_file().map(|text| reachable(&text)).unwrap_or_default()
}

/// The text of the first file that names one.
fn usable_file() -> Option<String> {
    let mut texts = FILES.iter().filter_map(|file| fs::read_to_string(file).ok());
    texts.find(|text| !reachable(text).is_empty())
}

/// What a sandbox finds as its `resolv.conf`, if that is not the machine's.
pub(crate) fn instead() -> Option<String> {
    let [first, others @ ..] = FILES.map(|file| fs::read_to_string(file).ok());
    let usable = |text: &String| !reachable(text).is_empty();
    if first.as_ref().is_some_and(usable) {
        return None;
    }
    others.into_iter().flatten().find(usable)
}

/// Whether sandboxes can have names resolved.
pub(crate) fn are_reachable() -> bool {
    usable_file().is_some()
}

/// Those that can be reached from elsewhere.
fn reachable(text: &str) -> Vec<Ipv4Addr> {
    let named = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let mut found: Vec<Ipv4Addr> = named
        .filter_map(|rest| match rest.trim().parse() {
            Ok(IpAddr::V4(address)) => Some(address),
            Ok(IpAddr::V6(_)) | Err(_) => None,
        })
        .filter(|address| !address.is_loopback() && !address.is_unspecified())
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_on_loopback_are_no_help() {
        assert!(reachable("nameserver 127.0.0.53\noptions edns0\n").is_empty());
        let text = "# a comment\nnameserver 10.0.0.2\n nameserver fd00::1\nnameserver\t10.0.0.1\n";
        assert_eq!(reachable(text), [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)]);
    }
}
