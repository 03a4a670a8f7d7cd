//! Instructions of a round of the hot loops, as callgrind counts them: the same on every run, and on
//! a busy machine.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};

use super::results::{Better, Results};
use crate::run;

/// A round of them costs what a compiler of the same version makes of it; more is a change.
const TOLERANCE: f64 = 0.03;

/// What is counted: its name, the package of the example, the example, its arguments, rounds.
const LOOPS: [(&str, &str, &str, &[&str], u64); 4] = [
    ("gate: a warm call", "dirigent-core", "hot-core", &["gate"], 20_000),
    ("control: a cold call", "dirigent-core", "hot-core", &["control"], 500),
    ("proxy: the framing of a request", "dirigent-proxy", "hot-scan", &[], 2000),
    ("wire: a batch of 16 grants", "dirigent-proto", "hot-frames", &[], 500),
];

pub(super) fn take(results: &mut Results, only: Option<&str>) -> Result<()> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        let why = "instructions: valgrind is not installed; on Debian: apt-get install valgrind";
        results.skipped.push(why.to_owned());
        return Ok(());
    }
    for (name, package, example, args, rounds) in LOOPS {
        let figure = format!("instructions: {name}");
        if only.is_some_and(|only| !figure.contains(only)) {
            continue;
        }
        run::cargo(
            example,
            &["build", "--quiet", "--release", "--package", package, "--example", example],
        )?;
        let program = run::target().join("release/examples").join(example);
        let few = collected(&program, args, rounds)?;
        let many = collected(&program, args, 2 * rounds)?;
        ensure!(many > few, "{name}: more rounds took no more instructions");
        // What it takes to start and end is in both.
        let each = (many - few) as f64 / rounds as f64;
        results.add(&figure, each, Better::Lower(TOLERANCE));
    }
    Ok(())
}

fn collected(program: &Path, args: &[&str], rounds: u64) -> Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args(args)
        .arg(rounds.to_string())
        .output()
        .context("cannot start valgrind")?;
    let [said, heard] =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    let shown = program.display();
    ensure!(output.status.success(), "{shown} under valgrind: {}", heard.trim());
    // Whoever gets stuck says so instead of how much it has done.
    ensure!(said.starts_with(&rounds.to_string()), "{shown}: {}", said.trim());
    counted(&heard).with_context(|| format!("{shown}: valgrind counted nothing: {}", heard.trim()))
}

/// In what callgrind says at the end.
fn counted(heard: &str) -> Option<u64> {
    let line = heard.lines().find_map(|line| line.split_once("Collected :"))?;
    line.1.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_found_in_what_callgrind_says() {
        let heard = "==7== Events    : Ir\n==7== Collected : 123456\n==7== \n";
        assert_eq!(counted(heard), Some(123_456));
        assert_eq!(counted("==7== nothing"), None);
    }
}
