//! Bytes as they may come from a peer: refused, or frames that are written the same way.

#![no_main]

#[path = "../../crates/proto/tests/frames/any.rs"]
mod any;
#[path = "../../crates/proto/tests/frames/subject.rs"]
mod subject;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| subject::read_each(bytes));
