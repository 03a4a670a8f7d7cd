//! What the cases share: a cluster with twenty functions under steady load.

use std::{
    env, fs,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Result;
use dirigent_rig::{
    cluster::{Cluster, Shape},
    load::{Mix, Outcomes, Steady},
    part::until,
};

/// Called all the time.
const FUNCTIONS: usize = 20;

/// A cluster that the case has for itself: two at once would be too much for a small machine.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    _alone: MutexGuard<'static, ()>,
}

/// How often a case does what it does: once in the suite, ten times for its figures.
pub(crate) fn rounds() -> usize {
    env::var("DIRIGENT_RIG_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

impl Stage {
    /// With two data planes and so many workers; `None` where it cannot be, which is said.
    pub(crate) fn set(workers: usize) -> Result<Option<Self>> {
        static ALONE: Mutex<()> = Mutex::new(());
        if let Some(why) = Cluster::obstacle() {
            println!("skip: {why}");
            return Ok(None);
        }
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let dirigent = Path::new(env!("CARGO_BIN_EXE_dirigent")).to_owned();
        let cluster = Cluster::start(&Shape { dirigent, planes: 2, workers, seed: 1 })?;
        let this = Self { cluster, _alone: alone };
        let names: Vec<String> = warm().iter().map(ToString::to_string).collect();
        this.deploy(&names, "")?;
        Ok(Some(this))
    }

    /// Deploys built-in functions by these names, with more lines of their manifest.
    pub(crate) fn deploy(&self, names: &[String], more: &str) -> Result<()> {
        let folder = tempfile::tempdir()?;
        for name in names {
            let dir = folder.path().join(name);
            fs::create_dir(&dir)?;
            fs::write(dir.join("dirigent.toml"), manifest(name, more))?;
            self.cluster.deploy(0, &dir)?;
        }
        Ok(())
    }

    /// Calls all of the twenty, in turn, and goes on once each has answered.
    pub(crate) fn load(&self) -> Result<Steady> {
        let mix = Mix {
            name: "warm".to_owned(),
            functions: warm(),
            per_second: 60,
            execution: Duration::from_millis(20),
        };
        let load = self.cluster.load(mix)?;
        self.goes_on(&load, 10 * FUNCTIONS)?;
        Ok(load)
    }

    /// Waits until so many more calls have succeeded.
    pub(crate) fn goes_on(&self, load: &Steady, calls: usize) -> Result<()> {
        let to = load.succeeded() + calls as u64;
        until("calls succeed", || load.succeeded() >= to).map(drop)
    }

    /// Ends a load; nothing may be lost, and nothing executed twice that may not be.
    pub(crate) fn end(&self, load: Steady) -> Result<Outcomes> {
        let outcomes = load.stop()?;
        println!("{:?}, p99 {:?}", outcomes.kinds(), outcomes.percentile(99));
        assert_eq!(outcomes.lost(), 0);
        let mut unseen = 0;
        until("the functions' lines are written", || {
            let witness = self.cluster.witness();
            assert_eq!(witness.beside, [""; 0]);
            unseen = 0;
            for (number, may_repeat, succeeded) in outcomes.numbers() {
                let executions = witness.executions(&number);
                assert!(executions <= 1 || may_repeat, "{number} was executed {executions} times");
                unseen += usize::from(succeeded && executions == 0);
            }
            unseen == 0
        })?;
        Ok(outcomes)
    }
}

fn warm() -> Vec<Arc<str>> {
    (0..FUNCTIONS).map(|n| format!("f{n}").into()).collect()
}

fn manifest(name: &str, more: &str) -> String {
    format!(
        "name = \"{name}\"\n[sandbox]\ncommand = [\"dirigent\", \"example\", \"hello\"]\n\
         [resources]\ncpu = \"10m\"\nmemory = \"16MiB\"\n\
         [invocation]\ntimeout = \"10s\"\nqueue_timeout = \"20s\"\n{more}"
    )
}

/// Of the times of a case.
pub(crate) fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
