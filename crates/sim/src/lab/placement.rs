//! `dirigent-sim placement`: ways to choose a worker for a start, beside each other.
//!
//! Workers of three sizes, functions of very different popularity, sandboxes that live for a while:
//! how evenly the workers are loaded, how many starts go where the artifact is already, how many
//! workers a choice looks at, and how full the cluster is when the first start fits nowhere.

mod field;
mod rivals;

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use clap::{Args, builder::RangedU64ValueParser};
use dirigent_core::{
    WorkerId,
    policy::{
        placement::{Placement, TwoChoices},
        random::Pcg,
    },
};

use field::{Cluster, Need};
use rivals::{Kubernetes, Random, RoundRobin};

/// What to measure.
#[derive(Clone, Debug, Args)]
pub struct PlacementArgs {
    /// Workers: a third each of 16, 32 and 64 GiB, with a processor for each 4 GiB
    #[arg(long, default_value_t = 1000, value_parser = some())]
    pub workers: usize,
    /// Functions; the most popular one is started as often as all of rank N/2 to N together
    #[arg(long, default_value_t = 2000, value_parser = some())]
    pub functions: usize,
    /// Starts that are measured, after as many that fill the cluster
    #[arg(long, default_value_t = 100_000, value_parser = some())]
    pub starts: usize,
    /// Seed of everything
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

fn some() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

/// A policy's figures.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Which.
    pub name: &'static str,
    /// Share of the fullest resource in use: the mean over workers, over time.
    pub load_mean: f64,
    /// The same of the most loaded worker in a hundred.
    pub load_p99: f64,
    /// Standard deviation over workers, over time.
    pub load_spread: f64,
    /// Starts on a worker that had the artifact.
    pub held: f64,
    /// Workers looked at for a start.
    pub looks: f64,
    /// Share of all memory in use when the first start fitted nowhere.
    pub full: f64,
}

/// On average so much of the memory is in use.
const FILL: f64 = 0.7;
/// A sandbox's mean life. Of an exponential distribution: what is known of its age says nothing.
const LIFE: Duration = Duration::from_secs(60);
/// A start holds a token for so long: the published median cold start.
const START: Duration = Duration::from_millis(175);
/// How often workers are looked at.
const SAMPLES: usize = 200;

/// Measures all of them.
#[must_use]
pub fn measure(args: &PlacementArgs) -> Vec<Figures> {
    let seed = args.seed;
    [
        ("two choices (ours)", Box::new(TwoChoices::new(seed)) as Box<dyn Placement>),
        ("random", Box::new(Random::new(seed))),
        ("round-robin", Box::new(RoundRobin::default())),
        ("kubernetes score", Box::new(Kubernetes)),
    ]
    .map(|(name, policy)| one(args, name, policy))
    .into()
}

/// As a table.
#[must_use]
pub fn table(all: &[Figures]) -> String {
    let head = "policy               load mean    p99  spread  artifact there   looks  full at\n";
    let rows = all.iter().map(|f| {
        format!(
            "{:20} {:9.3} {:6.3} {:7.3} {:15.3} {:7.1} {:8.3}\n",
            f.name, f.load_mean, f.load_p99, f.load_spread, f.held, f.looks, f.full
        )
    });
    std::iter::once(head.to_owned()).chain(rows).collect()
}

/// What ours has to be, beside the others: text, and whether it holds.
#[must_use]
pub fn bars(all: &[Figures]) -> Vec<(String, bool)> {
    let find = |name: &str| all.iter().find(|figures| figures.name.starts_with(name));
    let (Some(ours), Some(random), Some(scored)) =
        (find("two"), find("random"), find("kubernetes"))
    else {
        return Vec::new();
    };
    vec![
        (
            format!(
                "spread of load {:.3}, less than random's {:.3}",
                ours.load_spread, random.load_spread
            ),
            ours.load_spread < random.load_spread,
        ),
        (
            format!("the artifact is there for {:.3}, random {:.3}", ours.held, random.held),
            ours.held > random.held,
        ),
        (
            format!("{:.1} workers looked at, the score {:.0}", ours.looks, scored.looks),
            ours.looks <= 4.5,
        ),
    ]
}

fn one(args: &PlacementArgs, name: &'static str, mut policy: Box<dyn Placement>) -> Figures {
    let mut cluster = Cluster::new(args.workers);
    let mut source = Source { random: Pcg::new(args.seed ^ 0x5eed), functions: args.functions };
    // By Little's law so many starts a second keep the cluster as full as wanted.
    let mean = source.mean_memory();
    let gap = LIFE.as_secs_f64() * mean / (cluster.memory() as f64 * FILL);
    let (mut now, mut lives, mut starting) = (0.0, Ends::default(), Ends::default());
    let mut seen = Seen::default();
    for number in 0..2 * args.starts {
        now += gap * source.exponential();
        for (worker, _) in starting.until(now) {
            cluster.started(worker);
        }
        for (worker, need) in lives.until(now) {
            cluster.end(worker, need);
        }
        let need = source.need();
        let measured = number >= args.starts;
        cluster.looks.set(0);
        let Some(worker) = policy.choose(&cluster.field(need)) else { continue };
        if measured {
            seen.count(&cluster, worker, need);
            if number % (args.starts / SAMPLES).max(1) == 0 {
                seen.sample(&cluster);
            }
        }
        cluster.start(worker, need);
        starting.push(now + START.as_secs_f64(), worker, need);
        lives.push(now + LIFE.as_secs_f64() * source.exponential(), worker, need);
    }
    // From here on nothing ends, and starts take no time.
    for (worker, _) in starting.until(f64::INFINITY) {
        cluster.started(worker);
    }
    loop {
        let need = source.need();
        let Some(worker) = policy.choose(&cluster.field(need)) else { break };
        cluster.start(worker, need);
        cluster.started(worker);
    }
    seen.figures(name, cluster.full())
}

/// What was seen on the way.
#[derive(Debug, Default)]
struct Seen {
    starts: u64,
    held: u64,
    looks: u64,
    mean: f64,
    p99: f64,
    spread: f64,
    samples: u32,
}

impl Seen {
    fn count(&mut self, cluster: &Cluster, worker: WorkerId, need: Need) {
        self.starts += 1;
        self.held += u64::from(cluster.holds(worker, need));
        self.looks += cluster.looks.get();
    }

    fn sample(&mut self, cluster: &Cluster) {
        let mut loads: Vec<u32> = cluster.loads().collect();
        loads.sort_unstable();
        let all = loads.len().max(1) as f64;
        let mean = loads.iter().map(|load| f64::from(*load)).sum::<f64>() / all;
        let off = |load: &u32| (f64::from(*load) - mean).powi(2);
        self.spread += (loads.iter().map(off).sum::<f64>() / all).sqrt() / 1000.0;
        self.p99 += loads.get(loads.len() * 99 / 100).map_or(0.0, |load| f64::from(*load)) / 1000.0;
        self.mean += mean / 1000.0;
        self.samples += 1;
    }

    fn figures(&self, name: &'static str, full: f64) -> Figures {
        let (starts, samples) = (self.starts.max(1) as f64, f64::from(self.samples.max(1)));
        Figures {
            name,
            load_mean: self.mean / samples,
            load_p99: self.p99 / samples,
            load_spread: self.spread / samples,
            held: self.held as f64 / starts,
            looks: self.looks as f64 / starts,
            full,
        }
    }
}

/// What is over at some time, in nanoseconds.
#[derive(Debug, Default)]
struct Ends(BinaryHeap<Reverse<(u64, WorkerId, Need)>>);

impl Ends {
    fn push(&mut self, at: f64, worker: WorkerId, need: Need) {
        self.0.push(Reverse((nanos(at), worker, need)));
    }

    fn until(&mut self, now: f64) -> Vec<(WorkerId, Need)> {
        let (mut over, now) = (Vec::new(), nanos(now));
        while let Some(Reverse((at, worker, need))) = self.0.peek().copied()
            && at <= now
        {
            self.0.pop();
            over.push((worker, need));
        }
        over
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time to come")]
fn nanos(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}

/// Where starts come from.
#[derive(Debug)]
struct Source {
    random: Pcg,
    functions: usize,
}

/// Of sandboxes, in MiB and thousandths of a processor: what is common on Lambda and Knative. A
/// function has always the same.
const SIZES: [(u64, u64); 4] = [(128, 100), (256, 100), (512, 250), (1024, 500)];

impl Source {
    /// From 0 on and below 1.
    fn uniform(&mut self) -> f64 {
        f64::from(self.random.draw()) / 2_f64.powi(32)
    }

    fn exponential(&mut self) -> f64 {
        -(1.0 - self.uniform()).ln()
    }

    /// Popularity falls with the rank (Zipf with exponent 1, by its continuous inverse).
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small number")]
    fn need(&mut self) -> Need {
        let rank = (self.functions as f64 + 1.0).powf(self.uniform());
        let function = (rank as usize).saturating_sub(1).min(self.functions.saturating_sub(1));
        let (memory, cpu) = SIZES.get(function % SIZES.len()).copied().unwrap_or_default();
        Need { function, memory, cpu }
    }

    fn mean_memory(&self) -> f64 {
        let mut other = Self { random: Pcg::new(99), functions: self.functions };
        let draws = 100_000;
        (0..draws).map(|_| other.need().memory as f64).sum::<f64>() / f64::from(draws)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_choices_spread_more_evenly_than_chance_and_look_at_four_workers() {
        let args = PlacementArgs { workers: 100, functions: 200, starts: 20_000, seed: 3 };
        let all = measure(&args);
        for (text, holds) in bars(&all) {
            assert!(holds, "{text}\n{}", table(&all));
        }
        let looks = |name: &str| all.iter().find(|f| f.name == name).unwrap().looks;
        assert!(looks("kubernetes score") > 50.0, "it looks at all that are open");
        assert!(all.iter().all(|figures| figures.full > 0.9), "{}", table(&all));
    }
}
