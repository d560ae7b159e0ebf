//! The API: repls by name, sessions, hosts, events, health.
//!
//! ```text
//! routes ──► the router
//!    └─────► the document at /v1/openapi.json (`document`)
//! ```
//!
//! One table names every route with what it may refuse. The router and the document are both made of it, so that
//! they cannot drift apart.

pub(super) mod hosts;
pub(super) mod login;
pub(super) mod repls;
pub(super) mod sessions;
pub(super) mod system;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::response::Response;
use axum::routing::{MethodRouter, delete, get, post, put};
use http::{Method, Uri};
use model::api::{Refusal, RefusalCode};
use model::store::StoreError;
use model::time::milliseconds;
use serde::Deserialize;
use utoipa::IntoParams;

use super::error::ApiError;
use super::{Gateway, front, page};

/// How long a host may take to say what it carries, before its part of a list is left out.
const STATUS_PATIENCE: Duration = Duration::from_secs(1);

type Answer<T = Response> = Result<T, ApiError>;
type Shared = State<Arc<Gateway>>;

/// One operation of the API.
pub(super) struct Route {
    pub(super) method: Method,
    pub(super) path: &'static str,
    handler: MethodRouter<Arc<Gateway>>,
    /// What it may refuse, besides what [`ANY`] may.
    pub(super) refusals: Vec<RefusalCode>,
}

/// What any request may be refused for, before it comes to its operation.
pub(super) const ANY: &[RefusalCode] = &[
    RefusalCode::BadRequest,
    RefusalCode::HeadersTooLarge,
    RefusalCode::CrossOrigin,
    RefusalCode::UnknownName,
    RefusalCode::Unauthorized,
];
/// An operation on one repl.
const REPL: &[RefusalCode] = &[
    RefusalCode::BadId,
    RefusalCode::UnknownRepl,
    RefusalCode::StoreUnavailable,
    RefusalCode::Internal,
];
/// One that needs a host's answer.
const HOST: &[RefusalCode] = &[RefusalCode::HostUnreachable];
/// One that starts a container if need be.
const START: &[RefusalCode] = &[
    RefusalCode::ImageNotFound,
    RefusalCode::CommandNotFound,
    RefusalCode::ExitedAtOnce,
    RefusalCode::NotOwner,
    RefusalCode::Draining,
    RefusalCode::NoCapacity,
    RefusalCode::NoHost,
    RefusalCode::Fenced,
    RefusalCode::ParkTimeout,
    RefusalCode::StartFailed,
    RefusalCode::DiskFull,
];
/// One with a body.
const BODY: &[RefusalCode] = &[RefusalCode::BadJson, RefusalCode::BodyTooLarge];

/// Every operation of the API.
pub(super) fn routes() -> Vec<Route> {
    use RefusalCode as Code;
    let route = |method, path, handler, refusals: &[&[Code]]| Route {
        method,
        path,
        handler,
        refusals: refusals.concat(),
    };
    let (get_, put_, post_) = (Method::GET, Method::PUT, Method::POST);
    let one = "/v1/repls/{id}";
    vec![
        route(
            get_.clone(),
            "/v1/repls",
            get(repls::list),
            &[&[Code::StoreUnavailable]],
        ),
        route(
            put_,
            one,
            put(repls::create),
            &[REPL, BODY, &[Code::BadSpec, Code::SpecConflict]],
        ),
        route(get_.clone(), one, get(repls::show), &[REPL]),
        route(Method::DELETE, one, delete(repls::remove), &[REPL, HOST]),
        route(
            post_.clone(),
            "/v1/repls/{id}/start",
            post(repls::start),
            &[REPL, HOST, START],
        ),
        route(
            post_.clone(),
            "/v1/repls/{id}/kill",
            post(repls::kill),
            &[REPL, HOST],
        ),
        route(
            post_.clone(),
            "/v1/repls/{id}/destroy",
            post(repls::destroy),
            &[REPL, HOST],
        ),
        route(
            post_.clone(),
            "/v1/repls/{id}/exec",
            post(sessions::exec),
            &[
                REPL,
                HOST,
                START,
                BODY,
                &[Code::ExecTimeout, Code::NotRunning],
            ],
        ),
        route(
            get_.clone(),
            "/v1/repls/{id}/logs",
            get(sessions::logs),
            &[REPL, HOST],
        ),
        route(
            get_.clone(),
            "/v1/repls/{id}/shell",
            get(sessions::open_shell).connect(sessions::open_shell),
            &[REPL, HOST, START, &[Code::NotRunning]],
        ),
        route(get_.clone(), "/v1/hosts", get(hosts::hosts), &[]),
        route(
            post_.clone(),
            "/v1/hosts/{id}/drain",
            post(hosts::drain),
            &[HOST_ITSELF, HOST, &[Code::StoreUnavailable, Code::Internal]],
        ),
        route(
            post_.clone(),
            "/v1/hosts/{id}/undrain",
            post(hosts::undrain),
            &[HOST_ITSELF, HOST],
        ),
        route(
            post_.clone(),
            "/v1/hosts/{id}/preempt",
            post(hosts::preempt),
            &[HOST_ITSELF, HOST],
        ),
        route(post_.clone(), "/v1/login", post(login::log_in), &[BODY]),
        route(Method::DELETE, "/v1/login", delete(login::log_out), &[]),
        route(get_.clone(), "/v1/events", get(system::follow), &[]),
        route(get_.clone(), "/v1/openapi.json", get(system::openapi), &[]),
        route(get_.clone(), "/healthz", get(system::health), &[]),
        route(
            get_.clone(),
            "/readyz",
            get(system::ready),
            &[&[Code::NoHost, Code::StoreUnavailable]],
        ),
        route(get_.clone(), "/v1/stuck", get(system::stuck), &[]),
        route(
            get_.clone(),
            "/debug/operations",
            get(system::operations),
            &[],
        ),
        route(get_, "/metrics", get(system::metrics), &[]),
    ]
}

/// An operation on one host.
const HOST_ITSELF: &[RefusalCode] = &[RefusalCode::BadId, RefusalCode::UnknownHost];

/// Routes every operation to its handler.
pub(super) fn router(gateway: Arc<Gateway>) -> Router {
    routes()
        .into_iter()
        .fold(Router::new(), |router, route| {
            router.route(route.path, route.handler)
        })
        .merge(page::router())
        .fallback(async |uri: Uri| front::not_found(uri.path()))
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            let message = format!("{} does not take {method}", uri.path());
            ApiError(Refusal::new(RefusalCode::MethodNotAllowed, message))
        })
        .with_state(gateway)
}

/// A name in the path.
pub(super) struct Id<T>(T);

impl<T, S> FromRequestParts<S> for Id<T>
where
    T: std::str::FromStr<Err = model::id::NameError>,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request_parts(
        parts: &mut http::request::Parts,
        state: &S,
    ) -> Result<Self, ApiError> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|error| Refusal::new(RefusalCode::BadId, error.to_string()))?;
        match text.parse() {
            Ok(id) => Ok(Id(id)),
            Err(error) => {
                Err(Refusal::new(RefusalCode::BadId, format!("{text:?}: {error}")).into())
            }
        }
    }
}

/// A query whose errors are like all others.
fn query<T>(query: Result<Query<T>, QueryRejection>) -> Answer<T> {
    match query {
        Ok(Query(query)) => Ok(query),
        Err(error) => {
            let text = error.body_text();
            let why = text.strip_prefix("Failed to deserialize query string");
            let message = format!("the query{}", why.unwrap_or(": it cannot be read"));
            Err(Refusal::new(RefusalCode::BadRequest, message).into())
        }
    }
}

/// The repl that a path names.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "only described: `Id` reads it")]
pub(super) struct ReplPath {
    /// The repl's name, a DNS label. Not `<port>-…`, which a host name would read as a port and a name.
    #[param(max_length = 50, pattern = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
    id: String,
}

/// The host that a path names.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "only described: `Id` reads it")]
pub(super) struct HostPath {
    /// The host's name.
    #[param(max_length = 50, pattern = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
    id: String,
}

/// How long programs may take to end by themselves.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct GraceQuery {
    /// From SIGTERM to SIGKILL, a number with a unit: `5s`, `300ms`, `0s`.
    #[param(example = "5s")]
    grace: Option<String>,
}

impl GraceQuery {
    fn given_milliseconds(&self) -> Answer<Option<u64>> {
        let Some(text) = &self.grace else {
            return Ok(None);
        };
        let grace = stuck::query::parse_duration(text)
            .map_err(|why| Refusal::new(RefusalCode::BadRequest, format!("grace: {why}")))?;
        Ok(Some(milliseconds(grace)))
    }

    fn milliseconds(&self, default: Duration) -> Answer<u64> {
        let default = milliseconds(default);
        Ok(self.given_milliseconds()?.unwrap_or(default))
    }
}

fn store_error(error: &StoreError) -> ApiError {
    Refusal::new(RefusalCode::StoreUnavailable, error.to_string()).into()
}
