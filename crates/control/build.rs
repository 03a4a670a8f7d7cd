//! Compiles `proto/`, by a compiler written in Rust: nothing has to be installed.

use std::{error::Error, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let protos = Path::new("proto");
    println!("cargo:rerun-if-changed={}", protos.display());
    let files = protox::compile(["etcd.proto"], [protos])?;
    tonic_prost_build::configure().build_server(false).compile_fds(files)?;
    Ok(())
}
