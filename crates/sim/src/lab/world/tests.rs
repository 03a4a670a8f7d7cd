use dirigent_core::policy::{adaptive::Adaptive, keep_alive::Fixed, scaling::Hold};

use super::*;
use crate::lab::policies::{artifact::Artifact, knative::Knative};

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;

fn call(at_ms: u64, runs_ms: u64) -> Call {
    Call { at: at_ms * MS, runs: runs_ms * MS }
}

fn run(calls: &[Call], policy: impl Scaling + 'static, rules: Rules) -> Felt {
    let start = StartTime::Fixed(Duration::from_millis(175));
    let meter = Meter::new(0, 3600 * SECOND);
    World::new(calls, Box::new(policy), rules, start, Pcg::new(1), meter).run()
}

fn waits_ms(felt: &Felt) -> Vec<u64> {
    felt.waits.iter().map(|wait| wait / MS).collect()
}

fn fixed(seconds: u64) -> Fixed {
    Fixed::new(Duration::from_secs(seconds))
}

/// Sandbox seconds, to the millisecond.
fn memory_ms(felt: &Felt) -> (u64, u64) {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small")]
    let ms = |seconds: f64| (seconds * 1000.0).round() as u64;
    (ms(felt.all_s), ms(felt.busy_s))
}

#[test]
fn a_sandbox_is_kept_exactly_for_its_keep_alive() {
    // The second call comes just before the end, the third just after it.
    let calls = [call(0, 100), call(10_274, 100), call(20_375, 100)];
    let felt = run(&calls, fixed(10), Rules::OURS);
    assert_eq!(waits_ms(&felt), [175, 0, 175]);
    assert_eq!((felt.cold, felt.created), (2, 2));
    // Each sandbox: a start, its calls, what lies between them, and the keep-alive.
    let (first, second) = (10_374 + 10_000, 175 + 100 + 10_000);
    assert_eq!(memory_ms(&felt), (first + second, 300));
}

#[test]
fn a_burst_gets_as_many_starts_as_wait_and_the_freed_slot_takes_the_next() {
    let calls = [call(0, 1000), call(0, 1000), call(0, 1000)];
    let felt = run(&calls, fixed(10), Rules::OURS);
    assert_eq!((waits_ms(&felt), felt.created), (vec![175; 3], 3));
    let one = crate::lab::policies::reduced::Reduced::new(
        fixed(10),
        crate::lab::policies::reduced::Lack::QueueSizedStarts,
    );
    let felt = run(&calls, one, Rules::OURS);
    assert_eq!((waits_ms(&felt), felt.created), (vec![175, 1175, 2175], 1));
}

#[test]
fn early_binding_waits_at_the_chosen_one_though_another_is_free() {
    let again = Duration::from_millis(250);
    let early = Rules { binding: Binding::Early { again }, ..Rules::OURS };
    // The first two choose the sandbox that is ready first; the other one is ready a moment later
    // and serves the third call, while the second one waits until it chooses anew.
    let calls = [call(0, 10_000), call(0, 100), call(200, 10)];
    let felt = run(&calls, fixed(60), early);
    assert_eq!(waits_ms(&felt), [175, 0, 425]);
    let late = run(&calls, fixed(60), Rules::OURS);
    assert_eq!(waits_ms(&late), [175, 175, 75]);
}

/// Lets go at once and starts ahead.
#[derive(Debug)]
struct Expects(Ahead);

impl Scaling for Expects {
    fn arrived(&mut self, _levels: &Levels) {}
    fn finished(&mut self, _levels: &Levels, _ran: Duration) {}
    fn started(&mut self, _levels: &Levels, _took: Duration) {}
    fn starts(&mut self, levels: &Levels) -> u32 {
        levels.queued
    }
    fn hold(&mut self, _levels: &Levels, _rank: u32) -> Hold {
        Hold { keep: Duration::ZERO, ahead: Some(self.0) }
    }
}

#[test]
fn a_start_ahead_serves_the_call_that_was_expected() {
    let (from, until) = (Duration::from_secs(59), Duration::from_secs(61));
    let calls = [call(0, 100), call(60_275, 100)];
    let felt = run(&calls, Expects(Ahead { from, until }), Rules::OURS);
    assert_eq!(waits_ms(&felt), [175, 0]);
    // The third start is for a call that never comes; it goes at the end of its time.
    assert_eq!((felt.cold, felt.created), (1, 3));
    assert_eq!(memory_ms(&felt), (275 + (60_375 - 59_275) + 2000, 200));
}

#[test]
fn a_call_that_comes_before_makes_the_start_ahead_void() {
    let (from, until) = (Duration::from_secs(59), Duration::from_secs(61));
    let calls = [call(0, 100), call(30_000, 40_000)];
    let felt = run(&calls, Expects(Ahead { from, until }), Rules::OURS);
    // One for each call, and one ahead after the second.
    assert_eq!((felt.cold, felt.created), (2, 3));
}

#[test]
fn an_excess_call_gets_a_sandbox_of_its_own_which_nobody_else_uses() {
    let rules = Rules {
        tick: Some(Duration::from_secs(2)),
        excess: Excess::SingleUse { report_below: Duration::from_secs(60) },
        ..Rules::OURS
    };
    let calls = [call(0, 100), call(300_000, 100), call(600_000, 100)];
    let policy = Knative::asynchronous(Duration::from_secs(60));
    let felt = run(&calls, policy, rules);
    assert_eq!((felt.cold, felt.created), (3, 3), "too rare to be told of");
    assert_eq!(memory_ms(&felt), (3 * 275, 300));
}

#[test]
fn no_call_is_lost_under_any_rules() {
    let mut random = Pcg::new(7);
    let mut now = 0;
    let calls: Vec<Call> = (0..3000)
        .map(|_| {
            now += u64::from(random.draw() % 400);
            call(now, 1 + u64::from(random.draw() % 2000))
        })
        .collect();
    let early = Binding::Early { again: Duration::from_millis(250) };
    let tick = Some(Duration::from_secs(2));
    for binding in [Binding::Late, early] {
        for victim in [Victim::Idle, Victim::Any] {
            let rules = Rules { binding, victim, tick, excess: Excess::Queues };
            for felt in [
                run(&calls, Artifact::default(), rules),
                run(&calls, Knative::new(Duration::from_secs(60)), rules),
                run(&calls, Fixed::with_windows(Duration::from_secs(5), Time(0)), rules),
                run(
                    &calls,
                    Adaptive::new(dirigent_core::policy::adaptive::Terms::default()),
                    rules,
                ),
            ] {
                assert_eq!(felt.slowdowns.len(), 3000, "{rules:?}");
                let ran: u64 = calls.iter().map(|call| call.runs / MS).sum();
                assert_eq!(memory_ms(&felt).1, ran, "{rules:?}");
                assert!(felt.all_s > felt.busy_s);
            }
        }
    }
}
