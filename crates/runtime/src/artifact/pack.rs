//! Packing a directory: the same files always give the same bytes, and so the same digest.
//!
//! Sorted names, no times, no owners, modes 0644 and 0755. Left out: `.git`, the manifest
//! `dirigent.toml` at the root (it travels by itself, and a changed setting must not make another
//! artifact), and what `.dirigentignore` names. Refused is what a worker would refuse.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use dirigent_core::{Bytes, Digest};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

use super::{Limits, MAX_NAME, MAX_PATH, Refusal, ignore::Ignore, links, unpack};

/// A packed directory.
#[derive(Debug)]
pub struct Packed {
    /// The archive, at its beginning; removed from disk when dropped.
    pub archive: tempfile::NamedTempFile,
    /// Its name.
    pub digest: Digest,
    /// Its size.
    pub bytes: u64,
    /// Files, directories and links in it.
    pub entries: usize,
}

/// Why a directory was not packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// It holds something that no worker would accept.
    #[error("`{}` {why}; leave it out by a line in .dirigentignore", path.display())]
    Refused {
        /// Relative to the directory.
        path: PathBuf,
        /// What is wrong with it.
        why: Refusal,
    },
    /// Too many files.
    #[error("more than {limit} files and directories; leave some out by .dirigentignore")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// Too large.
    #[error("larger than {limit}; leave something out by .dirigentignore")]
    TooLarge {
        /// The limit.
        limit: Bytes,
    },
    /// A worker would take it for one made to exhaust its disk.
    #[error(
        "it unpacks to more than {ratio} times its packed size, which workers refuse as made to \
         exhaust the disk; leave large files of the same bytes out by .dirigentignore, and make \
         them when the function starts"
    )]
    Bomb {
        /// The limit.
        ratio: u64,
    },
    /// A file was written to meanwhile.
    #[error("`{}` changed while it was packed; try again", path.display())]
    Changed {
        /// Relative to the directory.
        path: PathBuf,
    },
    /// A file could not be read, or the archive not be written.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// How.
        error: io::Error,
    },
}

/// Pack `dir` into a temporary file.
///
/// # Errors
/// If something in it is not accepted or cannot be read.
pub fn pack(dir: &Path) -> Result<Packed, PackError> {
    let io_error = |error| PackError::Io { path: dir.to_owned(), error };
    let ignore = match fs::read_to_string(dir.join(".dirigentignore")) {
        Ok(text) => Ignore::parse(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ignore::default(),
        Err(error) => {
            return Err(PackError::Io { path: dir.join(".dirigentignore"), error });
        }
    };
    let archive = tempfile::NamedTempFile::new().map_err(io_error)?;
    let writer = archive.reopen().map_err(io_error)?;
    let sink = Sink { inner: io::BufWriter::new(writer), hasher: Sha256::new() };
    let mut encoder = zstd::Encoder::new(sink, 3).map_err(io_error)?;
    encoder.include_checksum(true).map_err(io_error)?;
    let mut packer = Packer {
        root: dir,
        ignore,
        limits: Limits::default(),
        tar: tar::Builder::new(encoder),
        entries: 0,
        bytes: 0,
    };
    packer.directory(Path::new(""))?;
    let (entries, limits) = (packer.entries, packer.limits);
    let mut sink = packer.tar.into_inner().and_then(zstd::Encoder::finish).map_err(io_error)?;
    sink.flush().map_err(io_error)?;
    let digest = Digest(sink.hasher.finalize().into());
    let bytes = archive.as_file().metadata().map_err(io_error)?.len();
    if unpack::is_bomb(archive.path(), limits).map_err(io_error)? {
        return Err(PackError::Bomb { ratio: limits.ratio });
    }
    Ok(Packed { archive, digest, bytes, entries })
}

struct Packer<'a, W: Write> {
    root: &'a Path,
    ignore: Ignore,
    limits: Limits,
    tar: tar::Builder<W>,
    entries: usize,
    bytes: u64,
}

impl<W: Write> Packer<'_, W> {
    fn directory(&mut self, dir: &Path) -> Result<(), PackError> {
        let mut names: Vec<OsString> = fs::read_dir(self.root.join(dir))
            .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect())
            .map_err(|error| PackError::Io { path: self.root.join(dir), error })?;
        names.sort_unstable();
        for name in names {
            let path = dir.join(&name);
            let found = fs::symlink_metadata(self.root.join(&path))
                .map_err(|error| PackError::Io { path: self.root.join(&path), error })?;
            if self.leaves_out(&path, found.is_dir()) {
                continue;
            }
            self.check(&path)?;
            if found.is_dir() {
                self.append(&path, EntryType::Directory, 0o755, 0, io::empty())?;
                self.directory(&path)?;
            } else if found.is_symlink() {
                self.link(&path)?;
            } else if found.is_file() {
                self.file(&path)?;
            } else {
                return Err(PackError::Refused { path, why: Refusal::Special });
            }
        }
        Ok(())
    }

    fn leaves_out(&self, path: &Path, is_dir: bool) -> bool {
        path.file_name().is_some_and(|name| name == ".git")
            || path == Path::new("dirigent.toml")
            || path == Path::new(".dirigentignore")
            || self.ignore.excludes(&path.to_string_lossy(), is_dir)
    }

    fn check(&mut self, path: &Path) -> Result<(), PackError> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(PackError::TooMany { limit: self.limits.entries });
        }
        let name = path.file_name().map_or(0, std::ffi::OsStr::len);
        if name > MAX_NAME || path.as_os_str().len() > MAX_PATH {
            return Err(PackError::Refused { path: path.to_owned(), why: Refusal::TooLong });
        }
        Ok(())
    }

    fn file(&mut self, path: &Path) -> Result<(), PackError> {
        let full = self.root.join(path);
        let io_error = |error| PackError::Io { path: full.clone(), error };
        let file = File::open(&full).map_err(io_error)?;
        let found = file.metadata().map_err(io_error)?;
        let mode = if found.permissions().mode() & 0o111 == 0 { 0o644 } else { 0o755 };
        let exactly = Exactly { inner: file.take(found.len()), left: found.len() };
        self.append(path, EntryType::Regular, mode, found.len(), exactly)
    }

    fn link(&mut self, path: &Path) -> Result<(), PackError> {
        let full = self.root.join(path);
        let io_error = |error| PackError::Io { path: full.clone(), error };
        let target = fs::read_link(&full).map_err(io_error)?;
        if !links::stays_inside(self.root, path).map_err(io_error)? {
            return Err(PackError::Refused { path: path.to_owned(), why: Refusal::LinkOutside });
        }
        let mut header = header(EntryType::Symlink, 0o777, 0);
        self.tar.append_link(&mut header, path, target).map_err(io_error)
    }

    fn append(
        &mut self,
        path: &Path,
        kind: EntryType,
        mode: u32,
        size: u64,
        data: impl Read,
    ) -> Result<(), PackError> {
        self.bytes += size + 1024;
        if self.bytes > self.limits.bytes {
            return Err(PackError::TooLarge { limit: Bytes(self.limits.bytes) });
        }
        let mut header = header(kind, mode, size);
        self.tar.append_data(&mut header, path, data).map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                PackError::Changed { path: path.to_owned() }
            } else {
                PackError::Io { path: self.root.join(path), error }
            }
        })
    }
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// A file of which exactly so many bytes are read: a shorter one would shift all that follows.
struct Exactly<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        if n == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= n as u64;
        Ok(n)
    }
}

/// Hashes what is written.
struct Sink<W> {
    inner: W,
    hasher: Sha256,
}

impl<W: Write> Write for Sink<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
