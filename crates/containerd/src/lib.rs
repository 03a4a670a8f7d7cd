//! What is spoken with containerd: its API as compiled from the `.proto` files of its repository
//! (`proto/`, as published with the crate `containerd-client`, which itself needs `protoc`), and a
//! connection that comes back by itself when containerd does.
//!
//! Every call has a deadline, and is made in the one namespace that the client was made for:
//! containerd's namespaces are what keeps its users apart.
//!
//! Refused: to know what a sandbox or an image is. That is `crates/runtime`'s.

mod client;

/// The messages and the clients, as compiled.
#[expect(
    unused_qualifications,
    clippy::allow_attributes_without_reason,
    clippy::struct_excessive_bools,
    reason = "written by the compiler of the .proto files"
)]
pub mod api {
    // The modules are nested as the packages are, as they name each other that way.
    include!(concat!(env!("OUT_DIR"), "/api.rs"));
}

pub use client::{Client, Failure, Headers, Kind, Service};
