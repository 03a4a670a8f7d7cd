//! What is sent is what is received.

use std::collections::BTreeSet;

use dirigent_core::frame::{
    FromDataPlane, FromDataPlaneBulk, FromWorker, FromWorkerBulk, ToDataPlane, ToDataPlaneBulk,
    ToWorker, ToWorkerBulk,
};
use dirigent_proto::{Batch, pack, unpack, v1};

use crate::{
    any::{Any, Source},
    subject::{Subject, Visitor, each},
};

const SEEDS: u64 = 500;

#[test]
fn every_kind_comes_back_from_the_wire_as_it_was() {
    struct RoundTrip(BTreeSet<(&'static str, &'static str)>);

    impl Visitor for RoundTrip {
        fn visit<S: Subject>(&mut self) {
            for seed in 0..SEEDS {
                for (index, name) in S::NAMES.iter().enumerate() {
                    let sent = S::of_variant(index, &mut Source::seeded(seed));
                    assert_eq!(sent.variant(), *name);
                    let received = S::read(&sent.clone().bytes());
                    assert_eq!(received.as_ref(), Ok(&sent), "seed {seed}");
                    self.0.insert((S::NAME, received.unwrap().variant()));
                }
            }
            let met = self.0.iter().filter(|(name, _)| *name == S::NAME).count();
            assert_eq!(met, S::NAMES.len(), "every variant of {} was met", S::NAME);
        }
    }

    let mut round_trip = RoundTrip(BTreeSet::new());
    each(&mut round_trip);
    assert!(round_trip.0.len() > 70, "all types were visited: {:?}", round_trip.0);
}

#[test]
fn a_batch_keeps_its_frames_in_order() {
    fn check<B: Batch<Frame = F>, F: Any + Clone + PartialEq + std::fmt::Debug>() {
        for seed in 0..50 {
            let mut source = Source::seeded(seed);
            let sent: Vec<F> = (0..seed).map(|_| F::any(&mut source)).collect();
            let bytes = pack::<B>(sent.clone()).encode_to_vec();
            let received: Result<Vec<F>, _> = unpack(B::decode(&*bytes).unwrap()).collect();
            assert_eq!(received.as_ref(), Ok(&sent), "seed {seed}");
        }
    }

    check::<v1::FromWorkers, FromWorker>();
    check::<v1::ToWorkers, ToWorker>();
    check::<v1::FromWorkerBulks, FromWorkerBulk>();
    check::<v1::ToWorkerBulks, ToWorkerBulk>();
    check::<v1::FromDataPlanes, FromDataPlane>();
    check::<v1::ToDataPlanes, ToDataPlane>();
    check::<v1::FromDataPlaneBulks, FromDataPlaneBulk>();
    check::<v1::ToDataPlaneBulks, ToDataPlaneBulk>();
}

#[test]
fn what_the_wire_cannot_hold_is_cut() {
    use std::time::Duration;

    use dirigent_core::{Epoch, SandboxId};
    use dirigent_proto::limit;

    let sandbox = SandboxId::new(Epoch(1), 1);
    let read = |frame: ToWorker| ToWorker::read(&frame.bytes());
    let received = read(ToWorker::StopSandbox { sandbox, grace: Duration::MAX });
    let longest = Duration::from_nanos(u64::MAX);
    assert_eq!(received, Ok(ToWorker::StopSandbox { sandbox, grace: longest }));

    let refused = |message| FromWorker::Refused { sandbox, message };
    let received = FromWorker::read(&refused("é".repeat(limit::MESSAGE)).bytes());
    assert_eq!(received, Ok(refused("é".repeat(limit::MESSAGE / 2))));
}
