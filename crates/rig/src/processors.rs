//! How busy the machine is: a measurement on one that is full measures the machine.

use std::fs;

/// Jiffies of all processors since boot, in use and in all.
#[derive(Clone, Copy, Debug, Default)]
struct Jiffies {
    used: u64,
    all: u64,
}

/// Of all processes, the rig's and others.
#[derive(Debug)]
pub(crate) struct Processors {
    begin: Jiffies,
}

impl Processors {
    /// From now on.
    pub(crate) fn watch() -> Self {
        Self { begin: now() }
    }

    /// In percent of all processors, since the start.
    pub(crate) fn busy(&self) -> u64 {
        let now = now();
        // Some of what is counted as idle is an estimate, which may go back.
        let used = now.used.saturating_sub(self.begin.used);
        let all = now.all.saturating_sub(self.begin.all);
        100 * used / all.max(1)
    }
}

fn now() -> Jiffies {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    parse(text.lines().next().unwrap_or_default())
}

/// `cpu USER NICE SYSTEM IDLE IOWAIT IRQ SOFTIRQ STEAL ...`
fn parse(line: &str) -> Jiffies {
    let fields: Vec<u64> = line.split(' ').filter_map(|field| field.parse().ok()).take(8).collect();
    let all: u64 = fields.iter().sum();
    let idle: u64 = fields.get(3..5).map_or(0, |idle| idle.iter().sum());
    Jiffies { used: all - idle, all }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_idle() {
        let Jiffies { used, all } = parse("cpu  10 1 5 80 4 0 0 0 0 0");
        assert_eq!((used, all), (16, 100));
    }
}
