//! Workers and data planes over HTTP: looked at, cordoned, drained, taken back, removed.

use axum::{
    Json,
    body::Body,
    extract::{Path, State},
};
use dirigent_core::{
    Duty, Whom,
    control::{Answer, Call},
};
use http::Uri;
use serde::Deserialize;

use super::{Api, ApiError, json, query};

/// A body at most: one word.
const BODY: usize = 4 << 10;

type Answered = Result<Json<Answer>, ApiError>;

/// What `PUT .../duty` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    duty: Duty,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RemoveQuery {
    force: bool,
}

fn worker(name: &str) -> Whom {
    Whom::Worker(name.into())
}

fn data_plane(name: &str) -> Whom {
    Whom::DataPlane(name.into())
}

async fn order(api: &Api, whom: Whom, body: Body) -> Answered {
    let Order { duty } = json(body, BODY).await?;
    api.ask(Call::Order { whom, duty }).await.map(Json)
}

pub(super) async fn workers(State(api): State<Api>) -> Answered {
    api.ask(Call::Workers).await.map(Json)
}

pub(super) async fn describe_worker(State(api): State<Api>, Path(name): Path<String>) -> Answered {
    api.ask(Call::DescribeWorker { name: name.into() }).await.map(Json)
}

pub(super) async fn order_worker(
    State(api): State<Api>,
    Path(name): Path<String>,
    body: Body,
) -> Answered {
    order(&api, worker(&name), body).await
}

pub(super) async fn remove_worker(
    State(api): State<Api>,
    Path(name): Path<String>,
    uri: Uri,
) -> Answered {
    let RemoveQuery { force } = query(&uri)?;
    api.ask(Call::Remove { whom: worker(&name), force }).await.map(Json)
}

pub(super) async fn data_planes(State(api): State<Api>) -> Answered {
    api.ask(Call::DataPlanes).await.map(Json)
}

pub(super) async fn order_data_plane(
    State(api): State<Api>,
    Path(name): Path<String>,
    body: Body,
) -> Answered {
    order(&api, data_plane(&name), body).await
}

pub(super) async fn remove_data_plane(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Answered {
    api.ask(Call::Remove { whom: data_plane(&name), force: false }).await.map(Json)
}
