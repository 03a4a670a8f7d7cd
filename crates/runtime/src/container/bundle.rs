//! Sandboxes without containerd's tasks: a bundle in the sandbox's directory, on which the keeper executes
//! the OCI runtime. Of containerd there is the image below and the record that names the sandbox.
//!
//! What is in the directory goes with it, the runtime's own state included. Nothing is asked of the
//! runtime for a removal: when the first process has ended, nothing of a sandbox is left but its
//! control groups and that directory.

use std::{
    cell::RefCell,
    fs::{self, File},
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    rc::Rc,
    sync::LazyLock,
    time::Duration,
};

use dirigent_core::Bytes;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::{
    ContainerConfig, HANDLER, Tasks, Writes, program,
    scratch::{self, Layers},
};
use crate::{
    keeper::{
        cgroup::Group,
        execute::{OPTIONS, PID},
        leftover::start_time,
    },
    process::{End, Execute, First, Layered, Makes, Spaces},
};

/// What an OCI runtime is told of a sandbox.
const CONFIG: &str = "config.json";

/// Where it keeps what it knows.
const STATE: &str = "state";

/// Where it says what went wrong.
const LOG: &str = "log";

/// Programs of which is known that they leave nothing else.
const KNOWN: [&str; 2] = ["crun", "runc"];

/// How long control groups may stay busy after the last process in them was killed.
const BUSY: Duration = Duration::from_secs(5);

/// Between two attempts to remove them, at first and at most.
const AGAIN: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// Where the hierarchies of control groups are: one in the second version, else one for each
/// controller.
static HIERARCHIES: LazyLock<Vec<PathBuf>> = LazyLock::new(|| {
    let root = PathBuf::from("/sys/fs/cgroup");
    // What has no such file is a directory where one may be mounted.
    let is_mounted = |path: &Path| path.join("cgroup.procs").exists();
    if is_mounted(&root) {
        return vec![root];
    }
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| entry.path()).filter(|path| is_mounted(path)).collect()
});

/// Removes a control group, with all that is in it.
pub(super) async fn remove_group(name: &str) -> io::Result<()> {
    let below = name.trim_start_matches('/');
    let mut left = Group::left(HIERARCHIES.iter().map(|root| root.join(below)).collect());
    let (over, mut pause) = (Instant::now() + BUSY, AGAIN.0);
    while !left.remove() {
        if Instant::now() >= over {
            return Err(io::Error::other(format!("control group {name} stays busy")));
        }
        sleep(pause).await;
        pause = (pause * 2).min(AGAIN.1);
    }
    Ok(())
}

/// What makes sandboxes: the keeper's, on the machine that containerd sees.
#[derive(Debug)]
pub(super) struct Hands {
    spaces: Spaces,
    /// What it executes; `None` where containerd's tasks are used.
    program: Option<PathBuf>,
    socket: PathBuf,
    /// The containerd that listened last, and its mount namespace.
    seen: RefCell<Option<(OwnedFd, Rc<File>)>>,
}

/// What a runtime is to do with a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    /// Make it, and let it wait.
    Create,
    /// Make it and start it, in one go.
    Run,
    /// Start one that waits.
    Start,
    /// Signal one.
    Kill(i32),
    /// Remove what there is of it.
    Delete,
}

/// How a sandbox ended, as shells say it; `None` if that is not known.
const fn status(end: Option<End>) -> Option<u32> {
    match end {
        Some(End::Code(code)) => Some(code.unsigned_abs()),
        Some(End::Signal(signal)) => Some(128 + signal.unsigned_abs()),
        Some(End::Unknown) | None => None,
    }
}

/// Whether a sandbox is made of what is in this directory, and not by containerd's tasks.
pub(super) fn is_here(directory: &Path) -> bool {
    directory.join(CONFIG).exists()
}

impl Hands {
    pub(super) fn new(config: &ContainerConfig, spaces: Spaces) -> Self {
        let wanted = config.tasks == Tasks::Keeper
            && config.handler == HANDLER
            && config.writes == Writes::Memory;
        let name = config.program.as_deref().unwrap_or(program::USUAL);
        let program = wanted.then(|| program::place(&config.socket, name)).flatten();
        Self { spaces, program, socket: config.socket.clone(), seen: RefCell::default() }
    }

    /// Whether it makes sandboxes of this handler.
    pub(super) fn make(&self, handler: &str) -> bool {
        self.program.is_some() && handler == HANDLER
    }

    /// What is executed, if anything is.
    pub(super) fn program(&self) -> Option<&Path> {
        self.program.as_deref()
    }

    /// Executes the runtime for the sandbox in a directory; the first process, if it makes one.
    pub(super) async fn execute(
        &self,
        (id, directory): (&str, &Path),
        verb: Verb,
        root: Option<Layered>,
    ) -> io::Result<Option<First>> {
        let program = self.program.clone().unwrap_or_else(|| program::USUAL.into());
        // Open until it is answered: the number of its descriptor is not another file's by then.
        let space = self.mounts()?;
        let execute = Execute {
            bundle: id.to_owned(),
            program,
            arguments: arguments(id, directory, verb),
            mounts: format!("/proc/{}/fd/{}", std::process::id(), space.as_raw_fd()).into(),
            makes: root.map(|root| Makes { directory: directory.to_owned(), root }),
        };
        self.spaces.execute(execute).await.map_err(|error| match verb {
            Verb::Create | Verb::Run => logged(directory).map_or(error, io::Error::other),
            Verb::Start | Verb::Kill(_) | Verb::Delete => error,
        })
    }

    /// The exit status of a first process that has ended; `None` if nobody knows, as after the death of
    /// its keeper.
    pub(super) async fn status(&self, id: &str) -> Option<u32> {
        let end = self.spaces.end_of(id).await;
        let end = end.inspect_err(|error| tracing::debug!(id, %error, "its end is not known"));
        status(end.ok().flatten())
    }

    /// What the keeper holds of it.
    pub(super) fn held(&self, id: &str) -> Option<First> {
        self.spaces.held(id)
    }

    /// The names of all that the keeper holds that begin so.
    pub(super) fn all_held(&self, mark: &str) -> Vec<String> {
        let mut all = self.spaces.all_held();
        all.retain(|id| id.starts_with(mark));
        all
    }

    /// Ends it; what its runtime has beside a directory and control groups is removed.
    pub(super) async fn end(&self, id: &str, directory: &Path) -> io::Result<()> {
        self.spaces.release(id).await?;
        let name = self.program.as_deref().and_then(Path::file_name);
        if name.is_some_and(|name| !KNOWN.iter().any(|known| name == *known))
            && let Err(error) = self.execute((id, directory), Verb::Delete, None).await
        {
            tracing::debug!(id, %error, "its runtime does not remove it");
        }
        Ok(())
    }

    /// The mount namespace of the containerd that listens, or listened last: there is what it knows.
    fn mounts(&self) -> io::Result<Rc<File>> {
        let mut seen = self.seen.borrow_mut();
        if !seen.as_ref().is_some_and(|(held, _)| scratch::lives(held)) {
            match scratch::whereabouts(&self.socket) {
                Ok((held, space)) => *seen = Some((held, Rc::new(space))),
                Err(error) if seen.is_none() => return Err(error),
                Err(error) => tracing::debug!(%error, "what runs needs none"),
            }
        }
        let space = seen.as_ref().map(|(_, space)| Rc::clone(space));
        space.ok_or_else(|| io::Error::other("containerd does not listen"))
    }
}

fn arguments(id: &str, directory: &Path, verb: Verb) -> Vec<String> {
    let within = |name: &str| directory.join(name).display().to_string();
    let bundle = directory.display().to_string();
    let state = vec!["--root".to_owned(), within(STATE)];
    let more = match verb {
        Verb::Create | Verb::Run => {
            let (log, pid) = (within(LOG), within(PID));
            let mut all = vec!["--log", &log, "--log-format", "json"];
            all.extend(if verb == Verb::Run { &["run", "--detach"][..] } else { &["create"] });
            all.extend(["--bundle", &bundle, "--pid-file", &pid, id]);
            all.into_iter().map(str::to_owned).collect()
        }
        Verb::Start => vec!["start".to_owned(), id.to_owned()],
        Verb::Kill(signal) => vec!["kill".to_owned(), id.to_owned(), signal.to_string()],
        Verb::Delete => ["delete", "--force", id].map(str::to_owned).to_vec(),
    };
    [state, more].concat()
}

/// The last error that a runtime has logged.
fn logged(directory: &Path) -> Option<String> {
    #[derive(Deserialize)]
    struct Line {
        level: String,
        msg: String,
    }
    let text = fs::read_to_string(directory.join(LOG)).ok()?;
    let lines = text.lines().rev().filter_map(|line| serde_json::from_str::<Line>(line).ok());
    let mut errors = lines.filter(|line| matches!(line.level.as_str(), "error" | "fatal"));
    Some(errors.next()?.msg)
}

/// Writes what the runtime is told.
pub(super) fn write(directory: &Path, config: &[u8]) -> io::Result<()> {
    fs::write(directory.join(CONFIG), config)
}

/// What is below a sandbox's root, with a writable layer of so many bytes; `None` if that cannot be
/// said in what `mount(2)` takes: there are far more layers than images have.
pub(super) fn layered(layers: &Layers, size: Bytes, directory: &Path) -> Option<Layered> {
    let paths: Vec<&Path> = layers.lower.split(':').map(Path::new).collect();
    let first = paths.first()?.parent()?;
    let mut bases = first.ancestors();
    let base = bases.find(|base| paths.iter().all(|path| path.starts_with(base)))?;
    let below = paths.iter().filter_map(|path| path.strip_prefix(base).ok());
    let layered = Layered {
        base: base.to_owned(),
        layers: below.map(Path::to_owned).collect(),
        options: layers.options.clone(),
        size: size.0,
    };
    (layered.told(directory).len() <= OPTIONS).then_some(layered)
}

/// A first process, held so that its number cannot become somebody else's; `None` if it has ended.
pub(super) fn hold(first: First) -> io::Result<Option<(Pid, OwnedFd)>> {
    let pid = Pid::from_raw(first.pid).ok_or(io::ErrorKind::InvalidInput)?;
    let held = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
        Ok(held) => held,
        Err(rustix::io::Errno::SRCH) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    // After it is held: from then on it is the same one.
    Ok((start_time(first.pid) == Some(first.started)).then_some((pid, held)))
}

/// In the place of one that has ended: ready as it would be.
pub(super) fn ended(first: First) -> io::Result<(Pid, OwnedFd)> {
    let pid = Pid::from_raw(first.pid).ok_or(io::ErrorKind::InvalidInput)?;
    let (read, _closed) = io::pipe()?;
    Ok((pid, read.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_told_from_where_they_are() {
        let directory = Path::new("/w/sandboxes/a");
        let of = |lower: &str| {
            let layers = Layers { lower: lower.to_owned(), options: vec!["index=off".to_owned()] };
            layered(&layers, Bytes(7), directory)
        };
        let two = of("/c/s/12/fs:/c/s/3/fs").unwrap();
        assert_eq!(two.base, Path::new("/c/s"));
        let told = "index=off,upperdir=/w/sandboxes/a/root/upper,workdir=/w/sandboxes/a/root/work,\
                    lowerdir=12/fs:3/fs";
        assert_eq!(two.told(directory), told);
        let one = of("/c/s/12/fs").unwrap();
        assert_eq!(
            (one.base.as_path(), &one.layers[..]),
            (Path::new("/c/s/12"), &["fs".into()][..])
        );
        let many: Vec<String> = (0..256).map(|n| format!("/c/s/{n:020}/fs")).collect();
        assert!(of(&many.join(":")).is_none(), "more than a page");
    }

    #[test]
    fn what_a_runtime_logged_last_is_told() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(logged(directory.path()), None);
        let text = "{\"level\":\"warning\",\"msg\":\"a\",\"time\":\"t\"}\n\
                    {\"level\":\"error\",\"msg\":\"b\",\"time\":\"t\"}\nno line\n";
        fs::write(directory.path().join(LOG), text).unwrap();
        assert_eq!(logged(directory.path()), Some("b".to_owned()));
    }

    #[test]
    fn a_process_that_is_another_one_is_not_held() {
        let pid = std::process::id().cast_signed();
        let started = start_time(pid).unwrap();
        assert!(hold(First { pid, started }).unwrap().is_some());
        assert!(hold(First { pid, started: started + 1 }).unwrap().is_none());
        let (_, held) = ended(First { pid, started: 0 }).unwrap();
        assert!(!scratch::lives(&held));
    }
}
