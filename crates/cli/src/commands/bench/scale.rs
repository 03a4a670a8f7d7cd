//! `dirigent bench scale`: cold calls on emulated workers, and what each part takes for one.

use std::{sync::Arc, time::Duration};

use clap::Args;
use dirigent_bench::{load::Progress, replay, scale};
use serde_json::json;

use super::{Bar, judge, row, system::System, system::Used, trace};
use crate::{
    fail::{Kind, OrFail as _, Result},
    printer::Printer,
};

#[derive(Clone, Debug, Args)]
pub(crate) struct ScaleArgs {
    /// Emulated workers, each with a connection of its own
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) workers: u32,
    /// Calls, each the first one of its function
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    calls: u32,
    /// Calls a second
    #[arg(long, default_value_t = 1000.0)]
    rate: f64,
}

/// CPU of all parts for a cold call, at most.
const CALL_US: f64 = 400.0;
/// CPU of the control plane for a sandbox created and removed, at most.
const SANDBOX_US: f64 = 60.0;
/// A rate at which nothing waits: only there latency is judged.
const SLOW: f64 = 100.0;
/// The median call takes as many round trips of loopback at most.
const ROUND_TRIPS: f64 = 8.0;

pub(super) async fn bench(system: &System, args: &ScaleArgs, printer: Printer) -> Result {
    let options = scale::Options { calls: args.calls as usize, per_second: args.rate };
    let failed = || "the measurement failed";
    scale::register(system, options).await.or_fail(Kind::User, failed)?;
    let before = system.used()?;
    let progress = Arc::new(Progress::default());
    let run = scale::run(system, options, Arc::clone(&progress));
    let watching = replay::watch(system, |second| trace::tell(&second, &progress, printer));
    let seen = tokio::select! {
        seen = run => seen.or_fail(Kind::User, failed)?,
        never = watching => match never {},
    };
    let after = system.used()?;
    let calls = f64::from(args.calls);
    let spent: Vec<(Used, f64)> = before
        .iter()
        .zip(after)
        .map(|(before, after)| (after, micros(after.cpu.saturating_sub(before.cpu)) / calls))
        .collect();
    if printer.is_json() {
        let mut report = serde_json::to_value(&seen)?;
        report["workers"] = args.workers.into();
        report["attached_after_ms"] = json!(system.attached_after().as_secs_f64() * 1000.0);
        let part = |(used, us): &(Used, f64)| {
            let mib = used.resident >> 20;
            json!({ "part": used.part, "cpu_us_per_call": us, "resident_mib": mib })
        };
        report["parts"] = spent.iter().map(part).collect();
        printer.json(&report)?;
    } else {
        let rows = vec![row("call", &seen.latency), row("of it, decide", &seen.decide)];
        printer.table(&["MS", "p50", "p90", "p99", "max"], rows)?;
        let rows = spent.iter().map(|(used, us)| {
            vec![used.part.to_owned(), format!("{us:.0}"), (used.resident >> 20).to_string()]
        });
        printer.table(&["PART", "CPU us/call", "MiB"], rows.collect())?;
        printer.line(&format_args!(
            "{} workers attached within {:.2} s; {} sandboxes in {:.1} s, {:.0}/s",
            args.workers,
            system.attached_after().as_secs_f64(),
            seen.created,
            seen.seconds,
            seen.sandboxes_created_per_s
        ))?;
        if let Some(why) = &seen.first_failure {
            printer.line(&format_args!("the first failure: {why}"))?;
        }
    }
    judge(printer, &bars(&seen, &spent, args))
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn bars(seen: &scale::Scale, spent: &[(Used, f64)], args: &ScaleArgs) -> Vec<Bar> {
    let all: f64 = spent.iter().map(|(_, us)| us).sum();
    let control = spent.first().map_or(0.0, |(_, us)| *us);
    let mut bars = vec![
        Bar { text: format!("{} failed", seen.failed), holds: seen.failed == 0 },
        Bar {
            text: format!("{} of {} calls had a start of their own", seen.created, args.calls),
            holds: seen.created == args.calls as usize,
        },
        Bar {
            text: format!("CPU of all parts {all:.0} us for a cold call, at most {CALL_US}"),
            holds: all <= CALL_US,
        },
        Bar {
            text: format!(
                "CPU of the control plane {control:.0} us for a sandbox, at most {SANDBOX_US}"
            ),
            holds: control <= SANDBOX_US,
        },
    ];
    if args.rate <= SLOW {
        let trips = seen.latency.p50 / seen.round_trip_ms;
        bars.push(Bar {
            text: format!(
                "the median call takes {trips:.1} round trips of {:.3} ms, at most {ROUND_TRIPS}",
                seen.round_trip_ms
            ),
            holds: trips <= ROUND_TRIPS,
        });
    }
    bars
}
