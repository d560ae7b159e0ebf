//! The refusals that every runtime words alike.

use std::path::Path;
use std::time::Duration;

use model::api::{Refusal, RefusalCode};
use model::id::ContainerId;

pub(super) fn not_running(id: &ContainerId) -> Refusal {
    Refusal::new(
        RefusalCode::NotRunning,
        format!("{id} has no container now"),
    )
}

pub(super) fn still_alive(id: &ContainerId) -> Refusal {
    Refusal::new(
        RefusalCode::Internal,
        format!("{id} is not proven dead: it cannot be cleaned up"),
    )
}

pub(super) fn not_listening(id: &ContainerId, port: u16) -> Refusal {
    Refusal::new(
        RefusalCode::PortNotListening,
        format!("nothing listens on port {port} in the container of {id}"),
    )
}

pub(super) fn keeper_gone() -> Refusal {
    Refusal::new(
        RefusalCode::Fenced,
        "the keeper of this host is gone, and its containers with it",
    )
}

pub(super) fn exec_timeout(id: &ContainerId, timeout: Duration) -> Refusal {
    Refusal::new(
        RefusalCode::ExecTimeout,
        format!(
            "the command in the container of {id} took longer than {} ms and was killed",
            timeout.as_millis()
        ),
    )
}

pub(super) fn command_not_found(name: &str) -> Refusal {
    Refusal::new(
        RefusalCode::CommandNotFound,
        format!("{name:?} does not exist in the container, or is not executable"),
    )
}

pub(super) fn needs_docker(reference: &str, what_runs: &str) -> Refusal {
    Refusal::new(
        RefusalCode::BadSpec,
        format!("image: docker:{reference} needs the docker runtime, this host runs {what_runs}"),
    )
}

pub(super) fn image_not_found(path: &Path, why: &str) -> Refusal {
    Refusal::new(
        RefusalCode::ImageNotFound,
        format!("image dir:{} {why}", path.display()),
    )
}
