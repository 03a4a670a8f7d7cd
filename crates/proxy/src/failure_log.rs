//! Failed calls in the log: a line for each function, code and second, with how many there were and
//! the last one's request id. What the platform failed at is a warning; what it refused, because of
//! the caller or a limit, is information. What a function answers is not the platform's to log.

use std::{
    borrow::Cow,
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex},
    time::Duration,
};

use dirigent_core::FunctionName;
use http::HeaderValue;
use tokio::sync::Notify;

use crate::{Shared, slot::lock};

/// How often lines are written.
const EVERY: Duration = Duration::from_secs(1);
/// Lines at once; failures of more functions are only counted.
const LINES: usize = 100;

/// The function, if there is one, and what happened to its calls.
type Key = (Option<FunctionName>, &'static str);

/// Calls that ended alike, the last of them in full.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) status: u16,
    pub(crate) request_id: HeaderValue,
    pub(crate) why: Cow<'static, str>,
    /// The platform failed; else it refused.
    pub(crate) is_fault: bool,
}

#[derive(Debug, Default)]
struct Seen {
    lines: HashMap<Key, (u64, Failed)>,
    /// What had no room among them.
    more: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct FailureLog {
    seen: Mutex<Seen>,
    any: Notify,
}

impl FailureLog {
    pub(crate) fn note(&self, function: Option<FunctionName>, code: &'static str, failed: Failed) {
        let mut guard = lock(&self.seen);
        let Seen { lines, more } = &mut *guard;
        let has_room = lines.len() < LINES;
        match lines.entry((function, code)) {
            Entry::Occupied(mut line) => {
                let (count, last) = line.get_mut();
                *count += 1;
                *last = failed;
            }
            Entry::Vacant(line) if has_room => {
                line.insert((1, failed));
            }
            Entry::Vacant(_) => *more += 1,
        }
        drop(guard);
        self.any.notify_one();
    }

    /// Writes lines until the role ends.
    pub(crate) async fn run(shared: Arc<Shared>) {
        let stop = shared.tasks.shutdown().child_token();
        let log = &shared.failures;
        while !stop.is_cancelled() {
            let second = async {
                log.any.notified().await;
                tokio::time::sleep(EVERY).await;
            };
            tokio::select! {
                () = second => {}
                () = stop.cancelled() => {}
            }
            log.write();
        }
    }

    fn write(&self) {
        let Seen { lines, more } = std::mem::take(&mut *lock(&self.seen));
        for ((function, code), (calls, Failed { status, request_id, why, is_fault })) in lines {
            let function = function.map_or_else(|| "none".to_owned(), |name| name.to_string());
            let request_id = request_id.to_str().unwrap_or_default();
            if is_fault {
                tracing::warn!(%function, code, status, calls, request_id, %why, "calls failed");
            } else {
                tracing::info!(%function, code, status, calls, request_id, %why, "calls refused");
            }
        }
        if more > 0 {
            tracing::warn!(calls = more, "calls of many more functions failed or were refused");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(id: &str) -> Failed {
        let request_id = HeaderValue::from_str(id).unwrap();
        Failed { status: 502, request_id, why: "broken".into(), is_fault: true }
    }

    #[test]
    fn calls_that_end_alike_are_one_line_and_lines_are_bounded() {
        let log = FailureLog::default();
        let name = |number: usize| Some(format!("f{number}").parse::<FunctionName>().unwrap());
        for call in 0..1000 {
            log.note(name(0), "sandbox_lost", failed(&format!("r{call}")));
        }
        log.note(name(0), "timeout", failed("t"));
        for function in 1..1000 {
            log.note(name(function), "sandbox_lost", failed("other"));
        }
        let seen = std::mem::take(&mut *lock(&log.seen));
        assert_eq!((seen.lines.len(), seen.more), (LINES, 1001 - LINES as u64));
        let (calls, last) = &seen.lines[&(name(0), "sandbox_lost")];
        assert_eq!((*calls, last.request_id.to_str().unwrap()), (1000, "r999"));
        assert_eq!(seen.lines[&(name(0), "timeout")].0, 1);
    }
}
