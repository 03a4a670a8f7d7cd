//! What fake sandboxes wrote: the last lines of all of them, in memory.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, PoisonError},
    time::Duration,
};

use dirigent_core::{
    FunctionId, SandboxId,
    frame::{LogLine, LogQuery},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::lock;

/// Lines kept, the oldest dropped first.
const KEPT: usize = 10_000;
/// How soon a follower notices that its reader left.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub(super) struct Log {
    lines: Mutex<Lines>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    /// How many were dropped: the number of the first one kept.
    dropped: usize,
    kept: VecDeque<(FunctionId, LogLine)>,
}

impl Log {
    pub(super) fn write(&self, function: FunctionId, sandbox: SandboxId, text: String) {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let at_ms = u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX);
        let mut lines = lock(&self.lines);
        lines.kept.push_back((function, LogLine { at_ms, sandbox, stderr: false, text }));
        if lines.kept.len() > KEPT {
            lines.kept.pop_front();
            lines.dropped += 1;
        }
        drop(lines);
        self.more.notify_all();
    }

    /// The last lines of a sandbox, as failures quote them.
    pub(super) fn tail(&self, sandbox: SandboxId) -> Vec<String> {
        let lines = lock(&self.lines);
        let of_it = lines.kept.iter().rev().filter(|(_, line)| line.sandbox == sandbox);
        let mut tail: Vec<String> = of_it.take(20).map(|(_, line)| line.text.clone()).collect();
        tail.reverse();
        tail
    }

    pub(super) fn read(
        &self,
        query: &LogQuery,
        out: &mpsc::Sender<Vec<LogLine>>,
        stop: &CancellationToken,
    ) {
        let (mut found, mut next) = self.after(query, 0);
        found.drain(..found.len().saturating_sub(query.tail as usize));
        loop {
            if !found.is_empty() && out.blocking_send(found).is_err() {
                return;
            }
            if !query.follow || out.is_closed() || stop.is_cancelled() {
                return;
            }
            let lines = lock(&self.lines);
            let end = next;
            let waited = self
                .more
                .wait_timeout_while(lines, LOOK, |l| l.dropped + l.kept.len() <= end)
                .unwrap_or_else(PoisonError::into_inner);
            drop(waited);
            (found, next) = self.after(query, next);
        }
    }

    /// Lines that match from number `from` on, and the number after the last.
    fn after(&self, query: &LogQuery, from: usize) -> (Vec<LogLine>, usize) {
        let lines = lock(&self.lines);
        let matches = |function: &FunctionId, line: &LogLine| {
            *function == query.function
                && query.sandbox.is_none_or(|sandbox| sandbox == line.sandbox)
                && query.since_ms.is_none_or(|since| line.at_ms >= since)
                && query.until_ms.is_none_or(|until| line.at_ms < until)
        };
        let new = lines.kept.iter().skip(from.saturating_sub(lines.dropped));
        let found = new.filter(|(f, l)| matches(f, l)).map(|(_, line)| line.clone()).collect();
        (found, lines.dropped + lines.kept.len())
    }
}
