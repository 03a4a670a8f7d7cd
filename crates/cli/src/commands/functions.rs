//! `list`, `rm`: one question, one table.

use dirigent_core::control::{Answer, FunctionSummary};
use http::Method;

use super::{path, unexpected};
use crate::{
    args::{ApiArgs, RmArgs},
    client::Client,
    fail::Result,
    printer::Printer,
};

/// Functions asked for at once.
const PAGE: usize = 1000;

pub(super) async fn list(args: &ApiArgs, printer: Printer) -> Result {
    let functions = all(&args.client()?).await?;
    if printer.is_json() {
        return functions.iter().try_for_each(|function| printer.json(function));
    }
    if functions.is_empty() {
        printer.note(&"no functions yet; `dirigent deploy DIR` makes one");
        return Ok(());
    }
    printer.line(&summaries(&functions))
}

/// Every function, page by page.
pub(super) async fn all(client: &Client) -> Result<Vec<FunctionSummary>> {
    let mut functions: Vec<FunctionSummary> = Vec::new();
    loop {
        let after = functions.last().map_or_else(String::new, |last| {
            format!("&after={}/{}", last.name.namespace(), last.name.name())
        });
        match client.ask(Method::GET, &format!("/v1/functions?limit={PAGE}{after}")).await? {
            Answer::Functions(page) => {
                let is_last = page.len() < PAGE;
                functions.extend(page);
                if is_last {
                    return Ok(functions);
                }
            }
            other => return Err(unexpected(&other)),
        }
    }
}

/// Functions as a table.
pub(super) fn summaries(functions: &[FunctionSummary]) -> String {
    let head =
        ["NAME", "REVISION", "STATE", "READY", "STARTING", "BUSY", "QUEUED", "CALLS"].as_slice();
    let rows = functions.iter().map(|function| {
        let targets: Vec<_> =
            function.targets.iter().map(|target| target.revision.to_string()).collect();
        let (newest, state) = &function.newest;
        // The newest revision is worth a word when it is not what is called.
        let state = if targets.iter().any(|target| *target == newest.to_string()) {
            state_word(*state).to_owned()
        } else {
            format!("{newest} {}", state_word(*state))
        };
        vec![
            function.name.to_string(),
            if targets.is_empty() { "-".to_owned() } else { targets.join(",") },
            state,
            function.ready.to_string(),
            function.starting.to_string(),
            function.busy.to_string(),
            function.queued.to_string(),
            function.arrivals_total.to_string(),
        ]
    });
    crate::printer::table(head, rows.collect())
}

pub(super) fn state_word(state: dirigent_core::RevisionState) -> &'static str {
    use dirigent_core::RevisionState as State;
    match state {
        State::Pending => "pending",
        State::Checking => "checking",
        State::Ready => "ready",
        State::Live => "live",
        State::Retiring => "retiring",
        State::Retired => "retired",
        State::Failed => "failed",
    }
}

pub(super) async fn remove(args: &RmArgs, printer: Printer) -> Result {
    let client = args.api.client()?;
    for name in &args.names {
        match client.ask(Method::DELETE, &path(name)).await? {
            answer @ Answer::Deleted { .. } if printer.is_json() => printer.json(&answer)?,
            Answer::Deleted { .. } => printer.note(&format_args!("removed {name}")),
            other => return Err(unexpected(&other)),
        }
    }
    Ok(())
}
