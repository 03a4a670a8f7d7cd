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
    /// Whether y is: then what is not above 0 lies at the bottom.
    pub log_y: bool,
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
    let across = Scale::over(axes.log_x, points().map(|(x, _)| x));
    let up = Scale::over(axes.log_y, points().map(|(_, y)| y));
    let x_at = |x: f64| LEFT + across.share(x) * (WIDTH - LEFT - 12.0);
    let y_at = |y: f64| HEIGHT - BOTTOM - up.share(y) * (HEIGHT - BOTTOM - top);
    let path = |line: &Line<'_>| {
        let points: Vec<String> =
            line.points.iter().map(|(x, y)| format!("{:.1},{:.1}", x_at(*x), y_at(*y))).collect();
        points.join(" ")
    };
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(axes.y) {
            @for x in across.ticks(5) {
                line.grid x1=(x_at(x)) x2=(x_at(x)) y1=(top) y2=(HEIGHT - BOTTOM) {}
                text.tick x=(x_at(x)) y=(HEIGHT - BOTTOM + 14.0) text-anchor="middle" { (number(x)) }
            }
            @for y in up.ticks(4) {
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

/// From the least to the greatest value of an axis.
#[derive(Clone, Copy, Debug)]
struct Scale {
    log: bool,
    min: f64,
    max: f64,
}

impl Scale {
    /// A logarithmic one begins with a power of ten, 0.1 at the least; another one with 0.
    fn over(log: bool, values: impl Iterator<Item = f64> + Clone) -> Self {
        if !log {
            return Self { log, min: 0.0, max: values.fold(1.0, f64::max) };
        }
        let least = values.clone().fold(f64::INFINITY, f64::min).clamp(0.1, 1e9);
        let min = 10_f64.powf(least.log10().floor());
        Self { log, min, max: values.fold(min * 10.0, f64::max) }
    }

    /// Where a value lies, from 0 to 1.
    fn share(self, value: f64) -> f64 {
        let at = |value: f64| if self.log { value.max(self.min).log10() } else { value };
        (at(value) - at(self.min)) / (at(self.max) - at(self.min))
    }

    /// So many parts, or powers of ten.
    fn ticks(self, parts: u32) -> Vec<f64> {
        if !self.log {
            return (0..=parts).map(|part| self.max * f64::from(part) / f64::from(parts)).collect();
        }
        let decades = std::iter::successors(Some(self.min), |tick| Some(tick * 10.0));
        decades.take_while(|tick| *tick <= self.max * 1.01).collect()
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logarithmic_scale_begins_with_the_power_of_ten_below_its_values() {
        let scale = Scale::over(true, [2000.0, 64_000.0].into_iter());
        assert_eq!(
            scale.ticks(5).iter().map(|tick| number(*tick)).collect::<Vec<_>>(),
            ["1000", "10000"]
        );
        assert!((scale.share(64_000.0) - 1.0).abs() < 1e-9 && scale.share(1000.0).abs() < 1e-9);
        // Nothing lies outside, also what has no logarithm.
        let small = Scale::over(true, [0.0, 0.5].into_iter());
        assert_eq!((small.share(0.0), small.ticks(5).len()), (0.0, 2));
        let linear = Scale::over(false, [2.0, 8.0].into_iter());
        assert_eq!(linear.ticks(4), [0.0, 2.0, 4.0, 6.0, 8.0]);
    }
}
