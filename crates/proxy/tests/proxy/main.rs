//! The data plane as its neighbours see it: a scripted control plane, hand-made sandboxes and callers
//! on raw sockets.

#[cfg(test)]
mod abandoned;
#[cfg(test)]
mod common;
#[cfg(test)]
mod edges;
#[cfg(test)]
mod failures;
#[cfg(test)]
mod frames;
#[cfg(test)]
mod http2;
#[cfg(test)]
mod plane;
#[cfg(test)]
mod serving;
#[cfg(test)]
mod tokens;
