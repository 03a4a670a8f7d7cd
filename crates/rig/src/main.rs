//! `cargo xtask chaos`: seeded random faults on a cluster, with all outcomes accounted for.

#![expect(clippy::print_stdout, reason = "a developer's tool talks on its standard output")]

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Result;
use clap::Parser;
use dirigent_rig::{
    chaos::{self, Options},
    cluster::Cluster,
};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask chaos", about = "Seeded random faults on a cluster under load")]
struct Args {
    /// The program `dirigent`.
    #[arg(long)]
    dirigent: PathBuf,
    /// How long faults go on.
    #[arg(long, default_value_t = 5)]
    minutes: u64,
    /// The same faults in the same order again.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("chaos: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<bool> {
    if let Some(why) = Cluster::obstacle() {
        anyhow::bail!("{why}");
    }
    let options = Options {
        dirigent: args.dirigent.canonicalize()?,
        lasts: Duration::from_secs(60 * args.minutes),
        seed: args.seed,
    };
    let report = chaos::run(&options, |line| println!("{line}"))?;
    println!("{report} (seed {})", args.seed);
    Ok(report.is_clean())
}
