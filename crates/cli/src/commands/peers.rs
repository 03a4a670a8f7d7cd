//! `workers`, `data-planes`, `cordon`, `uncordon`, `drain`, `remove`: what there is, and what is wanted
//! of it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use dirigent_core::{
    Duty, Whom,
    control::{Answer, DataPlaneSummary, WorkerDescription, WorkerSummary},
};
use http::{Method, StatusCode};
use serde_json::json;

use super::{segment, unexpected};
use crate::{
    args::{ApiArgs, DrainArgs, PeerArgs, PeerRole, RemoveArgs},
    client::{Client, full, refused, succeeded},
    fail::{Fail, Kind, Result},
    format,
    printer::Printer,
};

/// Between two looks at a drain.
const LOOK: Duration = Duration::from_millis(250);
/// Sandboxes told of when a drain takes too long.
const TOLD: usize = 10;

pub(super) async fn workers(args: &ApiArgs, printer: Printer) -> Result {
    let workers = all_workers(&args.client()?).await?;
    if printer.is_json() {
        return workers.iter().try_for_each(|worker| printer.json(worker));
    }
    let head = ["ID", "NAME", "STATE", "SANDBOXES", "STARTING", "MEMORY", "CPU"];
    let rows = workers.iter().map(|worker| {
        let (memory, memory_all) = worker.memory;
        let (cpu, cpu_all) = worker.cpu;
        vec![
            worker.id.to_string(),
            worker.name.to_string(),
            state(&worker.state, worker.duty),
            worker.sandboxes.to_string(),
            worker.starting.to_string(),
            format!("{}/{}", format::bytes(memory.0), format::bytes(memory_all.0)),
            format!("{cpu}/{cpu_all}"),
        ]
    });
    printer.table(&head, rows.collect())
}

pub(super) async fn data_planes(args: &ApiArgs, printer: Printer) -> Result {
    let planes = all_data_planes(&args.client()?).await?;
    if printer.is_json() {
        return planes.iter().try_for_each(|plane| printer.json(plane));
    }
    let rows = planes.iter().map(|plane| {
        vec![
            plane.id.to_string(),
            plane.name.to_string(),
            state(&plane.state, plane.duty),
            plane.slots.to_string(),
            plane.busy.to_string(),
            plane.queued.to_string(),
        ]
    });
    printer.table(&["ID", "NAME", "STATE", "SLOTS", "BUSY", "QUEUED"], rows.collect())
}

/// A state, with what is wanted where the state does not tell.
fn state(state: &str, duty: Duty) -> String {
    let told = state == duty.word() || state == "drained";
    if duty == Duty::InUse || told { state.to_owned() } else { format!("{state}, {duty}") }
}

async fn all_workers(client: &Client) -> Result<Vec<WorkerSummary>> {
    match client.ask(Method::GET, "/v1/workers").await? {
        Answer::Workers(workers) => Ok(workers),
        other => Err(unexpected(&other)),
    }
}

pub(super) async fn all_data_planes(client: &Client) -> Result<Vec<DataPlaneSummary>> {
    match client.ask(Method::GET, "/v1/data-planes").await? {
        Answer::DataPlanes(planes) => Ok(planes),
        other => Err(unexpected(&other)),
    }
}

fn path(whom: &Whom) -> String {
    let name = segment(whom.name());
    match whom {
        Whom::Worker(_) => format!("/v1/workers/{name}"),
        Whom::DataPlane(_) => format!("/v1/data-planes/{name}"),
    }
}

/// Who is meant by a name.
async fn find(client: &Client, args: &PeerArgs) -> Result<Whom> {
    let (workers, planes) = (all_workers(client).await?, all_data_planes(client).await?);
    let workers = workers.into_iter().map(|worker| Whom::Worker(worker.name));
    let planes = planes.into_iter().map(|plane| Whom::DataPlane(plane.name));
    let of_role = |whom: &Whom| match args.role {
        None => true,
        Some(PeerRole::Worker) => matches!(whom, Whom::Worker(_)),
        Some(PeerRole::DataPlane) => matches!(whom, Whom::DataPlane(_)),
    };
    choose(&args.name, workers.chain(planes).filter(of_role).collect())
}

fn choose(name: &str, known: Vec<Whom>) -> Result<Whom> {
    let mut called = known.iter().filter(|whom| &**whom.name() == name);
    match (called.next(), called.next()) {
        (Some(whom), None) => return Ok(whom.clone()),
        (Some(_), Some(_)) => {
            return Err(Fail::user(format!("a worker and a data plane are called `{name}`"))
                .hint("say which with --role worker or --role data-plane"));
        }
        (None, _) => {}
    }
    let fail = Fail::user(format!("there is no worker and no data plane `{name}`"));
    // Names of machines are alike: half of the letters must be the same.
    let likeness = |whom: &Whom| strsim::normalized_levenshtein(name, whom.name());
    let mut near: Vec<Whom> = known.into_iter().filter(|whom| likeness(whom) >= 0.5).collect();
    near.sort_by(|a, b| likeness(b).total_cmp(&likeness(a)).then_with(|| a.cmp(b)));
    let near: Vec<String> = near.iter().take(3).map(ToString::to_string).collect();
    Err(if near.is_empty() {
        fail.hint("`dirigent workers` and `dirigent data-planes` list them")
    } else {
        fail.hint(format!("did you mean {}?", near.join(" or ")))
    })
}

pub(super) async fn order(args: &PeerArgs, duty: Duty, printer: Printer) -> Result {
    let client = args.api.client()?;
    let whom = find(&client, args).await?;
    let answer = tell(&client, &whom, duty).await?;
    if printer.is_json() {
        return printer.json(&answer);
    }
    let Answer::Ordered { changed, .. } = answer else { return Err(unexpected(&answer)) };
    let already = if changed { "" } else { " already" };
    printer.note(&format_args!("{whom} is {duty}{already}"));
    Ok(())
}

async fn tell(client: &Client, whom: &Whom, duty: Duty) -> Result<Answer> {
    let path = format!("{}/duty", path(whom));
    client.call(Method::PUT, &path, Some(&json!({ "duty": duty }))).await
}

pub(super) async fn drain(args: &DrainArgs, printer: Printer) -> Result {
    let client = args.peer.api.client()?;
    let whom = find(&client, &args.peer).await?;
    let answer = tell(&client, &whom, Duty::Draining).await?;
    if args.no_wait {
        if printer.is_json() {
            return printer.json(&answer);
        }
        printer.note(&format_args!("{whom} is draining"));
        return Ok(());
    }
    let begun = Instant::now();
    let mut client = client;
    let mut said = None;
    loop {
        let left = match look(&client, &whom).await {
            Ok(left) => left,
            // Another control plane may lead by now: it goes on with the drain.
            Err(fail) if fail.kind() == Kind::Unavailable && begun.elapsed() < args.timeout => {
                tokio::time::sleep(LOOK).await;
                client = args.peer.api.client()?;
                continue;
            }
            Err(fail) => return Err(fail),
        };
        if left.is_over {
            return if printer.is_json() {
                printer.json(&left.shown)
            } else {
                printer.note(&format_args!("{whom} {}", left.text));
                Ok(())
            };
        }
        if said.as_ref() != Some(&left.text) {
            printer.note(&format_args!("{whom} {}", left.text));
            said = Some(left.text.clone());
        }
        if begun.elapsed() >= args.timeout {
            let after = format::duration(args.timeout);
            let text = format!("{whom} {} after {after}", left.text);
            return Err(Fail::unavailable(text)
                .details(left.details)
                .hint("the drain goes on; what runs may take its function's `timeout` and `drain_timeout`"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What is left of one that is drained.
struct Left {
    is_over: bool,
    text: String,
    details: Vec<String>,
    shown: serde_json::Value,
}

async fn look(client: &Client, whom: &Whom) -> Result<Left> {
    match whom {
        Whom::Worker(_) => match client.ask(Method::GET, &path(whom)).await? {
            Answer::Worker(worker) => left_on(&worker),
            other => Err(unexpected(&other)),
        },
        Whom::DataPlane(name) => {
            let planes = all_data_planes(client).await?;
            let plane = planes.into_iter().find(|plane| plane.name == *name);
            plane.map_or_else(|| Err(vanished(whom)), |plane| left_of(&plane))
        }
    }
}

fn vanished(whom: &Whom) -> Fail {
    Fail::user(format!("{whom} was removed meanwhile"))
}

fn left_on(worker: &WorkerDescription) -> Result<Left> {
    let WorkerDescription { summary, sandboxes } = worker;
    let (name, many) = (&summary.name, summary.sandboxes);
    if summary.duty != Duty::Draining {
        return Err(Fail::user(format!("worker {name} was taken back meanwhile")));
    }
    if summary.state == "lost" && many > 0 {
        return Err(Fail::unavailable(format!("worker {name} is lost, with {many} sandboxes"))
            .hint("if its machine is gone for good: `dirigent remove --force`"));
    }
    let text = match many {
        0 => "is drained".to_owned(),
        1 => "has 1 sandbox left".to_owned(),
        many => format!("has {many} sandboxes left"),
    };
    let detail = |sandbox: &dirigent_core::control::WorkerSandbox| {
        let held: Vec<&str> = sandbox.holders.iter().map(Arc::as_ref).collect();
        let held =
            if held.is_empty() { String::new() } else { format!(", used by {}", held.join(", ")) };
        let (id, function, state) = (sandbox.id, &sandbox.function, &sandbox.state);
        format!("{id} of {function}, {state}{held}")
    };
    let mut details: Vec<String> = sandboxes.iter().take(TOLD).map(detail).collect();
    if sandboxes.len() > TOLD {
        details.push(format!("and {} more", sandboxes.len() - TOLD));
    }
    Ok(Left { is_over: many == 0, text, details, shown: serde_json::to_value(summary)? })
}

fn left_of(plane: &DataPlaneSummary) -> Result<Left> {
    let (name, state) = (&plane.name, plane.state.as_str());
    if plane.duty != Duty::Draining {
        return Err(Fail::user(format!("data plane {name} was taken back meanwhile")));
    }
    let text = match state {
        "gone" => "is gone".to_owned(),
        "silent" => "is gone, and its slots are being made sure of".to_owned(),
        _ => format!("ends {} calls, {} wait", plane.busy, plane.queued),
    };
    let details = vec![format!("{} slots held", plane.slots)];
    Ok(Left { is_over: state == "gone", text, details, shown: serde_json::to_value(plane)? })
}

pub(super) async fn remove(args: &RemoveArgs, printer: Printer) -> Result {
    let client = args.peer.api.client()?;
    let whom = find(&client, &args.peer).await?;
    if !args.keep_certificate && may_go(&client, &whom, args.force).await? {
        // Before it is forgotten, or it would be back at once.
        refuse_certificate(&args.peer.api.client()?, &whom).await?;
    }
    let force = if args.force && matches!(whom, Whom::Worker(_)) { "?force=true" } else { "" };
    let answer = client.ask(Method::DELETE, &format!("{}{force}", path(&whom))).await?;
    if printer.is_json() {
        return printer.json(&answer);
    }
    printer.note(&format_args!("removed {whom}"));
    Ok(())
}

/// Whether its removal will be taken; why not, the leader says best.
async fn may_go(client: &Client, whom: &Whom, force: bool) -> Result<bool> {
    Ok(match whom {
        Whom::Worker(_) => match client.ask(Method::GET, &path(whom)).await? {
            Answer::Worker(worker) => {
                let WorkerSummary { duty, sandboxes, state, .. } = &worker.summary;
                (*duty == Duty::Draining && *sandboxes == 0) || (force && state == "lost")
            }
            other => return Err(unexpected(&other)),
        },
        Whom::DataPlane(name) => {
            let planes = all_data_planes(client).await?;
            planes.iter().any(|plane| plane.name == *name && plane.state == "gone")
        }
    })
}

/// Its certificate lets nobody in any more, where there are certificates.
async fn refuse_certificate(client: &Client, whom: &Whom) -> Result {
    // Several emulated workers share one, which goes with `cluster remove`.
    if whom.name().contains('/') {
        return Ok(());
    }
    let name = segment(whom.name());
    let path = format!("/v1/members/{}/{name}", whom.role());
    let response = client.try_send(Method::DELETE, &path, full(Bytes::new())).await?;
    match response.status() {
        // There are no certificates here, or none of this one.
        StatusCode::CONFLICT | StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST => Ok(()),
        StatusCode::SERVICE_UNAVAILABLE => Err(refused(response).await.hint(
            "nothing is forgotten yet: run it again, or with --keep-certificate, which asks for no \
             certificate to be refused",
        )),
        _ => succeeded(response).await.map(|_| ()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Vec<Whom> {
        let worker = |name: &str| Whom::Worker(name.into());
        let plane = |name: &str| Whom::DataPlane(name.into());
        vec![worker("rack-1"), worker("rack-2"), worker("both"), plane("edge"), plane("both")]
    }

    #[test]
    fn a_name_means_one_or_those_that_are_like_it_are_told() {
        assert_eq!(choose("edge", known()).unwrap(), Whom::DataPlane("edge".into()));
        let told = |name: &str| choose(name, known()).unwrap_err().lines().join("\n");
        assert!(told("both").contains("--role data-plane"), "{}", told("both"));
        let near = told("rack1");
        assert!(near.contains("did you mean worker rack-1 or worker rack-2?"), "{near}");
        assert!(told("x").contains("`dirigent workers`"), "{}", told("x"));
    }

    #[test]
    fn a_state_tells_what_is_wanted_where_it_is_something_else() {
        assert_eq!(state("ready", Duty::InUse), "ready");
        assert_eq!(state("draining", Duty::Draining), "draining");
        assert_eq!(state("drained", Duty::Draining), "drained");
        assert_eq!(state("lost", Duty::Draining), "lost, draining");
        assert_eq!(state("silent", Duty::Cordoned), "silent, cordoned");
    }
}
