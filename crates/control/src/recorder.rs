//! Records what the control machine is told and what it orders (`up --record`): lines of JSON in
//! files of a bounded length. The owner does not wait for the disk: a thread writes, and if it falls
//! behind the recording ends, as nothing that follows a gap can be followed again.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufWriter, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel},
    thread::JoinHandle,
};

use dirigent_core::recording::{Entry, segment};
use dirigent_service::state;
use sha2::{Digest as _, Sha256};

/// Entries that wait for the disk at most.
const WAITING: usize = 1 << 16;
/// Of one file.
const SEGMENT: u64 = 64 << 20;
/// Of all files.
const TOTAL: u64 = 8 << 30;

/// See the module. Dropped, it has written everything.
#[derive(Debug)]
pub(crate) struct Recorder {
    entries: Option<SyncSender<Entry>>,
    thread: Option<JoinHandle<()>>,
}

impl Recorder {
    /// Into a directory that has no recording, whose first entry is written at once.
    pub(crate) fn start(directory: &Path, first: Entry) -> io::Result<Self> {
        state::private_dir(directory)?;
        if directory.join(segment(1)).exists() {
            let message = "it has a recording already: name another directory";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
        }
        let mut salt = [0; 16];
        crate::random(&mut salt)?;
        let mut file = Segments::create(directory.to_owned(), salt)?;
        file.write(first)?;
        file.flush()?;
        let (entries, inbox) = sync_channel(WAITING);
        let thread = std::thread::Builder::new().name("recorder".to_owned()).spawn(move || {
            match file.write_all(&inbox) {
                Ok(()) => {}
                Err(error) => tracing::error!(%error, "the recording ends"),
            }
        })?;
        Ok(Self { entries: Some(entries), thread: Some(thread) })
    }

    pub(crate) fn note(&mut self, entry: impl FnOnce() -> Entry) {
        let Some(entries) = &self.entries else { return };
        match entries.try_send(entry()) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                tracing::error!("the recording ends: the disk is too slow for it");
                self.entries = None;
            }
            // Its thread has said why.
            Err(TrySendError::Disconnected(_)) => self.entries = None,
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.entries = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the recorder panicked");
        }
    }
}

struct Segments {
    directory: PathBuf,
    number: u32,
    file: BufWriter<File>,
    length: u64,
    total: u64,
    salt: [u8; 16],
}

impl Segments {
    fn create(directory: PathBuf, salt: [u8; 16]) -> io::Result<Self> {
        let file = open(&directory.join(segment(1)))?;
        Ok(Self { directory, number: 1, file, length: 0, total: 0, salt })
    }

    fn write_all(&mut self, inbox: &Receiver<Entry>) -> io::Result<()> {
        loop {
            let entry = match inbox.try_recv() {
                Ok(entry) => entry,
                Err(TryRecvError::Empty) => {
                    // Whoever looks at it while nothing happens finds it whole.
                    self.flush()?;
                    let Ok(entry) = inbox.recv() else { break };
                    entry
                }
                Err(TryRecvError::Disconnected) => break,
            };
            self.write(entry)?;
            if self.total >= TOTAL {
                let why = format!("it has {TOTAL} bytes, as many as it may");
                self.write(Entry::Ended { why })?;
                self.flush()?;
                return Err(io::Error::other("it is as long as it may be"));
            }
        }
        self.write(Entry::Ended { why: "the control plane ended".to_owned() })?;
        self.flush()
    }

    fn write(&mut self, entry: Entry) -> io::Result<()> {
        if self.length >= SEGMENT {
            self.flush()?;
            self.number += 1;
            self.file = open(&self.directory.join(segment(self.number)))?;
            self.length = 0;
        }
        let mut line = serde_json::to_vec(&entry.without_secrets(&|value| self.hide(value)))?;
        line.push(b'\n');
        let length = u64::try_from(line.len()).unwrap_or(u64::MAX);
        self.length += length;
        self.total += length;
        self.file.write_all(&line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }

    /// Equal values stay equal within a recording; nobody finds out by trying what they were.
    fn hide(&self, value: &str) -> String {
        let digest = Sha256::new().chain_update(self.salt).chain_update(value).finalize();
        digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

fn open(path: &Path) -> io::Result<BufWriter<File>> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    Ok(BufWriter::with_capacity(1 << 20, file))
}
