//! What happens to a function whatever its policy: its calls, and how long its starts take.

use std::{str::FromStr, time::Duration};

use dirigent_core::policy::random::Pcg;
use dirigent_trace::{
    arrivals::{Arrivals, schedule_one},
    trace::Trace,
};
use serde::Serialize;

/// One call of a function. Times are nanoseconds from the beginning of the replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// When it comes.
    pub at: u64,
    /// How long it executes.
    pub runs: u64,
}

/// A function with its calls.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Its name in the trace.
    pub name: String,
    /// In the order of their times.
    pub calls: Vec<Call>,
    /// MiB of a sandbox, if the trace says.
    pub memory_mib: u64,
}

/// Memory of a function of which the trace does not say it: Azure's median application
/// (*Serverless in the Wild*, figure 7: half allocate at most 170 MB).
const USUAL_MEMORY: u64 = 170;

impl Subject {
    /// The functions of the first `minutes` of a trace.
    #[must_use]
    pub fn all(trace: &Trace, minutes: usize, arrivals: Arrivals, seed: u64) -> Vec<Self> {
        let subject = |(index, function): (usize, &dirigent_trace::trace::TraceFunction)| Self {
            name: function.name.clone(),
            calls: schedule_one(trace, index, minutes, arrivals, 1.0, seed)
                .iter()
                .map(|shot| Call { at: nanos(shot.at), runs: nanos(shot.execution) })
                .collect(),
            memory_mib: function.memory_mib.unwrap_or(USUAL_MEMORY),
        };
        trace.functions.iter().enumerate().map(subject).collect()
    }

    /// The source of everything random about this function: of its name and the seed, so that
    /// nothing depends on the order of functions.
    #[must_use]
    pub fn random(&self, seed: u64) -> Pcg {
        // FNV-1a.
        let hash = self.name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Pcg::new(hash ^ seed)
    }
}

/// How long a sandbox takes from the decision until it is ready.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StartTime {
    /// Always so long.
    Fixed(Duration),
    /// Log-normal around a median; sigma is the deviation of the natural logarithm.
    Lognormal {
        /// Half of the starts are faster.
        median: Duration,
        /// Deviation of the logarithm.
        sigma: f64,
    },
}

impl StartTime {
    /// One start's.
    pub fn draw(self, random: &mut Pcg) -> u64 {
        match self {
            Self::Fixed(time) => nanos(time),
            Self::Lognormal { median, sigma } => {
                // Box and Muller's method.
                let unit = |draw: u32| (f64::from(draw) + 1.0) / (f64::from(u32::MAX) + 2.0);
                let radius = (-2.0 * unit(random.draw()).ln()).sqrt();
                let normal = radius * (std::f64::consts::TAU * unit(random.draw())).cos();
                nanos(median.mul_f64((normal * sigma).exp().min(1000.0)))
            }
        }
    }
}

impl FromStr for StartTime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let want = "want a time such as `175ms`, or `lognormal:MEDIAN,SIGMA` such as \
                    `lognormal:175ms,0.4`";
        let Some(rest) = text.strip_prefix("lognormal:") else {
            return time(text).map(Self::Fixed).ok_or_else(|| format!("`{text}`: {want}"));
        };
        let parsed = rest.split_once(',').and_then(|(median, sigma)| {
            let sigma: f64 = sigma.trim().parse().ok()?;
            let median = time(median)?;
            (0.0..=3.0).contains(&sigma).then_some(Self::Lognormal { median, sigma })
        });
        parsed.ok_or_else(|| format!("`{text}`: {want}, with SIGMA from 0 to 3"))
    }
}

/// A positive duration below an hour, as `5ms`, `1.5s`.
fn time(text: &str) -> Option<Duration> {
    let text = text.trim();
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 1e-3),
        None => (text.strip_suffix('s')?, 1.0),
    };
    let seconds: f64 = number.trim().parse::<f64>().ok()? * unit;
    (seconds > 0.0 && seconds < 3600.0).then(|| Duration::from_secs_f64(seconds))
}

/// Nanoseconds of a duration.
#[must_use]
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_times_are_read_or_the_error_says_what_is_wanted() {
        let fixed = |ms| Ok(StartTime::Fixed(Duration::from_millis(ms)));
        assert_eq!("175ms".parse(), fixed(175));
        assert_eq!("1.5s".parse(), fixed(1500));
        let median = Duration::from_millis(5);
        assert_eq!("lognormal:5ms,0.4".parse(), Ok(StartTime::Lognormal { median, sigma: 0.4 }));
        for bad in ["", "175", "-1s", "0ms", "2h", "lognormal:5ms", "lognormal:5ms,9", "nans"] {
            let error = bad.parse::<StartTime>().unwrap_err();
            assert!(error.contains("lognormal:MEDIAN,SIGMA"), "{error}");
        }
    }

    #[test]
    fn lognormal_starts_have_their_median() {
        let start: StartTime = "lognormal:100ms,0.5".parse().unwrap();
        let mut random = Pcg::new(1);
        let mut drawn: Vec<u64> = (0..10_001).map(|_| start.draw(&mut random)).collect();
        drawn.sort_unstable();
        assert!((95_000_000..105_000_000).contains(&drawn[5000]), "{}", drawn[5000]);
        assert!(drawn[0] > 0 && drawn[10_000] > 300_000_000);
    }
}
