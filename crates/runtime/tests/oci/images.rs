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
    /// Whether the configuration promises other layers.
    pub(crate) lie: bool,
}

impl Image {
    pub(crate) fn new(layer: Layer, config: serde_json::Value) -> Self {
        Self { layers: vec![layer.finish()], config, lie: false }
    }

    pub(crate) fn and(mut self, layer: Layer) -> Self {
        self.layers.push(layer.finish());
        self
    }

    fn documents(&self) -> Vec<u8> {
        let promised = |layer: &Vec<u8>| digest(if self.lie { b"another" } else { layer });
        let diff_ids: Vec<String> = self.layers.iter().map(promised).collect();
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

    /// As an OCI layout in a tar, which is what `skopeo` and `buildah` write.
    pub(crate) fn oci_archive(&self, path: &Path, gzip: bool) -> Digest {
        let mut archive = Layer::new();
        archive.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#);
        let (manifest, blobs) = self.blobs(gzip);
        for blob in &blobs {
            archive.file(&format!("blobs/{}", digest(blob).replace(':', "/")), 0o644, blob);
        }
        let index = serde_json::json!({ "schemaVersion": 2, "manifests": [manifest] });
        archive.file("index.json", 0o644, index.to_string().as_bytes());
        let bytes = archive.finish();
        fs::write(path, &bytes).unwrap();
        Digest(Sha256::digest(&bytes).into())
    }

    /// The manifest's descriptor, and everything that it leads to.
    fn blobs(&self, gzip: bool) -> (serde_json::Value, Vec<Vec<u8>>) {
        let oci = |kind: &str| format!("application/vnd.oci.image.{kind}");
        let descriptor = |kind: &str, bytes: &[u8]| {
            serde_json::json!({
                "mediaType": oci(kind), "digest": digest(bytes), "size": bytes.len(),
            })
        };
        let config = self.documents();
        let pack = |layer: &Vec<u8>| if gzip { packed(layer) } else { layer.clone() };
        let mut blobs: Vec<Vec<u8>> = self.layers.iter().map(pack).collect();
        let kind = if gzip { "layer.v1.tar+gzip" } else { "layer.v1.tar" };
        let layers: Vec<_> = blobs.iter().map(|layer| descriptor(kind, layer)).collect();
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": oci("manifest.v1+json"),
            "config": descriptor("config.v1+json", &config),
            "layers": layers,
        })
        .to_string()
        .into_bytes();
        let described = descriptor("manifest.v1+json", &manifest);
        blobs.extend([config, manifest]);
        (described, blobs)
    }
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut child = Command::new("gzip")
        .arg("-c")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("gzip is everywhere");
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || std::io::Write::write_all(&mut stdin, bytes).unwrap());
        child.wait_with_output().unwrap().stdout
    })
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

    /// With a name that no library would write.
    pub(crate) fn raw(&mut self, path: &str, bytes: &[u8]) -> &mut Self {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        self.0.append(&header, bytes).unwrap();
        self
    }

    /// A directory of this machine in its own place, without what has one of these names.
    pub(crate) fn tree(&mut self, from: &Path, without: &[&str]) -> &mut Self {
        for entry in fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if without.contains(&name.as_str()) {
                continue;
            }
            if path.is_dir() {
                self.tree(&path, without);
            } else if path.is_file() {
                self.copy(path.strip_prefix("/").unwrap().to_str().unwrap(), &path);
            }
        }
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
        for tool in [
            "sh", "sleep", "cat", "ls", "id", "httpd", "echo", "touch", "mount", "nc", "grep",
            "ping", "mknod",
        ] {
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
