//! What a client sees of an error: its own type, which says which side failed.

use axum::extract::{FromRequest, Request};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
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
        if retryable {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// A JSON body whose errors are like all others.
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = bytes::Bytes::from_request(request, state)
            .await
            .map_err(|error| {
                let code = if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
                    RefusalCode::BodyTooLarge
                } else {
                    RefusalCode::BadRequest
                };
                Refusal::new(code, format!("the body: {error}"))
            })?;
        serde_json::from_slice(&bytes).map(Json).map_err(|error| {
            Refusal::new(RefusalCode::BadJson, format!("the body: {error}")).into()
        })
    }
}
