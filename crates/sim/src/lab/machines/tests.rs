use dirigent_trace::{
    arrivals::Arrivals,
    synthetic::{Shape, trace},
};

use crate::lab::{
    Lab, MINUTE,
    calls::Subject,
    contenders::{Contender, PRICE},
    planes,
};

use super::*;

#[test]
fn the_model_does_what_the_machines_do() {
    let shape =
        Shape { functions: 40, minutes: 20, rate_max: 200.0, duration_max_ms: 3000.0, seed: 3 };
    let lab = Lab {
        subjects: Subject::all(&trace(shape), 20, Arrivals::Exponential, 1),
        start: StartTime::Fixed(Duration::from_millis(175)),
        seed: 1,
        window: (0, 20 * MINUTE),
    };
    let pairs = [
        (Contender::shipped(), Contender::machines()),
        (Contender::ours(PRICE), Contender::learned()),
    ];
    for (model, real) in pairs {
        let (model, real) = (lab.figures(&model).unwrap(), lab.figures(&real).unwrap());
        assert_eq!(model.calls, real.calls);
        // The windows are read every 2 s, from moments that differ: not every start is the same
        // one.
        let near = |a: f64, b: f64| (a / b - 1.0).abs() < 0.1;
        let counts = |a: u64, b: u64| near(a as f64, b as f64);
        assert!(counts(model.cold, real.cold), "cold: {model:?} {real:?}");
        assert!(counts(model.created, real.created), "sandboxes: {model:?} {real:?}");
        assert!(near(model.cost, real.cost) && near(model.tail, real.tail), "{model:?} {real:?}");
    }
}

#[test]
fn one_data_plane_is_the_ideal_queue() {
    for spread in planes::measure(&[10], 4000, 1).unwrap() {
        let ideal = (spread.ratio() - 1.0).abs() < 0.01;
        assert!(ideal || !(spread.affinity || spread.planes == 1), "{spread:?}");
    }
}

#[test]
fn the_ideal_queue_serves_in_order_with_whoever_is_free_first() {
    let call = |at, runs| Call { at, runs };
    let calls = [call(0, 10), call(0, 30), call(1, 5), call(2, 5), call(100, 1)];
    assert_eq!(ideal_waits(&calls, 2), [0, 0, 9, 13, 0]);
}
