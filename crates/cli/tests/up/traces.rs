//! What a Dirigent leaves on the machine, found by what is its alone: its state directory's name,
//! and the control group and firewall table that are named after that directory.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use crate::host::{Up, has, parent};

/// What exists now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traces {
    pub(crate) processes: usize,
    pub(crate) mounts: usize,
    pub(crate) groups: usize,
    pub(crate) tables: usize,
    /// Directories of sandboxes.
    pub(crate) directories: usize,
    /// Open files of all processes.
    pub(crate) descriptors: usize,
}

impl Traces {
    /// Whether nothing here is higher than in `other`, but for `slack`: sandboxes that are prepared
    /// ahead come and go, also while nobody calls.
    pub(crate) fn at_most(self, other: Self, slack: usize) -> bool {
        let pairs = [
            (self.processes, other.processes),
            (self.mounts, other.mounts),
            (self.groups, other.groups),
            (self.tables, other.tables),
            (self.directories, other.directories),
            (self.descriptors, other.descriptors),
        ];
        pairs.into_iter().all(|(now, then)| now <= then + slack)
    }
}

/// What to look for, learned while it runs.
#[derive(Clone, Debug)]
pub(crate) struct Marks {
    state: String,
    /// The control group of its sandboxes, where it has one.
    group: Option<String>,
}

impl Marks {
    /// Of an `up` with at least one sandbox.
    pub(crate) fn of(up: &Up) -> Self {
        let state = up.state.path().to_str().unwrap().to_owned();
        let named = |pid: i32| {
            let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            let part = text.split(['/', '\n']).find(|part| part.starts_with("dirigent-"));
            part.map(str::to_owned)
        };
        let group = up.state.processes().into_iter().find_map(named);
        if group.is_none() {
            println!("skip: no control group here: neither groups nor tables are counted");
        }
        Self { state, group }
    }

    pub(crate) fn count(&self, processes: &BTreeSet<i32>) -> Traces {
        let lines = |pid: &str| {
            let text = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
            text.lines().filter(|line| line.contains(&self.state)).count()
        };
        // The keeper has mounts of its own. What a sandbox mounted ends with its processes, which
        // are counted; there are dozens of them as an ordinary user, also in each that is prepared.
        let mounts = processes
            .iter()
            .filter(|pid| !is_below_keeper(**pid))
            .map(|pid| lines(&pid.to_string()))
            .sum::<usize>();
        let open = |pid: &i32| children(Path::new(&format!("/proc/{pid}/fd")));
        let group = self.group.as_deref();
        Traces {
            processes: processes.len(),
            mounts: mounts + lines("self"),
            groups: group.map_or(0, |name| groups(Path::new("/sys/fs/cgroup"), name, 5)),
            tables: group.map_or(0, tables),
            directories: children(&Path::new(&self.state).join("worker/sandboxes")),
            descriptors: processes.iter().map(open).sum(),
        }
    }
}

/// Whether a keeper is this process's parent.
fn is_below_keeper(pid: i32) -> bool {
    parent(pid).is_some_and(|parent| {
        let line = fs::read(format!("/proc/{parent}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == b"keeper")
    })
}

fn children(path: &Path) -> usize {
    fs::read_dir(path).map_or(0, Iterator::count)
}

/// Groups of that name and those in them.
fn groups(at: &Path, name: &str, depth: u32) -> usize {
    let entries = fs::read_dir(at).into_iter().flatten().flatten();
    let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    below
        .map(|entry| {
            if entry.file_name() == name {
                let inner = fs::read_dir(entry.path()).into_iter().flatten().flatten();
                1 + inner.filter(|one| one.file_type().is_ok_and(|kind| kind.is_dir())).count()
            } else if depth > 0 {
                groups(&entry.path(), name, depth - 1)
            } else {
                0
            }
        })
        .sum()
}

fn tables(group: &str) -> usize {
    if !has("nft") {
        return 0;
    }
    let output = Command::new("nft").args(["list", "tables"]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).matches(&group.replace('-', "_")).count()
}
