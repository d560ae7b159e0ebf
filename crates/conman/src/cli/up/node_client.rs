//! The little of the node API that a supervisor asks of a host.

use std::time::Duration;

use model::wire::node::{DrainCause, DrainReport, DrainRequest};

use crate::node::{self, Address, Dialer};

/// Empties a host whose machine is about to be gone, within `budget` or what is left of the notice; comes back
/// when that is over.
pub(in crate::cli) async fn preempt(
    dialer: &Dialer,
    address: &Address,
    budget: Option<Duration>,
) -> anyhow::Result<DrainReport> {
    let milliseconds = |budget: Duration| u64::try_from(budget.as_millis()).unwrap_or(u64::MAX);
    let request = DrainRequest {
        cause: DrainCause::Preemption,
        budget_ms: budget.map(milliseconds),
        ..DrainRequest::default()
    };
    node::ask_json(dialer, address, "/node/v1/drain", &request).await
}
