//! Compiles containerd's `.proto` files, by a compiler written in Rust: nothing has to be installed.

use std::{error::Error, path::Path};

/// What a runtime needs of containerd; they import the rest.
const ROOTS: [&str; 10] = [
    "services/containers/v1/containers.proto",
    "services/content/v1/content.proto",
    "services/diff/v1/diff.proto",
    "services/introspection/v1/introspection.proto",
    "services/leases/v1/leases.proto",
    "services/namespaces/v1/namespace.proto",
    "services/snapshots/v1/snapshots.proto",
    "services/tasks/v1/tasks.proto",
    "services/version/v1/version.proto",
    "types/runc/options/oci.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let protos = Path::new("proto");
    println!("cargo:rerun-if-changed={}", protos.display());
    let place = "github.com/containerd/containerd/api";
    let mut files = protox::compile(ROOTS.map(|file| format!("{place}/{file}")), [protos])?;
    // The comments of containerd's authors are not always what rustdoc takes.
    files.file.iter_mut().for_each(|file| file.source_code_info = None);
    tonic_prost_build::configure().build_server(false).include_file("api.rs").compile_fds(files)?;
    Ok(())
}
