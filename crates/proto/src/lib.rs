//! The frames of `dirigent_core::frame` on the wire.
//!
//! - [`v1`]: what `proto/dirigent/v1/*.proto` says, compiled: a message for each type of the core
//!   that a frame can hold, and the service
//!   [`ControlPlane`](v1::control_plane_server::ControlPlane), streams of batches both ways.
//! - Between the two: `From` for what is sent, `TryFrom` for what is received. Fields and variants
//!   are listed on both sides without `..` and `_`: one that is added to the core does not compile
//!   until it has its mirror.
//!
//! What a peer sends is a stranger's: whatever the bytes are, a frame is a value of the core, of a
//! kind that is not known here ([`FrameError::Unknown`]) or malformed, with the field's name
//! ([`FrameError::Malformed`]); everything counted has a bound in [`limit`].
//!
//! Refused: connections, outboxes, time. Those are the shells'.

pub mod limit;
/// The messages, the client and the server, as compiled.
#[expect(
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "written by the compiler of the .proto files"
)]
pub mod v1 {
    tonic::include_proto!("dirigent.v1");
}

mod batch;
mod convert;
mod error;

pub use batch::{Batch, pack, unpack};
pub use error::{FrameError, Malformed, Why};
pub use prost::Message;
