//! What this control plane is and has, and its metrics.

use std::time::Duration;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse as _, Response},
};
use dirigent_core::control::{Answer, Call};
use http::{
    HeaderMap, StatusCode,
    header::{ACCEPT, CONTENT_TYPE},
};
use serde_json::{Value, json};

use super::{Api, ApiError};
use crate::metrics::SERIES;

/// A page without the machine's numbers is better than none.
const PATIENCE: Duration = Duration::from_secs(1);

pub(super) async fn status(State(api): State<Api>) -> Json<Value> {
    let facts = api.facts();
    let office = api.sitting().map(|sitting| sitting.office);
    let role = match office {
        None => "standby",
        Some(_) if api.metrics().is_detached() => "detached",
        Some(_) => "leader",
    };
    let workers: Vec<Value> = api
        .offers()
        .into_iter()
        .map(|(name, offer)| {
            let runtimes: Vec<Value> = offer
                .runtimes
                .iter()
                .map(|(runtime, isolation)| json!({ "runtime": runtime, "isolation": isolation }))
                .collect();
            json!({
                "name": name,
                "memory": offer.memory,
                "cpu": offer.cpu,
                "cpu_overcommit": offer.cpu_overcommit,
                "sandboxes": offer.sandboxes,
                "starts": offer.starts,
                "runtimes": runtimes,
                "missing": offer.missing,
            })
        })
        .collect();
    Json(json!({
        "version": facts.version,
        "role": role,
        "cluster": office.map(|office| format!("{:032x}", office.cluster.0)),
        "epoch": office.map(|office| office.epoch.term()),
        "leader": api.leader().map(|leader| json!({
            "name": leader.member.name,
            "epoch": leader.epoch.term(),
            "api": format!("{}://{}", api.scheme(), leader.member.api),
            "peers": leader.member.peers,
        })),
        "started_ms": facts.started_ms,
        "state": facts.state,
        "functions_url": api.functions().map(|address| format!("http://{address}")),
        "compat": api.compat().is_some(),
        "counts": {
            "functions": api.metrics().functions(),
            "workers": workers.len(),
            "store_writes": api.metrics().store_writes(),
            "store_transactions": api.metrics().store_transactions(),
        },
        "workers": workers,
    }))
}

/// The page for those who know OpenMetrics and for those who do not: it differs from Prometheus's
/// older text format by comments only.
const OPEN_METRICS: &str = "application/openmetrics-text";
const OPEN_METRICS_1: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) async fn metrics(
    State(api): State<Api>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let top = match api.ask_within(Call::Top { limit: SERIES }, PATIENCE).await {
        Ok(Answer::Top(top)) => top,
        _ => Vec::new(),
    };
    let workers = match api.ask_within(Call::Workers, PATIENCE).await {
        Ok(Answer::Workers(workers)) => workers,
        _ => Vec::new(),
    };
    let page = api.metrics().page(&top, &workers, api.pages()).map_err(|error| {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string())
    })?;
    let accepts = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let open = accepts.flat_map(|value| value.split(',')).any(|one| one.contains(OPEN_METRICS));
    let kind = if open { OPEN_METRICS_1 } else { PROMETHEUS_TEXT };
    Ok(([(CONTENT_TYPE, kind)], page).into_response())
}

pub(super) async fn health() -> &'static str {
    "ok\n"
}
