//! Connections to sandboxes that are encrypted on their way between machines.
//!
//! ```text
//! data plane                                                        worker
//!   connection -- socket pair -- Tunnels ==(TLS, HTTP/2 CONNECT)==> Relay -- sandbox's own address
//! ```
//!
//! A data plane has one encrypted connection to each worker, and on it a stream for each connection
//! to a sandbox: a new one takes a round trip and no handshake. `CONNECT` names the sandbox by its id; it
//! is answered 200 when the sandbox took the connection, 404 if it is not there any more, 502 if it
//! takes none. From then on bytes are carried as they are, and an end is told as RFC 9113 8.5 has it:
//! the end of one direction by `END_STREAM`, a broken connection by `RST_STREAM`, which is never
//! taken for an end.
//!
//! The worker takes connections of data planes only, and data planes meet only the worker that is
//! meant: both by their certificates.

mod carry;
mod ingress;
mod tunnels;

pub use ingress::{Behind, relay};
pub use tunnels::Tunnels;

use std::time::Duration;

/// Bytes that a stream may be ahead of whoever takes them, in memory on each side.
const STREAM_AHEAD: u32 = 256 << 10;
/// The same of a connection: its streams together are never held up by those of them that nobody
/// takes from.
const CONNECTION_AHEAD: u32 = 1 << 30;
/// Bytes of a frame.
const FRAME: u32 = 64 << 10;
/// Streams of a connection at once; more wait.
const STREAMS: u32 = 16_384;
/// Streams that were given up and of which something may still arrive. The crate's bounds are against
/// strangers, and end the whole connection: here both sides are members, and where one was paused a
/// thousand callers may have left meanwhile.
const GIVEN_UP: usize = STREAMS as usize;
/// Until both sides have said what they allow.
const GREETING: Duration = Duration::from_secs(5);
/// What the URIs of workers and data planes go on with, behind that of their cluster.
const WORKERS: &str = "/worker/";
const DATA_PLANES: &str = "/data-plane/";
