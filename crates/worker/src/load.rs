//! How busy the machine is, sampled once a beat from `/proc`.

use std::{
    fs,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use dirigent_core::{Bytes, MilliCpu, frame::Load, worker::Event};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval},
};

use crate::driver::Input;

/// How often the control plane hears a worker.
const BEAT: Duration = Duration::from_millis(400);

/// What the machine does, read about once a beat, however many workers ask: several in one
/// process would else spend a good part of it on the same figures. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    last: Arc<Mutex<Option<Reading>>>,
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Instant,
    ticks: Ticks,
    load: Load,
}

impl Meter {
    /// What is used now, or was less than a beat ago.
    fn load(&self) -> Load {
        self.load_by(Ticks::now)
    }

    fn load_by(&self, ticks: impl FnOnce() -> Ticks) -> Load {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // A worker's own beats are not all of the same length.
        if let Some(last) = last.filter(|last| last.at.elapsed() < BEAT / 2) {
            return last.load;
        }
        let ticks = ticks();
        let load = Load {
            sandboxes: 0,
            memory_used: memory().map_or(Bytes(0), |(total, free)| Bytes(total - free.min(total))),
            cpu_used: last.map_or(MilliCpu(0), |last| ticks.used_since(last.ticks)),
        };
        *last = Some(Reading { at: Instant::now(), ticks, load });
        load
    }
}

/// Tell what is used for as long as the worker runs. The number of sandboxes is the machine's to
/// fill in.
pub(crate) async fn sample(meter: Meter, inputs: mpsc::Sender<Input>) {
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        if inputs.send(Input::Core(Event::Sampled(meter.load()))).await.is_err() {
            return;
        }
    }
}

/// Memory of the machine: all of it, and what programs could still get.
pub(crate) fn memory() -> Option<(u64, u64)> {
    parse_memory(&fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse_memory(text: &str) -> Option<(u64, u64)> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
    };
    Some((field("MemTotal")?, field("MemAvailable").or_else(|| field("MemFree"))?))
}

/// Processor time of the machine since it started, in ticks.
#[derive(Clone, Copy, Debug, Default)]
struct Ticks {
    busy: u64,
    all: u64,
    cores: u64,
}

impl Ticks {
    fn now() -> Self {
        // Where there is no /proc/stat, the load is unknown: zero, as the frame says.
        fs::read_to_string("/proc/stat").map(|text| Self::parse(&text)).unwrap_or_default()
    }

    fn parse(text: &str) -> Self {
        let mut lines = text.lines().take_while(|line| line.starts_with("cpu"));
        // user nice system idle iowait irq softirq steal; guest time is part of user time.
        let fields = lines.next().unwrap_or_default().split_whitespace().skip(1).take(8);
        let fields: Vec<u64> = fields.filter_map(|field| field.parse().ok()).collect();
        let all = fields.iter().sum();
        let idle: u64 = fields.iter().skip(3).take(2).sum();
        Self { busy: all - idle, all, cores: lines.count() as u64 }
    }

    fn used_since(self, before: Self) -> MilliCpu {
        let all = self.all.saturating_sub(before.all);
        let busy = self.busy.saturating_sub(before.busy);
        let milli = (busy * self.cores * 1000).checked_div(all).unwrap_or(0);
        MilliCpu(u32::try_from(milli).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_in_use_are_a_share_of_the_time_passed() {
        let stat = |busy: u64, idle: u64| {
            Ticks::parse(&format!("cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1\ncpu1 1\nintr 5\n"))
        };
        assert_eq!(stat(150, 150).used_since(stat(100, 100)), MilliCpu(1000));
        assert_eq!(stat(100, 100).used_since(stat(100, 100)), MilliCpu(0));
        assert_eq!(Ticks::parse("").used_since(Ticks::default()), MilliCpu(0));
    }

    #[tokio::test(start_paused = true)]
    async fn many_workers_of_one_process_look_at_the_machine_once_a_beat() {
        let (meter, looked) = (Meter::default(), std::cell::Cell::new(0));
        let look = || {
            looked.set(looked.get() + 1);
            Ticks { busy: 100 * looked.get(), all: 200 * looked.get(), cores: 2 }
        };
        for beat in 1..=5 {
            for _ in 0..1000 {
                let load = meter.clone().load_by(look);
                // The first look has nothing to compare with.
                assert_eq!(load.cpu_used, MilliCpu(if beat == 1 { 0 } else { 1000 }));
                assert!(load.memory_used.0 > 0);
            }
            assert_eq!(looked.get(), beat);
            tokio::time::advance(BEAT).await;
        }
    }

    #[test]
    fn memory_is_read_in_kibibytes() {
        let text = "MemTotal:       1000 kB\nMemFree:  10 kB\nMemAvailable:    400 kB\n";
        assert_eq!(parse_memory(text), Some((1_024_000, 409_600)));
        assert_eq!(parse_memory("nonsense"), None);
    }
}
