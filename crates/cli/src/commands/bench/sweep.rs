//! What `bench cold --sweep` and `bench warm --sweep` have in common.

use std::path::PathBuf;

use clap::Args;
use dirigent_bench::{
    report,
    sweep::{Shape, Target},
};
use serde::Serialize;

use crate::{
    fail::{Fail, Kind, OrFail as _, Result},
    printer::Printer,
};

#[derive(Debug, Args)]
pub(super) struct SweepArgs {
    /// Raise the rate step by step until calls wait for each other: latency against rate
    #[arg(long)]
    pub(super) sweep: bool,
    /// Of a sweep: the first rate, calls a second
    #[arg(long, requires = "sweep", value_name = "RATE", value_parser = rate)]
    from: Option<f64>,
    /// Of a sweep: the highest rate that is tried
    #[arg(long, requires = "sweep", value_name = "RATE", value_parser = rate)]
    to: Option<f64>,
    /// Of a sweep: seconds of a step
    #[arg(long, requires = "sweep", value_name = "SECONDS", value_parser = rate)]
    step: Option<f64>,
    /// Of a sweep: where report.json and report.html go
    #[arg(long, requires = "sweep", default_value = "dirigent-report")]
    out: PathBuf,
}

/// What a sweep is where nothing else is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Defaults {
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) seconds: f64,
    pub(super) limit_ms: f64,
}

/// The place of saturation is then known to a twelfth.
const HALVINGS: u32 = 3;

/// A number above 0.
pub(super) fn rate(text: &str) -> std::result::Result<f64, String> {
    let number: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if number.is_finite() && number > 0.0 { Ok(number) } else { Err("not above 0".to_owned()) }
}

impl SweepArgs {
    pub(super) fn shape(&self, defaults: Defaults) -> Result<Shape> {
        let (from, to) = (self.from.unwrap_or(defaults.from), self.to.unwrap_or(defaults.to));
        if to < from {
            let fail = Fail::config(format!("the highest rate, {to}, is below the first, {from}"));
            return Err(fail.hint("raise --to, or lower --from"));
        }
        let seconds = self.step.unwrap_or(defaults.seconds);
        Ok(Shape { from, to, seconds, halvings: HALVINGS, limit_ms: defaults.limit_ms })
    }
}

/// Prints what was seen and writes the report.
pub(super) fn finish(
    args: &SweepArgs,
    seen: &impl Serialize,
    targets: &[Target],
    page: &str,
    printer: Printer,
) -> Result {
    report::write(&args.out, seen, page)
        .or_fail(Kind::Unavailable, || "cannot write the report")?;
    if printer.is_json() {
        return printer.json(seen);
    }
    let row = |target: &Target| {
        let broke = target
            .saturated_at
            .map_or_else(|| "not reached".to_owned(), |rate| format!("{rate:.0}"));
        let first = target.steps.first().map_or(0.0, |step| step.latency_ms.p50);
        vec![target.name.to_owned(), format!("{:.0}", target.holds), broke, format!("{first:.2}")]
    };
    let head = ["", "holds, per second", "does not hold", "p50 at the first rate, ms"];
    printer.table(&head, targets.iter().map(row).collect())?;
    printer.line(&format_args!("report: {}", args.out.join("report.html").display()))
}
