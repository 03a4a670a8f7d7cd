//! A program of the cluster: started on a host, killed, ended, started again.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::net::{Host, Net};

/// No condition takes that long on a working system; it only ends what hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(10);

/// Waits until `condition` holds, looking often; how long that took.
///
/// # Errors
/// If it does not within [`PATIENCE`].
pub fn until(what: &str, mut condition: impl FnMut() -> bool) -> Result<Duration> {
    let begun = Instant::now();
    until_some(what, || condition().then_some(()))?;
    Ok(begun.elapsed())
}

/// Waits until there is a value, looking often.
///
/// # Errors
/// If there is none within [`PATIENCE`].
pub(crate) fn until_some<T>(what: &str, mut value: impl FnMut() -> Option<T>) -> Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(value) = value() {
            return Ok(value);
        }
        if begun.elapsed() > PATIENCE {
            bail!("waited in vain until {what}");
        }
        thread::park_timeout(PAUSE);
    }
}

/// Lets so much time pass.
pub(crate) fn rest(time: Duration) {
    let begun = Instant::now();
    // It may be woken early: by threads that it has waited for, for one.
    while let Some(left) = time.checked_sub(begun.elapsed()).filter(|left| !left.is_zero()) {
        thread::park_timeout(left);
    }
}

/// What a program is and where.
#[derive(Debug)]
pub struct Part {
    /// A name that no other one of the cluster has.
    pub(crate) name: String,
    /// Its host.
    pub host: Host,
    /// Its own directory.
    pub state: PathBuf,
    program: PathBuf,
    args: Vec<String>,
    child: Option<Child>,
}

impl Part {
    /// One that does not run yet.
    ///
    /// # Errors
    /// If its directory cannot be made.
    pub(crate) fn new(name: &str, host: Host, scratch: &Path, program: &Path) -> Result<Self> {
        let state = scratch.join(name);
        fs::create_dir_all(&state)?;
        let (name, program) = (name.to_owned(), program.to_owned());
        Ok(Self { name, host, state, program, args: Vec::new(), child: None })
    }

    /// With these arguments.
    pub(crate) fn args(&mut self, args: impl IntoIterator<Item = impl Into<String>>) {
        self.args = args.into_iter().map(Into::into).collect();
    }

    fn out(&self) -> PathBuf {
        self.state.with_extension("out")
    }

    /// Where what it says is kept, of all its lives.
    pub(crate) fn log(&self) -> PathBuf {
        self.state.with_extension("log")
    }

    /// Starts it.
    ///
    /// # Errors
    /// If it runs already, or cannot be started.
    pub(crate) fn start(&mut self, net: &Net) -> Result<()> {
        if self.is_running() {
            bail!("{} runs already", self.name);
        }
        let said = File::options().create(true).append(true).open(self.log())?;
        let child = net
            .command(self.host, &self.program)
            .args(&self.args)
            .stdout(File::create(self.out())?)
            .stderr(said)
            .spawn()
            .with_context(|| format!("cannot start {}", self.name))?;
        self.child = Some(child);
        Ok(())
    }

    /// Waits until it has printed a line of JSON, as roles do once they are ready.
    ///
    /// # Errors
    /// If it ends before, or says nothing.
    pub(crate) fn ready(&mut self) -> Result<Value> {
        let begun = Instant::now();
        loop {
            let text = fs::read_to_string(self.out())?;
            if let Some((line, _)) = text.split_once('\n') {
                return serde_json::from_str(line).with_context(|| line.to_owned());
            }
            if !self.is_running() || begun.elapsed() > PATIENCE {
                bail!("{} is not ready:\n{}", self.name, self.last_words());
            }
            thread::park_timeout(PAUSE);
        }
    }

    /// The last lines that it said.
    fn last_words(&self) -> String {
        let said = fs::read_to_string(self.log()).unwrap_or_default();
        let mut lines: Vec<&str> = said.lines().rev().take(10).collect();
        lines.reverse();
        lines.join("\n")
    }

    /// Whether it was started and has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// If it does not run.
    pub(crate) fn signal(&mut self, signal: Signal) -> Result<()> {
        // The id of one that has ended and was waited for may be somebody else's.
        if !self.is_running() {
            bail!("{} does not run", self.name);
        }
        let child = self.child.as_ref().context("it runs")?;
        kill_process(Pid::from_child(child), signal)
            .with_context(|| format!("cannot signal {}", self.name))
    }

    /// Kills it as a crash would: `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may be gone already.
            drop(child.kill());
            drop(child.wait());
        }
    }

    /// Ends it in order and waits for that.
    ///
    /// # Errors
    /// If it does not end.
    pub fn end(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let child = self.child.as_mut().context("it runs")?;
        let ended = until_some(&format!("{} ends", self.name), || child.try_wait().ok().flatten());
        // Nothing where it has ended.
        self.kill();
        ended
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Their hosts.
#[must_use]
pub fn hosts(parts: &[Part]) -> Vec<Host> {
    parts.iter().map(|part| part.host).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn one_that_was_waited_for_gets_no_signal() {
        let scratch = tempfile::tempdir().unwrap();
        let mut part = Part::new("one", Host(1), scratch.path(), Path::new("true")).unwrap();
        assert!(part.signal(Signal::TERM).is_err(), "it was not started");
        part.child = Some(Command::new("true").spawn().unwrap());
        until("it ends", || !part.is_running()).unwrap();
        let refused = part.signal(Signal::TERM).unwrap_err();
        assert_eq!(refused.to_string(), "one does not run");
        assert!(part.end().is_err());
        part.child = Some(Command::new("sleep").arg("1000").spawn().unwrap());
        assert!(!part.end().unwrap().success());
    }
}
