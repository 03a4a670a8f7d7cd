use super::*;
use crate::{Epoch, FunctionId};

const DP: DataPlaneId = DataPlaneId(1);

fn at(seconds: u64) -> Time {
    Time(1_000 * BUCKET).after(Duration::from_secs(seconds))
}

/// A level of a data plane that heard of the function at `at(0)`.
fn level(now: Time, busy: u32, busy_seconds: u64) -> Demand {
    Demand {
        function: FunctionId::new(Epoch(1), 1),
        queued: 0,
        oldest_wait: Duration::ZERO,
        held: 0,
        idle: 0,
        busy,
        busy_integral: busy_seconds * BUCKET,
        elapsed: now.0 - at(0).0,
        arrivals_total: 0,
        finished_total: 0,
        expected: 0,
    }
}

/// Windows that saw this concurrency, constant, reported each second from 0 to `seconds`.
fn steady(busy: u32, seconds: u64) -> Kpa {
    let mut kpa = Kpa::new(at(0));
    for second in 0..=seconds {
        kpa.observe(at(second), DP, &level(at(second), busy, second * u64::from(busy)));
    }
    kpa
}

#[test]
fn a_steady_concurrency_wants_it_over_the_target() {
    let mut kpa = steady(7, 120);
    let desired = kpa.desired(at(120), 1, 10);
    assert_eq!((desired.stable_milli, desired.panic_milli), (7000, 7000));
    assert_eq!((desired.count, desired.panicking, desired.rule()), (10, false, "stable window"));
}

#[test]
fn averages_are_exact_whatever_the_rhythm_of_reports() {
    let mut often = steady(4, 90);
    let mut rarely = Kpa::new(at(0));
    rarely.observe(at(0), DP, &level(at(0), 4, 0));
    rarely.observe(at(37), DP, &level(at(37), 4, 148));
    let (often, rarely) = (often.desired(at(90), 1, 6), rarely.desired(at(90), 1, 6));
    assert_eq!(often, rarely);
    assert_eq!(often.stable_milli, 4000);
}

#[test]
fn a_window_that_is_not_full_yet_averages_over_what_is_known() {
    let mut kpa = steady(3, 10);
    let desired = kpa.desired(at(10), 1, 5);
    assert_eq!((desired.stable_milli, desired.panic_milli), (3000, 3000));
}

#[test]
fn the_soft_target_applies_without_a_limit() {
    let mut kpa = steady(141, 60);
    let desired = kpa.desired(at(60), 0, 3);
    assert_eq!((desired.target_milli, desired.count), (70_000, 3));
    assert_eq!(kpa.desired(at(60), 100, 3).count, 3, "the same as a limit of 100");
}

#[test]
fn a_burst_starts_panic_and_nothing_shrinks_for_a_stable_window() {
    let mut kpa = steady(0, 60);
    for second in 61..=66 {
        let busy = (second - 60) * 14;
        kpa.observe(at(second), DP, &level(at(second), 14, busy));
    }
    let burst = kpa.desired(at(66), 1, 5);
    assert_eq!((burst.count, burst.rule()), (20, "panic window"), "{burst:?}");
    kpa.observe(at(67), DP, &level(at(67), 0, 84));
    let calm = kpa.desired(at(120), 1, 20);
    assert_eq!((calm.count, calm.panicking), (20, true));
    let after = kpa.desired(at(127), 1, 20);
    assert_eq!((after.count, after.panicking), (10, false), "then by half at most");
}

#[test]
fn scaling_down_halves_at_most_and_never_reaches_zero() {
    let mut kpa = steady(0, 60);
    assert_eq!(kpa.desired(at(60), 1, 100).count, 50);
    assert_eq!(kpa.desired(at(60), 1, 1).count, 1);
    assert_eq!(kpa.desired(at(60), 1, 0).count, 1);
}

#[test]
fn scaling_up_is_bounded_by_its_rate() {
    let mut kpa = steady(1400, 60);
    assert_eq!(kpa.desired(at(60), 1, 1).count, 1000);
    assert_eq!(kpa.desired(at(60), 1, 2).count, 2000);
}

#[test]
fn silence_counts_with_the_last_level_known() {
    let mut kpa = Kpa::new(at(0));
    kpa.observe(at(0), DP, &level(at(0), 7, 0));
    assert_eq!(kpa.desired(at(30), 1, 10).stable_milli, 7000);
    assert!(!kpa.is_still());
}

#[test]
fn a_data_plane_that_leaves_takes_its_level_but_not_its_past() {
    let mut kpa = Kpa::new(at(0));
    kpa.observe(at(0), DP, &level(at(0), 6, 0));
    kpa.forget(at(30), DP);
    assert_eq!(kpa.desired(at(60), 1, 5).stable_milli, 3000);
    assert_eq!(kpa.desired(at(200), 1, 5).stable_milli, 0);
    kpa.desired(at(400), 1, 5);
    assert!(kpa.is_still());
}

#[test]
fn a_data_plane_that_restarts_counts_from_zero_again() {
    let mut kpa = steady(5, 60);
    kpa.observe(at(61), DP, &Demand { elapsed: 0, ..level(at(61), 0, 0) });
    let desired = kpa.desired(at(61), 1, 8);
    assert!(desired.stable_milli <= 5000, "{desired:?}");
}

#[test]
fn a_new_leader_scales_nothing_down_within_a_stable_window() {
    let mut kpa = Kpa::resumed(at(0), 12);
    assert_eq!(kpa.desired(at(59), 1, 12).count, 12);
    assert_eq!(kpa.desired(at(61), 1, 12).count, 6);
}

#[test]
fn what_went_by_its_keep_alive_is_not_brought_back() {
    let mut kpa = steady(14, 6);
    let burst = kpa.desired(at(6), 1, 5);
    assert_eq!((burst.count, burst.grow_to, burst.panicking), (20, 20, true));
    kpa.observe(at(7), DP, &level(at(7), 0, 84));
    let idle = kpa.desired(at(8), 1, 20);
    assert_eq!((idle.count, idle.grow_to), (20, 1), "kept, as long as it keeps itself");
    let fewer = kpa.desired(at(12), 1, 3);
    assert!(fewer.panicking && fewer.grow_to == 1, "{fewer:?}");
}

#[test]
fn a_rising_load_is_followed_by_both_windows() {
    let mut kpa = steady(3, 60);
    kpa.observe(at(61), DP, &level(at(61), 6, 183));
    for second in 62..=120 {
        kpa.observe(at(second), DP, &level(at(second), 6, 183 + 6 * (second - 61)));
    }
    let desired = kpa.desired(at(120), 1, 6);
    assert_eq!((desired.count, desired.grow_to, desired.panicking), (9, 9, false));
}

#[test]
fn a_decision_explains_itself() {
    let mut kpa = steady(7, 60);
    let inputs = kpa.desired(at(60), 1, 10).explain();
    assert!(inputs.contains(&("concurrency over 60s".to_owned(), "7.000".to_owned())));
    assert!(inputs.contains(&("target per sandbox".to_owned(), "0.700".to_owned())));
}
