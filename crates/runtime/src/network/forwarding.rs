//! Whether the machine forwards packets: a setting of the whole machine, which sandboxes with a
//! network of their own need.
//!
//! Where it is off, it is switched on, with a rule that drops whatever is forwarded and is neither
//! from nor to a sandbox: the machine becomes no router. That this is so is in the name of the
//! table (`..._guard` instead of `..._net`), so that whoever removes the last such table, be it
//! behind somebody who was killed, knows that it is to be switched off again.

use std::{fs, io, process::Command, time::Duration};

use crate::{claim::Claim, keeper::rules};

const SETTING: &str = "/proc/sys/net/ipv4/ip_forward";

/// The two endings of a table's name.
pub(crate) const ENDINGS: [&str; 2] = [PLAIN, GUARD];
const PLAIN: &str = "_net";
const GUARD: &str = "_guard";

/// Whoever looks and acts on what was seen has this name meanwhile.
const CLAIM: &str = "dirigent-forwarding";
const PATIENCE: Duration = Duration::from_secs(5);

/// The name of a keeper's table, and whether it guards.
pub(super) fn table(name: &str) -> Result<(String, bool), String> {
    let _claim = claim()?;
    let is_on = fs::read_to_string(SETTING).map_err(|error| format!("{SETTING}: {error}"))?;
    // On for others' sandboxes is on for ours, and off again with the last of them.
    let guard = is_on.trim() == "0" || tables().iter().any(|table| table.ends_with(GUARD));
    Ok((format!("{name}{}", if guard { GUARD } else { PLAIN }), guard))
}

/// Once the rules are there.
pub(super) fn switch_on() -> Result<(), String> {
    let _claim = claim()?;
    match fs::read_to_string(SETTING) {
        Ok(text) if text.trim() != "0" => return Ok(()),
        Ok(_) | Err(_) => {}
    }
    fs::write(SETTING, "1").map_err(|error| {
        format!("{SETTING} is 0 and cannot be set: {error}; `sysctl net.ipv4.ip_forward=1`")
    })?;
    tracing::info!(
        "net.ipv4.ip_forward was 0 and is 1 now; only packets from and to sandboxes are forwarded"
    );
    Ok(())
}

/// Remove a table; if it was the last one that guarded, the machine forwards nothing again.
pub(crate) fn remove(table: &str) -> Result<(), String> {
    let _claim = claim()?;
    let last = table.ends_with(GUARD)
        && !tables().iter().any(|other| other != table && other.ends_with(GUARD));
    if last {
        // First: without the rule the machine would forward everything.
        fs::write(SETTING, "0").map_err(|error| format!("{SETTING}: {error}"))?;
    }
    rules::remove(table)
}

/// All our tables of the `inet` family, of this kind or another.
pub(crate) fn tables() -> Vec<String> {
    // Not installed, or not allowed: then nobody made any.
    let output = Command::new("nft").args(["list", "tables", "inet"]).output();
    let text = output.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&text)
        .lines()
        .filter_map(|line| line.strip_prefix("table inet "))
        .map(|name| name.trim().to_owned())
        .filter(|name| name.starts_with("dirigent_"))
        .collect()
}

fn claim() -> Result<Claim, String> {
    let taken: io::Result<Claim> = Claim::take_within(CLAIM, PATIENCE);
    taken.map_err(|error| format!("{CLAIM} cannot be claimed: {error}"))
}
