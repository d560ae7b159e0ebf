//! Hosts: what they carry, and how they are emptied.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::IntoResponse;
use model::api::{Refusal, RefusalCode};
use model::id::HostId;
use model::keys::{Host, HostState};
use model::wire::node::{DrainReport, DrainRequest};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use utoipa::ToSchema;

use super::{Answer, GraceQuery, HostPath, Id, Shared, query};
use crate::gateway::Gateway;
use crate::gateway::document::DrainReportSchema;

/// What a host is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::gateway) enum HostViewState {
    /// It takes new repls.
    Active,
    /// It takes nothing new, and serves what it still has.
    Draining,
    /// It is registered, and does not answer.
    Unreachable,
}

/// A host as people see it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Host)]
pub(in crate::gateway) struct HostView {
    /// Its name.
    #[schema(value_type = String)]
    id: HostId,
    /// What it is doing.
    #[schema(inline)]
    state: HostViewState,
    /// Where its node API is.
    address: String,
    /// Its registration: ends for good when the host is released or stolen.
    incarnation: u64,
    /// How many containers it may carry.
    capacity: u32,
    /// How many it carries; absent of a host that does not answer, as is all that follows.
    containers: Option<usize>,
    /// Sessions joined to them.
    sessions: Option<u32>,
    /// What is left until its deadline.
    lease_margin_ms: Option<u64>,
    /// The process id of its conman.
    conman_pid: Option<u32>,
    /// The process id of its keeper, while there is one.
    keeper_pid: Option<u32>,
}

/// Every registered host, by name.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct HostList {
    hosts: Vec<HostView>,
}

/// A host that was told something.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::gateway) struct HostTold {
    /// Its name.
    #[schema(value_type = String)]
    id: HostId,
}

/// Lists every registered host.
#[utoipa::path(
    get, path = "/v1/hosts", tag = "hosts", operation_id = "list_hosts",
    responses((status = 200, description = "Every registered host, by name", body = HostList)),
)]
pub(in crate::gateway) async fn hosts(State(gateway): Shared) -> Answer {
    let fleet = gateway.fleet.now();
    let statuses = gateway.statuses(fleet.values()).await;
    let views: Vec<HostView> = fleet
        .values()
        .map(|host| {
            let status = statuses.iter().find(|status| status.host == host.id);
            HostView {
                id: host.id.clone(),
                state: match (status, host.record.state) {
                    (None, _) => HostViewState::Unreachable,
                    (Some(_), HostState::Draining) => HostViewState::Draining,
                    (Some(_), HostState::Active) => HostViewState::Active,
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
    Ok(axum::Json(HostList { hosts: views }).into_response())
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
        self.ask(&host, path, body)
            .await
            .map_err(|error| error.into_refusal(id).into())
    }
}

/// Empties a host: it takes nothing new, and each of its repls is handed to another host. Answers when the last one is.
#[utoipa::path(
    post, path = "/v1/hosts/{id}/drain", tag = "hosts", operation_id = "drain_host",
    params(HostPath, GraceQuery),
    responses((status = 200, description = "It is empty", body = DrainReportSchema)),
)]
pub(in crate::gateway) async fn drain(
    State(gateway): Shared,
    Id(id): Id<HostId>,
    grace: Result<Query<GraceQuery>, QueryRejection>,
) -> Answer {
    let ask = DrainRequest {
        // Without one the host's own configuration counts.
        grace_ms: query(grace)?.given_milliseconds()?,
        ..DrainRequest::default()
    };
    let report: DrainReport = gateway.tell_host(&id, "/node/v1/drain", Some(&ask)).await?;
    Ok(axum::Json(report).into_response())
}

/// Lets a drained host take repls again.
#[utoipa::path(
    post, path = "/v1/hosts/{id}/undrain", tag = "hosts", operation_id = "undrain_host", params(HostPath),
    responses((status = 200, description = "It was told", body = HostTold)),
)]
pub(in crate::gateway) async fn undrain(State(gateway): Shared, Id(id): Id<HostId>) -> Answer {
    gateway
        .tell_host::<Value>(&id, "/node/v1/undrain", None::<&()>)
        .await?;
    Ok(axum::Json(HostTold { id }).into_response())
}

/// Plays the loss of a host: notice, drain, and after the notice its processes are killed. Only `conman up` can.
#[utoipa::path(
    post, path = "/v1/hosts/{id}/preempt", tag = "hosts", operation_id = "preempt_host", params(HostPath),
    responses((
        status = 200, description = "It is drained, and about to be killed", body = DrainReportSchema,
    )),
)]
pub(in crate::gateway) async fn preempt(State(gateway): Shared, Id(id): Id<HostId>) -> Answer {
    gateway.host(&id)?;
    let Some(preemptor) = &gateway.config.preemptor else {
        let message = "only `conman up` can play the loss of a host: it has started its processes";
        return Err(Refusal::new(RefusalCode::BadRequest, message).into());
    };
    Ok(axum::Json(preemptor.preempt(id).await?).into_response())
}
