//! Workers that are cordoned while starts wait.

use super::*;
use crate::{Duty, RequestId};

fn order(fleet: &mut Fleet, name: &str, duty: Duty) -> Vec<Output> {
    fleet.order(ms(1), RequestId(1), &name.into(), duty);
    let outputs = drain(fleet);
    for output in &outputs {
        if let Output::Persist { token, .. } = output {
            fleet.persisted(ms(1), *token, Outcome::Ok { revision: 1 });
        }
    }
    [outputs, drain(fleet)].concat()
}

#[test]
fn what_waits_goes_to_a_worker_that_is_taken_back() {
    let mut fleet = Fleet::new(ms(0), 1, OFFICE, Vec::new());
    join(&mut fleet, ms(0), 1, "w", hello(1, Vec::new()));
    order(&mut fleet, "w", Duty::Cordoned);
    fleet.want(ms(2), want(1, 1));
    assert!(matches!(drain(&mut fleet).as_slice(), [Output::NoRoom { .. }]));
    assert_eq!(placed(&order(&mut fleet, "w", Duty::InUse)), [(1, 1)]);
}
