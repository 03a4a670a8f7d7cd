//! What the published designs do otherwise: a call that is bound to a sandbox before that is free,
//! and a call that gets a sandbox of its own.

use std::{collections::VecDeque, time::Duration};

use super::{Binding, What, World};
use crate::lab::calls::nanos;

impl World<'_> {
    /// Early binding: it runs at one that is free, or waits at one of those there are.
    pub(super) fn choose(&mut self, call: u32, again: Duration) {
        if self.sandboxes.idle() > 0 {
            return self.bind_idle(call);
        }
        let Some(sandbox) = self.sandboxes.any(&mut self.random) else {
            return self.queue.push_back(call);
        };
        self.sandboxes.wait(sandbox, call);
        let round = self.rounds.get_mut(call as usize).map_or(0, |round| {
            *round += 1;
            *round
        });
        self.put(self.now + nanos(again), What::Choose { call, round });
    }

    /// It has waited for long enough at the one that it chose.
    pub(super) fn choose_anew(&mut self, call: u32, round: u32) {
        let Binding::Early { again } = self.rules.binding else { return };
        let current = self.rounds.get(call as usize).copied();
        if current == Some(round) && self.sandboxes.stop_waiting(call) {
            self.choose(call, again);
        }
    }

    /// A sandbox is started for this call alone.
    pub(super) fn serve_once(&mut self, call: u32, report_below: Duration) {
        let Some(call) = self.calls.get(call as usize).copied() else { return };
        let takes = self.start.draw(&mut self.random);
        self.single += 1;
        let told = self.gaps.median().is_some_and(|median| median < nanos(report_below));
        self.reported += u32::from(told);
        self.meter.started(self.now);
        self.meter.served_once(call, takes);
        self.put(self.now + takes + call.runs, What::Spent { told });
    }

    pub(super) fn spent(&mut self, told: bool) {
        self.single -= 1;
        self.reported -= u32::from(told);
        let levels = self.levels();
        // It had no slot: only the level changes.
        self.policy.finished(&levels, Duration::ZERO);
    }
}

/// The last times between arrivals.
#[derive(Clone, Debug, Default)]
pub(super) struct Gaps {
    last: Option<u64>,
    recent: VecDeque<u64>,
}

/// So many are remembered: enough for a median, few enough to follow a change.
const GAPS: usize = 31;

impl Gaps {
    pub(super) fn arrived(&mut self, now: u64) {
        if let Some(last) = self.last.replace(now) {
            if self.recent.len() == GAPS {
                self.recent.pop_front();
            }
            self.recent.push_back(now - last);
        }
    }

    fn median(&self) -> Option<u64> {
        let mut sorted: Vec<u64> = self.recent.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied()
    }
}
