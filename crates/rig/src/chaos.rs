//! Seeded random faults, one after the other, under steady load: what the cases script, unscripted.
//!
//! Each fault is something that people or machines do to a cluster. It is done, lasts a while, is
//! repaired, and everything has to be well again. Meanwhile a function is called for the first time
//! and another is deployed. At the end every call is accounted for: a failure is explained only by a
//! fault that may cost what was in its victim's hands, and only in that moment.

mod fault;
mod report;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Result;
use dirigent_bench::load::{Failure, Sample};
use http::Method;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::{
    cluster::{Cluster, Shape},
    functions,
    load::{Outcomes, Steady, kind},
    part::{rest, until},
};

use fault::{Fault, Harm};
pub use report::Report;

/// Called all the time.
const FUNCTIONS: usize = 20;
/// As wanted of each of them.
const SCALING: &str = "[scaling]\nmin = 1\nmax = 3\n";
/// How long a fault lasts, in milliseconds: from less than anybody takes to notice to longer than
/// the slowest takes.
const LASTS: std::ops::Range<u64> = 200..6000;
/// How long all is well between two.
const CALM: std::ops::Range<u64> = 200..2000;

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program `dirigent`.
    pub dirigent: PathBuf,
    /// How long.
    pub lasts: Duration,
    /// Of faults and of what links do.
    pub seed: u64,
}

/// Runs it; `say` gets a line for each fault.
///
/// # Errors
/// If the cluster cannot be made, or something of it cannot be done to it.
pub fn run(options: &Options, mut say: impl FnMut(&str)) -> Result<Report> {
    let shape = Shape {
        dirigent: options.dirigent.clone(),
        planes: 2,
        workers: 3,
        emulate: None,
        seed: options.seed,
    };
    let mut course = Course::begin(&shape)?;
    let mut dice = StdRng::seed_from_u64(options.seed);
    let begun = Instant::now();
    while begun.elapsed() < options.lasts {
        let fault = Fault::draw(&mut dice, &course.cluster);
        let lasts = Duration::from_millis(dice.random_range(LASTS));
        let calm = Duration::from_millis(dice.random_range(CALM));
        course.suffer(&fault, lasts, &mut say)?;
        rest(calm);
    }
    course.end()
}

/// A fault that was, and what it may explain.
#[derive(Debug)]
struct Past {
    name: String,
    harm: Harm,
    /// From before it was done until it was done.
    done: (Duration, Duration),
    /// When it was repaired.
    repaired: Duration,
}

struct Course {
    load: Steady,
    past: Vec<Past>,
    report: Report,
    /// Deploys that were acknowledged.
    acknowledged: BTreeSet<String>,
    /// After the load that calls it.
    cluster: Cluster,
}

impl Course {
    fn begin(shape: &Shape) -> Result<Self> {
        let cluster = Cluster::start(shape)?;
        let names = functions::steady(FUNCTIONS);
        for name in &names {
            functions::deploy(&cluster, 0, name, SCALING)?;
        }
        let load = cluster.load(functions::mix("warm", names.clone()))?;
        until("all functions answer", || load.succeeded() >= 10 * FUNCTIONS as u64)?;
        let acknowledged = names.iter().map(ToString::to_string).collect();
        let report = Report::default();
        Ok(Self { load, past: Vec::new(), report, acknowledged, cluster })
    }

    /// One fault from its beginning until all is well.
    fn suffer(&mut self, fault: &Fault, lasts: Duration, say: &mut impl FnMut(&str)) -> Result<()> {
        let number = self.past.len();
        // Known to all and never called: its first call is a cold start amid the fault.
        let (cold, new) = (format!("cold-{number}"), format!("new-{number}"));
        // Who has just come back may not know yet who leads, and says so.
        functions::deploy(&self.cluster, self.cluster.one_leads()?, &cold, "")?;
        self.acknowledged.insert(cold.clone());
        let name = fault.name(&self.cluster);
        let begun = self.load.now();
        fault.perform(&mut self.cluster)?;
        let done = (begun, self.load.now());
        let (started, called) = (Instant::now(), self.load.now());
        let call = self.cluster.begin_call(&cold, Method::POST)?;
        let deployed = self.deploy_amid(&new);
        rest(lasts.saturating_sub(started.elapsed()));
        fault.repair(&mut self.cluster)?;
        let repaired = self.load.now();
        let well = self.cluster.settled();
        let past = Past { name, harm: fault.harm(), done, repaired };
        let first = call.end()?;
        let (intended, late) = (called, called + first.latency());
        self.report.cold(&past, &Sample { intended, done: late, ..first.clone() });
        let name = &past.name;
        let took = match &well {
            Ok(took) => format!("{:.1} s", took.as_secs_f64()),
            Err(error) => {
                self.report.broken(format!("after {name}: {error:#}"));
                "never".to_owned()
            }
        };
        let (cold, late) = (kind(&first), first.latency().as_secs_f64());
        let at = begun.as_secs();
        say(&format!(
            "{at:>5} s  {name}, {:.1} s; cold start {cold} {late:.1} s; deploy {deployed}; well after {took}",
            (repaired - begun).as_secs_f64()
        ));
        self.past.push(past);
        Ok(())
    }

    /// A deploy at a control plane that runs: done, or refused with a reason.
    fn deploy_amid(&mut self, name: &str) -> &'static str {
        let running = self.cluster.controls.iter_mut().position(|it| it.is_running());
        let Some(at) = running else { return "not tried" };
        match functions::deploy(&self.cluster, at, name, "") {
            Ok(()) => {
                self.acknowledged.insert(name.to_owned());
                self.report.deploys.0 += 1;
                "done"
            }
            Err(_refused) => {
                self.report.deploys.1 += 1;
                "refused"
            }
        }
    }

    /// Accounts for everything.
    fn end(self) -> Result<Report> {
        let Self { load, past, mut report, acknowledged, cluster } = self;
        let outcomes = load.stop()?;
        report.faults = past.len();
        report.kinds = outcomes.kinds();
        report.lost = outcomes.lost();
        report.p99 = outcomes.percentile(99);
        report.busy = outcomes.busy;
        for sample in outcomes.failed() {
            match past.iter().find(|past| past.explains(sample)) {
                Some(past) => *report.explained.entry(past.name.clone()).or_default() += 1,
                None => {
                    let at = sample.intended.as_secs_f64();
                    let (how, host) = (kind(sample), outcomes.host(sample));
                    report
                        .broken(format!("no fault explains {how} of {host}, called at {at:.3} s"));
                }
            }
        }
        executed_once(&cluster, &outcomes, &mut report);
        as_wanted(&cluster, &acknowledged, &mut report);
        for part in cluster.said("panicked at") {
            report.broken(format!("{part} has panicked"));
        }
        Ok(report)
    }
}

/// No POST twice, and no two calls in one slot.
fn executed_once(cluster: &Cluster, outcomes: &Outcomes, report: &mut Report) {
    let witness = cluster.witness();
    for (number, may_repeat, _) in outcomes.numbers() {
        let executions = witness.executions(&number);
        report.executions += executions;
        if executions > 1 && !may_repeat {
            report.broken(format!("the POST {number} was executed {executions} times"));
        }
    }
    for line in &witness.beside {
        report.broken(format!("two executions in one slot: {line}"));
    }
}

/// Nothing acknowledged is gone, and min and max hold, by what runs.
fn as_wanted(cluster: &Cluster, acknowledged: &BTreeSet<String>, report: &mut Report) {
    let known = cluster.leader().map(|leader| cluster.functions(leader)).unwrap_or_default();
    for name in acknowledged.iter().filter(|name| !known.contains_key(*name)) {
        report.broken(format!("the deploy of {name} was acknowledged and is gone"));
    }
    let mut wrong = String::new();
    let held = until("min and max hold", || {
        let programs = cluster.programs();
        let count = |name: &str| programs.get(name).map_or(0, Vec::len);
        let names = functions::steady(FUNCTIONS);
        let off = names.iter().filter(|name| !(1..=3).contains(&count(name)));
        wrong = off.map(|name| format!("{name}: {} ", count(name))).collect();
        wrong.is_empty()
    });
    if held.is_err() {
        report.broken(format!("neither min nor max: {wrong}"));
    }
}

impl Past {
    /// Whether a call that failed was in the hands of this fault's victim, and failed as such do.
    fn explains(&self, sample: &Sample) -> bool {
        let (begun, done) = self.done;
        let until = match self.harm {
            Harm::None => return false,
            Harm::OfPlane | Harm::OfSandbox => done,
            Harm::OfHost(found_out) => done + found_out,
            Harm::Lasting(found_out) => self.repaired + found_out,
        };
        let in_time = sample.intended <= until && sample.done >= begun;
        let is = |code: &str| sample.code.as_deref() == Some(code);
        let of_sandbox = is("sandbox_lost") || sample.failure == CUT;
        in_time
            && match self.harm {
                Harm::OfSandbox => of_sandbox,
                // From there nobody says that a call has ended.
                Harm::OfHost(_) => of_sandbox || is("timeout"),
                // By the load balancer, or by the connection.
                Harm::OfPlane => sample.code.is_none() && sample.status != Some(503),
                Harm::None | Harm::Lasting(_) => true,
            }
    }
}

/// An answer that had begun.
const CUT: Option<Failure> = Some(Failure::Truncated);
