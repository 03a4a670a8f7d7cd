//! `dirigent demo`: a Dirigent in a temporary directory shows what it does, measures itself beside
//! bare starts, and leaves nothing behind but a report.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use dirigent_bench::{
    arrivals::Arrivals,
    burst, cold,
    load::Protocol,
    replay::Options,
    report,
    synthetic::{self, Shape},
};
use serde::Serialize;
use serde_json::json;

use super::bench::{self, System};
use crate::{
    fail::{Fail, Kind, OrFail as _, Result},
    printer::Printer,
};

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Minutes of load; with 0 the bursts and cold starts alone
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=60))]
    minutes: u32,
    /// Seed of the load
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where report.json and report.html go
    #[arg(long, default_value = "dirigent-report")]
    out: PathBuf,
}

/// Trace minutes per minute of load: enough that functions go to zero and come back.
const SPEED: f64 = 10.0;

pub(crate) async fn demo(args: DemoArgs, printer: Printer) -> Result {
    System::run(printer, async |system| show(system, &args, printer).await).await
}

async fn show(system: &System, args: &DemoArgs, printer: Printer) -> Result {
    let program = std::env::current_exe().or_fail(Kind::Internal, || "where is this program")?;
    let example = ["example", "spin"].map(str::to_owned).to_vec();

    printer.note(&"1. 200 calls at once to a function that has no sandbox");
    let burst = burst::run(
        system,
        &burst::Options {
            program,
            args: example,
            calls: 200,
            max: 200,
            execution: Duration::from_millis(100),
            rounds: 1,
        },
    )
    .await
    .or_fail(Kind::User, || "the burst failed")?;
    tell(printer, "burst", &burst, || {
        printer.line(&format_args!(
            "   {} sandboxes; half answered after {:.0} ms, the last after {:.0} ms (200 bare starts: {:.0} ms)",
            burst.sandboxes.first().copied().unwrap_or_default(),
            burst.answers_ms.p50,
            burst.answers_ms.max,
            burst.bare_last_ms,
        ))
    })?;

    printer.note(&"2. cold starts, each beside a bare start of the same program");
    let mut options = cold::Options::smallest(bench::static_server(system).await?, 50, 25.0);
    options.sandbox.isolation = bench::demanded(system, printer).await?;
    let cold =
        cold::run(system, &options).await.or_fail(Kind::User, || "the measurement failed")?;
    tell(printer, "cold", &cold, || bench::print_cold(&cold, printer))?;

    printer.note(&format_args!("3. {} min of load, seed {}", args.minutes, args.seed));
    let shape = Shape {
        functions: 100,
        minutes: usize::try_from(args.minutes).unwrap_or(1) * 10,
        rate_max: 120.0,
        duration_max_ms: 1000.0,
        seed: args.seed,
    };
    let trace = synthetic::trace(shape);
    let options = Options {
        minutes: shape.minutes,
        arrivals: Arrivals::Exponential,
        speed: SPEED,
        seed: args.seed,
        trace_resources: false,
        of_image: false,
        protocol: Protocol::default(),
    };
    let replay = bench::replayed(system, &trace, options, printer).await?;
    tell(printer, "replay", &replay, || bench::print_replay(&replay, printer))?;
    let page = report::page("Dirigent: demo", &replay, Some(&cold));
    report::write(&args.out, &replay, &page)
        .or_fail(Kind::Unavailable, || "cannot write the report")?;
    let failed = burst.failed + cold.failed + replay.failed_total();
    let calls = burst.calls + cold.dirigent_ms.count + cold.failed + replay.calls;
    let lost = replay.lost;
    let report = args.out.join("report.html");
    tell(printer, "report", &report, || {
        printer.line(&format_args!("report: {}", report.display()))
    })?;
    // The last line: what scripts look at.
    if printer.is_json() {
        printer.json(&json!({ "calls": calls, "lost": lost, "failed": failed }))?;
    } else {
        printer.line(&format_args!("{calls} calls, {lost} lost, {failed} failed"))?;
    }
    if lost > 0 || failed > 0 {
        return Err(Fail::user("calls were lost or failed; the report says which"));
    }
    Ok(())
}

/// What was seen: as JSON under its name, or as people read it.
fn tell(
    printer: Printer,
    name: &str,
    seen: &impl Serialize,
    text: impl FnOnce() -> Result,
) -> Result {
    if printer.is_json() { printer.json(&json!({ name: seen })) } else { text() }
}
