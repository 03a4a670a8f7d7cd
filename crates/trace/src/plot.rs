//! Plots as inline SVG: no script, nothing from elsewhere.

use maud::{Markup, html};

/// One line of a plot.
#[derive(Clone, Debug)]
pub struct Line<'a> {
    /// In the legend.
    pub name: &'a str,
    /// Its colour.
    pub colour: &'a str,
    /// Points from left to right.
    pub points: &'a [(f64, f64)],
}

/// A plot.
#[derive(Clone, Copy, Debug)]
pub struct Axes<'a> {
    /// Under the x axis, with its unit.
    pub x: &'a str,
    /// Above the y axis, with its unit.
    pub y: &'a str,
    /// Whether x is logarithmic.
    pub log_x: bool,
}

const WIDTH: f64 = 620.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 52.0;
const BOTTOM: f64 = 40.0;
const TOP: f64 = 24.0;
/// Of a legend.
const PER_ROW: usize = 4;
const ROW: f64 = 14.0;
/// Lines of so few points have them marked: what lies between was not measured.
const MARKED: usize = 24;

/// Draws lines in common axes.
#[must_use]
pub fn plot(axes: Axes<'_>, lines: &[Line<'_>]) -> Markup {
    let top = TOP + ROW * (lines.len().saturating_sub(1) / PER_ROW) as f64;
    let points = || lines.iter().flat_map(|line| line.points.iter().copied());
    let x_min = if axes.log_x { 0.1 } else { 0.0 };
    let x_max = points().map(|(x, _)| x).fold(x_min * 10.0 + 1.0, f64::max);
    let y_max = points().map(|(_, y)| y).fold(1.0, f64::max);
    let scale = |x: f64| if axes.log_x { x.max(x_min).log10() } else { x };
    let x_at = |x: f64| {
        LEFT + (scale(x) - scale(x_min)) / (scale(x_max) - scale(x_min)) * (WIDTH - LEFT - 12.0)
    };
    let y_at = |y: f64| HEIGHT - BOTTOM - y / y_max * (HEIGHT - BOTTOM - top);
    let path = |line: &Line<'_>| {
        let points: Vec<String> =
            line.points.iter().map(|(x, y)| format!("{:.1},{:.1}", x_at(*x), y_at(*y))).collect();
        points.join(" ")
    };
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(axes.y) {
            @for x in x_ticks(axes.log_x, x_min, x_max) {
                line.grid x1=(x_at(x)) x2=(x_at(x)) y1=(top) y2=(HEIGHT - BOTTOM) {}
                text.tick x=(x_at(x)) y=(HEIGHT - BOTTOM + 14.0) text-anchor="middle" { (number(x)) }
            }
            @for part in 0..=4 {
                @let y = y_max * f64::from(part) / 4.0;
                line.grid x1=(LEFT) x2=(WIDTH - 12.0) y1=(y_at(y)) y2=(y_at(y)) {}
                text.tick x=(LEFT - 5.0) y=(y_at(y) + 3.0) text-anchor="end" { (number(y)) }
            }
            @for line in lines {
                polyline fill="none" stroke=(line.colour) stroke-width="1.8" points=(path(line)) {}
                @if line.points.len() <= MARKED {
                    @for (x, y) in line.points {
                        circle cx=(x_at(*x)) cy=(y_at(*y)) r="2.6" fill=(line.colour) {}
                    }
                }
            }
            @for (index, line) in lines.iter().enumerate() {
                @let x = LEFT + 8.0 + (index % PER_ROW) as f64 * 140.0;
                @let y = 6.0 + ROW * (index / PER_ROW) as f64;
                rect x=(x) y=(y) width="12" height="4" fill=(line.colour) {}
                text.tick x=(x + 17.0) y=(y + 6.0) { (line.name) }
            }
            text.label x=(LEFT + (WIDTH - LEFT) / 2.0) y=(HEIGHT - 6.0) text-anchor="middle" {
                (axes.x)
            }
            text.label x="12" y=(HEIGHT / 2.0) text-anchor="middle"
                transform=(format!("rotate(-90 12 {})", HEIGHT / 2.0)) { (axes.y) }
        }
    }
}

fn x_ticks(log: bool, min: f64, max: f64) -> Vec<f64> {
    if !log {
        return (0..=5).map(|part| max * f64::from(part) / 5.0).collect();
    }
    let mut ticks = Vec::new();
    let mut tick = min;
    while tick <= max * 1.01 {
        ticks.push(tick);
        tick *= 10.0;
    }
    ticks
}

/// Few digits: labels, not figures.
fn number(value: f64) -> String {
    if value == 0.0 {
        "0".to_owned()
    } else if value >= 10.0 {
        format!("{value:.0}")
    } else if value >= 1.0 {
        format!("{value:.1}").trim_end_matches(".0").to_owned()
    } else {
        format!("{value:.2}")
    }
}
