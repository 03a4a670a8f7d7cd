//! Steps of property tests that bytes choose, as a fuzzer makes them.

use proptest::{
    strategy::{Strategy, ValueTree as _},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

/// Bytes that choose one step: when one of them changes, no other step does. They are the seed of its
/// choices, not the choices themselves (the library's `PassThrough`): that gives half of what is left to
/// each choice within a choice, and where nothing is left some are never made.
const OF_A_STEP: usize = 2;
/// Steps of a case.
const MOST: usize = 200;

/// How many slots a sandbox has, and what happens.
pub(crate) fn case<S: Strategy>(bytes: &[u8], step: &S) -> (u32, Vec<S::Value>) {
    let (first, rest) = bytes.split_first().unwrap_or((&0, &[]));
    let concurrency = [0, 1, 3][usize::from(*first) % 3];
    (concurrency, rest.chunks(OF_A_STEP).take(MOST).map(|bytes| one(bytes, step)).collect())
}

fn one<S: Strategy>(bytes: &[u8], step: &S) -> S::Value {
    let mut seed = [0; 32];
    seed.iter_mut().zip(bytes).for_each(|(to, byte)| *to = *byte);
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    step.new_tree(&mut runner).expect("nothing is filtered").current()
}
