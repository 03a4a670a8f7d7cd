//! How a data plane leaves: what operators want of it, and the end, when what it holds goes back to
//! the control plane, so that others serve on with it at once.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use dirigent_core::{
    Duty, FunctionName,
    frame::{DUTY, FromDataPlane},
    gate::Event,
};
use tokio::sync::{oneshot, watch};

use crate::{Shared, slot::lock};

/// For the control plane to have heard what was given back. It takes a round trip; without a control
/// plane workers make sure of the slots, which takes longer.
const HEARD_WITHIN: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(crate) struct Orders {
    is_taken: bool,
    duty: watch::Sender<Duty>,
    gives_back: AtomicBool,
    echo: Mutex<Option<(FunctionName, oneshot::Sender<()>)>>,
}

impl Orders {
    pub(crate) fn new(is_taken: bool) -> Self {
        Self {
            is_taken,
            duty: watch::Sender::new(Duty::InUse),
            gives_back: AtomicBool::new(false),
            echo: Mutex::default(),
        }
    }

    /// What it can do beyond version 1 of the protocol.
    pub(crate) fn feature(&self) -> Option<String> {
        self.is_taken.then(|| DUTY.to_owned())
    }

    pub(crate) fn duty(&self) -> Duty {
        *self.duty.borrow()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Duty> {
        self.duty.subscribe()
    }

    /// Operators want this from now on.
    pub(crate) fn told(&self, duty: Duty) {
        let differs = self.duty.send_if_modified(|known| {
            let differs = *known != duty;
            *known = duty;
            differs
        });
        if differs {
            tracing::info!(%duty, "what operators want of this data plane");
        }
    }

    /// Whether slots that come go back at once.
    pub(crate) fn gives_back(&self) -> bool {
        self.gives_back.load(Relaxed)
    }

    /// The control plane answered a question.
    pub(crate) fn answered(&self, name: &FunctionName) {
        let asked = lock(&self.echo).take_if(|(asked, _)| asked == name);
        if let Some((_, waits)) = asked
            && waits.send(()).is_err()
        {
            tracing::debug!("the control plane answered too late");
        }
    }
}

/// Everything that is held goes back, for others: idle slots now, the rest as it becomes free. Waits
/// until the control plane has heard it, not for long.
pub(crate) async fn give_back(shared: &std::sync::Arc<Shared>) {
    if !shared.orders.is_taken || !shared.is_attached() {
        return;
    }
    shared.orders.gives_back.store(true, Relaxed);
    // What is not known here is not offered here.
    for name in shared.catalogue.names() {
        shared.say_now(FromDataPlane::Forget { name });
    }
    for slot in shared.catalogue.functions() {
        let now = shared.now();
        for sandbox in slot.held() {
            slot.handle(shared, now, Event::SandboxRecalled { sandbox, gone: false });
        }
    }
    // Frames arrive in order: who has the answer to this knows that those before it were heard.
    let Ok(name) = FunctionName::new("dirigent", "leaves") else { return };
    let (waits, heard) = oneshot::channel();
    *lock(&shared.orders.echo) = Some((name.clone(), waits));
    shared.say_now(FromDataPlane::Resolve { name });
    if tokio::time::timeout(HEARD_WITHIN, heard).await.is_err() {
        tracing::warn!("the control plane did not hear in time what was given back");
    }
}
