//! Compiles `proto/`, by a compiler written in Rust: nothing has to be installed.

use std::{error::Error, path::Path};

/// What is compiled: the service; it imports the rest.
const ROOT: &str = "dirigent/v1/control_plane.proto";

/// Boxed as in the core: else each small frame of a batch would take the room of the largest.
const LARGE: [&str; 5] = [
    ".dirigent.v1.FromDataPlaneBulk.Invocation.record",
    ".dirigent.v1.FromDataPlane.kind.hello",
    ".dirigent.v1.FromWorker.kind.hello",
    ".dirigent.v1.ToDataPlane.kind.grant",
    ".dirigent.v1.ToWorker.kind.start_sandbox",
];

fn main() -> Result<(), Box<dyn Error>> {
    let protos = Path::new("proto");
    println!("cargo:rerun-if-changed={}", protos.display());
    let files = protox::compile([ROOT], [protos])?;
    // Ordered maps: the same value always has the same bytes.
    let mut builder = tonic_prost_build::configure().btree_map(".");
    for field in LARGE {
        builder = builder.boxed(field);
    }
    builder.compile_fds(files)?;
    Ok(())
}
