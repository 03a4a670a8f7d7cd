//! Every kind of every frame, to the wire and back; its bytes in version 1; and bytes that nobody
//! who speaks it would send.

#![cfg(test)]

mod any;
#[path = "../../../../fuzz/src/corpus.rs"]
mod corpus;
mod frozen;
mod hostile;
mod round_trip;
mod subject;
