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
            " is killed by SIGKILL and works again after "
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
                div { h2 { "Latency of " (series.name) " calls" } (latency(fail, series)) }
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

/// Axes begin with 0: seconds from the first window.
fn at(windows: &[Window], of: impl Fn(&Window) -> f64) -> Vec<(f64, f64)> {
    let first = begin(windows);
    windows.iter().map(|window| (window.at_s - first, of(window))).collect()
}

/// Of the first window, in seconds from the kill.
fn begin(windows: &[Window]) -> f64 {
    windows.first().map_or(0.0, |window| window.at_s)
}

/// Upright lines as high as the highest point: the kill, and when the part worked again.
fn moments(fail: &Fail, begin: f64, lines: &[&[(f64, f64)]]) -> [Vec<(f64, f64)>; 2] {
    let top = lines.iter().copied().flatten().map(|(_, y)| *y).fold(1.0, f64::max);
    [0.0, fail.back_after_ms / 1000.0].map(|moment| {
        let x = moment - begin;
        vec![(x, 0.0), (x, top)]
    })
}

fn latency(fail: &Fail, series: &Series) -> Markup {
    let answered: Vec<Window> =
        series.windows.iter().filter(|window| window.calls > window.failed).cloned().collect();
    let (median, max) = (at(&answered, |w| w.p50_ms), at(&answered, |w| w.max_ms));
    let [killed, back] = moments(fail, begin(&answered), &[&median, &max]);
    plot(
        Axes { x: "s", y: "ms", log_x: false, log_y: true },
        &[
            Line { name: "slowest", colour: "#94a3b8", points: &max },
            Line { name: "median", colour: "#2563eb", points: &median },
            Line { name: "killed", colour: "#dc2626", points: &killed },
            Line { name: "works again", colour: "#16a34a", points: &back },
        ],
    )
}

fn failures(fail: &Fail) -> Markup {
    let of = |series: &Series| at(&series.windows, |window| window.failed as f64);
    let points: Vec<_> = fail.series.iter().map(of).collect();
    let names = fail.series.iter().map(|series| series.name);
    let mut lines: Vec<Line<'_>> = names
        .zip(&points)
        .zip(["#2563eb", "#94a3b8"])
        .map(|((name, points), colour)| Line { name, colour, points })
        .collect();
    let first = fail.series.first().map_or(0.0, |series| begin(&series.windows));
    let all: Vec<&[(f64, f64)]> = points.iter().map(Vec::as_slice).collect();
    let [killed, back] = moments(fail, first, &all);
    lines.push(Line { name: "killed", colour: "#dc2626", points: &killed });
    lines.push(Line { name: "works again", colour: "#16a34a", points: &back });
    let y = "failed calls in a window";
    plot(Axes { x: "s", y, log_x: false, log_y: false }, &lines)
}
