//! What the processes of a fleet tell of themselves in the same way, whatever their role.

pub(crate) mod exposition;
mod leaf;
pub mod locks;
pub mod operations;
mod threads;
pub mod watchdog;

use std::sync::Arc;

use prometheus_client::registry::Registry;

/// Writes the page of a registry whenever it is asked for.
pub(crate) fn rendering(registry: Registry) -> Arc<dyn Fn() -> String + Send + Sync> {
    Arc::new(move || {
        let mut text = String::new();
        match prometheus_client::encoding::text::encode(&mut text, &registry) {
            Ok(()) => text,
            Err(error) => {
                tracing::error!(%error, "the metrics could not be written");
                String::new()
            }
        }
    })
}
