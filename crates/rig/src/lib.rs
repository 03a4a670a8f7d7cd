//! Clusters of real processes on hosts that a test makes, and what is done to them.
//!
//! - [`net`]: hosts, each a network namespace with an address, and the links between them.
//! - [`wire`]: how a link is: cut, late, lossy, slow.
//! - [`part`]: a program on a host, killed and started again.
//! - [`cluster`]: control planes on an etcd, data planes, workers, and callers behind HAProxy.
//! - [`functions`]: the functions that are called.
//! - [`load`]: steady calls whose outcomes are told apart.
//! - [`witness`]: what was executed, as functions tell it.
//! - [`chaos`]: random faults, with everything accounted for.

mod ask;
pub mod chaos;
pub mod cluster;
pub mod functions;
pub mod load;
pub mod net;
pub mod part;
mod processors;
mod switch;
pub mod wire;
pub mod witness;
