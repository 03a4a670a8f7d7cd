//! `dirigent bench cold`: cold starts beside bare ones, with as much isolation as there is.

use std::path::PathBuf;

use dirigent_bench::cold;
use dirigent_core::{Isolation, RuntimeKind};

use super::{Bar, System, example, judge, row};
use crate::{
    fail::{Kind, OrFail as _, Result},
    printer::Printer,
};

pub(super) async fn bench(
    system: &System,
    starts: usize,
    per_second: f64,
    printer: Printer,
) -> Result {
    let (program, args) = example()?;
    let isolation = demanded(system, printer).await?;
    let mut options = cold::Options::built_in(program, args, starts, per_second);
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
