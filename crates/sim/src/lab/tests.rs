use std::{path::Path, time::Duration};

use dirigent_trace::{
    arrivals::Arrivals,
    synthetic::{Shape, trace},
};

use super::*;

fn lab(seed: u64) -> Lab {
    let shape =
        Shape { functions: 60, minutes: 40, rate_max: 60.0, duration_max_ms: 5000.0, seed: 5 };
    Lab {
        subjects: Subject::all(&trace(shape), 40, Arrivals::Exponential, seed),
        start: StartTime::Fixed(Duration::from_millis(175)),
        seed,
        window: (10 * MINUTE, 40 * MINUTE),
    }
}

#[test]
fn the_result_depends_on_the_seed_and_not_on_the_order_of_functions() {
    let (one, mut two) = (lab(1), lab(1));
    two.subjects.reverse();
    for contender in contenders::all().iter().chain(&contenders::ablations()) {
        let (a, b) = (one.figures(contender).unwrap(), two.figures(contender).unwrap());
        assert_eq!((a.cold, a.created, a.calls), (b.cold, b.created, b.calls));
        // Sums of floats in another order.
        assert!((a.cost - b.cost).abs() < 1e-9 && (a.tail - b.tail).abs() < 1e-9, "{a:?} {b:?}");
    }
    let contender = Contender::fixed(60);
    assert_ne!(lab(1).figures(&contender).unwrap(), lab(2).figures(&contender).unwrap());
}

#[test]
fn the_bound_is_below_everybody() {
    let lab = lab(1);
    let bound = lab.figures(&Contender::clairvoyant()).unwrap();
    assert!((bound.tail - 1.0).abs() < 1e-9 && bound.cost >= 1.0);
    for contender in contenders::all() {
        let figures = lab.figures(&contender).unwrap();
        assert_eq!(figures.calls, bound.calls, "{}", contender.name);
        assert!(figures.tail >= bound.tail, "{}: {figures:?}", contender.name);
    }
}

#[test]
fn a_longer_keep_alive_costs_more_and_is_felt_less() {
    let lab = lab(1);
    let line: Vec<Figures> =
        [10, 60, 600].into_iter().map(|s| lab.figures(&Contender::fixed(s)).unwrap()).collect();
    assert!(line.is_sorted_by(|a, b| a.cost < b.cost && a.tail >= b.tail && a.cold > b.cold));
}

#[test]
fn on_the_azure_trace_ours_meets_every_bar() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/traces/azure500");
    if !directory.exists() {
        println!("skip: the Azure trace is not beside the checkout (its licence keeps it out)");
        return;
    }
    let out = tempfile::tempdir().unwrap();
    let mut args = command::PolicyArgs::of(&directory, out.path());
    // An hour of the judged minutes after two that warm up: whole halves are for the command.
    (args.minutes, args.warm_up) = ((720, 780), Some(120));
    let report = command::measure(&args).unwrap();
    let missed: Vec<_> = report.bars.iter().filter(|bar| !bar.holds).collect();
    assert!(missed.is_empty(), "{missed:?}");
    let page = std::fs::read_to_string(out.path().join("policy.html")).unwrap();
    assert!(
        page.contains("bars hold") && !page.contains("http"),
        "it needs nothing from elsewhere"
    );
}

#[test]
fn a_missing_trace_and_minutes_beyond_it_are_named() {
    let out = tempfile::tempdir().unwrap();
    let args = command::PolicyArgs::of(Path::new("/nowhere"), out.path());
    let error = format!("{:#}", command::measure(&args).unwrap_err());
    assert!(error.contains("/nowhere") && error.contains("--trace"), "{error}");
}
