//! Unpacking an archive that nobody vouches for into a directory that only we write to.
//!
//! While entries are written the tree holds directories and files that we made and nothing else, so
//! no path can lead out of it. Links are made last, when nothing is written through them any more,
//! and each is then followed to see that it stays inside. Extension headers (long names) are
//! read here with a bound, not by the tar library, which would read them into memory whole.

use std::{
    cell::Cell,
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Read},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, OpenOptionsExt as _, symlink},
    },
    path::{Component, Path, PathBuf},
    rc::Rc,
};

use dirigent_core::{Bytes, Digest};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

use super::{Limits, MAX_NAME, MAX_PATH, Refusal, UnpackError, links};

/// What extension headers may hold.
const MAX_EXTENSION: u64 = 64 << 10;
/// Below this no archive is judged by its ratio.
const RATIO_FLOOR: u64 = 64 << 20;
/// The window that a zstd archive may ask memory for: 128 MiB, what `zstd --long` uses.
const WINDOW_LOG: u32 = 27;

/// Read from an archive's file at once.
const BUFFER: usize = 128 << 10;

/// Unpack `archive` into the empty directory `root`, checking that its bytes are `digest`.
pub(super) fn unpack(
    digest: Digest,
    archive: &Path,
    root: &Path,
    limits: Limits,
) -> Result<(), UnpackError> {
    let file = File::open(archive).map_err(|e| UnpackError::io(archive, e))?;
    let hashed = Rc::new(Cell::new(0));
    let mut source = Hashing {
        inner: BufReader::with_capacity(BUFFER, file),
        hasher: Sha256::new(),
        read: Rc::clone(&hashed),
    };
    let result = decode(&mut source, hashed, root, limits);
    // To the end also after a failure: damage explains whatever else seems wrong.
    io::copy(&mut source, &mut io::sink()).map_err(|e| UnpackError::io(archive, e))?;
    let found = Digest(source.hasher.finalize().into());
    if found != digest {
        return Err(UnpackError::Mismatch { expected: digest, found });
    }
    result
}

/// Whether an archive in zstd would be refused for its ratio. It is judged as it is unpacked, piece
/// by piece, so that is done here too.
pub(super) fn is_bomb(archive: &Path, limits: Limits) -> io::Result<bool> {
    let read = Rc::new(Cell::new(0));
    let source = Hashing {
        inner: BufReader::with_capacity(BUFFER, File::open(archive)?),
        hasher: Sha256::new(),
        read: Rc::clone(&read),
    };
    let tripped = Rc::new(Cell::new(None));
    let mut bounded = Bounded {
        inner: zstd::Decoder::new(source)?,
        given: 0,
        taken: read,
        limits,
        tripped: Rc::clone(&tripped),
    };
    let copied = io::copy(&mut bounded, &mut io::sink());
    match tripped.get() {
        Some(Trip::Bomb) => Ok(true),
        Some(Trip::TooLarge) => Ok(false),
        None => copied.map(|_bytes| false),
    }
}

fn decode(
    source: &mut Hashing<BufReader<File>>,
    hashed: Rc<Cell<u64>>,
    root: &Path,
    limits: Limits,
) -> Result<(), UnpackError> {
    let mut magic = [0; 4];
    let mut have = 0;
    while have < magic.len() {
        match source.read(&mut magic[have..]) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(error) => return Err(UnpackError::Format(error.to_string())),
        }
    }
    let whole = magic[..have].chain(source);
    let tripped = Rc::new(Cell::new(None));
    let stream: Box<dyn Read + '_> = match magic {
        [0x28, 0xb5, 0x2f, 0xfd] => {
            let mut decoder = zstd::Decoder::new(whole).map_err(format)?;
            decoder.window_log_max(WINDOW_LOG).map_err(format)?;
            Box::new(decoder)
        }
        [0x1f, 0x8b, ..] => return Err(UnpackError::Format("it is gzip; use zstd".to_owned())),
        _ => Box::new(whole),
    };
    let bounded =
        Bounded { inner: stream, given: 0, taken: hashed, limits, tripped: Rc::clone(&tripped) };
    let mut tree = Tree { root, limits, entries: 0, links: Vec::new() };
    let result = tree.fill(bounded);
    // The limits stop the stream by an error that passes through the tar library; said plainly.
    match tripped.get() {
        Some(Trip::TooLarge) => Err(UnpackError::TooLarge { limit: Bytes(limits.bytes) }),
        Some(Trip::Bomb) => Err(UnpackError::Bomb { ratio: limits.ratio }),
        None => result.and_then(|()| tree.make_links()),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the form that map_err wants")]
fn format(error: io::Error) -> UnpackError {
    UnpackError::Format(error.to_string())
}

/// The tree that is being filled.
struct Tree<'a> {
    root: &'a Path,
    limits: Limits,
    entries: usize,
    links: Vec<(PathBuf, PathBuf)>,
}

/// Names that an extension header gave for the entry after it.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl Tree<'_> {
    fn fill(&mut self, stream: impl Read) -> Result<(), UnpackError> {
        let mut archive = tar::Archive::new(stream);
        let mut extension = Extension::default();
        for entry in archive.entries().map_err(format)?.raw(true) {
            let mut entry = entry.map_err(format)?;
            let header = entry.header().clone();
            match header.entry_type() {
                EntryType::GNULongName => extension.path = Some(read_name(&mut entry)?),
                EntryType::GNULongLink => extension.link = Some(read_name(&mut entry)?),
                EntryType::XHeader => read_pax(&mut entry, &mut extension)?,
                EntryType::XGlobalHeader => {}
                kind => {
                    let names = std::mem::take(&mut extension);
                    let raw = names.path.unwrap_or_else(|| header.path_bytes().into_owned());
                    let link = names
                        .link
                        .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
                    self.add(kind, &raw, link.as_deref(), &header, &mut entry)?;
                }
            }
        }
        Ok(())
    }

    fn add(
        &mut self,
        kind: EntryType,
        raw: &[u8],
        link: Option<&[u8]>,
        header: &Header,
        data: &mut impl Read,
    ) -> Result<(), UnpackError> {
        let refuse = |why| UnpackError::Refused { entry: shown(raw), why };
        let path = relative(raw).map_err(refuse)?;
        let is_dir = kind == EntryType::Directory
            // The oldest form of tar marks directories by their name only.
            || kind == EntryType::Regular && raw.ends_with(b"/");
        if is_dir {
            return self.directories(&path, raw);
        }
        if path.as_os_str().is_empty() {
            return Err(refuse(Refusal::BadName));
        }
        self.directories(path.parent().unwrap_or_else(|| Path::new("")), raw)?;
        self.count()?;
        match kind {
            EntryType::Regular | EntryType::Continuous => self.file(&path, raw, header, data),
            EntryType::Symlink => {
                let target = link.filter(|t| !t.is_empty() && !t.contains(&0));
                let target = target.ok_or_else(|| refuse(Refusal::BadName))?;
                if target.len() > MAX_PATH {
                    return Err(refuse(Refusal::TooLong));
                }
                self.links.push((path, PathBuf::from(OsStr::from_bytes(target))));
                Ok(())
            }
            EntryType::Link => {
                let target = relative(link.unwrap_or_default()).map_err(refuse)?;
                let target = self.root.join(target);
                if !fs::symlink_metadata(&target).is_ok_and(|found| found.is_file()) {
                    return Err(refuse(Refusal::BadHardLink));
                }
                let path = self.root.join(path);
                fs::hard_link(target, &path).map_err(|e| already(raw, &path, e))
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => Err(refuse(Refusal::Special)),
            _ => Err(refuse(Refusal::Unsupported)),
        }
    }

    fn file(
        &self,
        path: &Path,
        raw: &[u8],
        header: &Header,
        data: &mut impl Read,
    ) -> Result<(), UnpackError> {
        let path = self.root.join(path);
        // Owner, time and special bits are not taken over. Readable by all, since the sandbox's
        // user is not ours; what is secret does not belong into an artifact.
        let executable = header.mode().is_ok_and(|mode| mode & 0o111 != 0);
        let mode = if executable { 0o755 } else { 0o644 };
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)
            .map_err(|e| already(raw, &path, e))?;
        // The process's umask may have taken bits away.
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))
            .map_err(|e| UnpackError::io(&path, e))?;
        let mut buffer = [0; 32 << 10];
        let mut copied = 0;
        loop {
            let n = data.read(&mut buffer).map_err(format)?;
            if n == 0 {
                break;
            }
            io::Write::write_all(&mut file, &buffer[..n]).map_err(|e| UnpackError::io(&path, e))?;
            copied += n as u64;
        }
        if header.size().ok() != Some(copied) {
            return Err(UnpackError::Format(format!("`{}` is cut short", shown(raw))));
        }
        Ok(())
    }

    /// Make `path` and what is above it, as far as it is not there.
    fn directories(&mut self, path: &Path, raw: &[u8]) -> Result<(), UnpackError> {
        let mut here = self.root.to_owned();
        for component in path.components() {
            here.push(component);
            match fs::DirBuilder::new().mode(0o755).create(&here) {
                Ok(()) => {
                    self.count()?;
                    fs::set_permissions(&here, std::os::unix::fs::PermissionsExt::from_mode(0o755))
                        .map_err(|e| UnpackError::io(&here, e))?;
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    if !fs::symlink_metadata(&here).is_ok_and(|found| found.is_dir()) {
                        let why = Refusal::NotBelowDirectory;
                        return Err(UnpackError::Refused { entry: shown(raw), why });
                    }
                }
                Err(error) => return Err(UnpackError::io(&here, error)),
            }
        }
        Ok(())
    }

    fn count(&mut self) -> Result<(), UnpackError> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(UnpackError::TooMany { limit: self.limits.entries });
        }
        Ok(())
    }

    fn make_links(&self) -> Result<(), UnpackError> {
        for (path, target) in &self.links {
            let at = self.root.join(path);
            symlink(target, &at).map_err(|e| already(path.as_os_str().as_bytes(), &at, e))?;
        }
        for (path, _) in &self.links {
            if !links::stays_inside(self.root, path).map_err(|e| UnpackError::io(path, e))? {
                let entry = path.display().to_string();
                return Err(UnpackError::Refused { entry, why: Refusal::LinkOutside });
            }
        }
        Ok(())
    }
}

/// An error on making a file: there already is a refusal, all else the disk's.
fn already(raw: &[u8], path: &Path, error: io::Error) -> UnpackError {
    if error.kind() == io::ErrorKind::AlreadyExists {
        UnpackError::Refused { entry: shown(raw), why: Refusal::Twice }
    } else {
        UnpackError::io(path, error)
    }
}

/// The path of an entry, checked: below the root and of a bearable length.
fn relative(raw: &[u8]) -> Result<PathBuf, Refusal> {
    if raw.is_empty() || raw.contains(&0) {
        return Err(Refusal::BadName);
    }
    if raw.len() > MAX_PATH {
        return Err(Refusal::TooLong);
    }
    let mut path = PathBuf::new();
    for component in Path::new(OsStr::from_bytes(raw)).components() {
        match component {
            Component::CurDir => {}
            Component::Normal(name) if name.len() > MAX_NAME => return Err(Refusal::TooLong),
            Component::Normal(name) => path.push(name),
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => {
                return Err(Refusal::Outside);
            }
        }
    }
    Ok(path)
}

/// A name for messages: bounded and printable.
fn shown(raw: &[u8]) -> String {
    let text = String::from_utf8_lossy(raw);
    let mut shown: String = text.chars().take(100).flat_map(char::escape_debug).collect();
    if text.chars().nth(100).is_some() {
        shown.push_str("...");
    }
    shown
}

fn read_extension(entry: &mut impl Read) -> Result<Vec<u8>, UnpackError> {
    let mut bytes = Vec::new();
    entry.take(MAX_EXTENSION + 1).read_to_end(&mut bytes).map_err(format)?;
    if bytes.len() as u64 > MAX_EXTENSION {
        return Err(UnpackError::Format("an extension header over 64 KiB".to_owned()));
    }
    Ok(bytes)
}

fn read_name(entry: &mut impl Read) -> Result<Vec<u8>, UnpackError> {
    let mut name = read_extension(entry)?;
    if name.last() == Some(&0) {
        name.pop();
    }
    Ok(name)
}

fn read_pax(entry: &mut impl Read, extension: &mut Extension) -> Result<(), UnpackError> {
    let bytes = read_extension(entry)?;
    for record in tar::PaxExtensions::new(&bytes) {
        let record = record.map_err(format)?;
        match record.key_bytes() {
            b"path" => extension.path = Some(record.value_bytes().to_owned()),
            b"linkpath" => extension.link = Some(record.value_bytes().to_owned()),
            // A size that the header cannot hold is over every limit; and one that differs from
            // the header's is how two readers are made to see two archives.
            b"size" => {
                return Err(UnpackError::Format("a size in an extension header".to_owned()));
            }
            key if key.starts_with(b"GNU.sparse") => {
                return Err(UnpackError::Format("sparse files are not supported".to_owned()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Hashes what is read from the archive's file.
struct Hashing<R> {
    inner: R,
    hasher: Sha256,
    read: Rc<Cell<u64>>,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        self.read.set(self.read.get() + n as u64);
        Ok(n)
    }
}

#[derive(Clone, Copy)]
enum Trip {
    TooLarge,
    Bomb,
}

/// Stops a stream that gives too much.
struct Bounded<R> {
    inner: R,
    given: u64,
    taken: Rc<Cell<u64>>,
    limits: Limits,
    tripped: Rc<Cell<Option<Trip>>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.given += n as u64;
        let trip = if self.given > self.limits.bytes {
            Trip::TooLarge
        } else if self.given > RATIO_FLOOR
            && self.given / self.limits.ratio.max(1) > self.taken.get()
        {
            Trip::Bomb
        } else {
            return Ok(n);
        };
        self.tripped.set(Some(trip));
        Err(io::Error::other("over a limit"))
    }
}
