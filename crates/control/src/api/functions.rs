//! Functions over HTTP: list, deploy, describe, roll back, remove.

use std::time::Duration;

use axum::{
    Json,
    body::{Body, to_bytes},
    extract::{Path, State},
};
use dirigent_core::{
    Auth, Digest, FunctionName, RevisionId,
    control::{Answer, Call, Refusal},
    manifest::Manifest,
};
use http::{StatusCode, Uri};
use serde::Deserialize;

use super::{Api, ApiError, query};
use crate::store::TOKENS_FORMAT;

/// What `PUT /v1/functions/{namespace}/{name}` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Deploy {
    manifest: Manifest,
    #[serde(default)]
    artifact: Option<Digest>,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct DeployQuery {
    check: bool,
    wait: bool,
}

impl Default for DeployQuery {
    fn default() -> Self {
        Self { check: true, wait: false }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RollbackQuery {
    to: Option<u32>,
    wait: bool,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ListQuery {
    after: Option<FunctionName>,
    limit: u32,
}

impl Default for ListQuery {
    fn default() -> Self {
        Self { after: None, limit: 1000 }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct TopQuery {
    limit: u32,
}

impl Default for TopQuery {
    fn default() -> Self {
        Self { limit: 20 }
    }
}

type Answered = Result<Json<Answer>, ApiError>;

/// A deploy's body at most: manifests are a page of text.
pub(super) const DEPLOY_LIMIT: usize = 1 << 20;

/// A deploy that waits is answered at the latest after this time, as it stands then. Longer than
/// the longest start that a manifest may ask for in practice.
const WAIT: Duration = Duration::from_secs(15 * 60);

pub(super) fn name((namespace, name): (String, String)) -> Result<FunctionName, ApiError> {
    FunctionName::new(&namespace, &name).map_err(|error| ApiError::bad_request(error.to_string()))
}

pub(super) async fn list(State(api): State<Api>, uri: Uri) -> Answered {
    let ListQuery { after, limit } = query(&uri)?;
    api.ask(Call::List { after, limit: limit.clamp(1, 1000) }).await.map(Json)
}

pub(super) async fn top(State(api): State<Api>, uri: Uri) -> Answered {
    let TopQuery { limit } = query(&uri)?;
    api.ask(Call::Top { limit: limit.clamp(1, 1000) }).await.map(Json)
}

pub(super) async fn describe(
    State(api): State<Api>,
    Path(path): Path<(String, String)>,
) -> Answered {
    api.ask(Call::Describe { name: name(path)? }).await.map(Json)
}

pub(super) async fn environment(
    State(api): State<Api>,
    Path((namespace, function, number)): Path<(String, String, String)>,
) -> Answered {
    let name = name((namespace, function))?;
    let revision = revision(&number)?;
    api.ask(Call::Environment { name, revision }).await.map(Json)
}

fn revision(number: &str) -> Result<u32, ApiError> {
    number.parse().map_err(|_error| {
        ApiError::bad_request(format!("`{number}` is not the number of a revision"))
    })
}

pub(super) async fn delete(State(api): State<Api>, Path(path): Path<(String, String)>) -> Answered {
    api.ask(Call::Delete { name: name(path)? }).await.map(Json)
}

pub(super) async fn deploy(
    State(api): State<Api>,
    Path(path): Path<(String, String)>,
    uri: Uri,
    body: Body,
) -> Answered {
    let DeployQuery { check, wait } = query(&uri)?;
    let wanted = name(path)?;
    let bytes = to_bytes(body, DEPLOY_LIMIT)
        .await
        .map_err(|_too_large| ApiError::too_large("the deploy's body", DEPLOY_LIMIT as u64))?;
    let Deploy { manifest, artifact } = serde_json::from_slice(&bytes)
        .map_err(|error| ApiError::bad_request(format!("the deploy cannot be read: {error}")))?;
    if manifest.name != wanted {
        return Err(ApiError::bad_request(format!(
            "the manifest is that of `{}`, the path names `{wanted}`",
            manifest.name
        )));
    }
    let (name, spec, settings) = manifest.validate(artifact).map_err(|error| {
        ApiError::new(StatusCode::BAD_REQUEST, "bad_manifest", error.to_string())
    })?;
    if settings.auth == Auth::Token && api.format() < TOKENS_FORMAT {
        return Err(older_control_planes());
    }
    let mut pin = match artifact {
        Some(digest) => Some(api.blobs().pin(digest).ok_or_else(|| no_artifact(digest))?),
        None => None,
    };
    if let Some(digest) = artifact {
        // First its bytes, then the record: nobody may have to run what is lost.
        api.artifacts().spread(digest).await?;
    }
    // Before it is asked for: a client who leaves now must not take the artifact of a deploy along
    // that becomes durable nevertheless.
    if let Some(pin) = &mut pin {
        pin.refer();
    }
    let deployed = api.ask(Call::Deploy { name, spec, settings, check }).await;
    match (&deployed, pin) {
        // A revision may have been discarded meanwhile that referred to it too.
        (Ok(_), Some(mut pin)) => pin.refer(),
        // Other errors leave it open whether the deploy is recorded.
        (Err(error), Some(pin)) if error.status.is_client_error() => pin.refused(),
        _ => {}
    }
    let deployed = deployed?;
    settle(&api, deployed, wait).await
}

/// Control planes that know older formats only would let everybody call such a function.
fn older_control_planes() -> ApiError {
    let message = "`invocation.auth` can be `token` only when every control plane runs this version \
                   or a newer one: upgrade the others first";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "older_control_planes", message)
}

fn no_artifact(digest: Digest) -> ApiError {
    let message = format!("{digest} is not held: send it with PUT /v1/artifacts/{digest} first");
    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "no_artifact", message)
}

pub(super) async fn rollback(
    State(api): State<Api>,
    Path(path): Path<(String, String)>,
    uri: Uri,
) -> Answered {
    let RollbackQuery { to, wait } = query(&uri)?;
    let deployed = api.ask(Call::Rollback { name: name(path)?, to }).await?;
    settle(&api, deployed, wait).await
}

pub(super) async fn settled(
    State(api): State<Api>,
    Path((namespace, function, number)): Path<(String, String, String)>,
) -> Answered {
    let name = name((namespace, function))?;
    let number = revision(&number)?;
    let answer = api.ask(Call::Describe { name: name.clone() }).await?;
    let Answer::Function(description) = answer else {
        let message = "a description was asked for, and something else answered";
        return Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message));
    };
    let function = description.summary.id;
    if number == 0 || number > description.summary.newest.0 {
        return Err(Refusal::NoRevision { name, number }.into());
    }
    let revision = RevisionId { function, number };
    api.ask_within(Call::AwaitRevision { revision }, WAIT).await.map(Json)
}

/// The answer to a deploy: as recorded, or as it turns out.
async fn settle(api: &Api, deployed: Answer, wait: bool) -> Answered {
    match &deployed {
        Answer::Deployed { revision, .. } if wait => {
            let call = Call::AwaitRevision { revision: *revision };
            api.ask_within(call, WAIT).await.map(Json)
        }
        _ => Ok(Json(deployed)),
    }
}
