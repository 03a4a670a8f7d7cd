//! The report of the laboratory as one page that needs nothing from elsewhere.

use dirigent_trace::{
    page::page,
    plot::{Axes, Line, plot},
};
use maud::{Markup, html};

use super::{
    command::{HEAD, Report, SPREADS, Section, row},
    contenders::Family,
    frontier::Point,
};

/// One line of the plot each, with its colour.
const LINES: [(Family, &str); 8] = [
    (Family::Ours, "#2563eb"),
    (Family::Shipped, "#0d9488"),
    (Family::Fixed, "#94a3b8"),
    (Family::Artifact, "#dc2626"),
    (Family::Knative, "#d97706"),
    (Family::Histogram, "#7c3aed"),
    (Family::PulseNet, "#db2777"),
    (Family::Clairvoyant, "#16a34a"),
];

/// The whole page.
#[must_use]
pub fn whole(report: &Report) -> String {
    let missed = report.bars.iter().filter(|bar| !bar.holds).count();
    let body = html! {
        h1 { "Dirigent: policy laboratory" }
        p { (report.setting) }
        p class=(if missed == 0 { "good" } else { "bad" }) {
            (report.bars.len() - missed) " of " (report.bars.len()) " bars hold"
        }
        @for section in &report.sections { (one(section)) }
        @if !report.spreads.is_empty() {
            h2 { (SPREADS) }
            table { @for spread in &report.spreads { tr { td { (spread.bar().text) } } } }
        }
        h2 { "Bars" }
        table {
            @for bar in &report.bars {
                tr { td { (bar.text) }
                     td class=(if bar.holds { "good" } else { "bad" }) {
                         (if bar.holds { "ok" } else { "MISS" }) } }
            }
        }
    };
    page("Dirigent: policy laboratory", &body)
}

fn one(section: &Section) -> Markup {
    html! {
        h2 { (section.title) }
        @if section.plotted { div.plots {
            div { (frontier(&section.points, "tail slowdown", |p| p.figures.tail)) }
            div { (frontier(&section.points, "slowdown per function, p50", |p| {
                p.figures.slowdown_p50
            })) }
        } }
        table {
            tr { @for name in HEAD { th { (name) } } }
            @for point in &section.points {
                tr { @for cell in row(point) { td { (cell) } } }
            }
        }
    }
}

fn frontier(points: &[Point], y: &str, figure: fn(&Point) -> f64) -> Markup {
    let of = |family| -> Vec<(f64, f64)> {
        let mut line: Vec<(f64, f64)> = points
            .iter()
            .filter(|point| point.family == family)
            .map(|point| (point.figures.cost, figure(point)))
            .collect();
        line.sort_by(|a, b| a.0.total_cmp(&b.0));
        line
    };
    let drawn = LINES.map(|(family, colour)| (family.name(), colour, of(family)));
    let lines: Vec<Line<'_>> = drawn
        .iter()
        .filter(|(.., points)| !points.is_empty())
        .map(|(name, colour, points)| Line { name, colour, points })
        .collect();
    plot(Axes { x: "memory of all / busy sandboxes", y, log_x: false, log_y: false }, &lines)
}
