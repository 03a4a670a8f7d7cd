//! What the cases share: a cluster with twenty functions under steady load.

use std::{
    env,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use dirigent_rig::{
    cluster::{Cluster, Programs, Shape},
    functions,
    load::{Outcomes, Steady},
    part::until,
};

/// Which program to run in place of the tests' own: an optimised one, for figures.
const PROGRAM: &str = "DIRIGENT_RIG_PROGRAM";
/// Which program to begin with: one of an older version, which a rolling restart replaces.
const FROM: &str = "DIRIGENT_RIG_FROM";

/// Called all the time.
pub(crate) const FUNCTIONS: usize = 20;

/// A cluster that the case has for itself: two at once would be too much for a small machine.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    /// Loads so far.
    loads: AtomicUsize,
    _alone: MutexGuard<'static, ()>,
}

/// The program that is tested.
fn program() -> PathBuf {
    let built = || Path::new(env!("CARGO_BIN_EXE_dirigent")).to_owned();
    env::var_os(PROGRAM).map_or_else(built, PathBuf::from)
}

/// How often a case does what it does: once in the suite, ten times for its figures.
pub(crate) fn rounds() -> usize {
    env::var("DIRIGENT_RIG_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

impl Stage {
    /// With two data planes and so many workers; `None` where it cannot be, which is said.
    pub(crate) fn set(workers: usize) -> Result<Option<Self>> {
        Self::set_with(workers, "")
    }

    /// As [`Self::set`], with more lines in the manifests of the twenty.
    pub(crate) fn set_with(workers: usize, more: &str) -> Result<Option<Self>> {
        let Some(this) = Self::bare(workers, None)? else { return Ok(None) };
        this.deploy(&functions::steady(FUNCTIONS), more)?;
        Ok(Some(this))
    }

    /// Without functions, with workers each of which is so many emulated ones.
    pub(crate) fn bare(workers: usize, emulate: Option<usize>) -> Result<Option<Self>> {
        static ALONE: Mutex<()> = Mutex::new(());
        if let Some(why) = Cluster::obstacle() {
            println!("skip: {why}");
            return Ok(None);
        }
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let dirigent = env::var_os(FROM).map_or_else(program, PathBuf::from);
        let cluster = Cluster::start(&Shape { dirigent, planes: 2, workers, emulate, seed: 1 })?;
        Ok(Some(Self { cluster, loads: AtomicUsize::new(0), _alone: alone }))
    }

    /// What is started from now on is of the version that is tested.
    pub(crate) fn upgrade(&mut self) {
        self.cluster.install(program());
    }

    /// Deploys built-in functions by these names, with more lines of their manifest.
    pub(crate) fn deploy(&self, names: &[impl AsRef<str>], more: &str) -> Result<()> {
        names.iter().try_for_each(|name| functions::deploy(&self.cluster, 0, name.as_ref(), more))
    }

    /// How often a call was executed, by its path.
    pub(crate) fn executions(&self, number: &str) -> usize {
        self.cluster.witness().executions(number)
    }

    /// Waits until each of the twenty has so many sandboxes, by the leader's word and by what runs.
    pub(crate) fn as_wanted(&self, min: u64, max: u64) -> Result<()> {
        let (begun, mut seen) = (Instant::now(), String::new());
        let held = until("min and max hold", || {
            let programs = self.cluster.programs();
            let told = self.cluster.leader().map(|leader| self.cluster.functions(leader));
            let told = told.unwrap_or_default();
            let counts: Vec<(u64, u64)> = functions::steady(FUNCTIONS)
                .iter()
                .map(|name| {
                    let count = |key| told.get(&**name).and_then(|it| it[key].as_u64());
                    let told = count("ready").unwrap_or(0) + count("starting").unwrap_or(0);
                    (told, programs.get(&**name).map_or(0, |all| all.len() as u64))
                })
                .collect();
            let holds = |(told, run): &(u64, u64)| told == run && (min..=max).contains(told);
            let off = || counts.iter().enumerate().filter(|(_, counts)| !holds(counts));
            let now = off().map(|(n, (told, run))| format!("f{n}: {told} known, {run} run; "));
            let now: String = now.collect();
            if seen != now {
                println!("at {:?}: {now}", begun.elapsed());
                seen = now;
            }
            seen.is_empty()
        });
        println!("min and max hold after {:?}", held.context(seen)?);
        Ok(())
    }

    /// That the sandboxes of then are there still, not started anew. Of a function that had several
    /// some may be gone by now: a busy machine makes more of them than the load needs a minute later.
    /// Most have one.
    pub(crate) fn live_on(&self, before: &Programs) {
        let after = self.cluster.programs();
        for (function, programs) in before {
            let lives = |program| after.get(function).is_some_and(|all| all.contains(program));
            assert!(programs.iter().any(lives), "{function}: {programs:?} {after:?}");
        }
    }

    /// Calls all of the twenty, in turn, and goes on once each has answered.
    pub(crate) fn load(&self) -> Result<Steady> {
        // Calls of one load are not those of another.
        let name = format!("warm{}", self.loads.fetch_add(1, Ordering::Relaxed));
        let mix = functions::mix(&name, functions::steady(FUNCTIONS));
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
        let (kinds, busy) = (outcomes.kinds(), outcomes.busy);
        println!("{kinds:?}, p99 {:?}, processors {busy} % busy", outcomes.percentile(99));
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

/// Of the times of a case.
pub(crate) fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
