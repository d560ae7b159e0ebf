//! The little of the node API that a supervisor asks of a host.

use std::time::Duration;

use model::time::milliseconds;
use model::wire::node::{DrainCause, DrainReport, DrainRequest};

use crate::node::{self, Address, Dialer};

/// Empties a host whose machine is about to be gone, within `budget` or what is left of the notice; comes back
/// when that is over.
pub(in crate::cli) async fn preempt(
    dialer: &Dialer,
    address: &Address,
    budget: Option<Duration>,
) -> anyhow::Result<DrainReport> {
    let request = DrainRequest {
        cause: DrainCause::Preemption,
        budget_ms: budget.map(milliseconds),
        ..DrainRequest::default()
    };
    node::ask_json(dialer, address, "/node/v1/drain", &request).await
}
