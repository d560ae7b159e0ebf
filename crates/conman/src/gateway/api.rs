//! The API: repls by name, hosts, events, health.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use http::{Method, StatusCode, Uri, header};
use model::api::{Refusal, RefusalCode};
use model::id::{HostId, ReplId};
use model::keys::{self, Host, HostState, Owner};
use model::spec::Spec;
use model::store::{Compare, Operation, StoreError, Target, Txn, TxnOutcome};
use model::wire::node::{
    DrainReport, DrainRequest, ExecAnswer, ExecRequest, HostStatus, OpenKind, StopRequest,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::error::{ApiError, Json};
use super::fleet::decode;
use super::node_client::{self, NodeError};
use super::open::unknown_repl;
use super::proxy::Session;
use super::shell::{self, Size};
use super::{Gateway, events, exposition, front};

/// The most that a body may have.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// How long a host may take to say what it carries, before its part of a list is left out.
const STATUS_PATIENCE: Duration = Duration::from_secs(1);
/// How long a command may take that names no time of its own.
const EXEC_TIMEOUT: Duration = Duration::from_secs(60);
/// An operator's drain gives programs this long to end by themselves.
const DRAIN_GRACE: Duration = Duration::from_secs(10);

type Answer<T = Response> = Result<T, ApiError>;
type Shared = State<Arc<Gateway>>;

/// The API's routes. Every one of them is in the OpenAPI document.
pub(super) fn router(gateway: Arc<Gateway>) -> Router {
    Router::new()
        .route("/v1/repls", get(list))
        .route("/v1/repls/{id}", put(create).get(show).delete(remove))
        .route("/v1/repls/{id}/start", post(start))
        .route("/v1/repls/{id}/kill", post(kill))
        .route("/v1/repls/{id}/destroy", post(destroy))
        .route("/v1/repls/{id}/exec", post(exec))
        .route("/v1/repls/{id}/logs", get(logs))
        .route("/v1/repls/{id}/shell", get(open_shell))
        .route("/v1/hosts", get(hosts))
        .route("/v1/hosts/{id}/drain", post(drain))
        .route("/v1/hosts/{id}/undrain", post(undrain))
        .route("/v1/hosts/{id}/preempt", post(preempt))
        .route("/v1/events", get(follow))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .fallback(async |uri: Uri| front::not_found(uri.path()))
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            let message = format!("{} does not take {method}", uri.path());
            ApiError(Refusal::new(RefusalCode::MethodNotAllowed, message))
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(gateway)
}

// ---- what a request says ----

/// A name in the path.
struct Id<T>(T);

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
        Err(error) => Err(Refusal::new(RefusalCode::BadRequest, error.body_text()).into()),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct GraceQuery {
    grace: Option<String>,
}

impl GraceQuery {
    fn milliseconds(&self, default: Duration) -> Answer<u64> {
        let grace = match &self.grace {
            Some(text) => stuck::query::parse_duration(text)
                .map_err(|why| Refusal::new(RefusalCode::BadRequest, format!("grace: {why}")))?,
            None => default,
        };
        Ok(u64::try_from(grace.as_millis()).unwrap_or(u64::MAX))
    }
}

fn store_error(error: &StoreError) -> ApiError {
    Refusal::new(RefusalCode::StoreUnavailable, error.to_string()).into()
}

// ---- repls ----

/// A repl as people see it.
#[derive(Debug, Serialize)]
struct ReplView {
    id: ReplId,
    spec: Spec,
    /// `free`, or the container's state.
    state: Value,
    host: Option<HostId>,
    epoch: Option<u64>,
    started_at: Option<String>,
    sessions: u32,
    pid: Option<u32>,
}

impl ReplView {
    /// What is known of a repl: its owner counts only while its host's registration stands.
    fn new(id: ReplId, spec: Spec, owner: Option<&Owner>, statuses: &[HostStatus]) -> Self {
        let container = owner.and_then(|owner| {
            let host = statuses.iter().find(|host| host.host == owner.record.host);
            let mut containers = host?.containers.iter();
            containers.find(|container| container.repl == id && container.epoch == owner.epoch)
        });
        let state = match (owner, container) {
            (None, _) => json!("free"),
            (Some(_), Some(container)) => json!(container.state),
            // Owned by a host that has not said so: it is being started, or the host does not answer.
            (Some(_), None) => json!("claimed"),
        };
        Self {
            id,
            spec,
            state,
            host: owner.map(|owner| owner.record.host.clone()),
            epoch: owner.map(|owner| owner.epoch.0),
            started_at: container.and_then(|container| container.started_at.clone()),
            sessions: container.map_or(0, |container| container.sessions),
            pid: container.and_then(|container| container.pid),
        }
    }
}

impl Gateway {
    async fn spec(&self, id: &ReplId) -> Answer<(Spec, model::store::KeyValue)> {
        let item = self
            .store
            .get(&keys::spec(id))
            .await
            .map_err(|error| store_error(&error))?
            .ok_or_else(|| unknown_repl(id))?;
        let spec = decode(&item.value).ok_or_else(|| {
            let message = format!("the stored spec of {id} cannot be read");
            Refusal::new(RefusalCode::Internal, message)
        })?;
        Ok((spec, item))
    }

    /// The owner whose registration stands, with its host.
    async fn live_owner(&self, id: &ReplId) -> Answer<Option<(Owner, Host)>> {
        let owner = self.owner(id).await?;
        Ok(owner.and_then(|owner| {
            let host = self.fleet.now().get(&owner.record.host).cloned()?;
            (host.incarnation == owner.record.incarnation).then_some((owner, host))
        }))
    }

    async fn statuses(&self, hosts: impl Iterator<Item = &Host>) -> Vec<HostStatus> {
        let asked = hosts.map(|host| async move {
            let status = node_client::call(host, Method::GET, "/node/v1/status", None::<&()>);
            tokio::time::timeout(STATUS_PATIENCE, status)
                .await
                .ok()?
                .ok()
        });
        let answered = futures_util::future::join_all(asked).await;
        answered.into_iter().flatten().collect()
    }

    async fn view(&self, id: ReplId) -> Answer<ReplView> {
        let (spec, _) = self.spec(&id).await?;
        let owner = self.live_owner(&id).await?;
        let statuses = match &owner {
            Some((_, host)) => self.statuses(std::iter::once(host)).await,
            None => vec![],
        };
        let owner = owner.as_ref().map(|(owner, _)| owner);
        Ok(ReplView::new(id, spec, owner, &statuses))
    }

    /// Ends the repl's container, wherever it is, until nobody owns the repl.
    async fn end(&self, id: &ReplId, grace_ms: u64) -> Answer<()> {
        let mut changes = self.fleet.watch();
        let ended = async {
            loop {
                changes.borrow_and_update();
                let Some((owner, host)) = self.live_owner(id).await? else {
                    return Ok(());
                };
                let ask = StopRequest {
                    repl: id.clone(),
                    epoch: owner.epoch,
                    grace_ms,
                };
                let stopped =
                    node_client::call::<Value>(&host, Method::POST, "/node/v1/stop", Some(&ask));
                match stopped.await {
                    Ok(_) => return Ok(()),
                    // It has moved, or its host is on its way out or back: look again when that has happened.
                    Err(NodeError::Refused(refused))
                        if refused.refusal.code == RefusalCode::NotOwner => {}
                    Err(_) => {
                        let patience = Duration::from_millis(500);
                        let _ = tokio::time::timeout(patience, changes.changed()).await;
                    }
                }
            }
        };
        let patience = self.config.park + Duration::from_millis(grace_ms);
        tokio::time::timeout(patience, ended).await.map_err(|_| {
            let message = format!("{id} could not be ended: its host does not answer");
            ApiError(Refusal::new(RefusalCode::HostUnreachable, message))
        })?
    }
}

async fn create(State(gateway): Shared, Id(id): Id<ReplId>, Json(body): Json<Value>) -> Answer {
    if front::split_port(id.as_str()).0.is_some() {
        let message = format!(
            "{id:?} would be read as a port and a name in a host name",
            id = id.as_str()
        );
        return Err(Refusal::new(RefusalCode::BadId, message).into());
    }
    let bad_spec = |why: String| Refusal::new(RefusalCode::BadSpec, why);
    let spec: Spec = serde_json::from_value(body).map_err(|error| bad_spec(error.to_string()))?;
    spec.validate()
        .map_err(|error| bad_spec(error.to_string()))?;
    let value = serde_json::to_string(&spec)
        .map_err(|error| Refusal::new(RefusalCode::Internal, error.to_string()))?;
    loop {
        let before = gateway
            .store
            .get(&keys::spec(&id))
            .await
            .map_err(|error| store_error(&error))?;
        if let Some(before) = &before {
            if decode::<Spec>(&before.value).as_ref() == Some(&spec) {
                let view = gateway.view(id).await?;
                return Ok(axum::Json(view).into_response());
            }
            if gateway.live_owner(&id).await?.is_some() {
                let message = format!("{id} runs with another spec: kill or destroy it first");
                return Err(Refusal::new(RefusalCode::SpecConflict, message).into());
            }
        }
        let txn = Txn {
            compares: vec![Compare {
                key: keys::spec(&id),
                target: Target::Modified,
                revision: before
                    .as_ref()
                    .map_or_else(Default::default, |item| item.modified),
            }],
            operations: vec![Operation::Put {
                key: keys::spec(&id),
                value: value.clone(),
            }],
        };
        match gateway.store.txn(txn).await {
            Ok(TxnOutcome::Committed(_)) => {
                let status = if before.is_some() {
                    StatusCode::OK
                } else {
                    StatusCode::CREATED
                };
                let view = gateway.view(id).await?;
                return Ok((status, axum::Json(view)).into_response());
            }
            // Somebody else was faster, or it is not known: what is there now decides.
            Ok(TxnOutcome::Rejected { .. }) | Err(StoreError::Ambiguous(_)) => {}
            Err(error) => return Err(store_error(&error)),
        }
    }
}

async fn list(State(gateway): Shared) -> Answer {
    let (specs, owners) = tokio::try_join!(
        gateway.store.range(keys::SPECS),
        gateway.store.range(keys::OWNERS)
    )
    .map_err(|error| store_error(&error))?;
    let fleet = gateway.fleet.now();
    let statuses = gateway.statuses(fleet.values()).await;
    let owners: BTreeMap<ReplId, Owner> = owners
        .items
        .iter()
        .filter_map(|item| keys::read_owner(item, decode).ok())
        .filter(|owner| {
            let host = fleet.get(&owner.record.host);
            host.is_some_and(|host| host.incarnation == owner.record.incarnation)
        })
        .map(|owner| (owner.repl.clone(), owner))
        .collect();
    let repls: Vec<ReplView> = specs
        .items
        .iter()
        .filter_map(|item| {
            let id: ReplId = item.key.strip_prefix(keys::SPECS)?.parse().ok()?;
            let spec = decode(&item.value)?;
            let owner = owners.get(&id);
            Some(ReplView::new(id, spec, owner, &statuses))
        })
        .collect();
    Ok(axum::Json(json!({ "repls": repls })).into_response())
}

async fn show(State(gateway): Shared, Id(id): Id<ReplId>) -> Answer {
    Ok(axum::Json(gateway.view(id).await?).into_response())
}

async fn start(State(gateway): Shared, Id(id): Id<ReplId>) -> Answer {
    gateway.open(&id, &OpenKind::Start).await?;
    Ok(axum::Json(gateway.view(id).await?).into_response())
}

async fn kill(State(gateway): Shared, Id(id): Id<ReplId>) -> Answer {
    gateway.spec(&id).await?;
    gateway.end(&id, 0).await?;
    Ok(axum::Json(gateway.view(id).await?).into_response())
}

async fn destroy(
    State(gateway): Shared,
    Id(id): Id<ReplId>,
    grace: Result<Query<GraceQuery>, QueryRejection>,
) -> Answer {
    let grace_ms = query(grace)?.milliseconds(model::timing::DESTROY_GRACE)?;
    gateway.spec(&id).await?;
    gateway.end(&id, grace_ms).await?;
    Ok(axum::Json(gateway.view(id).await?).into_response())
}

async fn remove(State(gateway): Shared, Id(id): Id<ReplId>) -> Answer {
    gateway.spec(&id).await?;
    // The spec first: from then on nobody can claim the repl, so what is ended stays ended.
    let txn = Txn {
        compares: vec![],
        operations: vec![Operation::Delete {
            key: keys::spec(&id),
        }],
    };
    gateway
        .store
        .txn(txn)
        .await
        .map_err(|error| store_error(&error))?;
    gateway.end(&id, 0).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExecBody {
    command: Vec<String>,
    #[serde(default)]
    stdin: String,
    timeout_ms: Option<u64>,
}

async fn exec(State(gateway): Shared, Id(id): Id<ReplId>, Json(body): Json<ExecBody>) -> Answer {
    if body.command.is_empty() {
        return Err(Refusal::new(RefusalCode::BadRequest, "command: must name a program").into());
    }
    let default_ms = u64::try_from(EXEC_TIMEOUT.as_millis()).unwrap_or(u64::MAX);
    let session = Session::begin(&gateway, id.clone());
    let way = match gateway.open(&id, &OpenKind::Start).await {
        Ok(way) => way,
        Err(no_way) => {
            session.refused(&no_way);
            return Err(no_way.into());
        }
    };
    session.opened(way.host.clone(), way.opened.epoch);
    let hosts = gateway.fleet.now();
    let host = hosts.get(&way.host).ok_or_else(|| {
        let message = format!("{} has just gone", way.host);
        Refusal::new(RefusalCode::HostUnreachable, message)
    })?;
    let ask = ExecRequest {
        repl: id,
        epoch: Some(way.opened.epoch),
        command: body.command,
        stdin: body.stdin,
        timeout_ms: body.timeout_ms.unwrap_or(default_ms),
    };
    let answer: ExecAnswer = node_client::call(host, Method::POST, "/node/v1/exec", Some(&ask))
        .await
        .map_err(|error| error.into_refusal(&way.host))?;
    Ok(axum::Json(answer).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogsQuery {
    #[serde(default)]
    follow: bool,
}

async fn logs(
    State(gateway): Shared,
    Id(id): Id<ReplId>,
    wanted: Result<Query<LogsQuery>, QueryRejection>,
) -> Answer {
    let follow = query(wanted)?.follow;
    gateway.spec(&id).await?;
    let Some((owner, host)) = gateway.live_owner(&id).await? else {
        let message = format!("{id} has no container now");
        return Err(Refusal::new(RefusalCode::NotRunning, message).into());
    };
    let path = format!("/node/v1/logs/{id}?epoch={}&follow={follow}", owner.epoch);
    let body = node_client::stream(&host, Method::GET, &path, None::<&()>)
        .await
        .map_err(|error| error.into_refusal(&host.id))?;
    let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    Ok((headers, Body::new(body)).into_response())
}

async fn open_shell(
    State(gateway): Shared,
    Id(id): Id<ReplId>,
    size: Result<Query<Size>, QueryRejection>,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Answer {
    let size = query(size)?;
    let upgrade = upgrade.map_err(|error| {
        let message = format!("a shell is a WebSocket: {error}");
        Refusal::new(RefusalCode::BadRequest, message)
    })?;
    let (_, terminal) = shell::open(&gateway, &id, size).await?;
    Ok(upgrade.on_upgrade(move |client| shell::serve(gateway, id, size, terminal, client)))
}

// ---- hosts ----

/// A host as people see it.
#[derive(Debug, Serialize)]
struct HostView {
    id: HostId,
    /// `active`, `draining`, or `unreachable`.
    state: &'static str,
    address: String,
    incarnation: u64,
    capacity: u32,
    containers: Option<usize>,
    sessions: Option<u32>,
    lease_margin_ms: Option<u64>,
    conman_pid: Option<u32>,
    keeper_pid: Option<u32>,
}

async fn hosts(State(gateway): Shared) -> Answer {
    let fleet = gateway.fleet.now();
    let statuses = gateway.statuses(fleet.values()).await;
    let views: Vec<HostView> = fleet
        .values()
        .map(|host| {
            let status = statuses.iter().find(|status| status.host == host.id);
            HostView {
                id: host.id.clone(),
                state: match (status, host.record.state) {
                    (None, _) => "unreachable",
                    (Some(_), HostState::Draining) => "draining",
                    (Some(_), HostState::Active) => "active",
                },
                address: host.record.address.clone(),
                incarnation: host.incarnation.0,
                capacity: host.record.capacity,
                containers: status.map(|status| status.containers.len()),
                sessions: status.map(|status| status.containers.iter().map(|c| c.sessions).sum()),
                lease_margin_ms: status.map(|status| status.lease_margin_ms),
                conman_pid: status.map(|status| status.conman_pid),
                keeper_pid: status.and_then(|status| status.keeper_pid),
            }
        })
        .collect();
    Ok(axum::Json(json!({ "hosts": views })).into_response())
}

impl Gateway {
    fn host(&self, id: &HostId) -> Answer<Host> {
        let found = self.fleet.now().get(id).cloned();
        found.ok_or_else(|| {
            let message = format!("there is no host \"{id}\"");
            Refusal::new(RefusalCode::UnknownHost, message).into()
        })
    }

    async fn tell_host<T: DeserializeOwned>(
        &self,
        id: &HostId,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Answer<T> {
        let host = self.host(id)?;
        node_client::call(&host, Method::POST, path, body)
            .await
            .map_err(|error| error.into_refusal(id).into())
    }
}

async fn drain(
    State(gateway): Shared,
    Id(id): Id<HostId>,
    grace: Result<Query<GraceQuery>, QueryRejection>,
) -> Answer {
    let grace_ms = query(grace)?.milliseconds(DRAIN_GRACE)?;
    let ask = DrainRequest { grace_ms };
    let report: DrainReport = gateway.tell_host(&id, "/node/v1/drain", Some(&ask)).await?;
    Ok(axum::Json(report).into_response())
}

async fn undrain(State(gateway): Shared, Id(id): Id<HostId>) -> Answer {
    gateway
        .tell_host::<Value>(&id, "/node/v1/undrain", None::<&()>)
        .await?;
    Ok(axum::Json(json!({ "id": id })).into_response())
}

async fn preempt(State(gateway): Shared, Id(id): Id<HostId>) -> Answer {
    gateway.host(&id)?;
    let Some(preemptor) = &gateway.config.preemptor else {
        let message = "only `conman up` can play the loss of a host: it has started its processes";
        return Err(Refusal::new(RefusalCode::BadRequest, message).into());
    };
    Ok(axum::Json(preemptor.preempt(id).await?).into_response())
}

// ---- the rest ----

async fn follow(State(gateway): Shared) -> Response {
    events::stream(gateway)
}

async fn ready(State(gateway): Shared) -> Answer {
    gateway
        .store
        .get(keys::HOSTS)
        .await
        .map_err(|error| store_error(&error))?;
    if gateway.fleet.now().is_empty() {
        return Err(Refusal::new(RefusalCode::NoHost, "no host is registered").into());
    }
    Ok("ready\n".into_response())
}

async fn metrics(State(gateway): Shared) -> Response {
    let fleet = gateway.fleet.now();
    let asked = fleet.values().map(|host| async move {
        let text = async {
            let path = "/node/v1/metrics";
            let body = node_client::stream(host, Method::GET, path, None::<&()>).await?;
            let bytes = http_body_util::BodyExt::collect(body).await?.to_bytes();
            Ok::<_, NodeError>(String::from_utf8_lossy(&bytes).into_owned())
        };
        let text = tokio::time::timeout(STATUS_PATIENCE, text)
            .await
            .ok()?
            .ok()?;
        Some((host.id.to_string(), text))
    });
    let parts: Vec<(String, String)> = futures_util::future::join_all(asked)
        .await
        .into_iter()
        .flatten()
        .collect();
    let text = exposition::merge(&(gateway.render_metrics)(), &parts);
    let headers = [(header::CONTENT_TYPE, exposition::CONTENT_TYPE)];
    (headers, text).into_response()
}
