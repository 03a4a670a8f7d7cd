//! Hosts a role: tasks, shutdown, channels, telemetry, configuration, listeners, TLS. No domain word
//! occurs here.

pub mod clock;
pub mod config;
pub mod cores;
pub mod listen;
pub mod lock;
pub mod outbox;
pub mod pipe;
pub mod reference;
pub mod socket;
pub mod state;
pub mod tasks;
pub mod telemetry;
pub mod tls;

pub use clock::Clock;
pub use cores::{Cores, Seat};
pub use lock::{LockError, StateLock};
pub use outbox::{Limits, Outbox, OutboxClosed, OutboxFeed, outbox};
pub use pipe::{Acceptor, Closed, Dialer, End, acceptor, pipe};
pub use tasks::{OnCancel, OnError, Tasks};
