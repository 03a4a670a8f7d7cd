//! What the keeper executes for sandboxes of other runtimes, and what it knows of what comes of it. A
//! shell stands for an OCI runtime.

#![cfg(test)]

mod common;

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use common::{DEADLINE, config, is_root, until};
use dirigent_runtime::process::{
    End, Execute, First, Layered, Makes, ProcessConfig, ProcessRuntime, Spaces,
};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, mknodat, open},
    process::{Pid, Signal, kill_process, test_kill_process},
};
use tokio::sync::mpsc;

struct Rig {
    dir: tempfile::TempDir,
    processes: Arc<ProcessRuntime>,
    spaces: Spaces,
}

/// Only root mounts.
fn rig() -> Option<Rig> {
    if !is_root() {
        println!("skip: bundles: mounting is for root");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("lower")).unwrap();
    fs::write(dir.path().join("lower/greeting"), "hello\n").unwrap();
    let (processes, spaces) = start(dir.path());
    Some(Rig { dir, processes, spaces })
}

fn start(dir: &Path) -> (Arc<ProcessRuntime>, Spaces) {
    let (unheard, _no_processes) = mpsc::channel(1);
    let config = ProcessConfig { parked: 0, spaces: 0, ..config(&dir.join("worker")) };
    let processes = ProcessRuntime::start(config, unheard).unwrap();
    let spaces = processes.spaces();
    (processes, spaces)
}

impl Rig {
    fn bundle(&self, name: &str) -> PathBuf {
        let directory = self.dir.path().join(name);
        fs::create_dir(&directory).unwrap();
        for pipe in ["stdout", "stderr"] {
            let mode = Mode::RUSR | Mode::WUSR;
            mknodat(CWD, directory.join(pipe), FileType::Fifo, mode, 0).unwrap();
        }
        directory
    }

    /// A script that makes something, in the directory that is its first argument.
    fn making(&self, name: &str, script: &str) -> Execute {
        let directory = self.bundle(name);
        let shown = directory.display().to_string();
        let root = Layered {
            base: self.dir.path().to_owned(),
            layers: vec!["lower".into()],
            options: Vec::new(),
            size: 1 << 20,
        };
        Execute {
            arguments: ["-c", script, "sh", &shown].map(str::to_owned).to_vec(),
            makes: Some(Makes { directory, root }),
            ..execute(name, "")
        }
    }

    /// The worker's process is gone, and `meanwhile` happens before another one comes.
    fn restart(&mut self, meanwhile: impl FnOnce()) {
        self.processes.detach();
        meanwhile();
        (self.processes, self.spaces) = start(self.dir.path());
    }

    fn kill_keeper(&self) {
        let mark = self.dir.path().join("worker").display().to_string();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            if line.contains("--options") && line.contains(&mark) {
                let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).unwrap();
                kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap_or_default();
            }
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.processes.close();
    }
}

fn execute(name: &str, script: &str) -> Execute {
    Execute {
        bundle: name.to_owned(),
        program: "/bin/sh".into(),
        arguments: vec!["-c".to_owned(), script.to_owned()],
        mounts: format!("/proc/{}/ns/mnt", std::process::id()).into(),
        makes: None,
    }
}

fn lives(first: First) -> bool {
    test_kill_process(Pid::from_raw(first.pid).unwrap()).is_ok()
}

/// Sleeps until it is killed, as a first process.
const SLEEPS: &str = "sleep 1000 & echo $! > $1/pid";

#[tokio::test]
async fn what_is_made_has_its_root_and_its_end_is_told_with_nothing_mounted() {
    let Some(rig) = rig() else { return };
    let script = "(cat $1/rootfs/greeting; echo x > $1/rootfs/new; sleep 0.1; exit 7) & \
                  echo $! > $1/pid";
    let making = rig.making("one", script);
    let read = OFlags::RDONLY | OFlags::NONBLOCK;
    let stdout = open(rig.dir.path().join("one/stdout"), read, Mode::empty()).unwrap();
    let first = rig.spaces.execute(making).await.unwrap().unwrap();
    assert_eq!(rig.spaces.held("one"), Some(first));
    assert_eq!(rig.spaces.end_of("one").await.unwrap(), Some(End::Code(7)));
    let mut said = String::new();
    fs::File::from(stdout).read_to_string(&mut said).unwrap();
    assert_eq!(said, "hello\n", "and that was all");
    let shown = rig.dir.path().display().to_string();
    assert!(!fs::read_to_string("/proc/self/mounts").unwrap().contains(&shown));
    assert!(!rig.dir.path().join("lower/new").exists());
    rig.spaces.release("one").await.unwrap();
    assert_eq!((rig.spaces.held("one"), rig.spaces.end_of("one").await.unwrap()), (None, None));
}

/// A shell waits for children that have ended, also before it becomes another program: what stands for
/// a first process ends after that.
const WHILE_SHELL: &str = "while [ \"$(cat /proc/$PPID/comm)\" = sh ]; do :; done";

#[tokio::test]
async fn an_end_that_comes_before_anybody_knows_is_known_all_the_same() {
    let Some(rig) = rig() else { return };
    for round in 0..20 {
        let name = format!("{round}");
        let script = format!(
            "sh -c '{WHILE_SHELL}; exit 3' & echo $! > $1/pid; exec sleep 0.00{}",
            round % 5
        );
        rig.spaces.execute(rig.making(&name, &script)).await.unwrap().unwrap();
        assert_eq!(rig.spaces.end_of(&name).await.unwrap(), Some(End::Code(3)));
        rig.spaces.release(&name).await.unwrap();
    }
    let killed = format!("sh -c '{WHILE_SHELL}; kill -9 $$' & echo $! > $1/pid; exec sleep 0.001");
    rig.spaces.execute(rig.making("killed", &killed)).await.unwrap().unwrap();
    assert_eq!(rig.spaces.end_of("killed").await.unwrap(), Some(End::Signal(9)));
}

#[tokio::test]
async fn what_fails_is_told_with_what_it_said() {
    let Some(rig) = rig() else { return };
    let failed = |execute| {
        let spaces = rig.spaces.clone();
        async move { spaces.execute(execute).await.unwrap_err().to_string() }
    };
    assert_eq!(rig.spaces.execute(execute("none", "exit 0")).await.unwrap(), None);
    assert_eq!(failed(execute("none", "echo broken >&2; exit 1")).await, "broken");
    assert_eq!(failed(execute("none", "exit 4")).await, "it exited with status 4");
    let missing = Execute { program: "/no/such".into(), ..execute("none", "") };
    assert!(failed(missing).await.starts_with("/no/such: No such file"));
    let nothing = failed(rig.making("nothing", "true")).await;
    assert!(nothing.starts_with("no first process"), "{nothing}");
    let mut nowhere = rig.making("nowhere", SLEEPS);
    if let Some(makes) = &mut nowhere.makes {
        makes.root.layers = vec!["none".into()];
    }
    let nowhere = failed(nowhere).await;
    assert!(nowhere.contains("none: No such file"), "{nowhere}");
    assert_eq!(rig.spaces.all_held(), Vec::<String>::new());
}

#[tokio::test]
async fn ends_are_kept_for_the_next_worker() {
    let Some(mut rig) = rig() else { return };
    let lives_on = rig.spaces.execute(rig.making("lives", SLEEPS)).await.unwrap().unwrap();
    let script = "(while [ ! -e $1/end ]; do sleep 0.01; done; exit 5) & echo $! > $1/pid";
    let ends = rig.spaces.execute(rig.making("ends", script)).await.unwrap().unwrap();
    let end = rig.dir.path().join("ends/end");
    rig.restart(|| {
        fs::write(end, "").unwrap();
        until("it has ended", || !lives(ends));
    });
    let mut held = rig.spaces.all_held();
    held.sort_unstable();
    assert_eq!(held, ["ends", "lives"]);
    assert_eq!(rig.spaces.held("lives"), Some(lives_on));
    assert_eq!(rig.spaces.end_of("ends").await.unwrap(), Some(End::Code(5)));
    rig.spaces.release("lives").await.unwrap();
    assert!(!lives(lives_on));
}

/// As when a worker dies in the middle of a start.
#[tokio::test]
async fn a_release_waits_for_what_is_executed_and_ends_what_comes_of_it() {
    let Some(rig) = rig() else { return };
    let script = format!("touch $1/begun; sleep 0.3; {SLEEPS}");
    let begun = rig.dir.path().join("late/begun");
    let making = rig.spaces.execute(rig.making("late", &script));
    let begins = async {
        while !begun.exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        made = making => panic!("{made:?}"),
        () = begins => {}
    }
    tokio::time::timeout(DEADLINE, rig.spaces.release("late")).await.unwrap().unwrap();
    let pid = fs::read_to_string(rig.dir.path().join("late/pid")).unwrap();
    let pid = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    assert!(test_kill_process(pid).is_err());
}

#[tokio::test]
async fn a_keeper_that_ends_takes_along_what_it_holds() {
    let Some(mut rig) = rig() else { return };
    let closed = rig.spaces.execute(rig.making("closed", SLEEPS)).await.unwrap().unwrap();
    rig.processes.close();
    assert!(!lives(closed));
    (rig.processes, rig.spaces) = start(rig.dir.path());
    assert_eq!(rig.spaces.held("closed"), None);
    let orphan = rig.spaces.execute(rig.making("orphan", SLEEPS)).await.unwrap().unwrap();
    rig.kill_keeper();
    until("the next keeper has ended it", || !lives(orphan));
    until("nothing is held", || rig.spaces.held("orphan").is_none());
}
