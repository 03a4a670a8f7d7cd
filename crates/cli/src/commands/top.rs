//! `top`: the busiest functions, again each second on a terminal, once elsewhere.

use std::time::Duration;

use dirigent_core::control::{Answer, FunctionSummary};
use http::Method;

use super::{functions::summaries, unexpected};
use crate::{args::TopArgs, client::Client, fail::Result, printer::Printer};

pub(super) async fn top(args: &TopArgs, printer: Printer) -> Result {
    let client = args.api.client()?;
    let path = format!("/v1/top?limit={}", args.limit);
    if args.once || !printer.is_live() {
        let functions = ask(&client, &path).await?;
        if printer.is_json() {
            return functions.iter().try_for_each(|function| printer.json(function));
        }
        return printer.line(&summaries(&functions));
    }
    loop {
        let functions = ask(&client, &path).await?;
        printer.clear()?;
        let busy: u32 = functions.iter().map(|function| function.busy).sum();
        let queued: u32 = functions.iter().map(|function| function.queued).sum();
        let ready: u32 = functions.iter().map(|function| function.ready).sum();
        printer.line(&format_args!(
            "{} functions active, {ready} sandboxes ready, {busy} calls running, {queued} waiting\n",
            functions.len()
        ))?;
        printer.line(&summaries(&functions))?;
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => return Ok(interrupted?),
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

async fn ask(client: &Client, path: &str) -> Result<Vec<FunctionSummary>> {
    match client.ask(Method::GET, path).await? {
        Answer::Top(functions) => Ok(functions),
        other => Err(unexpected(&other)),
    }
}
