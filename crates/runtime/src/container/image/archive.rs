//! An image in one file: what `docker save`, `podman save`, `skopeo copy` and `buildah push` write,
//! as docker-archive or OCI layout, or an OCI layout's directory as a tar.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufReader, Read, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use dirigent_core::Digest;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tar::EntryType;

use super::{ImageError, Limits, config::architecture, layer::Packed};

/// Of an index, a manifest or a configuration.
const MAX_DOCUMENT: u64 = 4 << 20;
/// Files of an archive.
const MAX_FILES: usize = 10_000;
/// Indices within indices, and links to links.
const DEEPEST: usize = 4;

/// What is in an archive: the configuration's bytes, and the layers from the lowest on.
#[derive(Debug)]
pub(in crate::container) struct Contents {
    pub(in crate::container) config: Vec<u8>,
    pub(in crate::container) layers: Vec<Packed>,
    /// The archive unpacked, if it was packed.
    _plain: Option<tempfile::NamedTempFile>,
}

/// `index.json`, and what an index in an index is.
#[derive(Debug, Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    size: u64,
    platform: Option<Platform>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// An element of docker-archive's `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    layers: Vec<String>,
}

/// Opens the archive at `path`, whose bytes must be `digest`. Blocking.
pub(in crate::container) fn open(
    path: &Path,
    digest: Digest,
    limits: Limits,
) -> Result<Contents, ImageError> {
    let found = hash(path).map_err(|error| ImageError::io("the image's archive", &error))?;
    if found != digest {
        return Err(ImageError::Mismatch {
            what: "the image's archive".to_owned(),
            expected: digest.to_string(),
            found: found.to_string(),
        });
    }
    let plain = plain(path, limits)?;
    let files = Files::of(plain.as_ref().map_or(path, tempfile::NamedTempFile::path))?;
    let (config, layers) = if files.find("oci-layout").is_some() {
        files.layout()?
    } else if files.find("manifest.json").is_some() {
        files.docker()?
    } else {
        return Err(ImageError::Format(
            "the archive has neither `oci-layout` nor `manifest.json`: make one with `docker \
             save`, `podman save` or `skopeo copy ... oci-archive:FILE`"
                .to_owned(),
        ));
    };
    Ok(Contents { config, layers, _plain: plain })
}

fn hash(path: &Path) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 128 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Digest(hasher.finalize().into())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// The archive unpacked beside itself, if it is packed as a whole.
fn plain(path: &Path, limits: Limits) -> Result<Option<tempfile::NamedTempFile>, ImageError> {
    let error = |error: io::Error| ImageError::io("the image's archive", &error);
    let mut file = File::open(path).map_err(error)?;
    let mut magic = Vec::new();
    Read::by_ref(&mut file).take(4).read_to_end(&mut magic).map_err(error)?;
    file.seek(SeekFrom::Start(0)).map_err(error)?;
    let file = BufReader::new(file);
    let mut stream: Box<dyn Read> = match magic[..] {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(file)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::Decoder::new(file).map_err(error)?),
        _ => return Ok(None),
    };
    let above = path.parent().unwrap_or_else(|| Path::new("."));
    let mut out = tempfile::NamedTempFile::new_in(above).map_err(error)?;
    let packed = std::fs::metadata(path).map_err(error)?.len();
    let most = limits.bytes.min(packed.saturating_mul(limits.ratio).max(64 << 20));
    let copied = io::copy(&mut stream.by_ref().take(most + 1), &mut out).map_err(error)?;
    if copied > most {
        return Err(ImageError::TooLarge(dirigent_core::Bytes(most)));
    }
    out.flush().map_err(error)?;
    Ok(Some(out))
}

/// Where the files of an archive are in it.
struct Files {
    path: PathBuf,
    found: HashMap<String, Place>,
}

enum Place {
    Here {
        offset: u64,
        length: u64,
    },
    /// Older archives have layers that several images share only once.
    Link(String),
}

impl Files {
    fn of(path: &Path) -> Result<Self, ImageError> {
        let format = |error: io::Error| ImageError::Format(format!("not a tar archive: {error}"));
        let file = File::open(path).map_err(|e| ImageError::io("the image's archive", &e))?;
        let mut archive = tar::Archive::new(file);
        let mut found = HashMap::new();
        for entry in archive.entries_with_seek().map_err(format)? {
            let entry = entry.map_err(format)?;
            if found.len() >= MAX_FILES {
                return Err(ImageError::Refused(format!("it has more than {MAX_FILES} files")));
            }
            let name = entry.path().map_err(format)?;
            let name = name.strip_prefix("./").unwrap_or(&name).to_string_lossy().into_owned();
            let place = match entry.header().entry_type() {
                EntryType::Regular | EntryType::Continuous => {
                    Place::Here { offset: entry.raw_file_position(), length: entry.size() }
                }
                EntryType::Symlink | EntryType::Link => {
                    let target = entry.link_name().map_err(format)?.unwrap_or_default();
                    let below = Path::new(&name).parent().unwrap_or_else(|| Path::new(""));
                    let target = match entry.header().entry_type() {
                        EntryType::Link => target.into_owned(),
                        _ => below.join(target),
                    };
                    Place::Link(flat(&target))
                }
                _ => continue,
            };
            found.insert(name, place);
        }
        Ok(Self { path: path.to_owned(), found })
    }

    fn find(&self, name: &str) -> Option<(u64, u64)> {
        let mut name = name;
        for _ in 0..DEEPEST {
            match self.found.get(name)? {
                Place::Here { offset, length } => return Some((*offset, *length)),
                Place::Link(target) => name = target,
            }
        }
        None
    }

    fn document(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        let (offset, length) = self
            .find(name)
            .ok_or_else(|| ImageError::Format(format!("the archive has no `{name}`")))?;
        if length > MAX_DOCUMENT {
            return Err(ImageError::Refused(format!("`{name}` is larger than 4 MiB")));
        }
        let error = |error: io::Error| ImageError::io("the image's archive", &error);
        let mut file = File::open(&self.path).map_err(error)?;
        file.seek(SeekFrom::Start(offset)).map_err(error)?;
        let mut bytes = Vec::new();
        file.take(length).read_to_end(&mut bytes).map_err(error)?;
        Ok(bytes)
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let bytes = self.document(&blob_name(descriptor.digest))?;
        let found = Digest(Sha256::digest(&bytes).into());
        if found != descriptor.digest || bytes.len() as u64 != descriptor.size {
            return Err(ImageError::Mismatch {
                what: "a document of the image".to_owned(),
                expected: format!("{} of {} bytes", descriptor.digest, descriptor.size),
                found: format!("{found} of {} bytes", bytes.len()),
            });
        }
        Ok(bytes)
    }

    fn layout(&self) -> Result<(Vec<u8>, Vec<Packed>), ImageError> {
        let manifest = self.manifest(&self.document("index.json")?, 0)?;
        let manifest: Manifest = parse("its manifest", &manifest)?;
        let config = self.blob(&manifest.config)?;
        let layer = |descriptor: &Descriptor| {
            let name = blob_name(descriptor.digest);
            self.layer(&name, Some(descriptor.digest))
        };
        let layers = manifest.layers.iter().map(layer).collect::<Result<_, _>>()?;
        Ok((config, layers))
    }

    /// The one manifest for this machine that an index leads to.
    fn manifest(&self, index: &[u8], depth: usize) -> Result<Vec<u8>, ImageError> {
        if depth == DEEPEST {
            return Err(ImageError::Refused("its indices lead from one to the next".to_owned()));
        }
        let index: Index = parse("its index", index)?;
        let ours = |descriptor: &&Descriptor| {
            descriptor.platform.as_ref().is_none_or(|platform| {
                platform.os == "linux" && platform.architecture == architecture()
            })
        };
        let mut found: Vec<&Descriptor> = index.manifests.iter().filter(ours).collect();
        found.dedup_by_key(|descriptor| descriptor.digest);
        let descriptor = match found[..] {
            [one] => one,
            [] => {
                let message = format!("it has nothing for linux/{}", architecture());
                return Err(ImageError::Refused(message));
            }
            _ => {
                let message = format!("{} images are in it: make an archive of one", found.len());
                return Err(ImageError::Refused(message));
            }
        };
        let bytes = self.blob(descriptor)?;
        if descriptor.media_type.contains("index") || descriptor.media_type.contains("list") {
            return self.manifest(&bytes, depth + 1);
        }
        Ok(bytes)
    }

    fn docker(&self) -> Result<(Vec<u8>, Vec<Packed>), ImageError> {
        let manifests: Vec<DockerManifest> =
            parse("its manifest", &self.document("manifest.json")?)?;
        let [manifest] = &manifests[..] else {
            let message = format!("{} images are in it: make an archive of one", manifests.len());
            return Err(ImageError::Refused(message));
        };
        let layer = |name: &String| self.layer(name, None);
        let layers = manifest.layers.iter().map(layer).collect::<Result<_, _>>()?;
        Ok((self.document(&manifest.config)?, layers))
    }

    fn layer(&self, name: &str, digest: Option<Digest>) -> Result<Packed, ImageError> {
        let (offset, length) = self
            .find(name)
            .ok_or_else(|| ImageError::Format(format!("the archive has no layer `{name}`")))?;
        Ok(Packed { file: self.path.clone(), offset, length, digest })
    }
}

fn blob_name(digest: Digest) -> String {
    format!("blobs/{}", digest.to_string().replace(':', "/"))
}

/// A path in an archive without `.` and `..`; one that leads out of it leads nowhere.
fn flat(path: &Path) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.iter().filter_map(|part| part.to_str()) {
        match part {
            "." | "/" => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn parse<'a, T: Deserialize<'a>>(what: &str, bytes: &'a [u8]) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|error| ImageError::Format(format!("{what}: {error}")))
}
