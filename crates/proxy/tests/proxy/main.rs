//! The data plane as its neighbours see it: a scripted control plane, hand-made sandboxes and callers
//! on raw sockets.

mod common;
mod serving;
