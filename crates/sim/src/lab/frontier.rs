//! Who wins: points in the plane of memory cost and tail slowdown, and the bars.

use serde::Serialize;

use super::{contenders::Family, measure::Figures};

/// A contender with its figures.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// Who.
    pub name: String,
    /// On which line.
    pub family: Family,
    /// How well.
    #[serde(flatten)]
    pub figures: Figures,
}

/// What must hold, with the figure that shows whether it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Bar {
    /// The claim.
    pub text: String,
    /// Whether it is true.
    pub holds: bool,
}

/// Rivals that ours must beat wherever they stand.
const BEATEN: [Family; 4] = [Family::Artifact, Family::Knative, Family::Fixed, Family::Shipped];

/// The bars of a frontier: nobody's point dominates one of ours, and each point of the published
/// artifact, of Knative and of fixed keep-alive is dominated, both at its cost and at its tail.
#[must_use]
pub fn bars(points: &[Point]) -> Vec<Bar> {
    let ours: Vec<&Point> = points.iter().filter(|point| point.family == Family::Ours).collect();
    let rivals = points.iter().filter(|point| {
        !matches!(point.family, Family::Ours | Family::Clairvoyant | Family::Ablation)
    });
    let mut bars = Vec::new();
    let mut dominated = Vec::new();
    for rival in rivals {
        for own in &ours {
            if rival.figures.dominates(&own.figures) {
                dominated.push(format!("{} by {}", own.name, rival.name));
            }
        }
        if BEATEN.contains(&rival.family) {
            bars.extend(beaten(rival, &ours));
        }
    }
    let text = match dominated.as_slice() {
        [] => "no rival's point dominates one of ours".to_owned(),
        some => format!("no rival's point dominates one of ours; but {}", some.join(", ")),
    };
    bars.insert(0, Bar { text, holds: dominated.is_empty() });
    bars
}

/// At the rival's cost a better tail, at its tail a lower cost.
fn beaten(rival: &Point, ours: &[&Point]) -> [Bar; 2] {
    let Figures { cost, tail, .. } = rival.figures;
    let best = |points: Vec<&&Point>, figure: fn(&Figures) -> f64| {
        let figures = points.iter().map(|point| figure(&point.figures));
        figures.fold(f64::INFINITY, f64::min)
    };
    let at_cost = ours.iter().filter(|own| own.figures.cost <= cost).collect();
    let at_tail = ours.iter().filter(|own| own.figures.tail <= tail).collect();
    let (our_tail, our_cost) = (best(at_cost, |f| f.tail), best(at_tail, |f| f.cost));
    let name = &rival.name;
    [
        Bar {
            text: format!("at the cost of {name} ({cost:.2}): tail {our_tail:.2} < {tail:.2}"),
            holds: our_tail < tail,
        },
        Bar {
            text: format!("at the tail of {name} ({tail:.2}): cost {our_cost:.2} < {cost:.2}"),
            holds: our_cost < cost,
        },
    ]
}

/// The bars of the published setting: starts of 175 ms, equidistant calls, 30 minutes of which the
/// first 10 warm up. A point of ours must meet all of them at once.
#[must_use]
pub fn published_bars(ours: &Figures, fixed: &Figures) -> Vec<Bar> {
    let most = fixed.cost * 1.2;
    let bar = |what: &str, value: f64, most: f64| Bar {
        text: format!("175 ms, equidistant: {what} {value:.2} <= {most:.2}"),
        holds: value <= most,
    };
    vec![
        bar("slowdown per function p50", ours.slowdown_p50, 1.15),
        bar("slowdown per function p99", ours.slowdown_p99, 25.0),
        bar("memory cost, 1.2 x that of fixed 60 s,", ours.cost, most),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(family: Family, cost: f64, tail: f64) -> Point {
        let figures = Figures { cost, tail, ..Figures::default() };
        Point { name: format!("{family:?}"), family, figures }
    }

    #[test]
    fn a_line_below_all_rivals_meets_every_bar() {
        let points = [
            point(Family::Ours, 2.0, 3.0),
            point(Family::Ours, 4.0, 2.0),
            point(Family::Fixed, 4.0, 3.0),
            point(Family::Histogram, 1.9, 3.5),
            point(Family::Clairvoyant, 1.0, 1.0),
        ];
        let bars = bars(&points);
        assert_eq!(bars.len(), 3);
        assert!(bars.iter().all(|bar| bar.holds), "{bars:?}");
    }

    #[test]
    fn a_rival_that_is_better_in_both_breaks_the_first_bar() {
        let points = [point(Family::Ours, 2.0, 3.0), point(Family::PulseNet, 2.0, 2.9)];
        let bars = bars(&points);
        assert!(!bars[0].holds && bars[0].text.contains("Ours by PulseNet"), "{bars:?}");
    }

    #[test]
    fn a_rival_out_of_reach_is_not_beaten() {
        let points = [point(Family::Ours, 2.0, 3.0), point(Family::Fixed, 1.5, 3.5)];
        let missed = bars(&points).into_iter().filter(|bar| !bar.holds).count();
        assert_eq!(missed, 2, "cheaper than any of ours, though with a worse tail");
    }
}
