//! Logs and invocations over HTTP: asked of the workers and data planes when somebody wants to
//! know, merged here, kept nowhere.

use std::{convert::Infallible, time::Duration};

use axum::{
    Json,
    body::{Body, Bytes},
    extract::{Path, State},
    response::{IntoResponse as _, Response},
};
use dirigent_core::{
    FunctionId, FunctionName, SandboxId,
    control::{Answer, Call},
    frame::{LogLine, LogQuery},
};
use futures_util::stream;
use http::{StatusCode, Uri, header::CONTENT_TYPE};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Api, ApiError, functions::name, query};
use crate::bulk::{LogReader, Read};

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LogsQuery {
    tail: u32,
    follow: bool,
    since_ms: Option<u64>,
    until_ms: Option<u64>,
    sandbox: Option<String>,
}

impl Default for LogsQuery {
    fn default() -> Self {
        Self { tail: 100, follow: false, since_ms: None, until_ms: None, sandbox: None }
    }
}

/// Lines at most in one answer that is not followed, and their bytes.
const LINES: u32 = 10_000;
const LINE_BYTES: usize = 16 << 20;

/// How long workers may take to find lines.
const PATIENCE: Duration = Duration::from_secs(10);

/// Lines written this long around an invocation are shown with it: clocks are read at different
/// places, and a pipe is read a little after it is written.
const AROUND_MS: u64 = 50;

pub(super) async fn logs(
    State(api): State<Api>,
    Path(path): Path<(String, String)>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let LogsQuery { tail, follow, since_ms, until_ms, sandbox } = query(&uri)?;
    let sandbox = match sandbox {
        Some(text) => Some(
            text.parse::<SandboxId>().map_err(|error| ApiError::bad_request(error.to_string()))?,
        ),
        None => None,
    };
    let function = id(&api, name(path)?).await?;
    if tail > LINES {
        let message =
            format!("`tail` is {LINES} at most; ask for parts by `since_ms` and `until_ms`");
        return Err(ApiError::bad_request(message));
    }
    let wanted = LogQuery { id: 0, function, sandbox, since_ms, until_ms, tail, follow };
    let mut reader = api.bulk().read_logs(wanted).await;
    let body = if follow {
        let shutdown = api.shutdown().clone();
        Body::from_stream(stream::unfold((reader, shutdown), |(mut reader, shutdown)| async {
            // A reader that follows for ever must not hold up the end of the role.
            let text = match shutdown.run_until_cancelled(reader.next()).await.flatten()? {
                Read::Lines(lines) => ndjson(&lines),
                Read::Missing(missing) => ndjson(&[Missing { missing }]),
            };
            Some((Ok::<_, Infallible>(Bytes::from(text)), (reader, shutdown)))
        }))
    } else {
        let (lines, missing) = collect(&mut reader, tail).await;
        let mut text = ndjson(&lines);
        text.extend(ndjson(&missing));
        Body::from(text)
    };
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

async fn id(api: &Api, name: FunctionName) -> Result<FunctionId, ApiError> {
    match api.ask(Call::Describe { name }).await? {
        Answer::Function(description) => Ok(description.summary.id),
        other => {
            tracing::error!(?other, "a description was asked for");
            let message = "the control plane gave a wrong answer";
            Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message))
        }
    }
}

/// In place of a line: some are missing.
#[derive(Debug, Serialize)]
struct Missing {
    /// Why.
    missing: String,
}

/// The newest `tail` lines of all workers in the order of their times, as far as they come in time,
/// and why some do not.
async fn collect(reader: &mut LogReader, tail: u32) -> (Vec<LogLine>, Vec<Missing>) {
    let tail = usize::try_from(tail).unwrap_or(usize::MAX);
    let (mut lines, mut problems) = (Vec::new(), Vec::new());
    let all = async {
        while let Some(read) = reader.next().await {
            match read {
                Read::Lines(more) => lines.extend(more),
                Read::Missing(missing) => problems.push(Missing { missing }),
            }
            if lines.len() > tail.saturating_mul(2).max(1000) {
                newest(&mut lines, tail);
            }
        }
    };
    if tokio::time::timeout(PATIENCE, all).await.is_err() {
        let missing = format!("a worker did not send its own within {} s", PATIENCE.as_secs());
        problems.push(Missing { missing });
    }
    newest(&mut lines, tail);
    (lines, problems)
}

fn newest(lines: &mut Vec<LogLine>, tail: usize) {
    // Stable: lines of one sandbox with the same time keep their order.
    lines.sort_by_key(|line| line.at_ms);
    let mut bytes = 0;
    let fit = lines.iter().rev().take(tail).take_while(|line| {
        bytes += line.text.len() + 64;
        bytes <= LINE_BYTES
    });
    let excess = lines.len() - fit.count();
    lines.drain(..excess);
}

fn ndjson(lines: &[impl Serialize]) -> Vec<u8> {
    let mut text = Vec::new();
    for line in lines {
        match serde_json::to_vec(line) {
            Ok(line) => {
                text.extend(line);
                text.push(b'\n');
            }
            Err(error) => tracing::error!(%error, "a log line cannot be written as JSON"),
        }
    }
    text
}

pub(super) async fn invocation(
    State(api): State<Api>,
    Path(request_id): Path<String>,
) -> Result<Response, ApiError> {
    let Some(record) = api.bulk().find(&request_id).await else {
        let message = format!(
            "no data plane remembers `{request_id}`: the last 10,000 invocations are kept, and as \
             many each that failed and that were refused, until a restart"
        );
        return Err(ApiError::new(StatusCode::NOT_FOUND, "not_found", message));
    };
    let (lines, missing) = match (record.function_id, record.sandbox) {
        (Some(function), Some(sandbox)) => {
            let total = u64::try_from(record.total.as_millis()).unwrap_or(u64::MAX);
            let end = record.arrived_ms.saturating_add(total);
            let mut reader = api
                .bulk()
                .read_logs(LogQuery {
                    id: 0,
                    function,
                    sandbox: Some(sandbox),
                    since_ms: Some(record.arrived_ms.saturating_sub(AROUND_MS)),
                    until_ms: Some(end.saturating_add(AROUND_MS)),
                    tail: LINES,
                    follow: false,
                })
                .await;
            collect(&mut reader, LINES).await
        }
        _ => (Vec::new(), Vec::new()),
    };
    let missing: Vec<String> = missing.into_iter().map(|Missing { missing }| missing).collect();
    Ok(Json(json!({ "record": record, "lines": lines, "missing": missing })).into_response())
}

#[cfg(test)]
mod tests {
    use dirigent_core::Epoch;

    use super::*;

    #[test]
    fn the_newest_lines_are_kept_in_the_order_of_their_times() {
        let line = |at_ms, text: &str| LogLine {
            at_ms,
            sandbox: SandboxId::new(Epoch(1), 1),
            stderr: false,
            text: text.to_owned(),
        };
        let mut lines = vec![line(3, "c"), line(1, "a"), line(2, "b1"), line(2, "b2")];
        newest(&mut lines, 3);
        let texts: Vec<_> = lines.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(texts, ["b1", "b2", "c"]);

        let mut large = vec![line(1, &"x".repeat(LINE_BYTES)), line(2, "small")];
        newest(&mut large, 3);
        assert_eq!(large.len(), 1);
    }
}
