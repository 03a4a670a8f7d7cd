//! The page of a sweep.

use dirigent_trace::{
    page::page as whole,
    plot::{Axes, Line, plot},
};
use maud::{Markup, html};

use super::{Step, Target};
use crate::percentiles::P99_SAMPLES;

/// Of the targets, in their order.
const COLOURS: [&str; 6] = ["#2563eb", "#94a3b8", "#d97706", "#16a34a", "#dc2626", "#7c3aed"];

/// The page; `about` says how the steps were made, `more` stands behind the plots.
pub(crate) fn page(title: &str, about: &str, targets: &[Target], more: &Markup) -> String {
    let body = html! {
        h1 { (title) }
        p { (about) }
        (summary(targets))
        div.plots {
            div { h2 { "Median against rate" } (against_rate(targets, |step| step.latency_ms.p50)) }
            div { h2 { "p99 against rate" } (against_rate(targets, |step| step.latency_ms.p99)) }
            @for target in targets.iter().filter(|target| has_phases(target)) {
                div { h2 { "Phases of " (target.name) ", medians" } (phases(target)) }
            }
        }
        (more)
        @for target in targets { h2 { (target.name) } (steps(target)) }
    };
    whole(title, &body)
}

fn summary(targets: &[Target]) -> Markup {
    html! {
        table {
            tr { th { } th { "holds, per second" } th { "does not hold" } }
            @for target in targets {
                tr {
                    td { (target.name) }
                    td { (format!("{:.0}", target.holds)) }
                    td { @match target.saturated_at {
                        Some(rate) => (format!("{rate:.0}")),
                        None => "not reached",
                    } }
                }
            }
        }
    }
}

fn against_rate(targets: &[Target], of: fn(&Step) -> f64) -> Markup {
    let points = |target: &Target| -> Vec<(f64, f64)> {
        target.steps.iter().map(|step| (step.rate, of(step))).collect()
    };
    let all: Vec<_> = targets.iter().map(|target| (target.name, points(target))).collect();
    let lines: Vec<Line<'_>> = all
        .iter()
        .zip(COLOURS)
        .map(|((name, points), colour)| Line { name, colour, points })
        .collect();
    plot(Axes { x: "calls per second", y: "ms", log_x: true, log_y: true }, &lines)
}

fn has_phases(target: &Target) -> bool {
    target.steps.iter().any(|step| !step.phases_ms.is_empty())
}

fn phases(target: &Target) -> Markup {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in target.steps.iter().flat_map(|step| &step.phases_ms) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let points = |wanted: &str| -> Vec<(f64, f64)> {
        let of_step = |step: &Step| {
            let phase = step.phases_ms.iter().find(|(name, _)| name == wanted)?;
            Some((step.rate, phase.1))
        };
        target.steps.iter().filter_map(of_step).collect()
    };
    let all: Vec<_> = names.iter().map(|name| (*name, points(name))).collect();
    let lines: Vec<Line<'_>> = all
        .iter()
        .zip(COLOURS.iter().cycle())
        .map(|((name, points), colour)| Line { name, colour, points })
        .collect();
    plot(Axes { x: "calls per second", y: "ms", log_x: true, log_y: true }, &lines)
}

fn steps(target: &Target) -> Markup {
    html! {
        table {
            tr { th { "per second" } th { "calls" } th { "p50, ms" } th { "p90" } th { "p99" }
                 th { "max" } th { "median at the end" } th { "begun late by, p99" } th { "failed" }
                 th { "phases, medians" } th { "holds" } }
            @for step in &target.steps {
                @let about = if step.latency_ms.count < P99_SAMPLES { "~" } else { "" };
                tr {
                    td { (format!("{:.0}", step.rate)) }
                    td { (step.calls) }
                    td { (ms(step.latency_ms.p50)) }
                    td { (ms(step.latency_ms.p90)) }
                    td { (about) (ms(step.latency_ms.p99)) }
                    td { (ms(step.latency_ms.max)) }
                    td { (ms(step.end_ms)) }
                    td { (ms(step.late_ms)) }
                    td { @for (kind, count) in &step.failed { (count) " " (kind) " " } }
                    td { @for (name, median) in &step.phases_ms { (name) " " (ms(*median)) " " } }
                    td { @if step.held { "yes" } @else { "no" } }
                }
            }
        }
    }
}

/// Milliseconds with as many digits as say something.
pub(crate) fn ms(value: f64) -> String {
    if value < 10.0 { format!("{value:.2}") } else { format!("{value:.0}") }
}
