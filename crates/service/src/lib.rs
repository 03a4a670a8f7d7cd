//! Hosts a role: tasks, shutdown, channels, telemetry, configuration, listeners. No domain word
//! occurs here.

pub mod clock;
pub mod pipe;
pub mod tasks;

pub use clock::Clock;
pub use pipe::{Acceptor, Closed, Dialer, End, acceptor, pipe};
pub use tasks::{OnCancel, OnError, Tasks};
