//! All machines together, under events that the fuzzer chooses: the steps of the property test.

#![no_main]

#[path = "../../crates/core/tests/machines/bytes.rs"]
mod bytes;
#[path = "../../crates/core/tests/machines/together.rs"]
mod machine;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| machine::play(bytes::case(bytes, &machine::step())));
