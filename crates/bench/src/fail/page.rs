//! The page of a killed part.

use dirigent_trace::{
    page::page as whole,
    plot::{Axes, Line, plot},
};
use maud::{Markup, html};

use super::{Fail, Series, Window};

pub(super) fn page(fail: &Fail) -> String {
    let options = &fail.options;
    let part = options.part.name();
    let verdict = if fail.lost == 0 && fail.unexplained == 0 { "good" } else { "bad" };
    let body = html! {
        h1 { "Dirigent: a " (part) " is killed" }
        p class=(verdict) {
            (fail.calls) " calls, " (fail.lost) " lost, " (fail.explained + fail.unexplained)
            " failed, " (fail.unexplained) " of them more than it may cost"
        }
        p {
            (options.per_second) " calls a second to sandboxes that run, " (options.cold_per_second)
            " to functions without one, each of " (options.execution_ms) " ms. The " (part)
            " is killed by SIGKILL at 0 s and works again after "
            (format!("{:.0}", fail.back_after_ms)) " ms. It may cost callers " (options.part.cost())
            ". Calls are drawn where they were due."
        }
        (table(fail))
        @if !fail.failed.is_empty() {
            h2 { "Failures" }
            table { @for (kind, count) in &fail.failed { tr { td { (kind) } td { (count) } } } }
        }
        div.plots {
            @for series in &fail.series {
                div { h2 { "Latency of " (series.name) " calls" } (latency(series)) }
            }
            div { h2 { "Failures over time" } (failures(fail)) }
        }
    };
    whole(&format!("Dirigent: a {part} is killed"), &body)
}

fn table(fail: &Fail) -> Markup {
    html! {
        table {
            tr { th { "ms" } th { "before: p50" } th { "p99" } th { "max" } th { "after: p50" }
                 th { "p99" } th { "max" } th { "as before after" } }
            @for series in &fail.series {
                tr {
                    td { (series.name) }
                    @for summary in [&series.before_ms, &series.after_ms] {
                        @for value in [summary.p50, summary.p99, summary.max] {
                            td { (format!("{value:.1}")) }
                        }
                    }
                    td { (format!("{:.0}", series.as_before_after_ms)) }
                }
            }
        }
    }
}

/// Axes begin with 0: seconds from the begin of the load, where the kill is said in the text.
fn at(windows: &[Window], of: impl Fn(&Window) -> f64) -> Vec<(f64, f64)> {
    let first = windows.first().map_or(0.0, |window| window.at_s);
    windows.iter().map(|window| (window.at_s - first, of(window))).collect()
}

fn latency(series: &Series) -> Markup {
    let answered: Vec<Window> =
        series.windows.iter().filter(|window| window.calls > window.failed).cloned().collect();
    let (median, max) = (at(&answered, |w| w.p50_ms), at(&answered, |w| w.max_ms));
    plot(
        Axes { x: "s", y: "ms", log_x: false, log_y: true },
        &[
            Line { name: "slowest", colour: "#94a3b8", points: &max },
            Line { name: "median", colour: "#2563eb", points: &median },
        ],
    )
}

fn failures(fail: &Fail) -> Markup {
    let points: Vec<_> = fail
        .series
        .iter()
        .map(|series| at(&series.windows, |window| window.failed as f64))
        .collect();
    let names = fail.series.iter().map(|series| series.name);
    let lines: Vec<Line<'_>> = names
        .zip(&points)
        .zip(["#dc2626", "#d97706"])
        .map(|((name, points), colour)| Line { name, colour, points })
        .collect();
    let y = "failed calls in a window";
    plot(Axes { x: "s", y, log_x: false, log_y: false }, &lines)
}
