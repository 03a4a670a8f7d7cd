//! An image of this program: itself and the libraries that it has loaded, so that its built-in
//! functions run as containers without a registry and without anything else in the image.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
};

use dirigent_core::{
    Digest, RuntimeKind,
    manifest::{Manifest, Sandbox},
};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tar::{Builder, Header, HeaderMode};

/// Where the program is in the image.
pub const PROGRAM: &str = "/dirigent";

/// The image's file, as manifests name it.
pub const FILE: &str = "dirigent.tar";

/// The same function, as a container of the image.
#[must_use]
pub fn contained(manifest: Manifest) -> Manifest {
    let mut command = manifest.sandbox.command.clone();
    if let Some(program) = command.first_mut() {
        PROGRAM.clone_into(program);
    }
    let image = Some(format!("docker-archive:{FILE}"));
    let sandbox = Sandbox { runtime: RuntimeKind::Container, command, image, ..manifest.sandbox };
    Manifest { sandbox, ..manifest }
}

/// Writes it into this directory, as `docker save` would; where.
///
/// # Errors
/// Those of the file system.
pub fn write(directory: &Path) -> io::Result<PathBuf> {
    let (path, layer) = (directory.join(FILE), directory.join("layer.tar"));
    let content = pack(&layer)?;
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        // As the first process of its namespace it does not hear any other.
        "config": { "Cmd": [PROGRAM], "StopSignal": "SIGKILL" },
        "rootfs": { "type": "layers", "diff_ids": [content.to_string()] },
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": [], "Layers": ["layer.tar"] }]);
    let mut archive = builder(&path)?;
    for (name, document) in [("manifest.json", manifest), ("config.json", config)] {
        let bytes = document.to_string().into_bytes();
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, &*bytes)?;
    }
    archive.append_path_with_name(&layer, "layer.tar")?;
    archive.into_inner()?.flush()?;
    fs::remove_file(layer)?;
    Ok(path)
}

fn builder(path: &Path) -> io::Result<Builder<BufWriter<File>>> {
    let mut builder = Builder::new(BufWriter::new(File::create(path)?));
    // containerd knows nothing of files with holes.
    builder.sparse(false);
    Ok(builder)
}

/// The only layer; the digest of its bytes.
fn pack(path: &Path) -> io::Result<Digest> {
    let mut layer = builder(path)?;
    layer.mode(HeaderMode::Deterministic);
    layer.append_path_with_name(std::env::current_exe()?, PROGRAM.trim_start_matches('/'))?;
    for library in libraries(&fs::read_to_string("/proc/self/maps")?) {
        let name = library.file_name().unwrap_or_default();
        // Programs name the loader itself by this directory, wherever a machine has it.
        let of_loader = if cfg!(target_arch = "aarch64") { "lib" } else { "lib64" };
        if name.as_encoded_bytes().starts_with(b"ld-linux") {
            layer.append_path_with_name(&library, Path::new(of_loader).join(name))?;
        }
        layer.append_path_with_name(&library, library.strip_prefix("/").unwrap_or(&library))?;
    }
    layer.into_inner()?.flush()?;
    let mut hasher = Sha256::new();
    io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok(Digest(hasher.finalize().into()))
}

/// Those that a process has mapped; none, if it is linked statically.
fn libraries(maps: &str) -> BTreeSet<PathBuf> {
    let mapped = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
    mapped.filter(|path| path.starts_with('/') && path.contains(".so")).map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_those_that_are_mapped() {
        let maps = "55d0-55d1 r-xp 00000000 08:01 12 /usr/bin/dirigent\n\
                    7f00-7f01 r--p 00000000 08:01 13 /usr/lib/x86_64-linux-gnu/libc.so.6\n\
                    7f01-7f02 r-xp 00001000 08:01 13 /usr/lib/x86_64-linux-gnu/libc.so.6\n\
                    7f02-7f03 rw-p 00000000 00:00 0\n\
                    7ffd-7ffe rw-p 00000000 00:00 0 [stack]\n";
        let libraries: Vec<_> = libraries(maps).into_iter().collect();
        assert_eq!(libraries, [Path::new("/usr/lib/x86_64-linux-gnu/libc.so.6")]);
    }
}
