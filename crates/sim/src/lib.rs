//! The cluster proved: the real machines of `dirigent-core`, many of each, in one process and in
//! simulated time, with faults.
//!
//! A run is made from one seed. In its first part everything goes wrong that the design speaks of;
//! then everything is healed, and the cluster must come to rest. The [`invariants`] are checked on
//! the way. The shells, which are asynchronous in the product, are small models here that follow
//! the same rules: [`run()`] has no clock, thread or file.
//!
//! Absent by design: knowledge of how the machines decide. What is checked is what users were
//! promised.

#![forbid(unsafe_code)]

mod agenda;
mod calls;
mod faults;
pub mod invariants;
pub mod lab;
mod leader;
mod net;
mod operators;
mod plane;
mod plant;
mod replay;
mod run;
pub mod scale;
mod store;
mod twins;
mod users;
mod versions;
mod worker;
mod world;

pub use agenda::Host;
pub use faults::FAULTS;
pub use invariants::Violation;
pub use plant::Plant;
pub use replay::{Followed, replay};
pub use run::{Options, Report, Totals, run};
pub use world::Counts;
