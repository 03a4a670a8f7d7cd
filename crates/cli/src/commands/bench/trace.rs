//! `dirigent bench trace`: a recorded trace, replayed.

use std::path::PathBuf;

use clap::Args;
use dirigent_bench::{
    arrivals::Arrivals,
    cold::Cold,
    load::{Progress, Protocol},
    replay::{self, Options, Replay},
    report,
    trace::Trace,
};

use super::{Bar, System, judge, row};
use crate::{
    fail::{Fail, Kind, OrFail as _, Result},
    printer::Printer,
};

#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    /// A directory with invocations.csv, durations.csv and memory.csv (Azure 2019), or a file with the columns app,
    /// func, end_timestamp and duration, a line for each call (Azure 2021)
    trace: PathBuf,
    /// Minutes of the trace to replay
    #[arg(long, default_value_t = 10)]
    minutes: usize,
    /// How calls are spread over a minute: exponential, uniform, equidistant, or as recorded, which needs a trace call
    /// by call and is its default [default: exponential]
    #[arg(long)]
    arrivals: Option<Arrivals>,
    /// Trace time per real time
    #[arg(long, default_value_t = 1.0)]
    speed: f64,
    /// Seed of arrivals and durations
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Give functions the memory that the trace names, not 16 MiB
    #[arg(long)]
    trace_resources: bool,
    /// What the callers speak: http1 (connections kept) or h2c (one connection)
    #[arg(long, default_value = "http1")]
    protocol: Protocol,
    /// Run the functions from an image of this program, by this machine's containerd
    /// (`DIRIGENT_CONTAINERD_SOCKET` if it does not listen where it usually does)
    #[arg(long)]
    image: bool,
    /// Where report.json and report.html go
    #[arg(long, default_value = "dirigent-report")]
    out: PathBuf,
}

pub(super) async fn bench(system: &System, args: &TraceArgs, printer: Printer) -> Result {
    let trace = Trace::read(&args.trace).or_fail(Kind::Config, || "cannot use this trace")?;
    let arrivals = arrivals(args.arrivals, &trace)?;
    let minutes = args.minutes.min(trace.minutes());
    printer.note(&format_args!(
        "{} functions, {} calls in {minutes} min",
        trace.functions.len(),
        trace.invocations(minutes)
    ));
    let options = Options {
        minutes,
        arrivals,
        speed: args.speed,
        seed: args.seed,
        trace_resources: args.trace_resources,
        protocol: args.protocol,
        of_image: args.image,
    };
    if args.image {
        system.send_image().await?;
    }
    let replay = replayed(system, &trace, options, printer).await?;
    let page = report::page("Dirigent: trace replay", &replay, None::<&Cold>);
    report::write(&args.out, &replay, &page)
        .or_fail(Kind::Unavailable, || "cannot write the report")?;
    if printer.is_json() {
        printer.json(&replay)?;
    } else {
        print(&replay, printer)?;
        printer.line(&format_args!("report: {}", args.out.join("report.html").display()))?;
    }
    if args.image {
        system.image_is_gone().await?;
    }
    judge(printer, &[Bar { text: replay.verdict(), holds: replay.is_clean() }])
}

fn arrivals(asked: Option<Arrivals>, trace: &Trace) -> Result<Arrivals> {
    match (asked, trace.is_recorded_by_call()) {
        (None, true) => Ok(Arrivals::Recorded),
        (None, false) => Ok(Arrivals::Exponential),
        (Some(Arrivals::Recorded), false) => {
            Err(Fail::config("this trace has counts per minute, not the moment of each call")
                .hint("--arrivals exponential, uniform or equidistant spreads them"))
        }
        (Some(asked), _) => Ok(asked),
    }
}

/// A line about a run's progress: each second on a terminal, else each tenth.
pub(super) fn tell(second: &replay::Second, progress: &Progress, printer: Printer) {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds")]
    let number = second.at_s.round() as u64;
    if printer.is_live() || number.is_multiple_of(10) {
        printer.note(&replay::live_line(second, progress));
    }
}

/// Replays with a line about its progress each second (on a terminal, else each ten).
pub(crate) async fn replayed(
    system: &System,
    trace: &Trace,
    options: Options,
    printer: Printer,
) -> Result<Replay> {
    let tell = |second: replay::Second, progress: &Progress| tell(&second, progress, printer);
    replay::replay(system, trace, options, &tell).await.or_fail(Kind::User, || "the replay failed")
}

/// The figures that the report shows too.
pub(crate) fn print(replay: &Replay, printer: Printer) -> Result {
    for (kind, count) in &replay.failed {
        printer.line(&format_args!("failed: {count} {kind}"))?;
    }
    let rows = vec![
        row("scheduling latency per call, ms", &replay.scheduling_ms),
        row("average per function, ms", &replay.function_scheduling_ms),
        row("slowdown per function", &replay.function_slowdown),
    ];
    printer.table(&["", "p50", "p90", "p99", "max"], rows)?;
    printer.line(&format_args!(
        "{} deployed in {:.0} ms, at most {} sandboxes, memory of all to busy {:.2}",
        replay.functions, replay.deploy_ms, replay.sandboxes_max, replay.all_to_busy
    ))
}
