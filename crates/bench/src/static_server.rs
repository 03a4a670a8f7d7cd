//! The program that cold starts are measured with: one of its own, since this binary, which has all
//! the roles in it, takes several times as long to get to its first line.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use dirigent_core::{Bytes, RuntimeKind, manifest::Sandbox};

/// Its name in a folder or an artifact.
const NAME: &str = "static-server";

/// Writes it into this folder.
///
/// # Errors
/// If that cannot be written to, or has it.
pub fn place(folder: &Path) -> io::Result<PathBuf> {
    let program = folder.join(NAME);
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(&program)?;
    file.write_all(include_bytes!(concat!(env!("OUT_DIR"), "/static-server")))?;
    Ok(program)
}

/// As a function whose artifact is such a folder.
#[must_use]
pub fn sandbox() -> Sandbox {
    Sandbox::new(RuntimeKind::Process, vec![format!("./{NAME}")])
}

/// What it is given at most.
pub const MEMORY: Bytes = Bytes::mib(16);
