//! The removal of a sandbox that has ended, or is to: as often as it takes.

use dirigent_containerd::Failure;
use dirigent_core::{SandboxId, StartFailure};
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    driver::World,
    life::{PATIENCE, RETRY},
    made::Place,
};
use crate::Event;

/// Removes what there is of it, as often as it takes, and tells its end when that is done: or before,
/// if containerd does not answer. What containerd has of a bundle is nobody's address, and goes later.
pub(super) async fn bury(world: &World, place: &Place, sandbox: SandboxId, failure: StartFailure) {
    let mut told = Some(Event::Gone { sandbox, failure });
    let early = Instant::now() + PATIENCE;
    let is_bundle = place.is_bundle();
    {
        let removed = async {
            if is_bundle { clear(world, place).await } else { remove(world, place).await }
        };
        tokio::pin!(removed);
        loop {
            tokio::select! {
                biased;
                () = &mut removed => break,
                () = sleep_until(early), if told.is_some() => {
                    if let Some(gone) = told.take() {
                        world.report(gone).await;
                    }
                }
            }
        }
    }
    if let Some(gone) = told {
        world.report(gone).await;
    }
    if is_bundle {
        insist(world, place, async || place.remove_record().await).await;
    }
}

/// As often as it takes.
pub(super) async fn remove(world: &World, place: &Place) {
    if place.is_bundle() {
        clear(world, place).await;
        return insist(world, place, async || place.remove_record().await).await;
    }
    insist(world, place, async || place.remove().await).await;
    give_back(world, place);
}

/// All of a bundle but what containerd has of it.
async fn clear(world: &World, place: &Place) {
    insist(world, place, async || place.clear().await).await;
    give_back(world, place);
}

/// Its network is free.
fn give_back(world: &World, place: &Place) {
    if let Some(name) = place.key {
        world.offer.take_back(name);
    }
}

async fn insist(world: &World, place: &Place, attempt: impl AsyncFn() -> Result<(), Failure>) {
    let mut pause = RETRY.0;
    loop {
        // Released while it waits for containerd: others may be luckier.
        let permit = world.removals.acquire().await;
        let removed = attempt().await;
        drop(permit);
        match removed {
            Ok(()) => return,
            Err(error) => tracing::debug!(id = place.id, %error, "not removed yet"),
        }
        sleep(pause).await;
        pause = (pause * 2).min(RETRY.1);
    }
}
