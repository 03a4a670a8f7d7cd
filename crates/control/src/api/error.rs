//! The one form of every error of the API: a fitting status and `{"error":{"code","message"}}`.

use std::time::Duration;

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use dirigent_core::control::Refusal;
use http::{HeaderValue, StatusCode, header::RETRY_AFTER};
use serde_json::json;

use crate::{blobs::PutError, copies::TooFew};

/// What a user is told instead of an answer.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    pub(crate) fn too_large(what: &str, limit: u64) -> Self {
        let message = format!("{what} is larger than {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    pub(crate) fn late(after: Duration) -> Self {
        let message = format!("the control plane did not answer within {} s", after.as_secs());
        Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout", message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Self { status, code, message } = self;
        let mut response = (status, Json(json!({ "error": { "code": code, "message": message } })))
            .into_response();
        if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let (status, code) = match &refusal {
            Refusal::NotFound { .. } => (StatusCode::NOT_FOUND, "not_found"),
            Refusal::NoRevision { .. } => (StatusCode::NOT_FOUND, "no_revision"),
            Refusal::Impossible { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "impossible"),
            Refusal::StoreUnavailable => (StatusCode::SERVICE_UNAVAILABLE, "store_unavailable"),
            Refusal::InDoubt => (StatusCode::SERVICE_UNAVAILABLE, "in_doubt"),
            Refusal::Busy { .. } => (StatusCode::TOO_MANY_REQUESTS, "busy"),
            Refusal::TokenTaken { .. } => (StatusCode::CONFLICT, "taken"),
            Refusal::NoToken { .. } => (StatusCode::NOT_FOUND, "not_found"),
            Refusal::TooManyTokens { .. } => (StatusCode::TOO_MANY_REQUESTS, "busy"),
            Refusal::NoPeer { .. } => (StatusCode::NOT_FOUND, "not_found"),
            Refusal::InUse { .. } => (StatusCode::CONFLICT, "in_use"),
            Refusal::Deaf { .. } => (StatusCode::CONFLICT, "deaf"),
            Refusal::NotLeader => (StatusCode::SERVICE_UNAVAILABLE, "not_leader"),
        };
        Self::new(status, code, refusal.to_string())
    }
}

impl From<TooFew> for ApiError {
    fn from(error: TooFew) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "few_copies", error.to_string())
    }
}

impl From<PutError> for ApiError {
    fn from(error: PutError) -> Self {
        let message = error.to_string();
        match error {
            PutError::TooLarge { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
            }
            PutError::Mismatch { .. } => {
                Self::new(StatusCode::BAD_REQUEST, "digest_mismatch", message)
            }
            PutError::Broken { .. } => Self::bad_request(message),
            PutError::Disk { .. } => {
                tracing::warn!(message, "upload not stored");
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "disk", message)
            }
        }
    }
}
