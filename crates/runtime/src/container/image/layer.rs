//! One layer: hashed, bounded and looked at as it passes.

use std::{
    cell::Cell,
    fs::File,
    io::{self, BufReader, Read, Seek as _, SeekFrom},
    path::{Component, Path, PathBuf},
    rc::Rc,
};

use bytes::Bytes;
use dirigent_core::Digest;
use sha2::{Digest as _, Sha256};
use tar::EntryType;
use tokio::sync::mpsc;

use super::{ImageError, Limits, config::Seen};

/// Where the bytes of a layer are, as they are packed.
#[derive(Clone, Debug)]
pub(in crate::container) struct Packed {
    pub(in crate::container) file: PathBuf,
    pub(in crate::container) offset: u64,
    pub(in crate::container) length: u64,
    /// What they must hash to, where that was promised.
    pub(in crate::container) digest: Option<Digest>,
}

/// Handed on at once.
pub(in crate::container) const PIECE: usize = 1 << 20;
/// Below this no layer is judged by its ratio.
const RATIO_FLOOR: u64 = 64 << 20;
/// The window that a layer in zstd may ask memory for, as for artifacts.
const WINDOW_LOG: u32 = 27;
/// Of `/etc/passwd` and `/etc/group`.
const MAX_TEXT: u64 = 1 << 20;

/// What is left of the bounds for the layers to come.
#[derive(Debug)]
pub(in crate::container) struct Allowance {
    limits: Limits,
    bytes: u64,
    entries: u64,
}

impl Allowance {
    pub(in crate::container) const fn new(limits: Limits) -> Self {
        Self { limits, bytes: 0, entries: 0 }
    }

    /// How large the layers were so far.
    pub(in crate::container) const fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Reads a layer to its end. Its bytes, unpacked, go to `out`, if somebody wants them; what it has of
/// interest goes to `seen`. Blocking.
///
/// # Errors
/// If it is refused; then what went to `out` is not to be used.
pub(in crate::container) fn read(
    packed: &Packed,
    expected: Digest,
    allowance: &mut Allowance,
    seen: &mut Seen,
    out: Option<mpsc::Sender<Bytes>>,
) -> Result<(), ImageError> {
    let error = |error: io::Error| ImageError::io("a layer", &error);
    let mut file = File::open(&packed.file).map_err(error)?;
    file.seek(SeekFrom::Start(packed.offset)).map_err(error)?;
    let taken = Rc::new(Cell::new(0));
    let raw = Rc::new(std::cell::RefCell::new(Sha256::new()));
    let source = Hashed {
        inner: BufReader::with_capacity(128 << 10, file.take(packed.length)),
        hasher: Rc::clone(&raw),
        count: Rc::clone(&taken),
    };
    let mut plain = Plain {
        inner: unpacked(source)?,
        hasher: Sha256::new(),
        given: 0,
        before: allowance.bytes,
        taken,
        limits: allowance.limits,
        trip: None,
        pending: Vec::new(),
        out,
    };
    let looked = look(&mut plain, allowance, seen);
    if let Some(trip) = plain.trip.take() {
        return Err(trip);
    }
    looked?;
    plain.flush().map_err(error)?;
    allowance.bytes += plain.given;
    let found = Digest(plain.hasher.finalize().into());
    drop(plain.inner);
    if let Some(promised) = packed.digest {
        let found = Digest(raw.borrow().clone().finalize().into());
        if found != promised {
            return Err(mismatch("a layer", promised, found));
        }
    }
    if found != expected {
        return Err(mismatch("what a layer unpacks to", expected, found));
    }
    Ok(())
}

fn mismatch(what: &str, expected: Digest, found: Digest) -> ImageError {
    let (expected, found) = (expected.to_string(), found.to_string());
    ImageError::Mismatch { what: what.to_owned(), expected, found }
}

/// By what the bytes begin with: what a manifest calls them may be wrong.
fn unpacked(mut source: impl Read + 'static) -> Result<Box<dyn Read>, ImageError> {
    let mut magic = Vec::new();
    let begun = source.by_ref().take(4).read_to_end(&mut magic);
    begun.map_err(|error| ImageError::io("a layer", &error))?;
    let kind = magic.clone();
    let whole = io::Cursor::new(magic).chain(source);
    let format = |error: io::Error| ImageError::Format(format!("a layer: {error}"));
    Ok(match kind[..] {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        [0x28, 0xb5, 0x2f, 0xfd] => {
            let mut decoder = zstd::Decoder::new(whole).map_err(format)?;
            decoder.window_log_max(WINDOW_LOG).map_err(format)?;
            Box::new(decoder)
        }
        _ => Box::new(whole),
    })
}

/// Goes through the entries, and to the end of the bytes behind the last one.
fn look(plain: &mut Plain, allowance: &mut Allowance, seen: &mut Seen) -> Result<(), ImageError> {
    let format = |error: io::Error| ImageError::Format(format!("a layer: {error}"));
    let mut archive = tar::Archive::new(&mut *plain);
    for entry in archive.entries().map_err(format)? {
        let mut entry = entry.map_err(format)?;
        allowance.entries += 1;
        if allowance.entries > allowance.limits.entries {
            let most = allowance.limits.entries;
            return Err(ImageError::Refused(format!("its layers have more than {most} entries")));
        }
        let kind = entry.header().entry_type();
        let path = inside(&entry.path().map_err(format)?)?;
        if kind == EntryType::Link
            && let Some(target) = entry.link_name().map_err(format)?
        {
            inside(&target)?;
        }
        remember(&path, kind, &mut entry, seen).map_err(format)?;
    }
    io::copy(plain, &mut io::sink()).map_err(format)?;
    Ok(())
}

/// A path below the root.
fn inside(path: &Path) -> Result<PathBuf, ImageError> {
    let mut inside = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => inside.push(name),
            // The root is the image's.
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                let shown: String = path.to_string_lossy().chars().take(100).collect();
                return Err(ImageError::Refused(format!("{shown:?} leads out of it")));
            }
        }
    }
    Ok(inside)
}

/// Later layers replace what earlier ones have, and take it away.
fn remember(
    path: &Path,
    kind: EntryType,
    entry: &mut impl Read,
    seen: &mut Seen,
) -> io::Result<()> {
    let text = path.to_str().unwrap_or_default();
    match text {
        "etc/.wh.passwd" => seen.passwd = None,
        "etc/.wh.group" => seen.group = None,
        "etc/.wh..wh..opq" | ".wh.etc" | ".wh..wh..opq" => {
            seen.passwd = None;
            seen.group = None;
            seen.has_tmp &= text != ".wh..wh..opq";
        }
        ".wh.tmp" => seen.has_tmp = false,
        "tmp" => seen.has_tmp = true,
        _ if text.starts_with("tmp/") => seen.has_tmp = true,
        "etc/passwd" | "etc/group" => {
            let mut bytes = Vec::new();
            if matches!(kind, EntryType::Regular) {
                entry.take(MAX_TEXT).read_to_end(&mut bytes)?;
            }
            let content = Some(String::from_utf8_lossy(&bytes).into_owned());
            if text == "etc/passwd" {
                seen.passwd = content;
            } else {
                seen.group = content;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Hashes and counts what is read from the archive's file.
struct Hashed<R> {
    inner: R,
    hasher: Rc<std::cell::RefCell<Sha256>>,
    count: Rc<Cell<u64>>,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.borrow_mut().update(&buffer[..n]);
        self.count.set(self.count.get() + n as u64);
        Ok(n)
    }
}

/// The unpacked bytes: hashed, bounded, and passed on.
struct Plain {
    inner: Box<dyn Read>,
    hasher: Sha256,
    given: u64,
    before: u64,
    taken: Rc<Cell<u64>>,
    limits: Limits,
    trip: Option<ImageError>,
    pending: Vec<u8>,
    out: Option<mpsc::Sender<Bytes>>,
}

impl Plain {
    fn flush(&mut self) -> io::Result<()> {
        let piece = std::mem::take(&mut self.pending);
        if let Some(out) = &self.out
            && !piece.is_empty()
            && out.blocking_send(piece.into()).is_err()
        {
            // Whoever wanted them has failed, and says why.
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    }
}

impl Read for Plain {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.given += n as u64;
        let Limits { bytes, ratio, .. } = self.limits;
        if self.before + self.given > bytes {
            self.trip = Some(ImageError::TooLarge(dirigent_core::Bytes(bytes)));
        } else if self.given > RATIO_FLOOR && self.given / ratio.max(1) > self.taken.get() {
            let message = format!("a layer unpacks to more than {ratio} times its size");
            self.trip = Some(ImageError::Refused(message));
        }
        if self.trip.is_some() {
            return Err(io::Error::other("over a limit"));
        }
        self.hasher.update(&buffer[..n]);
        if self.out.is_some() {
            self.pending.extend_from_slice(&buffer[..n]);
            if self.pending.len() >= PIECE {
                self.flush()?;
            }
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    struct Made {
        dir: tempfile::TempDir,
        builder: tar::Builder<Vec<u8>>,
    }

    impl Made {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            Self { dir, builder: tar::Builder::new(Vec::new()) }
        }

        fn entry(&mut self, path: &str, kind: EntryType, data: &[u8]) {
            let mut header = tar::Header::new_ustar();
            // Not by `set_path`, which refuses what a test of refusals needs.
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            header.set_entry_type(kind);
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            self.builder.append(&header, data).unwrap();
        }

        fn read(self, gzip: bool, limits: Limits) -> (Result<(), ImageError>, Seen) {
            let tar = self.builder.into_inner().unwrap();
            let digest = Digest(Sha256::digest(&tar).into());
            let bytes = if gzip {
                let mut out =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
                out.write_all(&tar).unwrap();
                out.finish().unwrap()
            } else {
                tar
            };
            let file = self.dir.path().join("layer");
            std::fs::write(&file, &bytes).unwrap();
            let length = bytes.len() as u64;
            let packed = Packed {
                file,
                offset: 0,
                length,
                digest: Some(Digest(Sha256::digest(&bytes).into())),
            };
            let mut seen = Seen::default();
            let mut allowance = Allowance::new(limits);
            (read(&packed, digest, &mut allowance, &mut seen, None), seen)
        }
    }

    #[test]
    fn what_the_configuration_needs_is_seen() {
        for gzip in [false, true] {
            let mut made = Made::new();
            made.entry("./etc/passwd", EntryType::Regular, b"a:x:7:8::/:\n");
            made.entry("tmp/", EntryType::Directory, b"");
            let (result, seen) = made.read(gzip, Limits::default());
            result.unwrap();
            assert_eq!(seen.passwd.as_deref(), Some("a:x:7:8::/:\n"));
            assert!(seen.has_tmp);
        }
    }

    #[test]
    fn what_leads_out_is_refused_by_name() {
        let mut made = Made::new();
        made.entry("a/../../evil", EntryType::Regular, b"x");
        let error = made.read(false, Limits::default()).0.unwrap_err().to_string();
        assert!(error.contains("evil") && error.contains("leads out"), "{error}");
    }

    #[test]
    fn bombs_and_giants_are_refused() {
        let mut made = Made::new();
        made.entry("zeros", EntryType::Regular, &vec![0; 80 << 20]);
        let error = made.read(true, Limits { ratio: 10, ..Limits::default() }).0.unwrap_err();
        assert!(error.to_string().contains("10 times"), "{error}");
        let mut made = Made::new();
        made.entry("large", EntryType::Regular, &[1; 4096]);
        let error = made.read(false, Limits { bytes: 4000, ..Limits::default() }).0.unwrap_err();
        assert!(matches!(error, ImageError::TooLarge(_)), "{error}");
        let mut made = Made::new();
        made.entry("a", EntryType::Regular, b"");
        made.entry("b", EntryType::Regular, b"");
        let error = made.read(false, Limits { entries: 1, ..Limits::default() }).0.unwrap_err();
        assert!(error.to_string().contains("more than 1 entries"), "{error}");
    }

    #[test]
    fn wrong_digests_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("layer");
        std::fs::write(&file, [0; 1024]).unwrap();
        let right = Digest(Sha256::digest([0; 1024]).into());
        let wrong = Digest([7; 32]);
        for (digest, expected) in [(Some(wrong), right), (Some(right), wrong), (None, wrong)] {
            let packed = Packed { file: file.clone(), offset: 0, length: 1024, digest };
            let mut allowance = Allowance::new(Limits::default());
            let result = read(&packed, expected, &mut allowance, &mut Seen::default(), None);
            let error = result.unwrap_err().to_string();
            assert!(error.contains(&wrong.to_string()) && error.contains("damaged"), "{error}");
        }
    }
}
