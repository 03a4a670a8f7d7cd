//! Images, made from the files of this machine, without a network.
#![allow(dead_code, clippy::allow_attributes, reason = "each test program uses a part")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use dirigent_core::Digest;
use sha2::{Digest as _, Sha256};

/// An image to be written.
pub(crate) struct Image {
    layers: Vec<Vec<u8>>,
    /// The member `config` of its configuration.
    pub(crate) config: serde_json::Value,
}

impl Image {
    pub(crate) fn new(layer: Layer, config: serde_json::Value) -> Self {
        Self { layers: vec![layer.finish()], config }
    }

    pub(crate) fn and(mut self, layer: Layer) -> Self {
        self.layers.push(layer.finish());
        self
    }

    fn documents(&self) -> Vec<u8> {
        let diff_ids: Vec<String> = self.layers.iter().map(|layer| digest(layer)).collect();
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        serde_json::json!({
            "architecture": architecture,
            "os": "linux",
            "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        })
        .to_string()
        .into_bytes()
    }

    /// As `docker save` writes it.
    pub(crate) fn docker_archive(&self, path: &Path) -> Digest {
        let mut archive = Layer::new();
        let names: Vec<String> = (0..self.layers.len()).map(|n| format!("{n}/layer.tar")).collect();
        let manifest = serde_json::json!([
            { "Config": "config.json", "RepoTags": ["test:latest"], "Layers": names },
        ]);
        archive.file("manifest.json", 0o644, manifest.to_string().as_bytes());
        archive.file("config.json", 0o644, &self.documents());
        for (name, layer) in names.iter().zip(&self.layers) {
            archive.file(name, 0o644, layer);
        }
        let bytes = archive.finish();
        fs::write(path, &bytes).unwrap();
        Digest(Sha256::digest(&bytes).into())
    }
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    Digest(Sha256::digest(bytes).into()).to_string()
}

/// A tar.
pub(crate) struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    pub(crate) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub(crate) fn file(&mut self, path: &str, mode: u32, bytes: &[u8]) -> &mut Self {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_size(bytes.len() as u64);
        self.0.append_data(&mut header, path, bytes).unwrap();
        self
    }

    pub(crate) fn directory(&mut self, path: &str, mode: u32) -> &mut Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(mode);
        header.set_size(0);
        self.0.append_data(&mut header, path, &[][..]).unwrap();
        self
    }

    pub(crate) fn copy(&mut self, path: &str, from: &Path) -> &mut Self {
        self.file(path, 0o755, &fs::read(from).unwrap())
    }

    /// A program of this machine with the libraries that it is linked to.
    pub(crate) fn program(&mut self, path: &str, from: &Path) -> &mut Self {
        self.copy(path, from);
        for library in libraries(from) {
            let inside = library.strip_prefix("/").unwrap().to_str().unwrap().to_owned();
            self.copy(&inside, &library);
        }
        self
    }

    /// A shell and its tools in `/bin`, linked to nothing.
    pub(crate) fn busybox(&mut self) -> &mut Self {
        let from = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new);
        let from = from.into_iter().find(|path| path.exists()).expect("busybox-static");
        self.copy("bin/busybox", from);
        for tool in ["sh", "sleep", "cat", "ls", "id", "httpd", "echo", "touch", "mount", "nc"] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            self.0.append_link(&mut header, format!("bin/{tool}"), "busybox").unwrap();
        }
        self
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// What `ldd` says that a program is linked to.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().expect("ldd comes with the C library");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let paths = text.lines().filter_map(|line| {
        let place = line.split_once("=> ").map_or_else(|| line.trim(), |(_, place)| place);
        place.split(" (").next().filter(|path| path.starts_with('/')).map(PathBuf::from)
    });
    paths.collect()
}

/// Without what debuggers read, which is most of it.
pub(crate) fn stripped(program: &Path, to: &Path) -> PathBuf {
    let output = Command::new("strip").arg("-o").arg(to).arg(program).output();
    match output {
        Ok(output) if output.status.success() => to.to_owned(),
        _ => program.to_owned(),
    }
}
