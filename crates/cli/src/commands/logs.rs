//! `logs`: the lines that a function's sandboxes wrote, or the record of one call.

use std::time::Duration;

use dirigent_core::frame::{InvocationRecord, LogLine};
use dirigent_service::Clock;
use http::Method;
use http_body_util::BodyExt as _;
use owo_colors::OwoColorize as _;
use serde::{Deserialize, Serialize};

use super::path;
use crate::{
    args::LogsArgs,
    client::{Lines, succeeded},
    fail::{Fail, Kind, OrFail as _, Result},
    format::{duration, wall},
    printer::{Printer, table},
};

pub(super) async fn logs(args: &LogsArgs, printer: Printer) -> Result {
    if let Some(id) = &args.request_id {
        return record(args, id, printer).await;
    }
    let Some(name) = &args.name else {
        return Err(Fail::config("name a function, or a call with --request-id"));
    };
    let mut query = format!("tail={}&follow={}", args.tail, args.follow);
    if let Some(since) = &args.since {
        query = format!("{query}&since_ms={}", since_ms(since, Clock::wall_ms())?);
    }
    if let Some(sandbox) = &args.sandbox {
        query = format!("{query}&sandbox={sandbox}");
    }
    let place = format!("{}/logs?{query}", path(name));
    let client = args.api.client()?;
    let response = client.follow(Method::GET, &place, bytes::Bytes::new()).await?;
    let response = succeeded(response).await?;
    let mut body = response.into_body();
    let mut lines = Lines::default();
    let mut complete = true;
    loop {
        let frame = tokio::select! {
            // The way to end `-f`: no failure.
            interrupted = tokio::signal::ctrl_c() => return Ok(interrupted?),
            frame = body.frame() => frame,
        };
        let Some(frame) = frame else { return whole(complete) };
        let frame = frame.or_fail(Kind::Unavailable, || "the log was cut")?;
        for line in lines.push(frame.data_ref().map_or(&[][..], |data| data)) {
            match serde_json::from_slice(&line)? {
                Said::Line(line) => print(&line, printer)?,
                Said::Missing { missing } => {
                    complete = false;
                    printer.problem(&format!("warning: lines are missing: {missing}"));
                }
            }
        }
    }
}

/// What the control plane says of a log.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Said {
    Line(LogLine),
    Missing { missing: String },
}

/// Programs that read what was printed must not take a part for all of it.
fn whole(complete: bool) -> Result {
    if complete { Ok(()) } else { Err(Fail::unavailable("the log is not complete")) }
}

fn print(line: &LogLine, printer: Printer) -> Result {
    if printer.is_json() {
        return printer.json(line);
    }
    let mark = if line.stderr { "!" } else { "|" };
    let head = format!("{} {} {mark}", wall(line.at_ms), line.sandbox);
    printer.line(&format_args!("{} {}", head.dimmed(), line.text))
}

/// The answer to a question for one call.
#[derive(Debug, Serialize, Deserialize)]
struct Found {
    record: InvocationRecord,
    lines: Vec<LogLine>,
    /// Why some lines are not there.
    missing: Vec<String>,
}

async fn record(args: &LogsArgs, id: &str, printer: Printer) -> Result {
    // What a data plane takes from a client as an id.
    if !(1..=128).contains(&id.len()) || !id.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Fail::config(format!("`{id}` is not a request id"))
            .hint("it is the value of the response's header X-Dirigent-Request-Id"));
    }
    let client = args.api.client()?;
    let place = format!("/v1/invocations/{}", super::segment(id));
    let found: Found = client.call(Method::GET, &place, None::<&()>).await?;
    if printer.is_json() {
        return printer.json(&found);
    }
    printer.line(&record_text(&found.record))?;
    if !found.lines.is_empty() {
        printer.line(&"")?;
    }
    found.lines.iter().try_for_each(|line| print(line, printer))?;
    for why in &found.missing {
        printer.problem(&format!("warning: lines are missing: {why}"));
    }
    whole(found.missing.is_empty())
}

fn record_text(record: &InvocationRecord) -> String {
    let named = record.function.as_ref();
    let function = match (named, record.function_id) {
        (Some(name), Some(_)) => name.to_string(),
        (Some(name), None) => format!("{name} (not found)"),
        (None, _) => "none".to_owned(),
    };
    let mut rows = vec![
        vec!["Request".to_owned(), record.request_id.clone()],
        vec!["Function".to_owned(), function],
        vec!["Arrived".to_owned(), wall(record.arrived_ms)],
        vec![
            "Status".to_owned(),
            match &record.code {
                Some(code) => format!("{} ({code})", record.status),
                None => record.status.to_string(),
            },
        ],
    ];
    if let Some(sandbox) = &record.sandbox {
        rows.push(vec!["Start".to_owned(), if record.cold { "cold" } else { "warm" }.to_owned()]);
        rows.push(vec!["Sandbox".to_owned(), sandbox.to_string()]);
    }
    if let Some(revision) = &record.revision {
        rows.push(vec!["Revision".to_owned(), revision.number.to_string()]);
    }
    if record.attempts > 1 {
        rows.push(vec!["Attempts".to_owned(), record.attempts.to_string()]);
    }
    rows.push(vec!["Total".to_owned(), duration(record.total)]);
    for (phase, time) in &record.phases {
        rows.push(vec![format!("  {phase}"), duration(*time)]);
    }
    table(&[], rows)
}

/// Milliseconds since 1970 of a time of day, or of so long ago.
fn since_ms(text: &str, now_ms: u64) -> Result<u64> {
    let ago =
        |time: Duration| now_ms.saturating_sub(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    if let Ok(time) = humantime::parse_duration(text) {
        return Ok(ago(time));
    }
    let time: Option<jiff::Timestamp> = text.parse().ok();
    time.and_then(|time| u64::try_from(time.as_millisecond()).ok()).ok_or_else(|| {
        Fail::config(format!("--since: `{text}` is neither a duration nor a time"))
            .hint("write 10m, 2h, or 2026-01-31T12:00:00Z")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_takes_a_duration_or_a_time() {
        assert_eq!(since_ms("10s", 60_000).unwrap(), 50_000);
        assert_eq!(since_ms("1h", 60_000).unwrap(), 0);
        assert_eq!(since_ms("1970-01-01T00:00:01Z", 60_000).unwrap(), 1000);
        assert_eq!(since_ms("yesterday", 60_000).unwrap_err().kind(), Kind::Config);
    }
}
