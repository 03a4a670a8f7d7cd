//! Reports: plain data, and pages that need nothing from elsewhere.

use std::path::Path;

use anyhow::{Context as _, Result};
use dirigent_trace::page::page as whole;
use maud::{Markup, html};
use serde::Serialize;

use crate::{
    cold::Cold,
    percentiles::Summary,
    plot::{Axes, Line, plot},
    replay::Replay,
};

/// What the artifact measured on its own cluster with the same trace (30 minutes, 17 machines,
/// read off its plots): beside ours for orientation, not as a race on equal machines.
const ARTIFACT: [(&str, [&str; 3]); 3] = [
    ("scheduling latency per invocation, ms", ["1.93", "245", "1166"]),
    ("average scheduling latency per function, ms", ["209", "", "1455"]),
    ("slowdown per function (geometric mean)", ["2.48", "", "228"]),
];

/// Writes what a run showed: `report.json` and `report.html` in `directory`.
///
/// # Errors
/// If a file cannot be written.
pub fn write(directory: &Path, report: &impl Serialize, page: &str) -> Result<()> {
    std::fs::create_dir_all(directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let json = serde_json::to_string_pretty(report).context("a report is plain data")?;
    for (name, text) in [("report.json", json.as_str()), ("report.html", page)] {
        let path = directory.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The page of a replay; with the cold starts measured beside it, if they were.
#[must_use]
pub fn page(title: &str, replay: &Replay, cold: Option<&Cold>) -> String {
    let verdict = if replay.is_clean() { "good" } else { "bad" };
    let body = html! {
        h1 { (title) }
        p class=(verdict) { (replay.verdict()) }
        (how(replay))
        @if !replay.failed.is_empty() {
            h2 { "Failures" }
            table { @for (kind, count) in &replay.failed { tr { td { (kind) } td { (count) } } } }
        }
        h2 { "What callers felt" }
        (felt(replay))
        @if let Some(cold) = cold { h2 { "Cold start beside a bare start" } (bare(cold)) }
        div.plots { (plots(replay)) }
    };
    whole(title, &body)
}

fn how(replay: &Replay) -> Markup {
    let options = &replay.options;
    html! {
        p {
            (replay.functions) " functions of " (replay.origin) ", " (options.minutes)
            " minutes of the trace at " (options.speed) " times its speed, arrivals "
            (format!("{:?}", options.arrivals).to_lowercase()) ", seed " (options.seed)
            ". At most " (replay.sandboxes_max) " sandboxes; memory of all to memory of busy ones: "
            (format!("{:.2}", replay.all_to_busy)) "."
        }
    }
}

fn felt(replay: &Replay) -> Markup {
    let ours = [&replay.scheduling_ms, &replay.function_scheduling_ms, &replay.function_slowdown];
    html! {
        table {
            tr { th { } th { "p50" } th { "p90" } th { "p99" } th { "max" }
                 th { "artifact's p50" } th { "p90" } th { "p99" } }
            @for ((name, artifact), summary) in ARTIFACT.iter().zip(ours) {
                tr { td { (name) } (cells(summary)) @for figure in artifact { td { (figure) } } }
            }
        }
        p { "The artifact's figures: its own 17 machines, 30 minutes, real work instead of sleep." }
    }
}

fn cells(summary: &Summary) -> Markup {
    html! {
        @for value in [summary.p50, summary.p90, summary.p99, summary.max] {
            td { (format!("{value:.2}")) }
        }
    }
}

fn bare(cold: &Cold) -> Markup {
    html! {
        table {
            tr { th { "first answer, ms" } th { "p50" } th { "p90" } th { "p99" } th { "max" } }
            tr { td { "bare spawn" } (cells(&cold.bare_ms)) }
            tr { td { "through Dirigent" } (cells(&cold.dirigent_ms)) }
        }
    }
}

fn plots(replay: &Replay) -> Markup {
    let seconds = |pick: fn(&crate::Census) -> u32| -> Vec<(f64, f64)> {
        replay.seconds.iter().map(|s| (s.at_s, f64::from(pick(&s.census)))).collect()
    };
    let all = seconds(|census| census.ready + census.starting);
    let busy = seconds(|census| census.busy);
    let queued = seconds(|census| census.queued);
    let due = |pick: fn(&crate::replay::Due) -> usize| -> Vec<(f64, f64)> {
        let seconds = replay.due.iter().enumerate();
        seconds.map(|(second, due)| (second as f64, pick(due) as f64)).collect()
    };
    let (cold, failed, lost) = (due(|d| d.cold), due(|d| d.failed), due(|d| d.lost));
    let cdf = |x, points| {
        let line = Line { name: "share of all", colour: "#2563eb", points };
        plot(Axes { x, y: "cumulative share", log_x: true, log_y: false }, &[line])
    };
    html! {
        div { h2 { "Scheduling latency per invocation" }
            (cdf("ms", &replay.scheduling_cdf)) }
        div { h2 { "Average scheduling latency per function" }
            (cdf("ms", &replay.function_scheduling_cdf)) }
        div { h2 { "Slowdown per function" }
            (cdf("response time / execution time", &replay.slowdown_cdf)) }
        div { h2 { "Sandboxes over time" }
            (plot(Axes { x: "s", y: "sandboxes", log_x: false, log_y: false }, &[
                Line { name: "all", colour: "#94a3b8", points: &all },
                Line { name: "busy", colour: "#2563eb", points: &busy },
                Line { name: "calls queued", colour: "#dc2626", points: &queued },
            ])) }
        div { h2 { "Cold starts over time" }
            (plot(Axes { x: "s", y: "calls per second", log_x: false, log_y: false }, &[
                Line { name: "waited for a start", colour: "#2563eb", points: &cold },
            ])) }
        div { h2 { "Errors over time" }
            (plot(Axes { x: "s", y: "calls per second", log_x: false, log_y: false }, &[
                Line { name: "failed", colour: "#dc2626", points: &failed },
                Line { name: "lost", colour: "#111827", points: &lost },
            ])) }
    }
}
