//! `describe` and `revisions`: what a function is, what runs, what failed and what was decided.
//! Values of its environment are never shown.

use dirigent_core::{
    Listen, Spec,
    control::{Answer, FunctionDescription, RevisionDescription},
    frame::Status,
};
use http::Method;

use super::{functions::state_word, path, unexpected, url};
use crate::{
    args::FunctionArgs,
    fail::Result,
    format::{duration, wall},
    printer::{Printer, table},
};

async fn ask(args: &FunctionArgs) -> Result<FunctionDescription> {
    match args.api.client()?.ask(Method::GET, &path(&args.name)).await? {
        Answer::Function(description) => Ok(*description),
        other => Err(unexpected(&other)),
    }
}

pub(super) async fn revisions(args: &FunctionArgs, printer: Printer) -> Result {
    let description = ask(args).await?;
    if printer.is_json() {
        return description.revisions.iter().try_for_each(|revision| printer.json(revision));
    }
    printer.line(&revision_table(&description.revisions))
}

pub(super) async fn describe(args: &FunctionArgs, printer: Printer) -> Result {
    let description = ask(args).await?;
    if printer.is_json() {
        return printer.json(&description);
    }
    printer.line(&text(&description, url(&args.api, &args.name).as_deref()))
}

fn revision_table(revisions: &[RevisionDescription]) -> String {
    let rows = revisions.iter().rev().map(|revision| {
        vec![
            revision.number.to_string(),
            state_word(revision.state).to_owned(),
            if revision.weight > 0 { revision.weight.to_string() } else { "-".to_owned() },
            wall(revision.created_ms),
            what(&revision.spec),
            revision.failure.as_ref().map(|failure| failure.cause.to_string()).unwrap_or_default(),
        ]
    });
    table(&["REVISION", "STATE", "WEIGHT", "DEPLOYED", "RUNS", "FAILURE"], rows.collect())
}

/// What a spec runs, in a few words.
fn what(spec: &Spec) -> String {
    let sandbox = &spec.sandbox;
    let image = sandbox.image.iter().chain(&sandbox.component).cloned();
    image.chain(sandbox.command.iter().cloned()).collect::<Vec<_>>().join(" ")
}

/// The whole description as text, a section each.
fn text(description: &FunctionDescription, url: Option<&str>) -> String {
    let mut out = table(&[], head(description, url));
    section(&mut out, "Revisions", &revision_table(&description.revisions));
    if !description.sandboxes.is_empty() {
        let rows = description.sandboxes.iter().map(|sandbox| {
            let holders: Vec<_> = sandbox.holders.iter().map(ToString::to_string).collect();
            vec![
                sandbox.id.to_string(),
                sandbox.revision.to_string(),
                sandbox.state.clone(),
                sandbox.worker.map_or_else(|| "-".to_owned(), |worker| worker.to_string()),
                sandbox.address.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
                if holders.is_empty() { "-".to_owned() } else { holders.join(",") },
                duration(sandbox.age),
            ]
        });
        let head = ["SANDBOX", "REVISION", "STATE", "WORKER", "ADDRESS", "HELD BY", "AGE"];
        section(&mut out, "Sandboxes", &table(&head, rows.collect()));
    }
    if !description.failures.is_empty() {
        let lines = description.failures.iter().flat_map(|failure| {
            let first = format!(
                "{} ago  {}  {}",
                duration(failure.ago),
                failure.sandbox,
                failure.failure.cause
            );
            let tail = failure.failure.log_tail.iter().map(|line| format!("    | {line}"));
            std::iter::once(first).chain(tail)
        });
        section(&mut out, "Failures", &lines.collect::<Vec<_>>().join("\n"));
    }
    if !description.decisions.is_empty() {
        let rows = description.decisions.iter().map(|decision| {
            let inputs: Vec<_> =
                decision.inputs.iter().map(|(name, value)| format!("{name}={value}")).collect();
            vec![
                duration(decision.ago),
                format!("{} -> {}", decision.from, decision.to),
                decision.rule.clone(),
                inputs.join(" "),
            ]
        });
        let head = ["AGO", "SANDBOXES", "RULE", "INPUTS"];
        section(&mut out, "Scaling decisions", &table(&head, rows.collect()));
    }
    out
}

fn section(out: &mut String, title: &str, body: &str) {
    for text in ["\n\n", title, "\n", body] {
        out.push_str(text);
    }
}

/// Names and values at the top.
fn head(description: &FunctionDescription, url: Option<&str>) -> Vec<Vec<String>> {
    let FunctionDescription { summary, settings, status, .. } = description;
    let mut rows = vec![vec!["Function".to_owned(), format!("{} ({})", summary.name, summary.id)]];
    let mut row = |name: &str, value: String| rows.push(vec![name.to_owned(), value]);
    if let Some(url) = url {
        row("URL", url.to_owned());
    }
    row("Status", status_text(status));
    row(
        "Now",
        format!(
            "{} ready, {} starting; {} calls running, {} waiting, {} since the leader took office",
            summary.ready, summary.starting, summary.busy, summary.queued, summary.arrivals_total
        ),
    );
    let live = summary.targets.first().map(|target| target.revision);
    let shown = description
        .revisions
        .iter()
        .find(|revision| Some(revision.number) == live)
        .or_else(|| description.revisions.last());
    if let Some(revision) = shown {
        spec_rows(&revision.spec, &mut row);
    }
    row(
        "Scaling",
        format!(
            "{} to {} sandboxes, kept {} when idle",
            settings.min,
            settings.max,
            duration(settings.keep_alive)
        ),
    );
    row(
        "Time-outs",
        format!(
            "call {}, queue {}, start {}, idle {}, drain {}, grace {}",
            duration(settings.timeout),
            duration(settings.queue_timeout),
            duration(settings.start_timeout),
            duration(settings.idle_timeout),
            duration(settings.drain_timeout),
            duration(settings.grace)
        ),
    );
    row(
        "Queue",
        format!(
            "{} calls at most; {}",
            settings.max_queue,
            if settings.retry { "idempotent calls are retried once" } else { "no retries" }
        ),
    );
    rows
}

fn spec_rows(spec: &Spec, row: &mut impl FnMut(&str, String)) {
    let sandbox = &spec.sandbox;
    let passed = if sandbox.listen == Listen::Fd { ", passed listener" } else { "" };
    row("Runs", format!("{} ({}{passed})", what(spec), sandbox.runtime));
    let isolation = sandbox
        .isolation
        .map_or_else(|| "the worker's best".to_owned(), |level| format!("{level}, demanded"));
    row("Isolation", isolation);
    row("Resources", format!("{} CPU, {} memory", spec.resources.cpu, spec.resources.memory));
    let at_once = match spec.concurrency {
        0 => "unlimited".to_owned(),
        n => n.to_string(),
    };
    row("Concurrency", format!("{at_once} per sandbox"));
    if let Some(artifact) = &spec.artifact {
        row("Artifact", artifact.to_string());
    }
    if !spec.env.is_empty() {
        let names: Vec<_> = spec.env.keys().map(String::as_str).collect();
        row("Environment", format!("{} (values are not shown)", names.join(", ")));
    }
}

fn status_text(status: &Status) -> String {
    match status {
        Status::Flowing => "flowing".to_owned(),
        Status::AtMax => "at its maximum of sandboxes".to_owned(),
        Status::NoCapacity => "no worker has room".to_owned(),
        Status::NotReady => "no revision is live yet".to_owned(),
        Status::StartFailed(failure) => format!("the last start failed: {}", failure.cause),
        Status::CrashLoop(failure) => format!("crash loop: {}", failure.cause),
    }
}
