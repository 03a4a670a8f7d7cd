//! `describe` and `revisions`: what a function is, what runs, what failed and what was decided.
//! Values of its environment are never shown.

use dirigent_core::{
    Auth, Isolation, KeepAlive, Listen, RuntimeKind, Spec,
    control::{Answer, FunctionDescription, RevisionDescription},
    frame::Status,
};
use http::Method;
use serde::{Deserialize, Serialize};

use super::{functions::state_word, path, unexpected, url};
use crate::{
    args::FunctionArgs,
    fail::Result,
    format::{duration, fetched, wall},
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
    let status: ClusterStatus =
        args.api.client()?.call(Method::GET, "/v1/status", None::<&()>).await?;
    if printer.is_json() {
        return printer.json(&Described {
            function: &description,
            isolation: shown(&description).map(|shown| isolation(&shown.spec, &status.workers)),
        });
    }
    printer.line(&text(&description, &status.workers, url(&args.api, &args.name).as_deref()))
}

/// As much of the cluster's status as is shown here.
#[derive(Debug, Deserialize)]
pub(super) struct ClusterStatus {
    pub(super) workers: Vec<WorkerOffer>,
}

#[derive(Debug, Deserialize)]
pub(super) struct WorkerOffer {
    name: String,
    pub(super) runtimes: Vec<RuntimeOffer>,
    pub(super) missing: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RuntimeOffer {
    pub(super) runtime: RuntimeKind,
    /// The best.
    pub(super) isolation: Isolation,
}

/// A description for machines.
struct Described<'a> {
    function: &'a FunctionDescription,
    isolation: Option<Vec<Isolated>>,
}

impl Serialize for Described<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::Error as _;
        let mut value = serde_json::to_value(self.function).map_err(S::Error::custom)?;
        value["isolation"] = serde_json::to_value(&self.isolation).map_err(S::Error::custom)?;
        value.serialize(serializer)
    }
}

/// The isolation that a sandbox gets on a worker.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Isolated {
    worker: String,
    level: Isolation,
    /// What does not work there and why.
    missing: Vec<String>,
}

/// What a spec gets on each worker that can run it: what it demands, else the best.
fn isolation(spec: &Spec, workers: &[WorkerOffer]) -> Vec<Isolated> {
    let runs = |worker: &WorkerOffer| {
        let offer = worker.runtimes.iter().find(|offer| offer.runtime == spec.sandbox.runtime)?;
        let level = spec.sandbox.isolation.unwrap_or(offer.isolation);
        (level <= offer.isolation).then(|| Isolated {
            worker: worker.name.clone(),
            level,
            missing: worker.missing.iter().filter(|line| is_about(line, spec)).cloned().collect(),
        })
    };
    workers.iter().filter_map(runs).collect()
}

/// Whether a line of what is missing on a worker is about what this spec is run by.
fn is_about(line: &str, spec: &Spec) -> bool {
    line.starts_with("container: ") == (spec.sandbox.runtime == RuntimeKind::Container)
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
fn text(description: &FunctionDescription, workers: &[WorkerOffer], url: Option<&str>) -> String {
    let mut out = table(&[], head(description, workers, url));
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
fn head(
    description: &FunctionDescription,
    workers: &[WorkerOffer],
    url: Option<&str>,
) -> Vec<Vec<String>> {
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
    for fetching in &description.fetching {
        let revision = fetching.revision;
        row("Fetching", format!("image of revision {revision}: {}", fetched(fetching)));
    }
    if let Some(revision) = shown(description) {
        spec_rows(&revision.spec, workers, &mut row);
    }
    row(
        "Scaling",
        format!(
            "{} to {} sandboxes, kept {} when idle",
            settings.min,
            settings.max,
            match settings.keep_alive {
                KeepAlive::For(time) => duration(time),
                KeepAlive::Auto => "as long as it pays (auto)".to_owned(),
            }
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
    let callers = match settings.auth {
        Auth::None => "everybody who reaches a data plane",
        Auth::Token => "who shows a token of the role invoke, deploy or admin",
    };
    row("Callers", callers.to_owned());
    rows
}

/// The revision whose spec is shown: the live one, else the newest.
fn shown(description: &FunctionDescription) -> Option<&RevisionDescription> {
    let live = description.summary.targets.first().map(|target| target.revision);
    let revisions = &description.revisions;
    let found = revisions.iter().find(|revision| Some(revision.number) == live);
    found.or_else(|| revisions.last())
}

fn isolation_rows(spec: &Spec, workers: &[WorkerOffer], row: &mut impl FnMut(&str, String)) {
    let why = if spec.sandbox.isolation.is_some() { "demanded" } else { "the best there is" };
    let all = isolation(spec, workers);
    if all.is_empty() {
        let demanded = spec.sandbox.isolation.map(|level| format!("`{level}` for "));
        let demanded = demanded.unwrap_or_default();
        let runtime = spec.sandbox.runtime;
        row("Isolation", format!("none: no worker offers {demanded}the runtime `{runtime}`"));
        let prefix = format!("{runtime}: ");
        let missing = workers.iter().flat_map(|worker| &worker.missing);
        for line in missing.filter(|line| line.starts_with(&prefix)) {
            row("", format!("missing: {line}"));
        }
    }
    for Isolated { worker, level, missing } in &all {
        let place = if all.len() > 1 { format!(" on {worker}") } else { String::new() };
        row("Isolation", format!("{level}{place}, {why}"));
        for line in missing {
            row("", format!("missing: {line}"));
        }
    }
}

fn spec_rows(spec: &Spec, workers: &[WorkerOffer], row: &mut impl FnMut(&str, String)) {
    let sandbox = &spec.sandbox;
    let passed = if sandbox.listen == Listen::Fd { ", passed listener" } else { "" };
    row("Runs", format!("{} ({}{passed})", what(spec), sandbox.runtime));
    isolation_rows(spec, workers, row);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(name: &str, best: Isolation) -> WorkerOffer {
        let runtimes = vec![RuntimeOffer { runtime: RuntimeKind::Process, isolation: best }];
        WorkerOffer { name: name.to_owned(), runtimes, missing: vec!["cgroup cpu: why".to_owned()] }
    }

    fn rows(manifest: &str, workers: &[WorkerOffer]) -> Vec<String> {
        let text = format!("name = \"f\"\nsandbox.command = [\"x\"]\n{manifest}");
        let manifest: dirigent_core::manifest::Manifest = toml::from_str(&text).unwrap();
        let (_, spec, _) = manifest.validate(None).unwrap();
        let mut rows = Vec::new();
        isolation_rows(&spec, workers, &mut |name, value| rows.push(format!("{name}: {value}")));
        rows
    }

    #[test]
    fn isolation_is_what_the_workers_really_give() {
        let (weak, strong) = (worker("a", Isolation::Plain), worker("b", Isolation::Basic));
        let missing = ": missing: cgroup cpu: why";
        assert_eq!(
            rows("", &[worker("b", Isolation::Basic)]),
            ["Isolation: basic, the best there is", missing]
        );
        let both = [weak, strong];
        assert_eq!(
            rows("", &both),
            [
                "Isolation: plain on a, the best there is",
                missing,
                "Isolation: basic on b, the best there is",
                missing
            ]
        );
        let demanded = rows("sandbox.isolation = \"basic\"", &both);
        assert_eq!(demanded, ["Isolation: basic, demanded", missing]);
        assert_eq!(
            rows("sandbox.isolation = \"strict\"", &both),
            ["Isolation: none: no worker offers `strict` for the runtime `process`"]
        );
    }
}
