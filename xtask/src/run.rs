//! Running programs, with their names in the errors.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

/// Every task works from the root of the workspace, wherever it was started.
pub(crate) fn enter_workspace() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no parent")?;
    std::env::set_current_dir(root).with_context(|| format!("cannot enter {}", root.display()))
}

/// `cargo ARGS`, announced as `what`.
pub(crate) fn cargo(what: &str, args: &[&str]) -> Result<()> {
    cargo_with(what, args, &[])
}

/// `cargo ARGS` with additional environment.
pub(crate) fn cargo_with(what: &str, args: &[&str], env: &[(&str, &str)]) -> Result<()> {
    println!("xtask: {what}: cargo {}", args.join(" "));
    let begun = Instant::now();
    run(what, args, env)?;
    println!("xtask: {what}: ok, {} s", begun.elapsed().as_secs());
    Ok(())
}

/// `cargo ARGS` whose output speaks for itself: nothing is printed before or after it.
pub(crate) fn cargo_plainly(what: &str, args: &[&str]) -> Result<()> {
    run(what, args, &[])
}

fn run(what: &str, args: &[&str], env: &[(&str, &str)]) -> Result<()> {
    let status = Command::new(env!("CARGO"))
        .args(args)
        .envs(env.iter().copied())
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("{what} failed; run `cargo {}` to see it alone", args.join(" "));
    }
    Ok(())
}

/// `PROGRAM ARGS` whose output speaks for itself.
pub(crate) fn program(what: &str, program: &str, args: &[&str]) -> Result<()> {
    let status = Command::new(program)
        .args(args)
        .status()
        .with_context(|| format!("cannot start {program}"))?;
    if !status.success() {
        bail!("{what} failed: {program} {}", args.join(" "));
    }
    Ok(())
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from)
}

/// Compilers and tests that find a full disk say many things, and seldom that.
pub(crate) fn short_of_disk() -> String {
    const ENOUGH_MIB: u64 = 2048;
    let free = |place: &PathBuf| {
        rustix::fs::statvfs(place).map(|stat| (stat.f_bavail * stat.f_frsize) >> 20)
    };
    [target(), std::env::temp_dir()]
        .iter()
        .filter_map(|place| {
            let left = free(place).ok().filter(|left| *left < ENOUGH_MIB)?;
            Some(format!("\nxtask: {} has only {left} MiB left", place.display()))
        })
        .collect()
}

pub(crate) fn rustc() -> String {
    std::env::var("RUSTC").unwrap_or_else(|_unset| "rustc".to_owned())
}

/// The machine that programs are built for if nothing is said.
pub(crate) fn machine(rustc: &str) -> Result<String> {
    let said = output(rustc, &["-vV"])?;
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not say for which machine it builds")?.to_owned())
}

/// What `program ARGS` prints.
pub(crate) fn output(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(args)
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        bail!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
