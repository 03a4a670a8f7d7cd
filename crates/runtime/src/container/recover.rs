//! What an earlier life of the worker left in containerd: found by labels, taken over or removed.

use std::{os::fd::OwnedFd, rc::Rc};

use dirigent_containerd::{
    Failure,
    api::containerd::{
        services::{
            containers::v1::ListContainersRequest, snapshots::v1::ListSnapshotsRequest,
            tasks::v1::GetRequest,
        },
        v1::types::Status,
    },
};
use dirigent_core::{Cause, Fault, StartFailure, worker::Adopted};
use rustix::process::Pid;

use super::{
    DIRECTORY, NETWORK, SANDBOX, bundle,
    driver::World,
    life::{LISTENS, Running, STOPPING, exit_status, failure, judge},
    made::{Place, first},
    output::{self, Reader},
};
use crate::{claim::Claim, sys::watch};

/// A sandbox that is still there.
pub(super) enum Found {
    /// It runs.
    Runs(Adopted, Box<Running>),
    /// It ended, and how is to be told.
    Ended(Adopted, Box<Place>, StartFailure),
}

impl Found {
    pub(super) const fn adopted(&self) -> &Adopted {
        match self {
            Self::Runs(adopted, _) | Self::Ended(adopted, ..) => adopted,
        }
    }

    fn place(&self) -> &Place {
        match self {
            Self::Runs(_, running) => &running.place,
            Self::Ended(_, place, _) => place,
        }
    }
}

/// Takes stock: half-made sandboxes are removed before this returns.
pub(super) async fn recover(world: &Rc<World>) -> Result<Vec<Found>, Failure> {
    let filters = vec![format!("labels.\"{DIRECTORY}\"=={}", world.mark)];
    let list = ListContainersRequest { filters: filters.clone() };
    let listed = world.client.containers().list(list).await;
    let listed = listed.map_err(|status| world.client.failure(&status))?.into_inner();
    let mut found = Vec::new();
    for container in listed.containers {
        let Some(place) = world.place_of(&container.id) else {
            // By its label it is ours all the same.
            world.place_named(container.id).remove().await?;
            continue;
        };
        let adopted = match container.labels.get(SANDBOX) {
            Some(record) => serde_json::from_str::<Adopted>(record).ok(),
            None => place.recorded(),
        };
        let Some(adopted) = adopted else {
            // It waited to be started.
            place.remove().await?;
            continue;
        };
        let has_network = container.labels.contains_key(NETWORK);
        match take(world, adopted, place.clone(), has_network).await? {
            Some(one) => found.push(one),
            None => place.remove().await?,
        }
    }
    leftovers(world, filters, &found).await?;
    let kept: Vec<_> = found.iter().filter_map(|one| one.place().key).collect();
    world.offer.keep(&kept);
    Ok(found)
}

/// What becomes of one; `None` if it never listened.
async fn take(
    world: &Rc<World>,
    mut adopted: Adopted,
    place: Place,
    has_network: bool,
) -> Result<Option<Found>, Failure> {
    if !place.is_noted(LISTENS) {
        return Ok(None);
    }
    adopted.report.stopping = place.is_noted(STOPPING);
    if has_network && !place.key.is_some_and(|name| world.offer.is_lent(name)) {
        // Its keeper is dead, and nothing keeps it from others any more.
        let lost = failure(Cause::WorkerLost, Fault::Worker);
        return Ok(Some(Found::Ended(adopted, Box::new(place), lost)));
    }
    if place.is_bundle() {
        return Ok(take_bundle(world, adopted, place, has_network).await);
    }
    let get = GetRequest { container_id: place.id.clone(), exec_id: String::new() };
    let process = match world.client.tasks().get(get).await {
        Ok(task) => task.into_inner().process,
        Err(status) => match world.client.failure(&status) {
            failure if failure.is_not_found() => None,
            failure => return Err(failure),
        },
    };
    let runs = process.as_ref().is_some_and(|process| {
        matches!(process.status(), Status::Running | Status::Paused | Status::Pausing)
    });
    let held = match &process {
        Some(process) if runs => first(process.pid).ok(),
        _ => None,
    };
    if let Some(held) = held {
        match running(world, &adopted, place.clone(), held, has_network) {
            Ok(running) => return Ok(Some(Found::Runs(adopted, Box::new(running)))),
            Err(error) => {
                tracing::warn!(id = place.id, %error, "a sandbox cannot be taken over");
                return Ok(None);
            }
        }
    }
    let stopped = adopted.report.stopping;
    let limit = adopted.report.memory;
    let failure = match process {
        Some(_) => judge(exit_status(&place).await, stopped, place.out_of_memory(), limit),
        None if stopped => failure(Cause::Stopped, Fault::Function),
        None => failure(Cause::WorkerLost, Fault::Worker),
    };
    Ok(Some(Found::Ended(adopted, Box::new(place), failure)))
}

/// The same of one that the keeper holds, or held.
async fn take_bundle(
    world: &World,
    adopted: Adopted,
    place: Place,
    has_network: bool,
) -> Option<Found> {
    let first = place.hands().and_then(|hands| hands.held(&place.id));
    let Some(first) = first else {
        let lost = failure(Cause::WorkerLost, Fault::Worker);
        return Some(Found::Ended(adopted, Box::new(place), lost));
    };
    let taken = bundle::hold(first).and_then(|held| match held {
        Some(held) => running(world, &adopted, place.clone(), held, has_network).map(Some),
        None => Ok(None),
    });
    match taken {
        Ok(Some(running)) => Some(Found::Runs(adopted, Box::new(running))),
        Ok(None) => {
            let (stopped, limit) = (adopted.report.stopping, adopted.report.memory);
            // Opened first: the keeper lets go of them when it is asked.
            let reader = reader(world, &adopted, &place);
            let status = exit_status(&place).await;
            let failure = judge(status, stopped, place.out_of_memory(), limit);
            let log_tail = reader.map(Reader::finish).unwrap_or_default();
            let failure = StartFailure { log_tail, ..failure };
            Some(Found::Ended(adopted, Box::new(place), failure))
        }
        Err(error) => {
            tracing::warn!(id = place.id, %error, "a sandbox cannot be taken over");
            None
        }
    }
}

/// What the keeper has kept of its output.
fn reader(world: &World, adopted: &Adopted, place: &Place) -> std::io::Result<Reader> {
    let report = &adopted.report;
    let [stdout, stderr] = output::open_both(&place.directory)?;
    world.output(report.revision.function, report.sandbox, stdout, stderr)
}

fn running(
    world: &World,
    adopted: &Adopted,
    place: Place,
    (pid, held): (Pid, OwnedFd),
    has_network: bool,
) -> std::io::Result<Running> {
    let [stdout, stderr] = output::open_both(&place.directory)?;
    let report = &adopted.report;
    let stop_signal = adopted
        .artifact
        .and_then(|digest| world.images.get(digest))
        .map_or(libc::SIGTERM, |image| image.program.stop_signal);
    Ok(Running {
        sandbox: report.sandbox,
        place,
        stop_signal,
        limit: report.memory,
        pid,
        held: watch::readable(held)?,
        output: world.output(report.revision.function, report.sandbox, stdout, stderr)?,
        has_network,
        starting: None,
        _claim: adopted.port.and_then(|port| Claim::port(port).ok()),
    })
}

/// File systems and pipes of sandboxes that containerd has forgotten or never got.
async fn leftovers(world: &World, filters: Vec<String>, found: &[Found]) -> Result<(), Failure> {
    let ours: Vec<String> = found.iter().map(|one| one.place().id.clone()).collect();
    let snapshotter = world.config.snapshotter.clone();
    let list = ListSnapshotsRequest { snapshotter, filters };
    let listed = world.client.snapshots().list(list).await;
    let mut listed = listed.map_err(|status| world.client.failure(&status))?.into_inner();
    let mut names = Vec::new();
    while let Some(page) = listed.message().await.map_err(|status| world.client.failure(&status))? {
        names.extend(page.info.into_iter().map(|info| info.name));
    }
    for name in names.into_iter().filter(|name| !ours.contains(name)) {
        world.place_named(name).remove_snapshot().await?;
    }
    let directory = world.config.directory.join("sandboxes");
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let known = entry.file_name().to_str().is_some_and(|name| ours.iter().any(|o| o == name));
        if !known && let Some(name) = entry.file_name().to_str() {
            let place = world.place_named(name.to_owned());
            if place.is_bundle() {
                place.clear().await?;
            } else {
                place.remove_directory().await;
            }
        }
    }
    let held = world.hands.iter().flat_map(|hands| hands.all_held(&world.mark));
    for name in held.filter(|name| !ours.contains(name)) {
        world.place_named(name).clear().await?;
    }
    Ok(())
}
