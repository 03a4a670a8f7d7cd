//! Connections to sandboxes: made, kept, and used for one invocation at a time (HTTP/1.1) or for
//! many (HTTP/2).

mod http1;
mod http2;
mod stream;

use tokio::runtime::Handle;

pub(crate) use http1::{Conn, Exchange, Head, RecvError};
pub(crate) use http2::{Greeting, Multiplexed, connect as connect_http2};
pub use stream::{Opening, Tunnels};
pub(crate) use stream::{Stream, connect};

/// A thread that serves, by its runtime.
pub(crate) type Home = tokio::runtime::Id;

/// The thread that this is called on.
pub(crate) fn home() -> Home {
    Handle::current().id()
}

/// A connection that waits for its next invocation.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) conn: Conn,
    /// When its last one ended: nanoseconds of the clock.
    pub(crate) since: u64,
}
