//! What keepers left that were killed and whose directory nobody uses again: control groups and
//! tables of network rules, which outlive every process.
//!
//! Both have the keeper's [`Name`], and a keeper claims that name before it makes either. Whoever
//! can claim it knows that no keeper lives that has it, and none comes while the claim lasts: one
//! that wants the name waits. Only names of our own network namespace are judged, since claims are
//! seen no further.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{io::Errno, process::geteuid};
use sha2::{Digest as _, Sha256};

use super::cgroup::Group;
use crate::{claim::Claim, network::forwarding};

/// How long a keeper waits for its own name: as long as somebody may take to clean up behind its
/// predecessor, several times over.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the groups of one dead keeper may take to go.
const REMOVAL: Duration = Duration::from_secs(1);

/// Directories of one hierarchy looked at, and how deep: far more than a machine has where services
/// are, and a bound on what a start may cost.
const MOST_DIRECTORIES: usize = 10_000;
const DEEPEST: usize = 8;

/// What a keeper's groups and rules are called. Parsed strictly: what has another name is not ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name {
    /// Of the state directory, wherever it is mounted.
    directory: String,
    /// The network namespace in which the name is claimed.
    network: u64,
}

impl Name {
    /// Of the keeper of a directory: the same for all that keep it one after the other.
    pub(crate) fn of(directory: &Path) -> io::Result<Self> {
        let found = fs::metadata(directory)?;
        let mut hash = Sha256::new();
        hash.update(found.dev().to_le_bytes());
        hash.update(found.ino().to_le_bytes());
        let directory = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { directory, network: fs::metadata("/proc/self/ns/net")?.ino() })
    }

    fn parse(text: &str, separator: char) -> Option<Self> {
        let mut parts = text.split(separator);
        let (word, directory, network) = (parts.next()?, parts.next()?, parts.next()?);
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let ours = word == "dirigent" && directory.len() == 16 && directory.bytes().all(hex);
        let digits = network.bytes().all(|byte| byte.is_ascii_digit());
        let name = Self { directory: directory.to_owned(), network: network.parse().ok()? };
        (ours && digits && parts.next().is_none()).then_some(name)
    }

    /// The control groups' name, which is also what is claimed.
    pub(crate) fn group(&self) -> String {
        self.to_string()
    }

    /// The table's name; tables may have no hyphen in theirs.
    pub(crate) fn table(&self) -> String {
        self.to_string().replace('-', "_")
    }

    /// Claims it for a keeper's life. Without the claim it works on: what is risked is that its
    /// groups are taken for a dead one's.
    pub(crate) fn claim(&self) -> Option<Claim> {
        match Claim::take_within(&self.group(), PATIENCE) {
            Ok(claim) => Some(claim),
            Err(error) => {
                tracing::warn!(name = %self, %error, "the keeper's name cannot be claimed");
                None
            }
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dirigent-{}-{}", self.directory, self.network)
    }
}

/// Removes what has the names of dead keepers: groups below `roots`, and as root tables.
pub(crate) fn sweep(own: &Name, roots: &[PathBuf]) {
    let mut found: BTreeMap<Name, Vec<PathBuf>> = BTreeMap::new();
    for root in roots {
        let mut left = MOST_DIRECTORIES;
        search(root, DEEPEST, &mut left, &mut found);
    }
    if geteuid().is_root() {
        for (name, _) in tables() {
            found.entry(name).or_default();
        }
    }
    found.retain(|name, _| name != own && name.network == own.network);
    // Of an earlier life; the others of this name are made anew where they are.
    remove_tables(own);
    for (name, groups) in found {
        // Held until all of it is gone.
        let claim = match Claim::take(&name.group()) {
            Ok(claim) => claim,
            Err(Errno::AGAIN) => continue,
            Err(error) => {
                tracing::warn!(%name, %error, "whether its keeper lives is not known");
                continue;
            }
        };
        tracing::info!(%name, "removing what a dead keeper left");
        Group::left(groups).remove_within(REMOVAL);
        remove_tables(&name);
        drop(claim);
    }
}

/// Groups that have a keeper's name, and the groups of its sandboxes before them.
fn search(at: &Path, depth: usize, left: &mut usize, found: &mut BTreeMap<Name, Vec<PathBuf>>) {
    for path in directories(at) {
        let Some(rest) = left.checked_sub(1) else { return };
        *left = rest;
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some(name) = name.and_then(|name| Name::parse(name, '-')) {
            if may_remove(&path) {
                let groups = found.entry(name).or_default();
                groups.extend(directories(&path));
                groups.push(path);
            }
        } else if depth > 0 {
            search(&path, depth - 1, left, found);
        }
    }
}

fn directories(at: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(at).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn may_remove(path: &Path) -> bool {
    let user = geteuid();
    user.is_root() || fs::metadata(path).is_ok_and(|found| found.uid() == user.as_raw())
}

/// Remove all tables of one name.
pub(crate) fn remove_tables(name: &Name) {
    if !geteuid().is_root() {
        return;
    }
    for (_, table) in tables().into_iter().filter(|(of, _)| of == name) {
        if let Err(reason) = forwarding::remove(&table) {
            tracing::debug!(%table, %reason, "no rules removed");
        }
    }
}

/// Tables that have a keeper's name, of whatever kind.
fn tables() -> Vec<(Name, String)> {
    let named = forwarding::tables().into_iter().filter_map(|table| {
        let ending = forwarding::ENDINGS.iter().find_map(|ending| table.strip_suffix(ending));
        Some((Name::parse(ending.unwrap_or(&table), '_')?, table))
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_that_of_the_directory_and_read_back() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let name = Name::of(one.path()).unwrap();
        assert_eq!(Name::of(&one.path().join(".")).unwrap(), name);
        assert_ne!(Name::of(two.path()).unwrap(), name);
        assert_eq!(Name::parse(&name.group(), '-'), Some(name.clone()));
        assert_eq!(Name::parse(&name.table(), '_'), Some(name));
    }

    #[test]
    fn names_that_are_not_a_keepers_are_left_alone() {
        for text in [
            "dirigent",
            "dirigent-0123456789abcdef",
            "dirigent-0123456789abcdef-",
            "dirigent-0123456789abcdef-1x",
            "dirigent-0123456789abcdef-+1",
            "dirigent-0123456789ABCDEF-1",
            "dirigent-0123456789abcde-1",
            "dirigent-0123456789abcdef-1-2",
            "other-0123456789abcdef-1",
        ] {
            assert_eq!(Name::parse(text, '-'), None, "{text}");
        }
        assert!(Name::parse("dirigent-0123456789abcdef-1", '-').is_some());
    }

    #[test]
    fn only_what_no_living_keeper_claims_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let keeper = tempfile::tempdir().unwrap();
        let own = Name::of(keeper.path()).unwrap();
        let other = |directory: &str, network| Name { directory: directory.to_owned(), network };
        let process = u64::from(std::process::id());
        let dead = other(&format!("{process:016x}"), own.network);
        let alive = other(&format!("{:016x}", process + (1 << 40)), own.network);
        let elsewhere = other(&dead.directory, own.network + 1);
        let claim = Claim::take(&alive.group()).unwrap();
        let made = |name: String| {
            let path = root.path().join("service").join(name);
            fs::create_dir_all(path.join("sandbox")).unwrap();
            path
        };
        let [gone, living, foreign, mine, stranger] =
            [dead.group(), alive.group(), elsewhere.group(), own.group(), "dirigent-x".to_owned()]
                .map(made);
        let roots = [root.path().to_owned()];
        sweep(&own, &roots);
        assert!(!gone.exists());
        for path in [&living, &foreign, &mine, &stranger] {
            assert!(path.join("sandbox").exists(), "{}", path.display());
        }
        drop(claim);
        sweep(&own, &roots);
        assert!(!living.exists() && foreign.exists() && mine.exists() && stranger.exists());
    }
}
