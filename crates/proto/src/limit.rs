//! How much of anything a frame may hold. What is received beyond is malformed; text that people
//! read or ask for is cut before it is sent, so that a long message never costs a stream.
//!
//! Each is at least what the core, the manifest or the design's sizes allow.

/// Bytes of one batch on the wire.
pub const BATCH: usize = 1 << 20;

/// Bytes of a word: the name of a feature, kind, code or phase, a boot id, a request id.
pub const WORD: usize = 1 << 10;
/// Bytes of `NAMESPACE/NAME`, two DNS labels.
pub const NAME: usize = 63 + 1 + 63;
/// Bytes of a text that a machine reads: an argument, a value of the environment, a path. A
/// manifest may have so much of either kind in all.
pub const TEXT: usize = 64 << 10;
/// Bytes of a text that people read: a message, a line of a log.
pub const MESSAGE: usize = 64 << 10;
/// Bytes of a piece of an artifact.
pub const CHUNK: usize = 256 << 10;

/// Features of a peer.
pub const FEATURES: usize = 256;
/// Runtimes of a worker, and lines about what does not work there.
pub const RUNTIMES: usize = 256;
/// Sandboxes of a worker, or sandboxes of which a data plane holds slots: all of the largest
/// cluster.
pub const SANDBOXES: usize = 100_000;
/// Functions that a data plane subscribes to or tells the demand of: all of the largest cluster.
pub const FUNCTIONS: usize = 1_000_000;
/// Artifacts that a worker holds or is to discard: one for each of those functions.
pub const ARTIFACTS: usize = 1_000_000;
/// Arguments of a program, or variables of its environment.
pub const ARGUMENTS: usize = 64 << 10;
/// Destinations of a policy; the core reads no more.
pub const DESTINATIONS: usize = dirigent_core::outbound::MOST_DESTINATIONS;
/// Revisions that a function's invocations go to; ten are kept.
pub const TARGETS: usize = 256;
/// Last lines of a sandbox that failed; twenty are kept.
pub const LOG_TAIL: usize = 256;
/// Lines of a log at once.
pub const LOG_LINES: usize = 10_000;
/// Tokens of the API; the core has 1,000, and the leader's own beside them.
pub const TOKENS: usize = 4096;
/// Phases of an invocation.
pub const PHASES: usize = 256;
