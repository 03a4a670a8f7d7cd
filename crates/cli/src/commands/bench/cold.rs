//! `dirigent bench cold`: cold starts beside bare ones, with as much isolation as there is.

use std::path::PathBuf;

use clap::Args;
use dirigent_bench::{
    cold, static_server,
    sweep::{self, Step},
};
use dirigent_core::{Bytes, Isolation, RuntimeKind};

use super::{
    Bar, System, example, judge, row,
    sweep::{Defaults, SweepArgs, finish},
};
use crate::{
    fail::{Kind, OrFail as _, Result},
    printer::Printer,
};

#[derive(Debug, Args)]
pub(crate) struct ColdArgs {
    /// Starts of each kind
    #[arg(long, default_value_t = 500, conflicts_with = "sweep")]
    starts: usize,
    /// Starts of both kinds together per second
    #[arg(long, default_value_t = 20.0, conflicts_with = "sweep")]
    rate: f64,
    #[command(flatten)]
    sweep: SweepArgs,
}

/// A sweep begins with so many starts a second, and has such steps.
const SWEEP: Defaults = Defaults { from: 20.0, to: 5000.0, seconds: 4.0, limit_ms: 100.0 };
/// Of the rate of bare starts, Dirigent's is so much at least.
const RATE_RATIO: f64 = 0.4;

pub(super) async fn bench(system: &System, args: &ColdArgs, printer: Printer) -> Result {
    if args.sweep.sweep {
        return bench_sweep(system, &args.sweep, printer).await;
    }
    let (starts, per_second) = (args.starts, args.rate);
    let isolation = demanded(system, printer).await?;
    let program = static_server(system).await?;
    let mut options = cold::Options::smallest(program, starts, per_second);
    options.sandbox.isolation = isolation;
    let cold =
        cold::run(system, &options).await.or_fail(Kind::User, || "the measurement failed")?;
    if printer.is_json() {
        printer.json(&cold)?;
        slow(&cold).iter().for_each(|line| printer.note(line));
    } else {
        print(&cold, printer)?;
    }
    for (name, option, code) in INTERPRETERS {
        let Some(interpreter) = installed(name) else {
            printer.note(&format_args!("{name} is not in /usr/bin: left out"));
            continue;
        };
        let few = starts.div_ceil(INTERPRETED);
        let mut options = cold::Options::interpreted(&interpreter, [option, code], few);
        options.sandbox.isolation = isolation;
        let cold = cold::run(system, &options).await;
        print_interpreted(name, &cold.or_fail(Kind::User, || "the measurement failed")?, printer)?;
    }
    let (bare, ours) = (&cold.bare_ms, &cold.dirigent_ms);
    let [explained, told] = [cold.phases_to_total, cold.told_to_total].map(|share| share * 100.0);
    judge(
        printer,
        &[
            Bar {
                text: format!("p50 {:.2} ms <= bare {:.2} ms + 1.5 ms", ours.p50, bare.p50),
                holds: ours.p50 <= bare.p50 + 1.5,
            },
            Bar {
                text: format!("p99 {:.2} ms <= 3 x bare {:.2} ms", ours.p99, bare.p99),
                holds: ours.p99 <= 3.0 * bare.p99,
            },
            Bar {
                text: format!(
                    "phases sum to {explained:.1} % of the total, 95 to 105 ({told:.1} % without \
                     `way`, which is measured apart)"
                ),
                holds: (95.0..=105.0).contains(&explained),
            },
            Bar { text: format!("{} failed", cold.failed), holds: cold.failed == 0 },
        ],
    )
}

/// Where it is, once functions may have it too.
pub(crate) async fn static_server(system: &System) -> Result<PathBuf> {
    let placed = static_server::place(system.scratch());
    let program = placed.or_fail(Kind::Internal, || "cannot write the program to be started")?;
    system.send(program.clone()).await?;
    Ok(program)
}

async fn bench_sweep(system: &System, args: &SweepArgs, printer: Printer) -> Result {
    let (program, command) = example()?;
    let shape = args.shape(SWEEP)?;
    let mut options = cold::Options::built_in(program, command, 0, shape.from);
    options.sandbox.isolation = demanded(system, printer).await?;
    // Some hundred are there at once, and each is to fit.
    options.memory = Bytes::mib(16);
    let tell = |name: &str, step: &Step| printer.note(&sweep::line(name, step));
    let seen = cold::sweep::run(system, &options, shape, &tell)
        .await
        .or_fail(Kind::User, || "the measurement failed")?;
    finish(args, &seen, &seen.targets, &seen.page(), printer)?;
    let ratio = seen.rate_ratio();
    let holds = seen.targets.first().map_or(0.0, |ours| ours.holds);
    judge(
        printer,
        &[
            Bar { text: format!("{holds:.0} cold starts a second hold"), holds: holds > 0.0 },
            Bar {
                text: format!("that is {ratio:.2} of bare starts, at least {RATE_RATIO}"),
                holds: ratio >= RATE_RATIO,
            },
        ],
    )
}

/// What interpreters take, beside it for information: the examples of the repository.
const INTERPRETERS: [(&str, &str, &str); 2] = [
    ("python3", "-c", include_str!("../../../../../examples/hello-python/app.py")),
    ("node", "-e", include_str!("../../../../../examples/hello-node/server.js")),
];
/// One of so many starts is made of them: they take long.
const INTERPRETED: usize = 20;

/// Where a sandbox finds it too.
fn installed(program: &str) -> Option<PathBuf> {
    Some(PathBuf::from("/usr/bin").join(program)).filter(|path| path.exists())
}

fn print_interpreted(name: &str, cold: &cold::Cold, printer: Printer) -> Result {
    if printer.is_json() {
        return printer.json(&serde_json::json!({ "interpreter": name, "cold": cold }));
    }
    let (bare, ours) = (&cold.bare_ms, &cold.dirigent_ms);
    printer.line(&format_args!(
        "{name}: bare {:.1} ms, dirigent {:.1} ms (medians of {}), {} failed",
        bare.p50, ours.p50, ours.count, cold.failed
    ))
}

/// A cold start's figures and where its time went.
pub(crate) fn print(cold: &cold::Cold, printer: Printer) -> Result {
    let head = ["FIRST ANSWER, ms", "p50", "p90", "p99", "max"];
    let rows = vec![row("bare", &cold.bare_ms), row("dirigent", &cold.dirigent_ms)];
    printer.table(&head, rows)?;
    let phases: Vec<String> =
        cold.phases_ms.iter().map(|(name, median)| format!("{name} {median:.2}")).collect();
    printer.line(&format_args!("medians of the phases, ms: {}", phases.join(", ")))?;
    printer.line(&isolation(cold))?;
    slow(cold).map_or(Ok(()), |line| printer.line(&line))
}

fn isolation(cold: &cold::Cold) -> String {
    match cold.isolation {
        Some(level) => format!("isolation measured: `{level}`, in full"),
        None => "isolation measured: what is to be had here, not all of `basic`".to_owned(),
    }
}

/// What the bars take a bare start to be.
const BARE_MS: f64 = 2.0;

/// On a machine on which the same program starts more slowly, the bars say less.
fn slow(cold: &cold::Cold) -> Option<String> {
    let bare = cold.bare_ms.p50;
    (bare > BARE_MS).then(|| {
        format!(
            "a bare start takes {bare:.2} ms here and now: the bars are meant for one under \
             {BARE_MS:.0} ms"
        )
    })
}

/// All of `basic`, where it is to be had; what is missing where it is not.
pub(crate) async fn demanded(system: &System, printer: Printer) -> Result<Option<Isolation>> {
    let workers = system.offers().await?;
    let offers = workers.iter().flat_map(|worker| &worker.runtimes);
    let best =
        offers.filter(|offer| offer.runtime == RuntimeKind::Process).map(|offer| offer.isolation);
    if best.max() >= Some(Isolation::Basic) {
        return Ok(Some(Isolation::Basic));
    }
    for missing in workers.iter().flat_map(|worker| &worker.missing) {
        printer.note(&format_args!("`basic` cannot be demanded: {missing}"));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use dirigent_bench::percentiles::Summary;

    use super::*;

    #[test]
    fn the_level_and_a_slow_machine_are_told() {
        let told = |isolation, p50| {
            let bare_ms = Summary { p50, ..Summary::default() };
            let cold = cold::Cold {
                isolation,
                bare_ms,
                dirigent_ms: bare_ms,
                phases_ms: Vec::new(),
                phases_to_total: 1.0,
                told_to_total: 0.9,
                failed: 0,
            };
            (super::isolation(&cold), slow(&cold))
        };
        let (level, slow) = told(Some(Isolation::Basic), 1.9);
        assert_eq!((level.as_str(), slow), ("isolation measured: `basic`, in full", None));
        let (level, slow) = told(None, 3.1);
        assert!(level.contains("not all of `basic`"), "{level}");
        assert!(slow.unwrap().contains("3.10 ms"));
    }
}
