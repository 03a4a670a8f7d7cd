//! Which ports data planes may know, kept in the state directory over lives of the worker: a file to
//! which a line is added for each change, and which is made anew when it has grown.
//!
//! A line is written before anybody hears of the port, so that it outlives the process. It is forced to
//! the disk beside, within a second: what a power failure takes along is known to the control plane,
//! which does not use a sandbox at an address that is not free yet.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use dirigent_core::SandboxId;
use dirigent_service::{OnCancel, Tasks};
use tokio::sync::Notify;

use crate::durability::Durability;

/// So many lines more than ports are known are worth a new file: one for each port of the usual
/// range.
const SURPLUS: usize = 10_000;

/// The disk is asked for no more often.
const FORCE_EVERY: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(crate) struct KnownPorts {
    path: PathBuf,
    durability: Durability,
    known: BTreeMap<u16, SandboxId>,
    /// `None` while it cannot be written.
    file: Option<Arc<File>>,
    lines: usize,
    surplus: usize,
    unforced: Arc<Unforced>,
}

/// What was written and may not be on the disk.
#[derive(Debug, Default)]
struct Unforced {
    file: Mutex<Option<Arc<File>>>,
    written: Notify,
}

impl Unforced {
    /// Forces what is written to the disk until it is dropped.
    async fn force(self: Arc<Self>) {
        loop {
            self.written.notified().await;
            tokio::time::sleep(FORCE_EVERY).await;
            let file = self.file.lock().unwrap_or_else(PoisonError::into_inner).take();
            let Some(file) = file else { continue };
            let forced = tokio::task::spawn_blocking(move || file.sync_data()).await;
            if let Err(error) = forced.map_err(io::Error::other).flatten() {
                tracing::warn!(%error, "known ports may not be on the disk");
            }
        }
    }
}

impl KnownPorts {
    /// What earlier lives knew. A line that was not finished is none.
    pub(crate) fn open(state: &Path, durability: Durability) -> io::Result<Self> {
        Self::open_with(state, durability, SURPLUS)
    }

    fn open_with(state: &Path, durability: Durability, surplus: usize) -> io::Result<Self> {
        let path = state.join("ports");
        let text = match fs::read(&path) {
            _ if durability == Durability::None => String::new(),
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        let mut known = BTreeMap::new();
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            let Some((port, sandbox)) = line.split_once(' ') else { continue };
            match (port.parse(), sandbox.parse()) {
                (Ok(port), Ok(sandbox)) => {
                    known.insert(port, sandbox);
                }
                (Ok(port), Err(_)) if sandbox == "-" => {
                    known.remove(&port);
                }
                _ => tracing::warn!(line, path = %path.display(), "a line is not understood"),
            }
        }
        let unforced = Arc::default();
        let mut this = Self { path, durability, known, file: None, lines: 0, surplus, unforced };
        this.renew()?;
        Ok(this)
    }

    /// Has the disk follow, until `tasks` end, where that is asked for.
    pub(crate) fn force(&self, tasks: &Tasks) {
        if self.durability == Durability::None {
            return;
        }
        tasks.run("known ports", OnCancel::Abort, Arc::clone(&self.unforced).force());
    }

    /// All, with the sandboxes that they are known to be of.
    pub(crate) fn all(&self) -> Vec<(u16, SandboxId)> {
        self.known.iter().map(|(port, sandbox)| (*port, *sandbox)).collect()
    }

    /// A port is known as a sandbox's from now on, or not known any more. Where that cannot be
    /// written the worker goes on: its next life begins at other ports all the same.
    pub(crate) fn note(&mut self, port: u16, sandbox: Option<SandboxId>) {
        let before = match sandbox {
            Some(sandbox) => self.known.insert(port, sandbox),
            None => self.known.remove(&port),
        };
        if before == sandbox || self.durability == Durability::None {
            return;
        }
        if let Err(error) = self.write(port, sandbox) {
            // Said once: the file is made anew as soon as that is possible.
            if self.file.take().is_some() {
                tracing::warn!(%error, path = %self.path.display(), "ports are not remembered");
            }
        }
    }

    fn write(&mut self, port: u16, sandbox: Option<SandboxId>) -> io::Result<()> {
        if self.file.is_none() || self.lines > self.known.len() + self.surplus {
            return self.renew();
        }
        let Some(file) = &self.file else { return Ok(()) };
        let line = match sandbox {
            Some(sandbox) => format!("{port} {sandbox}\n"),
            None => format!("{port} -\n"),
        };
        self.lines += 1;
        (&**file).write_all(line.as_bytes())?;
        let mut unforced = self.unforced.file.lock().unwrap_or_else(PoisonError::into_inner);
        unforced.get_or_insert_with(|| Arc::clone(file));
        self.unforced.written.notify_one();
        Ok(())
    }

    /// The file, with what is known and nothing else.
    fn renew(&mut self) -> io::Result<()> {
        let lines = self.known.iter().map(|(port, sandbox)| format!("{port} {sandbox}\n"));
        self.durability.write(&self.path, lines.collect::<String>().as_bytes())?;
        if self.durability == Durability::None {
            return Ok(());
        }
        self.file = Some(Arc::new(OpenOptions::new().append(true).open(&self.path)?));
        // What was to be forced is in the new file.
        *self.unforced.file.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.lines = self.known.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use dirigent_core::Epoch;

    use super::*;

    fn sandbox(number: u64) -> SandboxId {
        SandboxId::new(Epoch(1), number)
    }

    #[test]
    fn what_is_known_outlives_the_process_and_the_file_stays_small() {
        let dir = tempfile::tempdir().unwrap();
        let durability = Durability::Host;
        let mut ports = KnownPorts::open_with(dir.path(), durability, 4).unwrap();
        ports.note(20_000, Some(sandbox(1)));
        ports.note(20_001, Some(sandbox(2)));
        ports.note(20_001, None);
        ports.note(20_002, Some(sandbox(3)));
        // Nothing is finished: as if it was killed. The last line was not.
        let path = dir.path().join("ports");
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"nonsense\n20000 -").unwrap();
        let mut ports = KnownPorts::open_with(dir.path(), durability, 4).unwrap();
        let known = [(20_000, sandbox(1)), (20_002, sandbox(3))];
        assert_eq!(ports.all(), known);
        for number in 4..100 {
            ports.note(20_003, Some(sandbox(number)));
            ports.note(20_003, None);
        }
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= 2 + 4 + 2, "{lines} lines");
        assert_eq!(KnownPorts::open(dir.path(), durability).unwrap().all(), known);
    }

    #[test]
    fn what_could_not_be_written_is_once_it_can() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("state");
        fs::create_dir(&inner).unwrap();
        let mut ports = KnownPorts::open_with(&inner, Durability::Host, 0).unwrap();
        ports.note(20_000, Some(sandbox(1)));
        fs::remove_dir_all(&inner).unwrap();
        ports.note(20_001, Some(sandbox(2)));
        ports.note(20_002, Some(sandbox(3)));
        fs::create_dir(&inner).unwrap();
        ports.note(20_002, None);
        let known = [(20_000, sandbox(1)), (20_001, sandbox(2))];
        assert_eq!(KnownPorts::open(&inner, Durability::Host).unwrap().all(), known);
    }
}
