//! What cannot be beaten: a policy that knows every call in advance. No call waits; between two
//! calls a sandbox is kept or ended and started again just in time, whichever takes less memory.
//!
//! A call takes the sandbox that became free last, so that gaps are as unequal as they can be:
//! short ones are bridged, long ones cost one start each.

use std::collections::BTreeSet;

use dirigent_core::policy::random::Pcg;

use crate::lab::{
    calls::{Call, StartTime},
    measure::{Felt, Span},
};

/// The bound for one function within a window of time.
#[must_use]
pub fn bound(calls: &[Call], start: StartTime, random: &mut Pcg, window: (u64, u64)) -> Felt {
    let mut free: BTreeSet<(u64, u32)> = BTreeSet::new();
    let mut span = Span::new(window);
    let mut sandboxes = 0;
    for call in calls {
        let takes = start.draw(random);
        let reused = free.range(..=(call.at, u32::MAX)).next_back().copied();
        let sandbox = match reused {
            Some(found) => {
                free.remove(&found);
                let (since, sandbox) = found;
                if call.at - since <= takes {
                    span.idle(since, call.at);
                } else {
                    span.start(call.at.saturating_sub(takes), call.at);
                }
                sandbox
            }
            None => {
                sandboxes += 1;
                span.start(call.at.saturating_sub(takes), call.at);
                sandboxes
            }
        };
        span.run(call.at, call.runs);
        free.insert((call.at + call.runs, sandbox));
    }
    span.felt()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_gap_costs_a_start_or_itself_whichever_is_less() {
        let start = StartTime::Fixed(Duration::from_nanos(100));
        let call = |at, runs| Call { at, runs };
        let calls = [call(1000, 50), call(1070, 50), call(2000, 50), call(2010, 50)];
        let felt = bound(&calls, start, &mut Pcg::new(1), (0, 10_000));
        assert_eq!((felt.created, felt.cold), (3, 0));
        assert!(felt.slowdowns.iter().all(|slowdown| *slowdown == 1.0));
        let memory = felt.all_s * 1e9;
        assert!((memory - (200.0 + 300.0 + 20.0)).abs() < 1e-3, "{memory}");
    }
}
