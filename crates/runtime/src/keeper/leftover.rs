//! What an earlier keeper left: found by a line per sandbox in one small file, ended, removed.
//!
//! A line names the first process of a sandbox by pid and start time, and the random id that the
//! sandbox's processes carry in their environment. Nothing is ever killed by name, and a pid that
//! was given to somebody else meanwhile has another start time.
//!
//! Lines are written over in place: a file for each sandbox was a fifth of what it costs a machine to
//! make and remove one (ext4 keeps the inodes of removed files from new ones for seconds, and looks
//! for others). No line is lost with the keeper; with the machine, the sandboxes are too.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

/// The variable that carries the random id.
pub(crate) const VARIABLE: &str = "DIRIGENT_SANDBOX";

/// How long the dying may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The file of lines in a keeper's directory.
const RECORDS: &str = "records";

/// Bytes of a line, its end included: an id, a pid and a time in places of their own.
const LINE: usize = 32 + 1 + 10 + 1 + 19 + 1;

/// The files of a sandbox that has some, below a keeper's directory.
pub(crate) fn directory(keeper: &Path, id: &str) -> PathBuf {
    keeper.join("sandboxes").join(id)
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    id: String,
    /// Its first process.
    init: i32,
    /// When that started, as `/proc` tells it.
    started: u64,
}

impl Record {
    /// The line as it is kept; none is longer than its place.
    fn line(&self) -> String {
        format!("{:<32} {:>10} {:>19}\n", self.id, self.init, self.started)
    }

    fn read(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let id = words.next()?.to_owned();
        let (init, started) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(Self { id, init, started })
    }
}

/// The lines of the sandboxes that there are.
#[derive(Debug)]
pub(crate) struct Records {
    file: File,
    /// Places that are free again.
    free: Vec<u64>,
    /// The first place that was never used.
    next: u64,
}

impl Records {
    /// Without a line. Those of an earlier keeper are gone with this.
    fn none(directory: &Path) -> io::Result<Self> {
        let file = File::create(directory.join(RECORDS))?;
        Ok(Self { file, free: Vec::new(), next: 0 })
    }

    /// Adds the line of a running process; its place.
    pub(crate) fn add(&mut self, id: &str, init: i32) -> io::Result<u64> {
        let started = start_time(init).ok_or_else(|| io::Error::other("it has ended already"))?;
        let line = Record { id: id.to_owned(), init, started }.line();
        let place = self.free.pop().unwrap_or(self.next);
        self.next = self.next.max(place + 1);
        if let Err(error) = self.put(place, &line) {
            self.free.push(place);
            return Err(error);
        }
        Ok(place)
    }

    /// Makes the line empty.
    pub(crate) fn remove(&mut self, place: u64) -> io::Result<()> {
        self.free.push(place);
        self.put(place, &format!("{:width$}\n", "", width = LINE - 1))
    }

    fn put(&self, place: u64, line: &str) -> io::Result<()> {
        self.file.write_all_at(line.as_bytes(), place * LINE as u64)
    }
}

/// The 22nd field of `/proc/PID/stat`; counted from behind the program's name, which may contain
/// anything.
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(19)?.parse().ok()
}

/// End everything of earlier keepers and remove its files; lines for a new one.
pub(crate) fn sweep(keeper: &Path) -> io::Result<Records> {
    let mut ids = Vec::new();
    // There is none yet where no keeper was.
    let lines = fs::read_to_string(keeper.join(RECORDS)).unwrap_or_default();
    for record in lines.lines().filter_map(Record::read) {
        kill_recorded(&record);
        ids.push(record.id);
    }
    let with_files: Vec<String> = fs::read_dir(keeper.join("sandboxes"))?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    ids.extend(with_files.iter().cloned());
    if !kill_marked(&ids, PATIENCE) {
        tracing::warn!("some processes of earlier sandboxes could not be killed");
    }
    for id in with_files {
        if let Err(error) = fs::remove_dir_all(directory(keeper, &id)) {
            tracing::warn!(%id, %error, "a sandbox's directory stays");
        }
    }
    Records::none(keeper)
}

fn kill_recorded(record: &Record) {
    let Some(pid) = Pid::from_raw(record.init) else { return };
    // The descriptor is opened before the start time is compared: from then on it is the same one.
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    if start_time(record.init) == Some(record.started)
        && let Err(error) = pidfd_send_signal(&process, Signal::KILL)
    {
        tracing::warn!(?pid, %error, "a sandbox of an earlier keeper cannot be killed");
    }
}

/// Kill all processes that carry one of these ids, until none is left; whether that was reached.
pub(crate) fn kill_marked(ids: &[String], limit: Duration) -> bool {
    if ids.is_empty() {
        return true;
    }
    let marks: Vec<Vec<u8>> =
        ids.iter().map(|id| format!("{VARIABLE}={id}").into_bytes()).collect();
    let deadline = Instant::now() + limit;
    loop {
        let mut found = false;
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|n| Pid::from_raw(n.parse().ok()?)) else {
                continue;
            };
            // Not readable: not ours. Empty: a zombie.
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            if environment.split(|b| *b == 0).any(|pair| marks.iter().any(|mark| mark == pair)) {
                found = true;
                if let Err(error) = kill_process(pid, Signal::KILL) {
                    tracing::debug!(?pid, %error, "not killed");
                }
            }
        }
        if !found {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn what_is_recorded_or_marked_is_killed_and_nothing_else() {
        let keeper = tempfile::tempdir().expect("a directory");
        let files = directory(keeper.path(), "left-behind-7f3a");
        fs::create_dir_all(files.join("home")).expect("makes it");
        let sleeper = |id: &str| {
            Command::new("sleep").arg("60").env(VARIABLE, id).stdin(Stdio::null()).spawn()
        };
        let mut recorded = sleeper("unmarked-1").expect("starts");
        let mut marked = sleeper("left-behind-7f3a").expect("starts");
        let mut other = sleeper("unmarked-2").expect("starts");
        let pid = |child: &std::process::Child| i32::try_from(child.id()).expect("a pid");
        let mut records = Records::none(keeper.path()).expect("creates");
        let place = records.add("gone", pid(&other)).expect("runs");
        records.add("one", pid(&recorded)).expect("runs");
        records.remove(place).expect("writes");
        // The pid of a process that is not the one recorded.
        let stale = Record { id: "stale".to_owned(), init: pid(&other), started: u64::MAX / 2 };
        records.put(records.next, &stale.line()).expect("writes");
        // The environment of a new process is readable as its own once it has executed.
        let mark = format!("{VARIABLE}=left-behind-7f3a");
        let deadline = Instant::now() + Duration::from_secs(10);
        while !fs::read_to_string(format!("/proc/{}/environ", pid(&marked)))
            .is_ok_and(|e| e.contains(&mark))
        {
            assert!(Instant::now() < deadline, "never executed");
        }
        // A killed child stays as a zombie until it is waited for, without an environment.
        sweep(keeper.path()).expect("sweeps");
        assert!(!recorded.wait().expect("waits").success());
        assert!(!marked.wait().expect("waits").success());
        assert!(other.try_wait().expect("waits").is_none(), "a stranger was killed");
        other.kill().expect("kills");
        other.wait().expect("waits");
        assert!(!files.exists());
        assert_eq!(fs::read(keeper.path().join(RECORDS)).expect("reads"), b"");
    }

    #[test]
    fn lines_are_written_over_in_place() {
        let keeper = tempfile::tempdir().expect("a directory");
        let mut records = Records::none(keeper.path()).expect("creates");
        let me = i32::try_from(std::process::id()).expect("a pid");
        let places: Vec<u64> =
            ["a", "b", "c"].map(|id| records.add(id, me).expect("writes")).to_vec();
        records.remove(places[1]).expect("writes");
        let kept = || {
            let lines = fs::read_to_string(keeper.path().join(RECORDS)).expect("reads");
            assert!(lines.lines().all(|line| line.len() == LINE - 1), "{lines}");
            let records = lines.lines().map(Record::read);
            records.map(|record| record.map(|record| record.id)).collect::<Vec<_>>()
        };
        let some = |id: &str| Some(id.to_owned());
        assert_eq!(kept(), [some("a"), None, some("c")]);
        assert_eq!(records.add("d", me).expect("writes"), places[1]);
        assert_eq!(kept(), [some("a"), some("d"), some("c")]);
        // None is longer than its place.
        let long = Record { id: "f".repeat(32), init: i32::MAX, started: u64::MAX >> 1 };
        assert_eq!(long.line().len(), LINE);
        assert_eq!(Record::read(&long.line()), Some(long));
    }
}
