//! `dirigent bench recover`: the leader is killed, with many workers attached.

use clap::Args;
use dirigent_bench::recover;
use serde_json::json;

use super::{Bar, System, judge, row};
use crate::{
    fail::{Kind, OrFail as _, Result},
    printer::Printer,
};

#[derive(Clone, Debug, Args)]
pub(crate) struct RecoverArgs {
    /// Emulated workers, each with connections of its own
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) workers: u32,
    /// Members of an etcd of its own that three control planes share; 0: a file of a single one,
    /// which is started again
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=5))]
    pub(crate) etcd: u32,
    /// Deaths of the leader
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Sandboxes that are there meanwhile
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    sandboxes: u32,
    /// Functions that are registered beside, and read by each leader
    #[arg(long, default_value_t = 0)]
    functions: u32,
}

/// All workers are attached within so long of the start of their process, in milliseconds.
const ATTACHED_MS: f64 = 2000.0;
/// And again after the death of the leader.
const BACK_MS: f64 = 3000.0;
/// A call to a function without a sandbox at that moment is answered after so long.
const COLD_MS: f64 = 1500.0;
/// The beat of one that is dead stands for so long before another takes office.
const STANDS_MS: f64 = 500.0;
/// A leader reads what is stored within this.
const READ_MS: f64 = 1500.0;

pub(super) async fn bench(system: &mut System, args: &RecoverArgs, printer: Printer) -> Result {
    let failed = || "the measurement failed";
    let attached_ms = system.attached_after().as_secs_f64() * 1000.0;
    let RecoverArgs { sandboxes, .. } = *args;
    let (rounds, functions) = (args.rounds as usize, args.functions as usize);
    let options = recover::Options { rounds, sandboxes, functions };
    let seen = recover::run(system, options).await.or_fail(Kind::User, failed)?;
    if printer.is_json() {
        let mut report = serde_json::to_value(&seen)?;
        report["workers"] = args.workers.into();
        report["functions"] = args.functions.into();
        report["attached_after_ms"] = json!(attached_ms);
        printer.json(&report)?;
    } else {
        let rows = vec![
            row("another leads", &seen.led_ms),
            row("all workers are back", &seen.back_ms),
            row("a cold call is answered", &seen.cold_ms),
        ];
        printer.table(&["MS AFTER THE LEADER'S DEATH", "p50", "p90", "p99", "max"], rows)?;
        if let Some(why) = &seen.first_failure {
            printer.line(&format_args!("the first failure: {why}"))?;
        }
    }
    judge(printer, &bars(&seen, attached_ms, args))
}

fn bars(seen: &recover::Recover, attached_ms: f64, args: &RecoverArgs) -> Vec<Bar> {
    let recover::Recover { led_ms, back_ms, cold_ms, warm, .. } = seen;
    let RecoverArgs { workers, sandboxes, .. } = *args;
    let mut bars = vec![
        Bar {
            text: format!("{} of {sandboxes} sandboxes stopped", seen.stopped),
            holds: seen.stopped == 0,
        },
        Bar {
            text: format!("{} of {warm} calls to them failed", seen.warm_failed),
            holds: seen.warm_failed == 0,
        },
        Bar {
            text: format!("{} of {} cold calls failed", seen.cold_failed, args.rounds),
            holds: seen.cold_failed == 0,
        },
        Bar {
            text: format!(
                "{workers} workers attached within {attached_ms:.0} ms, {ATTACHED_MS:.0} at most"
            ),
            holds: attached_ms <= ATTACHED_MS,
        },
        Bar {
            text: format!("all were back within {:.0} ms, {BACK_MS:.0} at most", back_ms.max),
            holds: back_ms.max <= BACK_MS,
        },
        Bar {
            text: format!("the median cold call took {:.0} ms, {COLD_MS:.0} at most", cold_ms.p50),
            holds: cold_ms.p50 <= COLD_MS,
        },
    ];
    if args.functions > 0 && args.etcd > 0 {
        let read = (led_ms.p50 - STANDS_MS).max(0.0);
        bars.push(Bar {
            text: format!(
                "office taken and {} functions read within {read:.0} ms, {READ_MS:.0} at most",
                args.functions
            ),
            holds: read <= READ_MS,
        });
    }
    bars
}
