//! `cargo xtask test`: everything, with what was skipped counted.

use std::{
    io::{BufRead as _, BufReader},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::run;

/// Debian packages that some tests use, with the program that shows whether they are there.
/// Without them those tests say that they skip.
const PACKAGES: [(&str, &str); 3] =
    [("python3", "python3"), ("nftables", "nft"), ("haproxy", "haproxy")];

/// Whose tests differ between root and an ordinary user.
const TWICE: [&str; 2] = ["dirigent-runtime", "dirigent-cli"];

/// An ordinary user without a name: no account needs to exist for it.
const ORDINARY: u32 = 52_731;

pub(crate) fn test(install: bool, filter: Option<&str>) -> Result<()> {
    packages(install || std::env::var_os("CI").is_some_and(|ci| ci == "true"))?;
    let mut skips = Vec::new();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["test", "--workspace", "--no-fail-fast", "--", "--show-output"]);
    cargo.args(filter);
    println!("xtask: test: cargo test --workspace --no-fail-fast");
    let passed = watched(&mut cargo, &mut skips)?;
    let passed_twice = if passed && rustix::process::getuid().is_root() {
        as_ordinary_user(filter, &mut skips)?
    } else {
        true
    };
    println!("xtask: skipped: {}", skips.len());
    for skip in &skips {
        println!("xtask:   {skip}");
    }
    if !passed {
        bail!("tests failed; their names stand under `failures:` above");
    }
    if !passed_twice {
        bail!("tests failed as an ordinary user (uid {ORDINARY})");
    }
    Ok(())
}

/// Installs what is missing, or prints the one line that does.
fn packages(install: bool) -> Result<()> {
    let missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|(_, program)| !on_path(program))
        .map(|(package, _)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let line = format!("apt-get install --yes --no-install-recommends {}", missing.join(" "));
    if !install || !rustix::process::getuid().is_root() || !on_path("apt-get") {
        println!("xtask: for the tests that will be skipped: {line}");
        return Ok(());
    }
    // Services of the packages are not started: tests run their own on free ports.
    let script = format!(
        "export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1; \
         printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d; \
         apt-get update -qq && {line} -qq; status=$?; rm -f /usr/sbin/policy-rc.d; exit $status"
    );
    let status = Command::new("sh").args(["-c", &script]).status().context("cannot start sh")?;
    if !status.success() {
        println!("xtask: could not install; run it by hand: {line}");
    }
    Ok(())
}

fn on_path(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// Runs with the output passed on, and keeps the lines of tests that say why they skip.
fn watched(command: &mut Command, skips: &mut Vec<String>) -> Result<bool> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start the tests")?;
    let stdout = child.stdout.take().context("standard output is piped")?;
    for line in BufReader::new(stdout).lines() {
        let line = line.context("cannot read the tests' output")?;
        println!("{line}");
        if line.starts_with("skip: ") || line.starts_with("skipped: ") {
            skips.push(line);
        }
    }
    Ok(child.wait().context("cannot wait for the tests")?.success())
}

/// The test programs of [`TWICE`], once more without root's rights.
fn as_ordinary_user(filter: Option<&str>, skips: &mut Vec<String>) -> Result<bool> {
    let programs = test_programs()?;
    let scratch = std::env::temp_dir().join(format!("dirigent-test-{}", std::process::id()));
    std::fs::create_dir(&scratch).context("cannot make a directory for the second run")?;
    std::fs::set_permissions(&scratch, std::fs::Permissions::from_mode(0o777))
        .context("cannot open the directory for the second run")?;
    let mut passed = true;
    for (directory, program) in &programs {
        if !reachable(program) || !reachable(directory) {
            let skip = format!(
                "skip: {} as an ordinary user: a directory above it is closed to others",
                program.display()
            );
            println!("{skip}");
            skips.push(skip);
            continue;
        }
        println!("xtask: as uid {ORDINARY}: {}", program.display());
        let mut command = Command::new(program);
        command
            .arg("--show-output")
            .args(filter)
            .current_dir(directory)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("CARGO_MANIFEST_DIR", directory)
            .env("HOME", &scratch)
            .env("TMPDIR", &scratch)
            .uid(ORDINARY)
            .gid(ORDINARY);
        passed &= watched(&mut command, skips)?;
    }
    if let Err(error) = std::fs::remove_dir_all(&scratch) {
        println!("xtask: {} stays behind: {error}", scratch.display());
    }
    Ok(passed)
}

/// The test programs of [`TWICE`] with the directory of their package.
fn test_programs() -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut args = vec!["test", "--no-run", "--message-format=json", "--quiet"];
    for package in TWICE {
        args.extend(["--package", package]);
    }
    let mut programs = Vec::new();
    for line in run::output(env!("CARGO"), &args)?.lines() {
        let message: serde_json::Value = serde_json::from_str(line).context("cargo speaks JSON")?;
        if message["profile"]["test"] != true {
            continue;
        }
        let manifest = message["manifest_path"].as_str().map(Path::new).and_then(Path::parent);
        if let (Some(program), Some(directory)) = (message["executable"].as_str(), manifest) {
            programs.push((directory.to_owned(), PathBuf::from(program)));
        }
    }
    Ok(programs)
}

/// Whether users other than the owner get to `path`.
fn reachable(path: &Path) -> bool {
    path.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty()).all(|dir| {
        std::fs::metadata(dir).is_ok_and(|metadata| metadata.permissions().mode() & 0o001 != 0)
    })
}
