//! Repls by name: their specs, and the life and death of their containers.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::IntoResponse;
use http::{Method, StatusCode};
use model::api::{ContainerState, Refusal, RefusalCode};
use model::id::{HostId, ReplId};
use model::keys::{self, Host, Owner};
use model::probe::{PREFIX, is_probe};
use model::routing::unknown_repl;
use model::spec::Spec;
use model::store::{Compare, Operation, StoreError, Target, Txn, TxnOutcome};
use model::wire::node::{HostStatus, OpenKind, StopRequest};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{Answer, GraceQuery, Id, ReplPath, STATUS_PATIENCE, Shared, query, store_error};
use crate::gateway::document::SpecSchema;
use crate::gateway::error::{ApiError, Json};
use crate::gateway::fleet::decode;
use crate::gateway::node_client::{self, NodeError};
use crate::gateway::{Gateway, aim};

/// What a repl is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::gateway) enum ReplState {
    /// Nobody owns it: there is no container.
    Free,
    /// Owned by a host that has not said more: it is about to start it, or does not answer.
    Claimed,
    /// The container's process does not run yet.
    Starting,
    /// The container's process runs.
    Running,
    /// SIGTERM was sent; the grace runs.
    Destroying,
    /// SIGKILL was sent; the death is not proven yet.
    Killing,
    /// Proven dead; the repl is being released or handed off.
    Releasing,
}

impl From<ContainerState> for ReplState {
    fn from(state: ContainerState) -> Self {
        match state {
            ContainerState::Starting => ReplState::Starting,
            ContainerState::Running => ReplState::Running,
            ContainerState::Destroying => ReplState::Destroying,
            ContainerState::Killing => ReplState::Killing,
            ContainerState::Releasing => ReplState::Releasing,
        }
    }
}

/// A repl as people see it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Repl)]
pub(in crate::gateway) struct ReplView {
    /// Its name.
    #[schema(value_type = String)]
    id: ReplId,
    /// What was asked for.
    #[schema(value_type = SpecSchema)]
    spec: Spec,
    /// What it is doing.
    #[schema(inline)]
    state: ReplState,
    /// The host that owns it.
    #[schema(value_type = Option<String>)]
    host: Option<HostId>,
    /// The store revision at which that host claimed it: rises with every owner.
    epoch: Option<u64>,
    /// When its container started, RFC 3339 UTC.
    started_at: Option<String>,
    /// Sessions joined to its container now.
    sessions: u32,
    /// The host's process id of its container's first process.
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
            (None, _) => ReplState::Free,
            (Some(_), Some(container)) => container.state.into(),
            // Owned by a host that has not said so: it is being started, or the host does not answer.
            (Some(_), None) => ReplState::Claimed,
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
    pub(in crate::gateway) async fn spec(
        &self,
        id: &ReplId,
    ) -> Answer<(Spec, model::store::KeyValue)> {
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
    pub(in crate::gateway) async fn live_owner(
        &self,
        id: &ReplId,
    ) -> Answer<Option<(Owner, Host)>> {
        let owner = self.owner(id).await?;
        Ok(owner.and_then(|owner| {
            let host = self.fleet.now().get(&owner.record.host).cloned()?;
            (host.incarnation == owner.record.incarnation).then_some((owner, host))
        }))
    }

    pub(in crate::gateway) async fn statuses(
        &self,
        hosts: impl Iterator<Item = &Host>,
    ) -> Vec<HostStatus> {
        let asked = hosts.map(|host| async move {
            let status = node_client::call(
                &self.config.dialer,
                host,
                Method::GET,
                "/node/v1/status",
                None::<&()>,
            );
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

    /// Has the repl be known with this spec. Safe to repeat.
    pub(in crate::gateway) async fn keep_spec(
        &self,
        id: &ReplId,
        spec: &Spec,
    ) -> Answer<StatusCode> {
        let value = serde_json::to_string(spec)
            .map_err(|error| Refusal::new(RefusalCode::Internal, error.to_string()))?;
        let mut doubted = false;
        loop {
            let before = self
                .store
                .get(&keys::spec(id))
                .await
                .map_err(|error| store_error(&error))?;
            if let Some(before) = &before {
                let before = decode::<Spec>(&before.value);
                if before.as_ref() == Some(spec) {
                    return Ok(StatusCode::OK);
                }
                // Who may visit it is not the container's business.
                let is_same_container = before.is_some_and(|before| {
                    Spec {
                        visibility: spec.visibility,
                        ..before
                    } == *spec
                });
                if !is_same_container && self.live_owner(id).await?.is_some() {
                    let message = format!("{id} runs with another spec: kill or destroy it first");
                    return Err(Refusal::new(RefusalCode::SpecConflict, message).into());
                }
            }
            let txn = Txn {
                compares: vec![Compare {
                    key: keys::spec(id),
                    target: Target::Modified,
                    revision: before
                        .as_ref()
                        .map_or_else(Default::default, |item| item.modified),
                }],
                operations: vec![Operation::Put {
                    key: keys::spec(id),
                    value: value.clone(),
                }],
            };
            match self.store.txn(txn).await {
                Ok(TxnOutcome::Committed(_)) if before.is_some() => return Ok(StatusCode::OK),
                Ok(TxnOutcome::Committed(_)) => return Ok(StatusCode::CREATED),
                // Somebody else was faster: what is there now decides.
                Ok(TxnOutcome::Rejected { .. }) => {}
                // It is not known: the same. Twice in a row is for whoever asked to know.
                Err(StoreError::Ambiguous(_)) if !doubted => doubted = true,
                Err(error) => return Err(store_error(&error)),
            }
        }
    }

    /// Forgets the repl, and kills its container.
    pub(in crate::gateway) async fn forget(&self, id: &ReplId) -> Answer<()> {
        // The spec first: from then on nobody can claim the repl, so what is ended stays ended.
        let txn = Txn {
            compares: vec![],
            operations: vec![Operation::Delete {
                key: keys::spec(id),
            }],
        };
        self.store
            .txn(txn)
            .await
            .map_err(|error| store_error(&error))?;
        self.end(id, 0).await
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
                let stopped = self.ask::<Value>(&host, "/node/v1/stop", Some(&ask));
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

/// Every repl, by name.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct ReplList {
    repls: Vec<ReplView>,
}

/// Reads a spec; what is wrong is told with its field.
fn read_spec(body: Value) -> Result<Spec, String> {
    let Value::Object(fields) = body else {
        return Err("the spec: must be a JSON object".to_owned());
    };
    let spec: Spec = serde_json::from_value(Value::Object(fields.clone()))
        .map_err(|error| blame(fields).unwrap_or_else(|| error.to_string()))?;
    spec.validate().map_err(|error| error.to_string())?;
    Ok(spec)
}

/// The first field that is wrong by itself. Serde's own texts do not name it, and most specs are right: so it is
/// searched for only afterwards, by reading each field alone.
fn blame(fields: serde_json::Map<String, Value>) -> Option<String> {
    let read_with = |name: &str, value: Value| {
        let mut alone = json!({"command": ["x"]});
        alone[name] = value;
        serde_json::from_value::<Spec>(alone).err()
    };
    fields.into_iter().find_map(|(name, value)| {
        let error = read_with(&name, value.clone())?;
        let mut place = name.clone();
        if let (true, Value::Object(inner)) = (name == "limits", value) {
            let is_wrong = |(name, value): &(String, Value)| {
                let mut alone = json!({});
                alone[name] = value.clone();
                read_with("limits", alone).is_some()
            };
            if let Some((inner, _)) = inner.into_iter().find(is_wrong) {
                place = format!("limits.{inner}");
            }
        }
        let text = error.to_string();
        // Two kinds of text name it themselves.
        let is_named = text.starts_with("unknown field") || text.starts_with(&place);
        Some(if is_named {
            text
        } else {
            format!("{place}: {text}")
        })
    })
}

/// Creates a repl, or gives it another spec.
///
/// Safe to repeat: the same spec again changes nothing, whatever the repl is doing. Another spec is taken while
/// the repl has no container.
#[utoipa::path(
    put, path = "/v1/repls/{id}", tag = "repls", operation_id = "create_repl",
    params(ReplPath), request_body = SpecSchema,
    responses(
        (status = 200, description = "It was there already, or has the new spec now", body = ReplView),
        (status = 201, description = "It was created", body = ReplView),
    ),
)]
pub(in crate::gateway) async fn create(
    State(gateway): Shared,
    Id(id): Id<ReplId>,
    Json(body): Json<Value>,
) -> Answer {
    if aim::split_port(id.as_str()).0.is_some() {
        let message = format!(
            "{id:?} would be read as a port and a name in a host name",
            id = id.as_str()
        );
        return Err(Refusal::new(RefusalCode::BadId, message).into());
    }
    if is_probe(&id) {
        let message = format!("{id}: names that begin with {PREFIX} are the prober's");
        return Err(Refusal::new(RefusalCode::BadId, message).into());
    }
    let spec = read_spec(body).map_err(|why| Refusal::new(RefusalCode::BadSpec, why))?;
    let status = gateway.keep_spec(&id, &spec).await?;
    gateway.config.access.spec_changed(&id);
    let view = gateway.view(id).await?;
    Ok((status, axum::Json(view)).into_response())
}

/// Lists every repl, but for the prober's.
#[utoipa::path(
    get, path = "/v1/repls", tag = "repls", operation_id = "list_repls",
    responses((status = 200, description = "Every repl, by name", body = ReplList)),
)]
pub(in crate::gateway) async fn list(State(gateway): Shared) -> Answer {
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
            // The prober's are nobody's workspaces.
            if is_probe(&id) {
                return None;
            }
            let spec = decode(&item.value)?;
            let owner = owners.get(&id);
            Some(ReplView::new(id, spec, owner, &statuses))
        })
        .collect();
    Ok(axum::Json(ReplList { repls }).into_response())
}

/// Shows a repl.
#[utoipa::path(
    get, path = "/v1/repls/{id}", tag = "repls", operation_id = "show_repl", params(ReplPath),
    responses((status = 200, description = "The repl", body = ReplView)),
)]
pub(in crate::gateway) async fn show(State(gateway): Shared, Id(id): Id<ReplId>) -> Answer {
    Ok(axum::Json(gateway.view(id).await?).into_response())
}

/// Starts a repl's container, if there is none, and answers when it runs.
#[utoipa::path(
    post, path = "/v1/repls/{id}/start", tag = "repls", operation_id = "start_repl", params(ReplPath),
    responses((status = 200, description = "It runs", body = ReplView)),
)]
pub(in crate::gateway) async fn start(State(gateway): Shared, Id(id): Id<ReplId>) -> Answer {
    gateway.open(&id, &OpenKind::Start).await?;
    Ok(axum::Json(gateway.view(id).await?).into_response())
}

/// Kills a repl's container at once, and answers when it is proven dead and the repl is free.
#[utoipa::path(
    post, path = "/v1/repls/{id}/kill", tag = "repls", operation_id = "kill_repl", params(ReplPath),
    responses((status = 200, description = "It has no container", body = ReplView)),
)]
pub(in crate::gateway) async fn kill(State(gateway): Shared, Id(id): Id<ReplId>) -> Answer {
    gateway.spec(&id).await?;
    gateway.end(&id, 0).await?;
    Ok(axum::Json(gateway.view(id).await?).into_response())
}

/// Ends a repl's container: SIGTERM, the grace, then SIGKILL. Answers when it is proven dead and the repl is free.
#[utoipa::path(
    post, path = "/v1/repls/{id}/destroy", tag = "repls", operation_id = "destroy_repl",
    params(ReplPath, GraceQuery),
    responses((status = 200, description = "It has no container", body = ReplView)),
)]
pub(in crate::gateway) async fn destroy(
    State(gateway): Shared,
    Id(id): Id<ReplId>,
    grace: Result<Query<GraceQuery>, QueryRejection>,
) -> Answer {
    let grace_ms = query(grace)?.milliseconds(model::timing::DESTROY_GRACE)?;
    gateway.spec(&id).await?;
    gateway.end(&id, grace_ms).await?;
    Ok(axum::Json(gateway.view(id).await?).into_response())
}

/// Removes a repl from any state: its container is killed, its name forgotten.
#[utoipa::path(
    delete, path = "/v1/repls/{id}", tag = "repls", operation_id = "remove_repl", params(ReplPath),
    responses((status = 204, description = "It is gone")),
)]
pub(in crate::gateway) async fn remove(State(gateway): Shared, Id(id): Id<ReplId>) -> Answer {
    // A removal that was cut short has left the container without a spec: this one ends it.
    if gateway.live_owner(&id).await?.is_none() {
        gateway.spec(&id).await?;
    }
    gateway.forget(&id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
