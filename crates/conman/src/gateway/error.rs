//! What a client sees of an error: its own type, which says which side failed.

use std::time::Duration;

use axum::extract::{FromRequest, Request};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use model::api::{Refusal, RefusalCode, Side};
use serde::Serialize;
use serde::de::DeserializeOwned;
use utoipa::ToSchema;

use super::document::{ErrorCode, ErrorSide};

/// An error on its way to a client.
#[derive(Debug)]
pub(super) struct ApiError(pub(super) Refusal);

/// The body of every error: `{"error": {…}}`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Error)]
pub(super) struct ErrorBody {
    #[schema(inline)]
    error: ErrorDetail,
}

/// What went wrong.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ErrorDetail {
    /// The reason, for programs.
    #[schema(value_type = ErrorCode)]
    code: RefusalCode,
    /// The reason, for people.
    message: String,
    /// Which side failed: `client`, `user` or `platform`.
    #[schema(value_type = ErrorSide, inline)]
    side: Side,
    /// Whether the same request may succeed later.
    retryable: bool,
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl From<super::open::NoWay> for ApiError {
    fn from(no_way: super::open::NoWay) -> Self {
        Self(no_way.refusal)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retryable = self.0.is_retryable();
        let body = ErrorBody {
            error: ErrorDetail {
                code: self.0.code,
                side: self.0.code.side(),
                message: self.0.message,
                retryable,
            },
        };
        let mut response = (status, axum::Json(body)).into_response();
        if status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if retryable {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// The most that a body may have.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// How much of a body that is too large is read and thrown away. A connection that is closed over unread bytes is
/// reset, and the client never reads why.
const BODY_BYTES_DISCARDED_MAX: usize = 16 * BODY_BYTES_MAX;
/// How long a client may take to send its body.
const BODY_PATIENCE: Duration = Duration::from_secs(30);

async fn read_body(mut body: axum::body::Body) -> Result<Vec<u8>, Refusal> {
    let (mut bytes, mut length) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|error| Refusal::new(RefusalCode::BadRequest, format!("the body: {error}")))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        length += data.len();
        if length <= BODY_BYTES_MAX {
            bytes.extend_from_slice(&data);
        } else if length > BODY_BYTES_DISCARDED_MAX {
            break;
        }
    }
    if length > BODY_BYTES_MAX {
        let message = format!("the body has more than {BODY_BYTES_MAX} bytes");
        return Err(Refusal::new(RefusalCode::BodyTooLarge, message));
    }
    Ok(bytes)
}

/// A JSON body whose errors are like all others.
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let bytes = tokio::time::timeout(BODY_PATIENCE, read_body(request.into_body()))
            .await
            .map_err(|_| {
                let message = format!("the body did not come within {} s", BODY_PATIENCE.as_secs());
                Refusal::new(RefusalCode::BadRequest, message)
            })??;
        serde_json::from_slice(&bytes).map(Json).map_err(|error| {
            Refusal::new(RefusalCode::BadJson, format!("the body: {error}")).into()
        })
    }
}
