//! The measurements of `dirigent bench` that belong to the standing set, and the ratios taken from
//! what they report.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::results::{
    Better::{self, Higher, Lower},
    Results,
};
use crate::run;

/// A figure: its name, how it is taken from the report, what is better.
type Taken = (&'static str, fn(&Value) -> Option<f64>, Better);

/// Arguments of `dirigent bench`, a key that only its report has, the program that it needs, and the
/// figures. What a figure may lose is what it varied by between runs of one build.
struct Measure {
    args: &'static [&'static str],
    key: &'static str,
    needs: Option<&'static str>,
    figures: &'static [Taken],
}

const MEASURES: [Measure; 6] = [
    Measure {
        args: &["cold", "--starts", "200"],
        key: "bare_ms",
        needs: None,
        figures: &[
            (
                "cold: p50, of bare starts of a static server",
                |v| over(v, "/dirigent_ms/p50", "/bare_ms/p50"),
                Lower(0.25),
            ),
            (
                "cold: p90, of bare starts of a static server",
                |v| over(v, "/dirigent_ms/p90", "/bare_ms/p90"),
                Lower(0.4),
            ),
        ],
    },
    Measure {
        args: &["warm", "--blocks", "5", "--seconds", "2"],
        key: "cpu_ratio",
        needs: Some("haproxy"),
        figures: &[
            ("warm: CPU per call, of HAProxy", |v| at(v, "/cpu_ratio"), Lower(0.2)),
            ("warm: throughput, of HAProxy", |v| at(v, "/throughput_ratio"), Higher(0.2)),
        ],
    },
    Measure {
        args: &["burst", "--rounds", "3"],
        key: "bare_last_ms",
        needs: None,
        figures: &[("burst: last answer, of bare starts", burst, Lower(0.3))],
    },
    Measure {
        args: &["register", "--functions", "20000"],
        key: "first_thousand_ms",
        needs: None,
        figures: &[
            (
                "register: transactions for one",
                |v| over(v, "/transactions", "/functions"),
                Lower(0.5),
            ),
            (
                "register: the last thousand, of the first",
                |v| over(v, "/last_thousand_ms", "/first_thousand_ms"),
                Lower(0.6),
            ),
        ],
    },
    Measure {
        args: &["scale", "--workers", "100", "--calls", "1000", "--rate", "100"],
        key: "sandboxes_created_per_s",
        needs: None,
        figures: &[(
            "scale: p50 of a cold call, of round trips",
            |v| over(v, "/latency/p50", "/round_trip_ms"),
            Lower(0.3),
        )],
    },
    Measure {
        args: &["scale", "--workers", "500", "--calls", "5000", "--rate", "500"],
        key: "sandboxes_created_per_s",
        needs: None,
        figures: &[
            ("scale: CPU of the control plane, of round trips", |v| cpu(v, 0), Lower(0.3)),
            ("scale: CPU of the data plane, of round trips", |v| cpu(v, 1), Lower(0.3)),
        ],
    },
];

pub(super) fn take(results: &mut Results, only: Option<&str>) -> Result<()> {
    let wanted = |measure: &Measure| {
        let mut names = measure.figures.iter().map(|(name, _, _)| name);
        only.is_none_or(|only| names.any(|name| name.contains(only)))
    };
    let measures: Vec<&Measure> = MEASURES.iter().filter(|measure| wanted(measure)).collect();
    if measures.is_empty() {
        return Ok(());
    }
    run::cargo("the program", &["build", "--quiet", "--release", "--package", "dirigent-cli"])?;
    for measure in measures {
        if let Some(program) = measure.needs.filter(|program| !is_installed(program)) {
            let what = measure.args.join(" ");
            results.skipped.push(format!("{what}: {program} is not installed"));
            continue;
        }
        let report = report(measure)?;
        for (name, figure, better) in measure.figures {
            let value = figure(&report).filter(|value| value.is_finite() && *value > 0.0);
            let value = value.with_context(|| format!("no figure `{name}` in {report}"))?;
            results.add(name, value, *better);
        }
    }
    Ok(())
}

fn is_installed(program: &str) -> bool {
    ["/usr/sbin", "/usr/bin"].iter().any(|place| Path::new(place).join(program).exists())
}

/// What a measurement reports. Its bars are no matter here; calls that failed are.
fn report(measure: &Measure) -> Result<Value> {
    let shown = measure.args.join(" ");
    println!("xtask: bench: dirigent bench {shown}");
    let output = Command::new(run::target().join("release/dirigent"))
        .args(["bench", "--json"])
        .args(measure.args)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start the program")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let values: Vec<Value> = said
        .lines()
        .map(serde_json::from_str)
        .collect::<std::result::Result<_, _>>()
        .with_context(|| format!("`dirigent bench {shown}` did not print JSON"))?;
    for bar in values.iter().filter(|value| value["holds"] == false) {
        println!("xtask: bench: a bar does not hold: {}", bar["bar"].as_str().unwrap_or_default());
    }
    let Some(report) = values.into_iter().find(|value| !value[measure.key].is_null()) else {
        bail!("`dirigent bench {shown}` gave no report: {}", output.status);
    };
    if report["failed"].as_u64().unwrap_or(0) > 0 {
        bail!("`dirigent bench {shown}`: {} calls failed", report["failed"]);
    }
    Ok(report)
}

fn at(report: &Value, pointer: &str) -> Option<f64> {
    report.pointer(pointer)?.as_f64()
}

fn over(report: &Value, of: &str, than: &str) -> Option<f64> {
    Some(at(report, of)? / at(report, than)?)
}

/// The median round's last answer over that of bare starts.
fn burst(report: &Value) -> Option<f64> {
    let mut last: Vec<f64> =
        report["last_ms"].as_array()?.iter().filter_map(Value::as_f64).collect();
    last.sort_by(f64::total_cmp);
    Some(last.get(last.len() / 2)? / at(report, "/bare_last_ms")?)
}

/// Processor time of a part for a call, in round trips of loopback.
fn cpu(report: &Value, part: usize) -> Option<f64> {
    let micros = at(report, &format!("/parts/{part}/cpu_us_per_call"))?;
    Some(micros / (at(report, "/round_trip_ms")? * 1000.0))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn figures_are_ratios_of_what_is_reported() {
        let report = json!({
            "last_ms": [300.0, 500.0, 400.0], "bare_last_ms": 200.0, "round_trip_ms": 0.05,
            "parts": [{ "cpu_us_per_call": 100.0 }],
        });
        assert_eq!((burst(&report), cpu(&report, 0)), (Some(2.0), Some(2.0)));
        assert_eq!((cpu(&report, 1), over(&report, "/a", "/round_trip_ms")), (None, None));
    }

    #[test]
    fn no_two_figures_have_one_name() {
        let names: Vec<&str> =
            MEASURES.iter().flat_map(|measure| measure.figures).map(|(name, _, _)| *name).collect();
        let different: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(different.len(), names.len());
    }
}
