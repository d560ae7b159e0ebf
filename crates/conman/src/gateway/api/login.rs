//! An operator's browser: it shows its key once, and has a cookie from then on.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::response::IntoResponse;
use http::{StatusCode, header};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{Answer, Shared};
use crate::gateway::access;
use crate::gateway::door::Guest;
use crate::gateway::error::Json;

/// Who wants to come in.
#[derive(Deserialize, ToSchema)]
#[schema(as = Login)]
#[serde(deny_unknown_fields)]
pub(in crate::gateway) struct LoginBody {
    /// One of the keys of this API.
    key: String,
}

/// Lets a browser in: its next requests carry the key in a cookie, which no script reads.
///
/// Other clients need none of this: they send `Authorization: Bearer KEY`.
#[utoipa::path(
    post, path = "/v1/login", tag = "fleet", operation_id = "log_in",
    request_body = LoginBody,
    responses((status = 204, description = "The cookie is set")),
)]
pub(in crate::gateway) async fn log_in(
    State(gateway): Shared,
    Extension(guest): Extension<Arc<Guest>>,
    Json(body): Json<LoginBody>,
) -> Answer {
    gateway.config.access.log_in(&body.key)?;
    let cookie = access::key_cookie(&body.key, guest.is_secure)?;
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookie)]).into_response())
}

/// Takes the cookie back.
#[utoipa::path(
    delete, path = "/v1/login", tag = "fleet", operation_id = "log_out",
    responses((status = 204, description = "The cookie is gone")),
)]
pub(in crate::gateway) async fn log_out(Extension(guest): Extension<Arc<Guest>>) -> Answer {
    let cookie = access::key_cookie("", guest.is_secure)?;
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookie)]).into_response())
}
