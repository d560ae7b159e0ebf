//! Finding a way into a repl's container, wherever it is and wherever it goes meanwhile: `model::routing` decides, and
//! [`super::router`] carries it out. And the calls of a host that need no way.

use http::Method;
use model::api::{Refusal, RefusalCode};
use model::id::{HostId, Incarnation, ReplId};
use model::keys::{self, Host, Owner};
use model::probe::is_probe;
pub(super) use model::routing::NoWay;
use model::timing::OVERRUN_STUCK_AFTER;
use model::wire::node::OpenKind;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Gateway;
use super::fleet::decode;
use super::node_client::{self, NodeError, Opened};
use crate::telemetry::operations::{Kind, Stage};

/// Where a session has got to.
pub(super) struct Way {
    pub(super) host: HostId,
    pub(super) incarnation: Incarnation,
    pub(super) opened: Opened,
}

impl Gateway {
    /// Finds the way, within the gateway's patience.
    pub(super) async fn open(&self, repl: &ReplId, kind: &OpenKind) -> Result<Way, NoWay> {
        let _parked = (!is_probe(repl)).then(|| self.metrics.park());
        let patience = self.config.park + OVERRUN_STUCK_AFTER;
        let operation = self.config.operations.begin(Kind::Route, repl, patience);
        let routing = Stage::Way.of(self.router.open(repl, kind, self.config.park));
        match operation.run(routing).await {
            Ok(way) => way,
            Err(given_up) => Err(Refusal::from(given_up).into()),
        }
    }

    /// One call of a host, given up when its registration ends: a stopped host answers nothing for ever.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        host: &Host,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, NodeError> {
        let ended = || NodeError::Unreachable("its registration has ended".to_owned());
        tokio::select! {
            answer = node_client::call(&self.config.dialer, host, Method::POST, path, body) => answer,
            () = self.fleet.ended(host.id.clone(), host.incarnation) => Err(ended()),
        }
    }

    /// Reads who owns the repl, and from which host.
    pub(super) async fn owner(&self, repl: &ReplId) -> Result<Option<Owner>, Refusal> {
        let item = self
            .store
            .get(&keys::owner(repl))
            .await
            .map_err(|error| Refusal::new(RefusalCode::StoreUnavailable, error.to_string()))?;
        Ok(item.and_then(|item| keys::read_owner(&item, decode).ok()))
    }
}
