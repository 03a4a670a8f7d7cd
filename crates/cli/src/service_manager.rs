//! What systemd is told where it started this process (`Type=notify`): that it is ready, that it ends,
//! and, if a watchdog is set, that its threads turn. Elsewhere nothing happens.

use std::time::Duration;

use dirigent_service::{OnCancel, Tasks};
use sd_notify::NotifyState;

/// Signs of life in the time after which the process is taken for dead, as sd_watchdog_enabled(3) has it.
const SIGNS: u32 = 2;

/// It serves; from now on it shows that it lives.
pub(crate) fn ready(what: &str, tasks: &Tasks) {
    tell(&[NotifyState::Ready, NotifyState::Status(what)]);
    if let Some(within) = sd_notify::watchdog_enabled() {
        tasks.run("watchdog", OnCancel::Abort, live(within / SIGNS));
    }
}

/// It ends in order: the drain is not a hang.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// The process is killed and started again when this stops: its threads stand still then.
async fn live(every: Duration) {
    let mut every = tokio::time::interval(every.max(Duration::from_millis(1)));
    loop {
        every.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd is not told");
    }
}
