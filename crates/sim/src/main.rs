//! `cargo xtask sim`: runs seeds on all cores, or one seed with its log. `cargo xtask policy`: the
//! policy laboratory.

#![expect(clippy::print_stdout, reason = "a developer's tool talks on its standard output")]

mod bars;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use bars::Bars;
use clap::{Parser, Subcommand};
use dirigent_sim::{
    Followed, Options, Report, Totals,
    lab::{
        command::{PolicyArgs, measure, text},
        placement::{self, PlacementArgs},
    },
    replay, run,
};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask sim", about = "The cluster in simulated time, with faults")]
#[command(args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// How many seeds.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first seed; with no `--seeds` the only one.
    #[arg(long)]
    seed: Option<u64>,
    /// Print what happened.
    #[arg(long)]
    log: bool,
    /// Follow the recording in this directory, as `dirigent up --record` makes them.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["seeds", "seed", "log"])]
    replay: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What one leader's machine costs at the size that it is designed for (build it with --release).
    Scale,
    /// Replays a trace under each policy: memory cost against tail slowdown
    Policy(PolicyArgs),
    /// Ways to choose a worker for a start, beside each other
    Placement(PlacementArgs),
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(directory) = args.replay {
        return follow(&directory);
    }
    match &args.command {
        Some(Command::Scale) => return bars::scale(),
        Some(Command::Policy(args)) => return policy(args),
        Some(Command::Placement(args)) => return place(args),
        None => {}
    }
    match args.seed {
        Some(seed) if args.seeds == 200 => one(seed, args.log),
        first => many(first.unwrap_or(1), args.seeds),
    }
}

fn follow(directory: &Path) -> ExitCode {
    match replay(directory) {
        Ok(Followed { segments, events, effects, ended }) => {
            let ended = ended.as_deref().unwrap_or("it breaks off");
            println!(
                "{segments} segments, {events} events, {effects} effects, all the same: {ended}"
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn policy(args: &PolicyArgs) -> ExitCode {
    match measure(args) {
        Ok(report) => {
            let (text, well) = text(&report, args);
            println!("{text}");
            if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            println!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn place(args: &PlacementArgs) -> ExitCode {
    let all = placement::measure(args);
    println!("{}", placement::table(&all));
    let mut bars = Bars::default();
    for (text, holds) in placement::bars(&all) {
        bars.judge(holds, &text);
    }
    bars.verdict()
}

fn one(seed: u64, log: bool) -> ExitCode {
    let report = run(Options { seed, log, ..Options::default() });
    if let Some(log) = &report.log {
        println!("{log}");
    }
    println!("{:#?}", report.counts);
    match report.complaint(seed) {
        Some(complaint) => {
            println!("{complaint}");
            ExitCode::FAILURE
        }
        None => {
            println!("seed={seed} hash={:016x}: every invariant held", report.hash);
            ExitCode::SUCCESS
        }
    }
}

fn many(first: u64, seeds: u64) -> ExitCode {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicU64::new(first);
    let work = || {
        let mut reports = Vec::new();
        loop {
            let seed = next.fetch_add(1, Relaxed);
            if seed >= first + seeds {
                return reports;
            }
            reports.push((seed, run(Options { seed, ..Options::default() })));
        }
    };
    let reports: Vec<(u64, Report)> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        all.into_iter().filter_map(|thread| thread.join().ok()).flatten().collect()
    });
    let mut failed = 0;
    let (mut steps, mut calls) = (0, 0);
    let mut totals = Totals::default();
    for (seed, report) in &reports {
        steps += report.counts.steps;
        calls += report.counts.calls;
        totals.add(report);
        if let Some(complaint) = report.complaint(*seed) {
            println!("{complaint}");
            failed += 1;
        }
    }
    let Totals { faults, premises, met } = &totals;
    println!("faults: {faults:?}\npremises: {premises:?}\nmet: {met:?}");
    let (untested, unmet) = (totals.untested(), totals.unmet());
    if !untested.is_empty() {
        println!("never put to the test: {untested:?}");
    }
    if !unmet.is_empty() {
        println!("never met: {unmet:?}");
    }
    println!("{} seeds, {failed} failed, {steps} steps, {calls} calls", reports.len());
    let well =
        failed == 0 && untested.is_empty() && unmet.is_empty() && reports.len() as u64 == seeds;
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
