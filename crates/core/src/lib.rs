//! The decisions of Dirigent: domain types and three pure machines.
//!
//! - [`control::Control`]: one per cluster; functions, scale, placement, slots.
//! - [`gate::Gate`]: one per function and data plane; the queue and the slots held. The hot path.
//! - [`worker::Worker`]: one per worker; the sandboxes on it.
//!
//! Beside them [`office::Candidate`] decides when a standby takes office. A [`recording`] is what a
//! control machine lived through.
//!
//! Each machine takes events (facts, past tense) and gives effects (orders, imperative), both plain
//! data with serde, so that a recorded run can be replayed:
//!
//! ```text
//! handle(now, event)   the world says something        poll_effect() -> Option<Effect>   in order
//! expire(now)          a deadline may have passed      deadline() -> Option<Time>        next one
//! ```
//!
//! Absent by design: I/O, clocks, randomness from outside, channels, locks, async.

#![forbid(unsafe_code)]
#![warn(
    missing_docs,
    clippy::wildcard_enum_match_arm,
    clippy::iter_over_hash_type,
    clippy::indexing_slicing
)]

pub mod access;
pub mod duty;
pub mod frame;
pub mod id;
pub mod manifest;
pub mod member;
pub mod model;
pub mod name;
pub mod outbound;
pub mod time;
pub mod units;

pub mod control;
pub mod gate;
pub mod office;
pub mod recording;
pub mod worker;

pub mod policy;

pub use access::{Access, AccessError, ApiToken, ApiTokens, TokenView};
pub use duty::{Duty, Whom};
pub use id::{
    DataPlaneId, Epoch, FunctionId, InvocationId, RequestId, RevisionId, SandboxId, Serial,
    StreamId, WorkerId, WriteToken,
};
pub use member::{Member, MemberError, Role};
pub use model::*;
pub use name::{FunctionName, NameError};
pub use outbound::{Destination, DestinationError, Outbound};
pub use time::Time;
pub use units::{Bytes, MilliCpu};
