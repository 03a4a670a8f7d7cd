//! What callers are told when the platform, not the function, answers.
//!
//! The one mapping from reasons to status, code and words, and the only place that writes
//! `X-Dirigent-Error`.

use std::{borrow::Cow, fmt::Write as _, time::Duration};

use bytes::Bytes;
use dirigent_core::{
    StartFailure,
    frame::Status,
    gate::{Gate, Refusal},
};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use crate::{body::Body, scan::Violation};

pub(crate) const REQUEST_ID: &str = "x-dirigent-request-id";
pub(crate) static X_REQUEST_ID: HeaderName = HeaderName::from_static(REQUEST_ID);
pub(crate) static X_ERROR: HeaderName = HeaderName::from_static("x-dirigent-error");
pub(crate) static SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
static GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// A reason, as machines read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    BadRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    BodyTooLarge,
    QueueFull,
    AtMax,
    StartFailed,
    CrashLoop,
    SandboxLost,
    NoCapacity,
    NoControlPlane,
    Timeout,
    StartTimeout,
}

impl Code {
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::BodyTooLarge => "body_too_large",
            Self::QueueFull => "queue_full",
            Self::AtMax => "at_max",
            Self::StartFailed => "start_failed",
            Self::CrashLoop => "crash_loop",
            Self::SandboxLost => "sandbox_lost",
            Self::NoCapacity => "no_capacity",
            Self::NoControlPlane => "no_control_plane",
            Self::Timeout => "timeout",
            Self::StartTimeout => "start_timeout",
        }
    }

    const fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::QueueFull | Self::AtMax => StatusCode::TOO_MANY_REQUESTS,
            Self::StartFailed | Self::CrashLoop | Self::SandboxLost => StatusCode::BAD_GATEWAY,
            Self::NoCapacity | Self::NoControlPlane => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout | Self::StartTimeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// gRPC's own codes.
    const fn grpc(self) -> &'static str {
        match self {
            Self::BadRequest => "13",
            Self::Unauthorized => "16",
            Self::Forbidden => "7",
            Self::NotFound => "12",
            Self::BodyTooLarge | Self::QueueFull | Self::AtMax => "8",
            Self::StartFailed
            | Self::CrashLoop
            | Self::SandboxLost
            | Self::NoCapacity
            | Self::NoControlPlane => "14",
            Self::Timeout | Self::StartTimeout => "4",
        }
    }

    /// What a caller is asked to show (RFC 6750).
    const fn challenge(self) -> Option<&'static str> {
        match self {
            Self::Unauthorized => Some("Bearer realm=\"dirigent\""),
            Self::Forbidden => Some("Bearer realm=\"dirigent\", error=\"insufficient_scope\""),
            _ => None,
        }
    }

    /// Whether trying again soon makes sense.
    const fn retry_after(self) -> Option<&'static str> {
        match self {
            Self::QueueFull | Self::AtMax | Self::NoCapacity | Self::NoControlPlane => Some("1"),
            _ => None,
        }
    }
}

/// An answer by the platform.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) message: Cow<'static, str>,
}

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into() }
    }

    /// A gate's refusal.
    pub(crate) fn refused(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::QueueFull { max_queue } => Self::new(
                Code::QueueFull,
                format!("{max_queue} invocations are waiting already, as many as may (max_queue)"),
            ),
            Refusal::CrashLoop(failure) => {
                Self::new(Code::CrashLoop, explain("the function does not start", failure))
            }
            Refusal::Deleted => Self::new(Code::NotFound, "the function was deleted"),
        }
    }

    /// Nobody freed a slot in time.
    pub(crate) fn waited(gate: &Gate, holds_slots: bool, attached: bool, waited: Duration) -> Self {
        let seconds = waited.as_secs_f64();
        if !attached && !holds_slots {
            return Self::new(
                Code::NoControlPlane,
                format!("no control plane to start a sandbox within {seconds:.1} s"),
            );
        }
        match gate.status() {
            Status::AtMax => Self::new(
                Code::AtMax,
                format!(
                    "all {} sandboxes stayed busy for {seconds:.1} s",
                    gate.view().settings.max
                ),
            ),
            Status::NoCapacity => {
                Self::new(Code::NoCapacity, format!("no worker had room for {seconds:.1} s"))
            }
            Status::NotReady => Self::new(
                Code::StartTimeout,
                format!("no revision of the function got ready within {seconds:.1} s"),
            ),
            Status::StartFailed(failure) => {
                Self::new(Code::StartFailed, explain("the last start failed", failure))
            }
            Status::CrashLoop(failure) => {
                Self::new(Code::CrashLoop, explain("the function does not start", failure))
            }
            Status::Flowing if holds_slots => Self::new(
                Code::Timeout,
                format!("no slot became free within {seconds:.1} s (queue_timeout)"),
            ),
            Status::Flowing => Self::new(
                Code::StartTimeout,
                format!("no sandbox got ready within {seconds:.1} s (queue_timeout)"),
            ),
        }
    }

    pub(crate) fn status(&self) -> u16 {
        self.code.status().as_u16()
    }

    /// The response, in the form that the caller expects.
    pub(crate) fn response(&self, request_id: &HeaderValue, grpc: bool) -> Response<Body> {
        let mut headers = HeaderMap::with_capacity(8);
        headers.insert(X_REQUEST_ID.clone(), request_id.clone());
        headers.insert(X_ERROR.clone(), HeaderValue::from_static(self.code.text()));
        if let Some(seconds) = self.code.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
        }
        if let Some(challenge) = self.code.challenge() {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        let mut response = if grpc {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(GRPC_STATUS.clone(), HeaderValue::from_static(self.code.grpc()));
            let message = percent(&format!("{}: {}", self.code.text(), self.message));
            headers.insert(
                GRPC_MESSAGE.clone(),
                HeaderValue::from_str(&message).unwrap_or(HeaderValue::from_static("")),
            );
            Response::new(Body::Empty)
        } else {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            let id = request_id.to_str().unwrap_or_default();
            let mut response =
                Response::new(Body::Full(json(self.code.text(), &self.message, id).into()));
            *response.status_mut() = self.code.status();
            response
        };
        *response.headers_mut() = headers;
        response
    }
}

fn json(code: &str, message: &str, request_id: &str) -> String {
    let error = serde_json::json!({
        "error": { "code": code, "message": message, "request_id": request_id }
    });
    format!("{error}\n")
}

/// What happened, and the last lines of the sandbox that it happened to.
fn explain(what: &str, failure: &StartFailure) -> String {
    let mut text = format!("{what}: {}", failure.cause);
    if !failure.log_tail.is_empty() {
        text.push_str("; its last lines:");
        for line in &failure.log_tail {
            text.push('\n');
            text.push_str(line);
        }
    }
    text
}

/// gRPC's percent-encoding of messages.
fn percent(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(char::from(byte)),
            _ => write!(out, "%{byte:02X}").expect("writing to a string does not fail"),
        }
        out
    })
}

/// A whole HTTP/1.1 message for a request that was refused before there was an invocation, and its
/// code.
pub(crate) fn bare_answer(violation: Violation, request_id: &HeaderValue) -> (Bytes, &'static str) {
    let (code, phrase) = match violation.status {
        408 => ("request_timeout", "Request Timeout"),
        431 => ("head_too_large", "Request Header Fields Too Large"),
        503 => ("no_capacity", "Service Unavailable"),
        _ => ("bad_request", "Bad Request"),
    };
    let id = request_id.to_str().unwrap_or_default();
    let body = json(code, violation.reason, id);
    let answer = format!(
        "HTTP/1.1 {} {phrase}\r\ncontent-type: application/json\r\n{REQUEST_ID}: {id}\r\n\
         x-dirigent-error: {code}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        violation.status,
        body.len(),
    );
    (answer.into(), code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_callers_get_trailers_only() {
        let failure = Failure::new(Code::QueueFull, "too many\nü");
        let response = failure.response(&HeaderValue::from_static("abc"), true);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "8");
        assert_eq!(response.headers()["grpc-message"], "queue_full: too many%0A%C3%BC");
        assert_eq!(response.headers()["x-dirigent-error"], "queue_full");
    }

    #[test]
    fn others_get_json_with_the_request_id() {
        let failure = Failure::new(Code::NotFound, "no such function");
        let response = failure.response(&HeaderValue::from_static("abc"), false);
        assert_eq!(response.status(), 404);
        let Body::Full(body) = response.into_body() else { panic!("a body") };
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["error"]["code"], "not_found");
        assert_eq!(body["error"]["request_id"], "abc");
    }
}
