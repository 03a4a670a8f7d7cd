//! Artifacts over HTTP: is it held, here it is, and give it back.

use axum::{
    Json,
    body::Body,
    extract::{Path, State},
    response::{IntoResponse as _, Response},
};
use dirigent_core::Digest;
use http::{HeaderMap, StatusCode, header::CONTENT_LENGTH};
use serde_json::json;
use tokio_util::io::ReaderStream;

use super::{Api, ApiError};

fn digest(text: &str) -> Result<Digest, ApiError> {
    text.parse()
        .map_err(|error: dirigent_core::DigestError| ApiError::bad_request(error.to_string()))
}

pub(super) async fn head(
    State(api): State<Api>,
    Path(path): Path<String>,
) -> Result<Response, ApiError> {
    let digest = digest(&path)?;
    let size = api.blobs().size(digest).ok_or_else(|| {
        ApiError::new(StatusCode::NOT_FOUND, "not_found", format!("{digest} is not held"))
    })?;
    Ok([(CONTENT_LENGTH, size.to_string())].into_response())
}

pub(super) async fn get(
    State(api): State<Api>,
    Path(path): Path<String>,
) -> Result<Response, ApiError> {
    let digest = digest(&path)?;
    let file = api.artifacts().open(digest).await.map_err(|error| {
        let message = format!("{digest} cannot be read: {error}");
        match error.kind() {
            std::io::ErrorKind::NotFound => {
                ApiError::new(StatusCode::NOT_FOUND, "not_found", message)
            }
            _ => ApiError::new(StatusCode::INSUFFICIENT_STORAGE, "disk", message),
        }
    })?;
    let size = api.blobs().size(digest).unwrap_or_default();
    let head = [(CONTENT_LENGTH, size.to_string())];
    Ok((head, Body::from_stream(ReaderStream::new(file))).into_response())
}

pub(super) async fn put(
    State(api): State<Api>,
    Path(path): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let digest = digest(&path)?;
    let blobs = api.blobs();
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    // Refused before a byte is read.
    if announced.is_some_and(|size: u64| size > blobs.limit()) {
        return Err(ApiError::too_large("the artifact", blobs.limit()));
    }
    if let Some(size) = blobs.size(digest) {
        return Ok(Json(json!({ "digest": digest, "bytes": size })).into_response());
    }
    let size = blobs.put(digest, body.into_data_stream()).await?;
    let answer = Json(json!({ "digest": digest, "bytes": size }));
    Ok((StatusCode::CREATED, answer).into_response())
}
