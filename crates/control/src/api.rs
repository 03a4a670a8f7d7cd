//! The HTTP API under `/v1`: JSON in and out, a token on everything but `/health` and
//! `/v1/join`. Handlers ask the owner and wait; none decides anything.

mod artifacts;
mod error;
mod functions;
mod logs;
mod members;
pub(crate) mod openapi;
mod peers;
pub(crate) mod server;
mod status;
mod tokens;

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{MatchedPath, Query, Request, State},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{delete, get, head, post, put},
};
use dirigent_core::{
    Access, ApiTokens,
    control::{Answer, Call},
    frame::Capacity,
};
use dirigent_service::Clock;
use http::{
    HeaderMap, HeaderValue, Method, StatusCode, Uri,
    header::{AUTHORIZATION, LOCATION},
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(crate) use error::ApiError;

use crate::{
    blobs::Blobs,
    bulk::Bulk,
    compat::{self, Images},
    copies::Artifacts,
    membership::Membership,
    metrics::{Metrics, PageSource},
    office::Stand,
    owner::{Handle, PATIENCE, Sitting},
    refusals::Refusals,
    store::etcd::Leader,
    streams::Offers,
    token::{Token, hash},
};

/// What every handler may use. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) shared: Arc<Shared>,
}

/// See [`Api`].
pub(crate) struct Shared {
    pub(crate) owner: Handle,
    /// In the state directory, for everything.
    pub(crate) token: Token,
    pub(crate) artifacts: Artifacts,
    /// Those that were made since, while this control plane leads.
    pub(crate) tokens: watch::Receiver<Option<Arc<ApiTokens>>>,
    /// The format in which records are written, or may be, as far as is known.
    pub(crate) format: Arc<AtomicU64>,
    pub(crate) bulk: Bulk,
    pub(crate) offers: Offers,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) pages: Vec<PageSource>,
    pub(crate) facts: Facts,
    pub(crate) functions: Arc<OnceLock<SocketAddr>>,
    pub(crate) compat: Option<Images>,
    pub(crate) membership: Option<Membership>,
    /// Where several control planes refuse whom one refuses.
    pub(crate) refusals: Option<Refusals>,
    pub(crate) shutdown: CancellationToken,
}

/// What does not change while it runs.
pub(crate) struct Facts {
    pub(crate) version: String,
    pub(crate) started_ms: u64,
    pub(crate) state: std::path::PathBuf,
    /// Who leads, where this is one of several control planes.
    pub(crate) stand: Option<watch::Receiver<Stand>>,
}

impl Api {
    async fn ask(&self, call: Call) -> Result<Answer, ApiError> {
        self.ask_within(call, PATIENCE).await
    }

    async fn ask_within(&self, call: Call, patience: Duration) -> Result<Answer, ApiError> {
        let answer = tokio::time::timeout(patience, self.shared.owner.ask(call)).await;
        Ok(answer.map_err(|_elapsed| ApiError::late(patience))??)
    }

    pub(crate) async fn deploy(&self, call: Call) -> Result<Answer, ApiError> {
        self.ask(call).await
    }

    /// What the API of each control plane speaks.
    fn scheme(&self) -> &'static str {
        if self.shared.membership.is_some() { "https" } else { "http" }
    }

    /// The term, while this control plane leads.
    fn sitting(&self) -> Option<Sitting> {
        self.shared.owner.sitting()
    }

    /// Who leads as the store says, where this is one of several control planes.
    fn leader(&self) -> Option<Leader> {
        self.shared.facts.stand.as_ref().and_then(|stand| stand.borrow().leader.clone())
    }

    fn blobs(&self) -> &Blobs {
        &self.shared.artifacts.blobs
    }

    fn artifacts(&self) -> &Artifacts {
        &self.shared.artifacts
    }

    fn bulk(&self) -> &Bulk {
        &self.shared.bulk
    }

    fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    fn pages(&self) -> &[PageSource] {
        &self.shared.pages
    }

    fn facts(&self) -> &Facts {
        &self.shared.facts
    }

    fn offers(&self) -> Vec<(Arc<str>, Capacity)> {
        self.shared.offers.all()
    }

    fn shutdown(&self) -> &CancellationToken {
        &self.shared.shutdown
    }

    /// The format in which records may be written: what every control plane understands.
    fn format(&self) -> u64 {
        self.shared.format.load(Relaxed)
    }

    /// Where functions are called, once it is known.
    pub(crate) fn functions(&self) -> Option<SocketAddr> {
        self.shared.functions.get().copied()
    }

    pub(crate) fn compat(&self) -> Option<&Images> {
        self.shared.compat.as_ref()
    }
}

/// The whole API. A route that is added here is added to [`openapi::ROUTES`] too.
pub(crate) fn router(api: Api) -> Router {
    let guarded = Router::new()
        .route("/v1/functions", get(functions::list))
        .route(
            "/v1/functions/{namespace}/{name}",
            get(functions::describe).put(functions::deploy).delete(functions::delete),
        )
        .route("/v1/functions/{namespace}/{name}/rollback", post(functions::rollback))
        .route("/v1/functions/{namespace}/{name}/revisions/{number}", get(functions::settled))
        .route(
            "/v1/functions/{namespace}/{name}/revisions/{number}/environment",
            get(functions::environment),
        )
        .route("/v1/functions/{namespace}/{name}/logs", get(logs::logs))
        .route("/v1/invocations/{request_id}", get(logs::invocation))
        .route(
            "/v1/artifacts/{digest}",
            head(artifacts::head).get(artifacts::get).put(artifacts::put),
        )
        .route("/v1/workers", get(peers::workers))
        .route("/v1/workers/{name}", get(peers::describe_worker).delete(peers::remove_worker))
        .route("/v1/workers/{name}/duty", put(peers::order_worker))
        .route("/v1/data-planes", get(peers::data_planes))
        .route("/v1/data-planes/{name}", delete(peers::remove_data_plane))
        .route("/v1/data-planes/{name}/duty", put(peers::order_data_plane))
        .route("/v1/top", get(functions::top))
        .route("/v1/members", get(members::list))
        .route("/v1/members/{role}/{name}", delete(members::remove))
        .route("/v1/join-tokens", post(members::invite))
        .route("/v1/tokens", get(tokens::list).post(tokens::make))
        .route("/v1/tokens/{name}", delete(tokens::revoke))
        .route("/v1/status", get(status::status))
        .route("/v1/openapi.json", get(openapi::document))
        .route("/metrics", get(status::metrics))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn_with_state(api.clone(), guard));
    // Who joins has no token of the API: a join token opens that one route.
    let mut open =
        Router::new().route("/health", get(status::health)).route("/v1/join", post(members::join));
    if api.compat().is_some() {
        open = open.merge(compat::routes());
    }
    open.method_not_allowed_fallback(no_method).merge(guarded).with_state(api)
}

async fn guard(
    State(api): State<Api>,
    headers: HeaderMap,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let offered = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map_or("", |(_, token)| token.trim());
    let here = request.uri().path();
    let leads = api.sitting().is_some();
    let Some(allowed) = api.shared.allowed(offered) else {
        // Only the leader knows which tokens count.
        if api.shared.tokens.borrow().is_none() && !is_of_each(here) {
            return Ok(elsewhere(&api, request.uri()));
        }
        return Err(ApiError::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "send `Authorization: Bearer TOKEN` with a token that counts: `dirigent token create` \
             makes one, and one is in the file `token` of the state directory",
        ));
    };
    // What is no route is told to whoever has a token.
    let wanted = path.and_then(|path| openapi::access(request.method(), path.as_str()));
    if let Some(wanted) = wanted.filter(|wanted| !allowed.includes(*wanted)) {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "forbidden",
            format!("this needs a token of the role `{wanted}`; this one has `{allowed}`"),
        ));
    }
    if !leads && !is_of_each(here) {
        return Ok(elsewhere(&api, request.uri()));
    }
    Ok(next.run(request).await)
}

impl Shared {
    /// What a token allows, if it is known to count.
    fn allowed(&self, offered: &str) -> Option<Access> {
        if self.token.is(offered) {
            return Some(Access::Admin);
        }
        let tokens = self.tokens.borrow();
        Some(tokens.as_ref()?.with_hash(hash(offered), Clock::wall_ms())?.access)
    }
}

/// What each control plane tells of itself; the rest is the leader's.
const OF_EACH: [&str; 3] = ["/v1/status", "/v1/openapi.json", "/metrics"];

/// So are members: of whoever has the authority.
fn is_of_each(path: &str) -> bool {
    OF_EACH.contains(&path) || path.starts_with("/v1/members") || path == "/v1/join-tokens"
}

/// To the leader with it, where one is known.
fn elsewhere(api: &Api, uri: &Uri) -> Response {
    let leader = api.leader().filter(|leader| !leader.member.api.is_empty());
    let scheme = api.scheme();
    let message = match &leader {
        Some(Leader { member, .. }) => format!(
            "this control plane stands by; {} leads: {scheme}://{}",
            member.name, member.api
        ),
        None => "this control plane stands by, and nobody leads yet".to_owned(),
    };
    let location = leader.and_then(|leader| {
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        HeaderValue::from_str(&format!("{scheme}://{}{path}", leader.member.api)).ok()
    });
    let Some(location) = location else {
        return ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_leader", message)
            .into_response();
    };
    let mut response =
        ApiError::new(StatusCode::TEMPORARY_REDIRECT, "not_leader", message).into_response();
    response.headers_mut().insert(LOCATION, location);
    response
}

async fn no_route(uri: Uri) -> ApiError {
    let message = format!("there is no `{}`; /v1/openapi.json lists what there is", uri.path());
    ApiError::new(StatusCode::NOT_FOUND, "no_route", message)
}

async fn no_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("`{}` does not take {method}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "no_method", message)
}

/// The query of a request; unknown parameters are errors.
fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, ApiError> {
    Query::try_from_uri(uri)
        .map(|Query(query)| query)
        .map_err(|error| ApiError::bad_request(error.body_text()))
}

/// The body of a request as JSON, of so many bytes at most.
async fn json<T: DeserializeOwned>(body: Body, limit: usize) -> Result<T, ApiError> {
    let bytes = to_bytes(body, limit).await;
    let bytes = bytes.map_err(|_too_large| ApiError::too_large("the body", limit as u64))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| ApiError::bad_request(format!("the body cannot be read: {error}")))
}
