//! `dirigent bench`: measures Dirigent on this machine beside its floor or a rival. Exits with 0
//! only if nothing was lost or failed and every bar that it prints holds.

mod bulk;
mod cold;
mod fail;
mod recover;
mod scale;
mod sweep;
mod system;
mod trace;
mod warm;

use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::{Args, Subcommand};
use dirigent_bench::{
    burst, churn,
    load::Progress,
    percentiles::{P99_SAMPLES, Summary},
    register, replay,
    warm::Kind as Proxy,
    zero,
};

pub(crate) use self::{
    cold::{demanded, print as print_cold, static_server},
    system::{Shape as SystemShape, System},
    trace::{print as print_replay, replayed},
};
use crate::{
    fail::{Fail, Kind, OrFail as _, Result},
    printer::Printer,
};

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Cold starts beside bare starts of the same program, alternately
    Cold(cold::ColdArgs),
    /// The warm path beside HAProxy, in alternating blocks
    Warm(warm::WarmArgs),
    /// Large bodies both ways and idle connections, beside HAProxy
    Bulk(bulk::BulkArgs),
    /// Many calls at once to a function without a sandbox, beside as many bare starts
    Burst {
        /// Calls at once
        #[arg(long, default_value_t = 200)]
        calls: usize,
        /// Sandboxes at most
        #[arg(long, default_value_t = 200)]
        max: u32,
        /// Bursts
        #[arg(long, default_value_t = 5)]
        rounds: usize,
    },
    /// Nothing is lost while the function is redeployed and scales
    Zero {
        /// Calls in all
        #[arg(long, default_value_t = 20_000)]
        calls: usize,
        /// Calls per second on average
        #[arg(long, default_value_t = 300.0)]
        rate: f64,
        /// Redeploys, one of them to a revision that never becomes ready
        #[arg(long, default_value_t = 10)]
        redeploys: usize,
        /// WebSockets held open
        #[arg(long, default_value_t = 10)]
        websockets: usize,
    },
    /// Many sandboxes made and gone leave nothing behind, counted
    Churn {
        /// Sandboxes in all
        #[arg(long, default_value_t = 1000)]
        sandboxes: usize,
        /// Sandboxes at once
        #[arg(long, default_value_t = 50)]
        at_once: u32,
    },
    /// Register many functions, then start again with them: time and memory
    Register {
        /// Functions, at least 2000
        #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(2000..))]
        functions: u32,
        /// Clients at once, each with one registration after the other
        #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=500))]
        clients: u32,
        /// Members of an etcd of its own that keeps the records; 0: a file
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=5))]
        etcd: u32,
    },
    /// Cold calls, each to a function of its own, on emulated workers: what Dirigent takes for each
    Scale(scale::ScaleArgs),
    /// Kill the leader with many workers attached: until all are back, and what became of their sandboxes
    Recover(recover::RecoverArgs),
    /// A part is killed under load: latency and errors over time, and what it costs callers
    Fail(fail::FailArgs),
    /// Replay a trace in a format of Azure Functions, of 2019 or 2021
    Trace(trace::TraceArgs),
}

pub(crate) async fn bench(args: BenchArgs, printer: Printer) -> Result {
    let shape = match &args.what {
        What::Register { etcd, .. } if *etcd > 0 => SystemShape::OnEtcd(*etcd as usize),
        What::Scale(args) => SystemShape::Apart { workers: args.workers, etcd: 0 },
        What::Recover(args) => {
            SystemShape::Apart { workers: args.workers, etcd: args.etcd as usize }
        }
        What::Fail(_) => SystemShape::Whole,
        _ => SystemShape::Up,
    };
    System::run_as(shape, printer, async |system| measure(system, args, printer).await).await
}

async fn measure(system: &mut System, args: BenchArgs, printer: Printer) -> Result {
    match args.what {
        What::Cold(args) => cold::bench(system, &args, printer).await,
        What::Warm(args) => warm::bench(system, &args, printer).await,
        What::Bulk(args) => bulk::bench(system, &args, printer).await,
        What::Burst { calls, max, rounds } => {
            bench_burst(system, calls, max, rounds, printer).await
        }
        What::Zero { calls, rate, redeploys, websockets } => {
            let options = zero::Options {
                calls,
                per_second: rate,
                redeploys,
                websockets,
                streaming: Duration::from_secs(10),
                long: Duration::from_secs(2),
                seed: 1,
            };
            bench_zero(system, options, printer).await
        }
        What::Churn { sandboxes, at_once } => {
            bench_churn(system, churn::Options { sandboxes, at_once }, printer).await
        }
        What::Register { functions, clients, etcd } => {
            let (functions, clients) = (functions as usize, clients as usize);
            let shape = Registration { functions, clients, in_etcd: etcd > 0 };
            bench_register(system, shape, printer).await
        }
        What::Scale(args) => scale::bench(system, &args, printer).await,
        What::Recover(args) => recover::bench(system, &args, printer).await,
        What::Fail(args) => fail::bench(system, &args, printer).await,
        What::Trace(args) => trace::bench(system, &args, printer).await,
    }
}

/// What must hold, with the figure that shows whether it does.
struct Bar {
    text: String,
    holds: bool,
}

/// Prints the bars, says in the last line whether all hold, and fails if one does not.
fn judge(printer: Printer, bars: &[Bar]) -> Result {
    let missed = bars.iter().filter(|bar| !bar.holds).count();
    if printer.is_json() {
        for Bar { text, holds } in bars {
            printer.json(&serde_json::json!({ "bar": text, "holds": holds }))?;
        }
        printer.json(&serde_json::json!({ "bars": bars.len(), "missed": missed }))?;
    } else {
        for bar in bars {
            let mark = if bar.holds { "ok  " } else { "MISS" };
            printer.line(&format_args!("{mark}  {}", bar.text))?;
        }
        printer.line(&format_args!("{} of {} bars hold", bars.len() - missed, bars.len()))?;
    }
    if missed == 0 {
        return Ok(());
    }
    Err(Fail::user("a bar does not hold").hint("figures on a busy machine vary: run it again"))
}

/// Of a table with p50, p90, p99 and max. A p99 that few samples only indicate has a tilde.
fn row(name: &str, summary: &Summary) -> Vec<String> {
    let about = if summary.count < P99_SAMPLES { "~" } else { "" };
    let value = |value: f64| format!("{value:.2}");
    let p99 = format!("{about}{}", value(summary.p99));
    vec![name.to_owned(), value(summary.p50), value(summary.p90), p99, value(summary.max)]
}

/// The rival's program.
fn haproxy() -> Result<PathBuf> {
    Proxy::HaProxy.installed().ok_or_else(|| {
        Fail::unavailable("the rival, HAProxy, is not installed")
            .hint("on Debian: apt-get install haproxy")
    })
}

fn example() -> Result<(PathBuf, Vec<String>)> {
    let program = std::env::current_exe().or_fail(Kind::Internal, || "where is this program")?;
    Ok((program, ["example", "spin"].map(str::to_owned).to_vec()))
}

async fn bench_burst(
    system: &System,
    calls: usize,
    max: u32,
    rounds: usize,
    printer: Printer,
) -> Result {
    let (program, args) = example()?;
    let execution = Duration::from_millis(100);
    let options = burst::Options { program, args, calls, max, execution, rounds };
    let burst =
        burst::run(system, &options).await.or_fail(Kind::User, || "the measurement failed")?;
    if printer.is_json() {
        printer.json(&burst)?;
    } else {
        let last: Vec<String> = burst.last_ms.iter().map(|ms| format!("{ms:.0}")).collect();
        printer.line(&format_args!("last answers, ms: {}", last.join(", ")))?;
        printer.line(&format_args!("sandboxes: {:?}", burst.sandboxes))?;
        for timing in &burst.last_timing {
            printer.detail(&format_args!("a round's last answer: {timing}"));
        }
    }
    let mut bars = vec![Bar { text: format!("{} failed", burst.failed), holds: burst.failed == 0 }];
    let most = usize::try_from(max).unwrap_or(calls).clamp(1, calls);
    // With fewer sandboxes than calls the last one waits for others' executions.
    let before = execution.as_secs_f64() * 1000.0 * (calls.div_ceil(most) - 1) as f64;
    let worst = burst.last_ms.iter().copied().fold(0.0, f64::max);
    let limit = 150.0 + 1.5 * burst.bare_last_ms + 1.25 * before;
    bars.push(Bar {
        text: format!(
            "last answer {worst:.0} ms <= 150 + 1.5 x {:.0} ms of {most} bare starts{}",
            burst.bare_last_ms,
            if before > 0.0 {
                format!(" + 1.25 x {before:.0} ms of executions")
            } else {
                String::new()
            }
        ),
        holds: worst <= limit,
    });
    let pause = burst.pause_ms.iter().copied().fold(0.0, f64::max);
    bars.push(Bar {
        text: format!("no pause longer than 1 s: {pause:.0} ms"),
        holds: pause < 1000.0,
    });
    if most < calls {
        bars.push(Bar {
            text: format!("at most {most} sandboxes made: {:?}", burst.sandboxes),
            holds: burst.sandboxes.iter().all(|made| *made <= most),
        });
    } else {
        // How many pay off depends on how fast the machine starts them just then.
        let (low, high) = (calls / 2, calls);
        let mut made = burst.sandboxes;
        made.sort_unstable();
        let median = made.get(made.len() / 2).copied().unwrap_or(0);
        let most = made.last().copied().unwrap_or(0);
        bars.push(Bar {
            text: format!("{low} to {high} sandboxes made, median {median} of {made:?}"),
            holds: median >= low && most <= high,
        });
    }
    judge(printer, &bars)
}

async fn bench_zero(system: &System, options: zero::Options, printer: Printer) -> Result {
    let progress = Arc::new(Progress::default());
    let run = zero::run(system, options, Arc::clone(&progress));
    let watching = replay::watch(system, |second| trace::tell(&second, &progress, printer));
    let zero = tokio::select! {
        zero = run => zero.or_fail(Kind::User, || "the measurement failed")?,
        never = watching => match never {},
    };
    if printer.is_json() {
        printer.json(&zero)?;
    } else {
        for (kind, count) in &zero.failed {
            printer.line(&format_args!("failed: {count} {kind}"))?;
        }
        for why in &zero.websockets_broken {
            printer.line(&format_args!("a WebSocket broke: {why}"))?;
        }
        printer.line(&format_args!(
            "{} starts, {} drains, {} of them with a call running, {} redeploys; WebSockets were \
             told to go {} times",
            zero.starts,
            zero.drains,
            zero.drains_while_busy,
            zero.redeploys,
            zero.websockets_told_to_go
        ))?;
    }
    let failed: usize = zero.failed.iter().map(|(_, count)| count).sum();
    let mut bars = vec![
        Bar { text: format!("{} calls, {} lost", zero.calls, zero.lost), holds: zero.lost == 0 },
        Bar { text: format!("{failed} failed"), holds: failed == 0 },
        Bar {
            text: format!("{} answered by the wrong revision", zero.wrong_revision),
            holds: zero.wrong_revision == 0,
        },
        Bar {
            text: format!("{} WebSockets broken", zero.websockets_broken.len()),
            holds: zero.websockets_broken.is_empty(),
        },
    ];
    // Nothing lost says little where nothing changes: what the run at its full length must have.
    if options.calls >= FULL {
        for (what, seen, least) in [
            ("sandboxes started", zero.starts, 50),
            ("drained", zero.drains, 50),
            ("drained with a call running", zero.drains_while_busy, 20),
        ] {
            let text = format!("{seen} {what}, at least {least}");
            bars.push(Bar { text, holds: seen >= least });
        }
    }
    judge(printer, &bars)
}

/// Calls of `bench zero` by default.
const FULL: usize = 20_000;

/// Ends the system itself: what counts is also what is left then.
async fn bench_churn(system: &mut System, options: churn::Options, printer: Printer) -> Result {
    let state = system.state();
    let (churn, marks) = churn::run(system, &state, options)
        .await
        .or_fail(Kind::User, || "the measurement failed")?;
    system.end().await?;
    let end = marks.count();
    if printer.is_json() {
        printer.json(&serde_json::json!({ "churn": churn, "end": end }))?;
    } else {
        let figures = churn.before.named().into_iter().zip(churn.after.named());
        let rows = figures.zip(end.named()).map(|(((name, before), (_, after)), (_, end))| {
            vec![name.to_owned(), before.to_string(), after.to_string(), end.to_string()]
        });
        printer.table(&["COUNTED", "before", "after", "stopped"], rows.collect())?;
        if !marks.has_groups() {
            printer.problem("no control group here: neither groups nor rules are counted");
        }
    }
    judge(
        printer,
        &[
            Bar {
                text: format!("{} sandboxes made and gone", churn.made),
                holds: churn.made >= options.sandboxes,
            },
            Bar { text: format!("{} failed", churn.failed), holds: churn.failed == 0 },
            Bar {
                text: "with as many prepared ahead as before, no more is there".to_owned(),
                holds: churn.after.is_back_at(churn.before),
            },
            Bar { text: "nothing but files once it is stopped".to_owned(), holds: end.is_gone() },
        ],
    )
}

struct Registration {
    functions: usize,
    clients: usize,
    in_etcd: bool,
}

async fn bench_register(system: &mut System, shape: Registration, printer: Printer) -> Result {
    let Registration { functions, clients, in_etcd } = shape;
    let (empty_ready, empty_rss) = (system.ready_after(), system.resident()?);
    let before = system.transactions().await?;
    let register = register::run(system, functions, clients)
        .await
        .or_fail(Kind::User, || "the measurement failed")?;
    let transactions = system.transactions().await? - before;
    system.restart(printer).await?;
    let (ready, rss) = (system.ready_after(), system.resident()?);
    if printer.is_json() {
        let mut report = serde_json::to_value(register)?;
        report["transactions"] = transactions.into();
        report["ready_again_ms"] = serde_json::json!(ready.as_secs_f64() * 1000.0);
        printer.json(&report)?;
    } else {
        printer.line(&format_args!(
            "{functions} functions in {:.1} s: the first 1000 took {:.0} ms, the last {:.0} ms",
            register.total_ms / 1000.0,
            register.first_thousand_ms,
            register.last_thousand_ms
        ))?;
        printer.line(&format_args!(
            "{transactions} transactions of the store; ready again after {ready:.0?}"
        ))?;
    }
    let mib = |bytes: u64| bytes >> 20;
    let growth = register.last_thousand_ms / register.first_thousand_ms;
    let mut bars = vec![
        Bar {
            text: format!("empty: {} MiB resident, under 50", mib(empty_rss)),
            holds: mib(empty_rss) < 50,
        },
        Bar {
            text: format!("the last 1000 cost {growth:.2} of the first, at most 1.5"),
            holds: growth <= 1.5,
        },
    ];
    let each = transactions as f64 / functions as f64;
    if clients >= 16 {
        bars.push(Bar {
            text: format!("{each:.2} transactions for a registration, at most 0.25"),
            holds: each <= 0.25,
        });
    }
    if !in_etcd {
        bars.push(Bar {
            text: format!("empty: ready after {empty_ready:.0?}, under 300 ms"),
            holds: empty_ready < Duration::from_millis(300),
        });
    }
    // The bars are stated for 100,000 functions. Who stands by waits for the silence of the leader
    // before.
    let limit = Duration::from_millis(if in_etcd { 2500 } else { 1000 });
    if functions <= 100_000 {
        bars.push(Bar {
            text: format!("{functions} functions: ready after {ready:.0?}, under {limit:.1?}"),
            holds: ready < limit,
        });
        bars.push(Bar {
            text: format!("{functions} functions: {} MiB resident, under 150", mib(rss)),
            holds: mib(rss) < 150,
        });
    }
    judge(printer, &bars)
}
