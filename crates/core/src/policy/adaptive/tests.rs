use super::*;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;
const MINUTE: u64 = 60 * SECOND;

fn at(now: u64) -> Levels {
    Levels { now: Time(now), ..Levels::default() }
}

/// Calls one after the other, each `gap` after the end of the one before; what becomes of the
/// sandbox after the last one.
fn after(runs: u64, gaps: impl IntoIterator<Item = u64>, terms: Terms) -> Hold {
    let mut policy = Adaptive::new(terms);
    let mut now = SECOND;
    policy.started(&at(now), Duration::from_millis(175));
    for gap in [0].into_iter().chain(gaps) {
        now += gap;
        policy.arrived(&Levels { busy: 1, ..at(now) });
        now += runs;
        policy.finished(&at(now), Duration::from_nanos(runs));
        policy.hold(&at(now), 1);
    }
    policy.hold(&at(now), 1)
}

/// Gaps without a pattern: from 10 s to 10 min.
fn scattered() -> impl Iterator<Item = u64> {
    (0..200_u64).map(|n| 10 * SECOND + n * 7919 % 590 * SECOND)
}

#[test]
fn a_short_function_is_held_through_its_gaps_and_a_long_one_is_not() {
    let short = after(MS, scattered(), Terms::default());
    assert!(short.keep >= Duration::from_secs(600), "{short:?}");
    let long = after(20 * SECOND, scattered(), Terms::default());
    assert!(long.keep <= Duration::from_secs(60), "{long:?}");
}

#[test]
fn the_price_is_the_knob() {
    let keep =
        |price_milli| after(20 * MS, scattered(), Terms { price_milli, ..Terms::default() }).keep;
    let kept: Vec<Duration> = [20_000, 4000, 1000, 100].into_iter().map(keep).collect();
    assert!(kept.is_sorted() && kept.first() < kept.last(), "{kept:?}");
}

#[test]
fn a_timer_is_let_go_and_started_ahead() {
    let Hold { keep, ahead } = after(10 * MS, [5 * MINUTE; 200], Terms::default());
    let Some(ahead) = ahead else { panic!("held for {keep:?}") };
    assert!(keep < Duration::from_secs(60), "{keep:?}");
    let (from, until) = (ahead.from.as_secs(), ahead.until.as_secs());
    assert!((150..300).contains(&from) && (300..600).contains(&until), "{ahead:?}");
}

#[test]
fn calls_close_together_are_served_by_what_is_there() {
    let hold = after(100 * MS, [SECOND; 100], Terms::default());
    assert!(hold.keep >= Duration::from_secs(1), "{hold:?}");
    assert!(hold.ahead.is_none(), "{hold:?}");
}

#[test]
fn what_a_function_does_now_counts_more_than_what_it_did_yesterday() {
    let then = [2 * MINUTE; 300];
    let now = [30 * MINUTE; 60];
    let hold = after(MS, then.into_iter().chain(now), Terms::default());
    let until = hold.ahead.map_or(hold.keep, |ahead| ahead.until);
    assert!(until > Duration::from_secs(30 * 60), "{hold:?}");
}

#[test]
fn higher_ranks_are_worth_less() {
    let mut policy = Adaptive::new(Terms::default());
    policy.started(&at(0), Duration::from_millis(175));
    let mut now = SECOND;
    for gap in scattered() {
        for rank in 1..=4 {
            policy.arrived(&Levels { busy: rank, ..at(now) });
        }
        now += 10 * MS;
        for rank in (0..4).rev() {
            policy.finished(&Levels { busy: rank, ..at(now) }, Duration::from_millis(10));
        }
        now += gap;
    }
    let keep = |policy: &mut Adaptive, rank| policy.hold(&at(now), rank).keep;
    let (first, fourth) = (keep(&mut policy, 1), keep(&mut policy, 4));
    assert!(first > fourth, "{first:?} {fourth:?}");
}

#[test]
fn it_occupies_at_most_a_kilobyte() {
    let mut policy = Adaptive::new(Terms::default());
    let mut now = SECOND;
    let once = |policy: &mut Adaptive, most: u32, now: &mut u64| {
        for busy in 1..=most {
            policy.arrived(&Levels { busy, ..at(*now) });
        }
        for busy in (0..most).rev() {
            *now += MS;
            policy.finished(&Levels { busy, ..at(*now) }, Duration::from_millis(1));
            policy.hold(&Levels { busy, ..at(*now) }, busy + 1);
        }
        *now += SECOND;
    };
    once(&mut policy, 1, &mut now);
    assert!(policy.footprint() <= 350, "{}", policy.footprint());
    for _ in 0..100 {
        once(&mut policy, 500, &mut now);
    }
    assert!(policy.footprint() <= 1024, "{}", policy.footprint());
}

#[test]
fn extremes_neither_overflow_nor_panic() {
    let terms = Terms {
        price_milli: u64::from(u32::MAX),
        start: Duration::from_secs(1 << 30),
        tail_percent: 900,
        tail_calls: 0,
        horizon: Duration::from_secs(1),
        prior_milli: 0,
    };
    for terms in [terms, Terms { price_milli: 0, start: Duration::ZERO, ..terms }] {
        after(MS, [0, MINUTE, 500 * 3600 * SECOND, 1, 3600 * 24 * 60 * SECOND], terms);
        after(3600 * SECOND, [0; 10], terms);
    }
}
