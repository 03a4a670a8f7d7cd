//! The one entry point of developers and CI:
//! `cargo xtask {check,test,sim,policy,chaos,bench,fuzz,tidy,generate,dist,ci}`.

#![expect(clippy::print_stdout, reason = "a developer's tool talks on its standard output")]

mod bench;
mod dist;
mod fuzz;
mod run;
mod test;
mod tidy;

use std::{process::ExitCode, time::Instant};

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "What developers and CI run")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Formatting, tidy, clippy with warnings as errors, documentation.
    Check,
    /// Every test. As root the tests of runtime and binary run a second time as an ordinary user.
    Test {
        /// Install the system packages that some tests use (Debian, as root). `CI=true` does too.
        #[arg(long)]
        install: bool,
        /// Only tests whose name contains this.
        filter: Option<String>,
    },
    /// The cluster in simulated time, with faults: `--seeds N` on all cores, or one `--seed S --log`.
    Sim {
        /// Passed on to the simulator.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// The policy laboratory: a trace in simulated time under each policy, as table and plot.
    Policy {
        /// Passed on to the laboratory.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// A cluster on hosts of its own under load, with random faults: `--minutes N`, `--seed S`. As root.
    Chaos {
        /// Passed on to the rig.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// The standing set of measurements, kept in `bench/results` and compared with the last committed one:
    /// fails if a figure is worse than it may be. Some minutes; on a machine that does nothing else.
    Bench {
        /// Only figures whose name contains this; then nothing is written.
        only: Option<String>,
    },
    /// What reads bytes of others, and the machines, under inputs that libFuzzer finds; needs a C++ compiler.
    Fuzz {
        /// frames, requests, manifests, gate, worker or cluster.
        target: String,
        /// For how long.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Put the inputs that go different ways into `fuzz/corpus`, the fewest that do.
        #[arg(long)]
        keep: bool,
    },
    /// The rules that no compiler checks: sizes, layers, words, links, number of dependencies.
    Tidy,
    /// Writes what is made from the code and checked in: pages of reference, expected outputs.
    Generate,
    /// A static binary with units, configuration and completions: archive, Debian package, checksums.
    Dist,
    /// What CI runs: check, then test.
    Ci,
}

fn main() -> ExitCode {
    let begun = Instant::now();
    let task = Args::parse().task;
    // Its own last line says whether every bar holds.
    let sums_up = matches!(task, Task::Policy { .. } | Task::Chaos { .. });
    let result = perform(task);
    match &result {
        Ok(()) if sums_up => {}
        Ok(()) => println!("xtask: done in {} s", begun.elapsed().as_secs()),
        // The chain of causes without a backtrace: what failed has said more above.
        Err(error) => println!("xtask: error: {error:#}{}", run::short_of_disk()),
    }
    if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn perform(task: Task) -> Result<()> {
    run::enter_workspace()?;
    match task {
        Task::Check => check()?,
        Task::Test { install, filter } => test::test(install, filter.as_deref())?,
        Task::Sim { args } => sim(&args)?,
        Task::Policy { args } => policy(&args)?,
        Task::Chaos { args } => chaos(&args)?,
        Task::Bench { only } => bench::bench(only.as_deref())?,
        Task::Fuzz { target, seconds, keep } => fuzz::fuzz(&target, seconds, keep)?,
        Task::Tidy => tidy::tidy()?,
        Task::Generate => generate()?,
        Task::Dist => dist::dist()?,
        Task::Ci => {
            check()?;
            // The command of the README, so that CI proves what users are told to run.
            test::test(false, None)?;
        }
    }
    Ok(())
}

/// The tests that compare such files write them instead. Nothing else says how they are made.
fn generate() -> Result<()> {
    // One after the other: not every harness takes two filters.
    for filter in ["reference_page", "as_reviewed"] {
        let args = ["test", "--quiet", "--workspace", "--", filter];
        run::cargo_with("generated files", &args, &[("UPDATE", "1")])?;
    }
    Ok(())
}

/// With assertions on, but optimised (see the profiles in `Cargo.toml`).
fn sim(args: &[String]) -> Result<()> {
    let mut all = vec!["run", "--quiet", "--package", "dirigent-sim", "--"];
    all.extend(args.iter().map(String::as_str));
    run::cargo("simulation", &all)
}

fn policy(args: &[String]) -> Result<()> {
    let mut all = vec!["run", "--quiet", "--release", "--package", "dirigent-sim", "--", "policy"];
    all.extend(args.iter().map(String::as_str));
    run::cargo_plainly("policy laboratory", &all)
}

/// The program as users build it, but not optimised: that takes longer than many a run.
fn chaos(args: &[String]) -> Result<()> {
    run::cargo("the program", &["build", "--quiet", "--package", "dirigent-cli"])?;
    let program = run::target().join("debug/dirigent").display().to_string();
    let mut all = vec!["run", "--quiet", "--package", "dirigent-rig", "--"];
    all.extend(["--dirigent", &program]);
    all.extend(args.iter().map(String::as_str));
    run::cargo_plainly("chaos", &all)
}

/// Cheapest first, so that a red gate is red early.
fn check() -> Result<()> {
    run::cargo("formatting", &["fmt", "--all", "--check"])?;
    tidy::tidy()?;
    run::cargo(
        "clippy",
        &["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"],
    )?;
    let mut all = vec!["clippy", "--quiet", "--workspace", "--all-targets"];
    all.extend(["--features", test::FEATURES, "--", "-D", "warnings"]);
    run::cargo("clippy of all features", &all)?;
    run::cargo_with(
        "documentation",
        &["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"],
        &[("RUSTDOCFLAGS", "-D warnings")],
    )
}
