//! What a leader's machine costs does not grow with what it knows. Counted, not timed: the times are
//! `dirigent-sim scale`'s.

#![cfg(test)]

use dirigent_sim::scale::{Big, Size, records, resident};

/// Events and effects of a thousand calls, each of a function of its own.
fn thousand_calls(functions: u64) -> (u64, u64) {
    let size = Size { functions, workers: 50, planes: 4 };
    let mut big = Big::new(size, records(functions));
    let (events, effects) = (big.events, big.effects);
    for n in 0..1000 {
        let held =
            big.cold_start(big.plane(n), big.function(n * 97)).expect("a sandbox is granted");
        big.call(held);
    }
    (big.events - events, big.effects - effects)
}

// One test: the memory of the process is everybody's.
#[test]
fn a_call_takes_as_many_steps_among_many_functions_as_among_few_and_an_idle_one_weighs_1_kb() {
    const MANY: u64 = 100_000;
    let before = resident();
    let size = Size { functions: MANY, workers: 1, planes: 1 };
    let big = Big::new(size, records(MANY));
    let weight = resident().saturating_sub(before) / MANY;
    assert!(weight > 0, "nothing was measured");
    assert!(weight <= 1024, "{weight} bytes per idle function");
    drop(big);

    let (few, many) = (thousand_calls(1000), thousand_calls(MANY));
    assert_eq!(few, many, "events and effects");
}
