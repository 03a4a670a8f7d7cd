//! `dirigent bench warm`: the warm path beside HAProxy, as fast as both go or at a rising rate.

use std::time::Duration;

use clap::Args;
use dirigent_bench::{
    sweep::{self, Step},
    warm::{
        self, Kind as Proxy,
        sweep::{OURS, Options},
    },
};

use super::{
    Bar, System, haproxy, judge,
    sweep::{Defaults, SweepArgs, finish},
};
use crate::{
    fail::{Kind, OrFail as _, Result},
    printer::Printer,
};

#[derive(Debug, Args)]
pub(crate) struct WarmArgs {
    /// 0: one sandbox takes all calls; 1: 16 sandboxes take one each
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1))]
    concurrency: u32,
    /// Blocks of each kind; of a sweep, at half of the rate that HAProxy held
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    blocks: u32,
    /// Length of a block in seconds
    #[arg(long, default_value_t = 5, conflicts_with = "sweep")]
    seconds: u64,
    /// Kept-alive connections
    #[arg(long, default_value_t = 64, conflicts_with = "sweep")]
    connections: usize,
    #[command(flatten)]
    sweep: SweepArgs,
}

/// A sweep begins with so many calls a second, and has such steps.
const SWEEP: Defaults = Defaults { from: 500.0, to: 200_000.0, seconds: 2.0, limit_ms: 20.0 };
/// Of HAProxy's p99 at half of its highest rate, Dirigent's is so much at most.
const P99_RATIO: f64 = 1.2;
/// Of the highest rate of HAProxy, Dirigent's is so much at least.
const RATE_RATIO: f64 = 0.9;

pub(super) async fn bench(system: &System, args: &WarmArgs, printer: Printer) -> Result {
    let haproxy = haproxy()?;
    let command = ["dirigent", "example", "fast"].map(str::to_owned).to_vec();
    let (concurrency, blocks) = (args.concurrency, args.blocks as usize);
    let scratch = system.scratch().to_owned();
    if args.sweep.sweep {
        let mut rivals = vec![(Proxy::HaProxy, haproxy)];
        match Proxy::Nginx.installed() {
            Some(nginx) => rivals.push((Proxy::Nginx, nginx)),
            None => printer.note(&"nginx is not installed: left out"),
        }
        let options = Options { command, concurrency, rivals, blocks, scratch };
        return bench_sweep(system, &args.sweep, &options, printer).await;
    }
    let (block, connections) = (Duration::from_secs(args.seconds), args.connections);
    let options =
        warm::Options { command, haproxy, concurrency, connections, blocks, block, scratch };
    let warm =
        warm::run(system, &options).await.or_fail(Kind::User, || "the measurement failed")?;
    if printer.is_json() {
        printer.json(&warm)?;
    } else {
        let rows = warm.dirigent.iter().zip(&warm.haproxy).enumerate().map(|(number, (a, b))| {
            let figures = [a.per_second, b.per_second, a.cpu_us, b.cpu_us];
            let mut row = vec![format!("{}", number + 1)];
            row.extend(figures.map(|figure| format!("{figure:.1}")));
            row
        });
        let head = ["BLOCK", "dirigent/s", "haproxy/s", "dirigent us/call", "haproxy us/call"];
        printer.table(&head, rows.collect())?;
    }
    let failed: u64 = warm.dirigent.iter().map(|block| block.failed).sum();
    let (low, high) = warm.cpu_ratio_range;
    judge(
        printer,
        &[
            Bar {
                text: format!(
                    "CPU per call {:.2} of HAProxy's ({low:.2} to {high:.2}), at most 1.6",
                    warm.cpu_ratio
                ),
                holds: warm.cpu_ratio <= 1.6,
            },
            Bar {
                text: format!("throughput {:.2} of HAProxy's, at least 0.8", warm.throughput_ratio),
                holds: warm.throughput_ratio >= 0.8,
            },
            Bar { text: format!("{failed} failed"), holds: failed == 0 },
        ],
    )
}

async fn bench_sweep(
    system: &System,
    args: &SweepArgs,
    options: &Options,
    printer: Printer,
) -> Result {
    let shape = args.shape(SWEEP)?;
    let tell = |name: &str, step: &Step| printer.note(&sweep::line(name, step));
    let seen = warm::sweep::run(system, options, shape, &tell)
        .await
        .or_fail(Kind::User, || "the measurement failed")?;
    finish(args, &seen, &seen.targets, &seen.page(), printer)?;
    let (ours, theirs) = (seen.holds(OURS), seen.holds(Proxy::HaProxy.name()));
    let rate_ratio = if theirs > 0.0 { ours / theirs } else { 0.0 };
    let mut bars = vec![Bar {
        text: format!(
            "{ours:.0}/s hold, {rate_ratio:.2} of HAProxy's {theirs:.0}/s, at least {RATE_RATIO}"
        ),
        holds: rate_ratio >= RATE_RATIO,
    }];
    let (ratio, (low, high), failed) =
        seen.half.as_ref().map_or((f64::INFINITY, (0.0, 0.0), 0), |half| {
            (half.p99_ratio, half.p99_ratio_range, half.failed(OURS))
        });
    bars.push(Bar {
        text: format!(
            "p99 at half of HAProxy's rate {ratio:.2} of its ({low:.2} to {high:.2}), at most \
             {P99_RATIO}"
        ),
        holds: ratio <= P99_RATIO,
    });
    bars.push(Bar { text: format!("{failed} failed there"), holds: failed == 0 });
    judge(printer, &bars)
}
