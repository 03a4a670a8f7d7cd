//! Tokens of the API over HTTP. A secret is made here, told once, and kept nowhere.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::{Path, State},
};
use dirigent_core::{
    Access, ApiToken,
    control::{Answer, Call},
    units,
};
use dirigent_service::Clock;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Api, ApiError};
use crate::token::{hash, secret};

/// A body at most.
const BODY: usize = 4 << 10;

/// What `POST /v1/tokens` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Make {
    role: String,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    expires: Option<Expires>,
}

#[derive(Debug, Deserialize)]
#[serde(transparent)]
struct Expires(#[serde(with = "units::duration")] Duration);

pub(super) async fn make(State(api): State<Api>, body: Body) -> Result<Json<Value>, ApiError> {
    let Make { role, name, expires } = super::json(body, BODY).await?;
    let access: Access = role
        .parse()
        .map_err(|error: dirigent_core::AccessError| ApiError::bad_request(error.to_string()))?;
    let secret = secret().map_err(|error| {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string())
    })?;
    let name: Arc<str> = match name {
        Some(name) if ApiToken::is_name(&name) => name.into(),
        Some(name) => return Err(ApiError::bad_request(format!("`{name}` is not a name"))),
        // Of the hash, so that it tells nothing.
        None => format!("{access}-{}", &crate::token::digest(&secret)[..8]).into(),
    };
    let now = Clock::wall_ms();
    let expires_ms = expires.map(|Expires(after)| {
        now.saturating_add(u64::try_from(after.as_millis()).unwrap_or(u64::MAX))
    });
    let token =
        ApiToken { name: Arc::clone(&name), access, hash: hash(&secret), made_ms: now, expires_ms };
    api.ask(Call::MakeToken { token }).await?;
    Ok(Json(json!({ "name": name, "role": access, "token": secret, "expires_ms": expires_ms })))
}

pub(super) async fn list(State(api): State<Api>) -> Result<Json<Value>, ApiError> {
    let Answer::Tokens(tokens) = api.ask(Call::Tokens).await? else {
        let message = "tokens were asked for, and something else answered";
        return Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message));
    };
    // Not the hashes: nobody needs them.
    let shown = tokens.into_iter().map(|ApiToken { name, access, made_ms, expires_ms, hash: _ }| {
        json!({ "name": name, "role": access, "made_ms": made_ms, "expires_ms": expires_ms })
    });
    Ok(Json(json!({ "tokens": shown.collect::<Vec<_>>() })))
}

pub(super) async fn revoke(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    api.ask(Call::RevokeToken { name: name.as_str().into() }).await?;
    Ok(Json(json!({ "revoked": name })))
}
