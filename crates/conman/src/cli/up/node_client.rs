//! The little of the node API that a supervisor asks of a host.

use model::wire::node::{DrainCause, DrainReport, DrainRequest};

use crate::node::{self, Address};

/// Empties a host whose machine is about to be gone; comes back when that is over.
pub(in crate::cli) async fn preempt(address: &Address) -> anyhow::Result<DrainReport> {
    let request = DrainRequest {
        cause: DrainCause::Preemption,
        ..DrainRequest::default()
    };
    node::ask_json(address, "/node/v1/drain", &request).await
}
