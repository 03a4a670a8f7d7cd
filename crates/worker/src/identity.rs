//! Who this worker is and whom it obeys, kept in its state directory.
//!
//! A worker obeys one cluster only, and never a leader of a lower epoch than it has obeyed before.
//! Both are on disk before the first order of a leader is obeyed.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use dirigent_core::{
    ClusterId, Epoch,
    frame::{Hello, Incarnation, PROTOCOL, TAKEN, Welcome},
};
use dirigent_service::{Clock, state::private_dir};
use serde::{Deserialize, Serialize};

use crate::durability::Durability;

/// The worker's directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file system fails us.
    #[error("the worker's state: {0}")]
    Io(#[source] io::Error),
    /// The file is not one of ours.
    #[error("{} is damaged ({problem}); if this worker holds nothing of value, remove it", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// Why a control plane is not obeyed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ObeyError {
    #[error("it leads another cluster than the one that this worker belongs to")]
    Stranger,
    #[error("its epoch {offered} is over: this worker has obeyed epoch {highest}")]
    Deposed { offered: Epoch, highest: Epoch },
    #[error("what it is cannot be written down: {0}")]
    Disk(#[from] io::Error),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    starts: u64,
    cluster: Option<ClusterId>,
    epoch: Epoch,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Identity {
    path: PathBuf,
    durability: Durability,
    boot: String,
    life: u64,
    record: Record,
}

impl Identity {
    /// Read it, or make it, and count this start.
    pub(crate) fn open(state: &Path, durability: Durability) -> Result<Self, StateError> {
        let path = state.join("identity.json");
        let mut record = match durability {
            Durability::Host => read(state, &path)?,
            // A later life is known by a larger number all the same.
            Durability::None => Record { starts: Clock::wall_ms(), ..Record::default() },
        };
        record.starts += 1;
        // Only there to tell lives apart: without it the counter does so alone.
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        // Of two processes with copies of one directory each has its own.
        let life = rand::random_range(1..=u64::MAX);
        let boot = boot.trim().to_owned();
        let identity = Self { path, durability, boot, life, record };
        identity.write(&identity.record).map_err(StateError::Io)?;
        Ok(identity)
    }

    /// What is said first on a new stream.
    pub(crate) fn hello(&self) -> Hello {
        Hello {
            cluster: self.record.cluster,
            protocol: (PROTOCOL, PROTOCOL),
            features: vec![TAKEN.to_owned()],
            incarnation: Incarnation {
                boot: self.boot.as_str().into(),
                start: self.record.starts,
                life: self.life,
            },
            highest_epoch: self.record.epoch,
        }
    }

    /// Whether this leader may be obeyed at all.
    pub(crate) fn accepts(&self, welcome: Welcome) -> Result<(), ObeyError> {
        let Record { cluster, epoch, .. } = self.record;
        if cluster.is_some_and(|ours| ours != welcome.cluster) {
            return Err(ObeyError::Stranger);
        }
        if welcome.epoch < epoch {
            return Err(ObeyError::Deposed { offered: welcome.epoch, highest: epoch });
        }
        Ok(())
    }

    /// Write down that this leader is obeyed from now on. Blocks on the disk, once per leader.
    pub(crate) fn obey(&mut self, welcome: Welcome) -> Result<(), ObeyError> {
        self.accepts(welcome)?;
        let starts = self.record.starts;
        let record = Record { starts, cluster: Some(welcome.cluster), epoch: welcome.epoch };
        if record != self.record {
            self.write(&record)?;
            self.record = record;
        }
        Ok(())
    }

    fn write(&self, record: &Record) -> io::Result<()> {
        self.durability.write(&self.path, &serde_json::to_vec(record)?)
    }
}

/// What an earlier life wrote, and the directory for it.
fn read(state: &Path, path: &Path) -> Result<Record, StateError> {
    if !state.is_dir() {
        private_dir(state).map_err(StateError::Io)?;
    }
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map_err(|error| StateError::Damaged {
            path: path.to_owned(),
            problem: error.to_string(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Record::default()),
        Err(error) => Err(StateError::Io(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn welcome(cluster: u128, epoch: u64) -> Welcome {
        Welcome { cluster: ClusterId(cluster), epoch: Epoch(epoch) }
    }

    #[test]
    fn the_highest_epoch_outlives_a_restart_and_starts_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = Identity::open(dir.path(), Durability::Host).unwrap();
        assert_eq!((first.hello().cluster, first.hello().incarnation.start), (None, 1));
        first.obey(welcome(u128::MAX, 3)).unwrap();
        let second = Identity::open(dir.path(), Durability::Host).unwrap().hello();
        assert_eq!(second.cluster, Some(ClusterId(u128::MAX)));
        assert_eq!((second.highest_epoch, second.incarnation.start), (Epoch(3), 2));
    }

    #[test]
    fn one_that_keeps_nothing_obeys_the_highest_epoch_while_it_lives() {
        let state = Path::new("/proc/no/such");
        let mut identity = Identity::open(state, Durability::None).unwrap();
        identity.obey(welcome(1, 3)).unwrap();
        assert!(matches!(identity.obey(welcome(1, 2)), Err(ObeyError::Deposed { .. })));
        // A start is counted as a later one than any that was counted in a file.
        assert!(identity.hello().incarnation.start > 1 << 32);
    }

    #[test]
    fn strangers_and_deposed_leaders_are_not_obeyed() {
        let dir = tempfile::tempdir().unwrap();
        let mut identity = Identity::open(dir.path(), Durability::Host).unwrap();
        identity.obey(welcome(1, 3)).unwrap();
        assert!(matches!(identity.obey(welcome(2, 9)), Err(ObeyError::Stranger)));
        assert!(matches!(identity.obey(welcome(1, 2)), Err(ObeyError::Deposed { .. })));
        identity.obey(welcome(1, 3)).unwrap();
        assert_eq!(identity.hello().highest_epoch, Epoch(3));
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("identity.json"), "{").unwrap();
        let error = Identity::open(dir.path(), Durability::Host).unwrap_err().to_string();
        assert!(error.contains("identity.json"), "{error}");
    }
}
