//! What a client sends: the scanner reads it as the server's parser does, or refuses it.

#![no_main]

#[path = "../../crates/proxy/src/scan.rs"]
mod scan;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _verdict = scan::agree(bytes);
});
