//! Carries connections between roles over gRPC: on one side of the wire stands a control plane's
//! [`Doors`], on the other side are dialers that look like those within one process.
//!
//! ```text
//! role -- Dialer -> Reach ==(a stream per dial)==> serve -> Dialer -- control plane
//! ```
//!
//! Both sides show a certificate of their cluster, and who calls is who its certificate names, in the
//! role that it names. Within one host a token may stand for it, and nothing is encrypted.
//!
//! A stream is as good as its connection: whatever breaks, both ends see it closed, and whoever
//! dialled dials again after a pause of its own. Nothing is sent twice.
//!
//! Of several control planes one leads. The others let a caller in, and answer when they lead: by
//! that answer the caller learns, on a connection that stands already, whom to talk to.

mod carry;
mod client;
mod connect;
mod depot;
mod entrance;
mod line;
mod link;
mod relay;
mod renew;
mod server;
mod vouch;

pub use client::{Reach, ReachError};
pub use depot::{Answer, Depot, Pieces};
pub use entrance::{Entrance, Members};
pub use relay::{Behind, Tunnels, relay};
pub use server::{Doors, Leads, serve};

use std::time::Duration;

/// Bytes of one message that is taken. Frames travel together up to [`dirigent_proto::limit::BATCH`]; what
/// a peer says first of all that it has, and a batch of log lines, can be longer.
const MESSAGE_BYTES: usize = 32 << 20;
/// Silence after which the other end is asked whether it lives, and how long it may think: a host
/// that was cut off is noticed after both.
const PING_EVERY: Duration = Duration::from_secs(2);
const PING_WITHIN: Duration = Duration::from_secs(3);
/// Until a connection stands.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// The header with the leader's epoch.
const EPOCH: &str = "dirigent-epoch";
/// The header with the caller's name; with a certificate the number that follows the name in it.
const NAME: &str = "dirigent-name";
/// Bytes of a name.
const NAME_BYTES: usize = 253;
