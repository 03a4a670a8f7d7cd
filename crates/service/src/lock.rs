//! One process per state directory: an advisory lock on its file `lock`, which the kernel drops
//! when the process dies, however it dies.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

/// The right to use a state directory; given up when dropped.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process uses it.
    #[error(
        "{} is used by another process{}: stop it, or choose another directory with {flag}",
        dir.display(),
        holder.map_or_else(String::new, |pid| format!(" (pid {pid})"))
    )]
    Held {
        /// The directory.
        dir: PathBuf,
        /// Who, if it said so.
        holder: Option<u32>,
        /// The flag that names a directory.
        flag: &'static str,
    },
    /// The lock file cannot be made or written.
    #[error("{}: cannot be locked", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl StateLock {
    /// Take `dir`, which exists; `flag` is what a user would choose another directory with.
    ///
    /// # Errors
    /// If another process holds it, with that process's id; or if the file cannot be made.
    pub fn acquire(dir: &Path, flag: &'static str) -> Result<Self, LockError> {
        let path = dir.join("lock");
        let io = |source| LockError::Io { path: path.clone(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                let holder = file.read_to_string(&mut text).ok();
                let holder = holder.and_then(|_bytes| text.trim().parse().ok());
                return Err(LockError::Held { dir: dir.to_owned(), holder, flag });
            }
            Err(errno) => return Err(io(errno.into())),
        }
        // The pid is for the message of the next one who tries; the lock itself is the kernel's.
        file.set_len(0).map_err(io)?;
        file.rewind().map_err(io)?;
        writeln!(file, "{}", std::process::id()).map_err(io)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_one_on_the_same_directory_is_told_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateLock::acquire(dir.path(), "--state").unwrap();
        let error = StateLock::acquire(dir.path(), "--state").unwrap_err().to_string();
        assert!(error.contains(&format!("(pid {})", std::process::id())), "{error}");
        assert!(error.contains("--state"), "{error}");
        drop(first);
        StateLock::acquire(dir.path(), "--state").unwrap();
    }
}
