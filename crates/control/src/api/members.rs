//! Members of the cluster over HTTP: let in by join tokens, listed, removed.

use std::time::Duration;

use axum::{
    Json,
    body::Body,
    extract::{Path, State},
};
use dirigent_core::{Member, MemberError, Role, units};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Api, ApiError};
use crate::{
    membership::{Joined, Membership, MembershipError},
    store::StoreError,
};

/// A body at most: a request for a certificate is a few hundred bytes.
const BODY: usize = 64 << 10;
/// Hosts at which a control plane is met, and bytes of each.
const HOSTS: usize = 16;
const HOST_BYTES: usize = 253;

/// What `POST /v1/join-tokens` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Invite {
    role: String,
    #[serde(default)]
    name: Option<String>,
    #[serde(with = "units::duration")]
    ttl: Duration,
    #[serde(default)]
    many: bool,
}

/// What `POST /v1/join` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Join {
    secret: String,
    name: String,
    #[serde(default)]
    hosts: Vec<String>,
    request: String,
}

type Answered = Result<Json<Value>, ApiError>;

impl Api {
    fn membership(&self) -> Result<&Membership, ApiError> {
        self.shared.membership.as_ref().ok_or_else(|| {
            ApiError::new(
                StatusCode::CONFLICT,
                "no_cluster",
                "there is no cluster here: stop this one, `dirigent cluster init`, start it again",
            )
        })
    }

    /// Work that waits for the disk.
    async fn members<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Membership) -> Result<T, MembershipError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let membership = self.membership()?.clone();
        let done = tokio::task::spawn_blocking(move || work(&membership)).await;
        let done = done.map_err(|error| {
            let message = format!("the membership panicked: {error}");
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
        })?;
        Ok(done?)
    }
}

pub(super) async fn invite(State(api): State<Api>, body: Body) -> Answered {
    let Invite { role, name, ttl, many } = super::json(body, BODY).await?;
    let role: Role = role.parse().map_err(MembershipError::from)?;
    let token = api.members(move |all| all.invite(role, name.as_deref(), ttl, many)).await?;
    Ok(Json(json!({ "token": token })))
}

pub(super) async fn join(State(api): State<Api>, body: Body) -> Answered {
    let Join { secret, name, hosts, request } = super::json(body, BODY).await?;
    if hosts.len() > HOSTS || hosts.iter().any(|host| host.len() > HOST_BYTES) {
        return Err(ApiError::bad_request(format!(
            "there may be {HOSTS} hosts of {HOST_BYTES} characters at most"
        )));
    }
    let joined = api.members(move |all| all.join(&secret, &name, &hosts, &request)).await?;
    let Joined { member, certificate, authority } = joined;
    Ok(Json(json!({ "member": member, "certificate": certificate, "authority": authority })))
}

pub(super) async fn list(State(api): State<Api>) -> Answered {
    let members = api.membership()?.list()?;
    Ok(Json(json!({ "members": members })))
}

pub(super) async fn remove(
    State(api): State<Api>,
    Path((role, name)): Path<(String, String)>,
) -> Answered {
    let member = role.parse().and_then(|role| Member::new(role, &name));
    let member: Member = member.map_err(|error: MemberError| MembershipError::from(error))?;
    let gone = member.clone();
    api.members(move |all| all.remove(&gone)).await?;
    if let Some(refusals) = &api.shared.refusals {
        refusals.tell().await.map_err(|error| untold(&member, &error))?;
    }
    Ok(Json(json!({ "removed": member })))
}

/// The store that the control planes share cannot be told who was removed.
fn untold(member: &Member, error: &StoreError) -> ApiError {
    let message = format!(
        "{member} is refused here from now on; the other control planes are told as soon as that is \
         possible: {error}"
    );
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "untold", message)
}

impl From<MembershipError> for ApiError {
    fn from(error: MembershipError) -> Self {
        let message = error.to_string();
        match error {
            MembershipError::NoAuthority => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "no_authority", message)
            }
            MembershipError::Unheard => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", message)
            }
            MembershipError::Token | MembershipError::Refused { .. } => {
                Self::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
            }
            MembershipError::Name { .. }
            | MembershipError::Member(_)
            | MembershipError::Certificate(_) => Self::bad_request(message),
            MembershipError::Taken { .. } | MembershipError::Exists { .. } => {
                Self::new(StatusCode::CONFLICT, "taken", message)
            }
            MembershipError::Unknown { .. } => {
                Self::new(StatusCode::NOT_FOUND, "not_found", message)
            }
            MembershipError::Full { .. } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "busy", message)
            }
            MembershipError::Files(_) | MembershipError::Disk(_) => {
                tracing::warn!(message, "the members cannot be written down");
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "disk", message)
            }
        }
    }
}
