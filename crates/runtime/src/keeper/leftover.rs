//! What an earlier keeper left: found by one small file per sandbox, ended, removed.
//!
//! A file names the first process of a sandbox by pid and start time, and the random id that the
//! sandbox's processes carry in their environment. Nothing is ever killed by name, and a pid that
//! was given to somebody else meanwhile has another start time.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// The variable that carries the random id.
pub(crate) const VARIABLE: &str = "DIRIGENT_SANDBOX";

/// How long the dying may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The file of a sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Its first process.
    pub(crate) init: i32,
    /// When that started, as `/proc` tells it.
    pub(crate) started: u64,
}

/// The directory of a sandbox, named after its random id.
pub(crate) fn directory(sandboxes: &Path, id: &str) -> PathBuf {
    sandboxes.join(id)
}

impl Record {
    /// The record of a running process.
    pub(crate) fn of(init: i32) -> io::Result<Self> {
        let started = start_time(init).ok_or_else(|| io::Error::other("it has ended already"))?;
        Ok(Self { init, started })
    }

    /// Keep it.
    pub(crate) fn write(&self, directory: &Path) -> io::Result<()> {
        fs::create_dir_all(directory)?;
        fs::write(directory.join("record"), serde_json::to_vec(self)?)
    }
}

/// The 22nd field of `/proc/PID/stat`; counted from behind the program's name, which may contain
/// anything.
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(19)?.parse().ok()
}

/// End everything of earlier keepers and remove its files.
pub(crate) fn sweep(sandboxes: &Path) -> io::Result<()> {
    let mut ids = Vec::new();
    for entry in fs::read_dir(sandboxes)?.flatten() {
        let Ok(id) = entry.file_name().into_string() else { continue };
        let record = fs::read(entry.path().join("record")).ok();
        if let Some(record) = record.and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok())
        {
            kill_recorded(&record);
        }
        ids.push(id);
    }
    if !kill_marked(&ids, PATIENCE) {
        tracing::warn!("some processes of earlier sandboxes could not be killed");
    }
    for id in ids {
        if let Err(error) = fs::remove_dir_all(directory(sandboxes, &id)) {
            tracing::warn!(%id, %error, "a sandbox's directory stays");
        }
    }
    Ok(())
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
        let sandboxes = tempfile::tempdir().expect("a directory");
        let sleeper = |id: &str| {
            Command::new("sleep").arg("60").env(VARIABLE, id).stdin(Stdio::null()).spawn()
        };
        let mut recorded = sleeper("unmarked-1").expect("starts");
        let mut marked = sleeper("left-behind-7f3a").expect("starts");
        let mut other = sleeper("unmarked-2").expect("starts");
        let pid = |child: &std::process::Child| i32::try_from(child.id()).expect("a pid");
        let record = Record::of(pid(&recorded)).expect("runs");
        record.write(&sandboxes.path().join("one")).expect("writes");
        // The pid of a process that is not the one recorded.
        let stale = Record { init: pid(&other), started: record.started.wrapping_add(1_000_000) };
        stale.write(&sandboxes.path().join("left-behind-7f3a")).expect("writes");
        // The environment of a new process is readable as its own once it has executed.
        let mark = format!("{VARIABLE}=left-behind-7f3a");
        let deadline = Instant::now() + Duration::from_secs(10);
        while !fs::read_to_string(format!("/proc/{}/environ", pid(&marked)))
            .is_ok_and(|e| e.contains(&mark))
        {
            assert!(Instant::now() < deadline, "never executed");
        }
        // A killed child stays as a zombie until it is waited for, without an environment.
        sweep(sandboxes.path()).expect("sweeps");
        assert!(!recorded.wait().expect("waits").success());
        assert!(!marked.wait().expect("waits").success());
        assert!(other.try_wait().expect("waits").is_none(), "a stranger was killed");
        other.kill().expect("kills");
        other.wait().expect("waits");
        assert_eq!(fs::read_dir(sandboxes.path()).expect("lists").count(), 0);
    }
}
