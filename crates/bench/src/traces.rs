//! What a Dirigent leaves on the machine, found by what is its alone: its state directory's name,
//! and the control group and firewall table that its keeper names.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use serde::Serialize;

/// What exists now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traces {
    /// Processes, zombies left out.
    pub processes: usize,
    /// Mounts of its directory, as its processes and we see them.
    pub mounts: usize,
    /// Namespaces of its processes that are not ours.
    pub namespaces: usize,
    /// Control groups.
    pub groups: usize,
    /// Tables of network rules.
    pub tables: usize,
    /// Lines of those tables.
    pub rules: usize,
    /// Records and directories of sandboxes.
    pub records: usize,
    /// Files and directories below its state directory.
    pub files: usize,
    /// Open files of all its processes.
    pub descriptors: usize,
}

impl Traces {
    /// The figures with their names.
    #[must_use]
    pub const fn named(self) -> [(&'static str, usize); 9] {
        [
            ("processes", self.processes),
            ("mounts", self.mounts),
            ("namespaces", self.namespaces),
            ("control groups", self.groups),
            ("tables of rules", self.tables),
            ("lines of rules", self.rules),
            ("sandbox records", self.records),
            ("files", self.files),
            ("descriptors", self.descriptors),
        ]
    }

    /// Whether as many sandboxes are prepared ahead as in `before` and nothing else is more, both
    /// seen at rest without any other sandbox. They are prepared again when half of them are used,
    /// and each has a process, namespaces, groups and descriptors: figures can be compared only
    /// while there are as many of them. Then there is hardly any slack, or what leaks now and then
    /// passes.
    #[must_use]
    pub fn is_back_at(self, before: Self) -> bool {
        // A log that has grown is moved aside; who made the network rules anew is held on to.
        let before =
            Self { files: before.files + 1, descriptors: before.descriptors + 1, ..before };
        // Both count prepared ones: a record that stays does not pass for one.
        let counted = |traces: Self| (traces.records, traces.processes);
        counted(self) == counted(before)
            && self.named().iter().zip(before.named()).all(|((_, now), (_, then))| *now <= then)
    }

    /// Whether nothing but files is there: these are the user's to remove.
    #[must_use]
    pub fn is_gone(self) -> bool {
        Self { files: 0, ..self } == Self::default()
    }
}

/// Sandboxes made one by one after which as many are prepared as before, if nothing stays: each
/// number of them is seen once while those that are prepared are used up. A few times as many, since
/// what is prepared may be made while others end. Counted, not timed: a busy machine is slow.
pub const ROUNDS: usize = 40;

/// Finds out when nothing changes any more: after the last call its sandbox ends, groups of dead
/// ones go, and others are prepared.
#[derive(Clone, Debug, Default)]
pub struct Settling {
    last: Traces,
    same: u32,
}

impl Settling {
    /// As many looks that see the same are taken for rest.
    const LOOKS: u32 = 20;

    /// Takes the next look; whether there is rest.
    pub fn look(&mut self, now: Traces) -> bool {
        self.same = if now == self.last { self.same + 1 } else { 0 };
        self.last = now;
        self.same >= Self::LOOKS
    }
}

/// What to look for, learned while it runs.
#[derive(Clone, Debug)]
pub struct Marks {
    state: PathBuf,
    /// The control group of its sandboxes, where it has one.
    group: Option<String>,
}

impl Marks {
    /// Of one that runs on a state directory and has, or has had, a sandbox.
    #[must_use]
    pub fn of(state: &Path) -> Self {
        let named = |pid: i32| {
            let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            let part = text.split(['/', '\n']).find(|part| part.starts_with("dirigent-"));
            part.map(str::to_owned)
        };
        Self { state: state.to_owned(), group: processes_of(state).into_iter().find_map(named) }
    }

    /// Whether control groups and rules are found: not where it may make none.
    #[must_use]
    pub const fn has_groups(&self) -> bool {
        self.group.is_some()
    }

    /// Counts what there is.
    #[must_use]
    pub fn count(&self) -> Traces {
        let processes = processes_of(&self.state);
        let state = self.state.to_string_lossy();
        let mounted = |pid: &str| {
            let text = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
            text.lines().filter(|line| line.contains(&*state)).count()
        };
        // The keeper has mounts of its own. What a sandbox mounted ends with its processes, which
        // are counted; there are dozens of them as an ordinary user, also in each that is prepared.
        let mounts = processes
            .iter()
            .filter(|pid| !is_below_keeper(**pid))
            .map(|pid| mounted(&pid.to_string()))
            .sum::<usize>();
        let open = |pid: &i32| children(Path::new(&format!("/proc/{pid}/fd")));
        let own = namespaces("self");
        let foreign: BTreeSet<_> = processes
            .iter()
            .flat_map(|pid| namespaces(&pid.to_string()))
            .filter(|namespace| !own.contains(namespace))
            .collect();
        let group = self.group.as_deref();
        let table = group.map(|group| group.replace('-', "_"));
        let table = table.as_deref();
        Traces {
            processes: processes.len(),
            mounts: mounts + mounted("self"),
            namespaces: foreign.len(),
            groups: group.map_or(0, |name| groups(Path::new("/sys/fs/cgroup"), name, 5)),
            tables: table.map_or(0, |name| nft(&["list", "tables"]).matches(name).count()),
            rules: table.map_or(0, |name| nft(&["list", "table", "inet", name]).lines().count()),
            records: lines(&self.state.join("worker/records"))
                + children(&self.state.join("worker/sandboxes")),
            files: below(&self.state),
            descriptors: processes.iter().map(open).sum(),
        }
    }
}

/// Processes whose command line or environment has this directory in it, and all below them; the
/// caller is none of them.
#[must_use]
pub fn processes_of(state: &Path) -> BTreeSet<i32> {
    let wanted = state.to_string_lossy();
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let all: BTreeMap<i32, i32> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            Some((pid, parent(pid)?))
        })
        .collect();
    let mut found: BTreeSet<i32> = all
        .keys()
        .copied()
        .filter(|pid| *pid != own)
        .filter(|pid| {
            ["cmdline", "environ"].iter().any(|file| {
                let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
                String::from_utf8_lossy(&bytes).contains(&*wanted)
            })
        })
        .collect();
    loop {
        let more: Vec<i32> = all
            .iter()
            .filter(|(pid, parent)| found.contains(parent) && !found.contains(pid))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

/// The parent of a process that is there and no zombie.
fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(parent)
}

/// Whether a keeper is this process's parent.
fn is_below_keeper(pid: i32) -> bool {
    parent(pid).is_some_and(|parent| {
        let line = fs::read(format!("/proc/{parent}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == b"keeper")
    })
}

/// Kinds and numbers of a process's namespaces.
fn namespaces(pid: &str) -> BTreeSet<(String, u64)> {
    let entries = fs::read_dir(format!("/proc/{pid}/ns")).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let kind = entry.file_name().into_string().ok()?;
            // What children will have is not a namespace more.
            let is_own = !kind.ends_with("_for_children");
            is_own.then_some((kind, fs::metadata(entry.path()).ok()?.ino()))
        })
        .collect()
}

fn children(path: &Path) -> usize {
    fs::read_dir(path).map_or(0, Iterator::count)
}

/// Lines of a file that are not empty.
fn lines(path: &Path) -> usize {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter(|line| !line.trim().is_empty()).count()
}

/// Everything below a directory.
fn below(path: &Path) -> usize {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .map(|entry| {
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            1 + if is_dir { below(&entry.path()) } else { 0 }
        })
        .sum()
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

/// What the tool prints; nothing where it is not installed or fails, as for a table that is gone.
fn nft(args: &[&str]) -> String {
    let output = Command::new("nft").args(args).output();
    output.map_or_else(
        |_absent| String::new(),
        |output| String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    #[test]
    fn rest_is_the_same_seen_many_times() {
        let mut settling = Settling::default();
        let busy = Traces { processes: 2, ..Traces::default() };
        assert!((0..30).all(|looks| {
            let now = if looks % 10 == 0 { busy } else { Traces::default() };
            !settling.look(now)
        }));
        assert_eq!((0..30).filter(|_| settling.look(busy)).count(), 10);
    }

    #[test]
    fn one_of_anything_that_stays_is_told_from_what_is_prepared_ahead() {
        let rest = Traces {
            processes: 10,
            mounts: 16,
            namespaces: 33,
            groups: 27,
            tables: 1,
            rules: 12,
            records: 8,
            files: 34,
            descriptors: 94,
        };
        assert!(rest.is_back_at(rest));
        assert!(Traces { descriptors: 90, files: 35, ..rest }.is_back_at(rest));
        for more in [
            Traces { processes: 11, ..rest },
            Traces { mounts: 17, ..rest },
            Traces { namespaces: 34, ..rest },
            Traces { groups: 28, ..rest },
            Traces { tables: 2, ..rest },
            Traces { rules: 13, ..rest },
            Traces { records: 9, ..rest },
            Traces { files: 36, ..rest },
            Traces { descriptors: 96, ..rest },
            // One that is prepared is missing: what it has would hide as much that stays.
            Traces { records: 7, processes: 9, ..rest },
            // One is missing, and another one's directory stayed.
            Traces { processes: 9, ..rest },
        ] {
            assert!(!more.is_back_at(rest), "{more:?}");
        }
    }

    #[test]
    fn processes_are_found_by_their_directory_with_what_they_started() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(processes_of(state.path()), BTreeSet::new());
        let mut child = Command::new("sh")
            .args(["-c", "echo; read line; exit $?"])
            .arg(state.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It has executed once it says something.
        let mut said = [0];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert_eq!(processes_of(state.path()), BTreeSet::from([pid]));
        let counted = Marks::of(state.path()).count();
        assert_eq!((counted.processes, counted.files), (1, 0));
        assert!(counted.descriptors >= 3 && !counted.is_gone());
        child.kill().unwrap();
        child.wait().unwrap();
        fs::write(state.path().join("file"), "").unwrap();
        let counted = Marks::of(state.path()).count();
        assert_eq!(counted.files, 1);
        assert!(counted.is_gone());
    }
}
