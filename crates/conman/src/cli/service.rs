//! What the service manager that runs a node is told: that it serves, that it still works, what it is at.
//!
//! ```text
//! every role listens, the host is registered ─► Ready
//! then, twice within the watchdog's patience: every role answers a request ─► Alive, Status
//! ```
//!
//! A sign of life is an answer that came the way that others' answers come: through the socket, the task that
//! accepts, and the task that owns the host's state; and the watchdog agrees, which looks from a thread of its own. If
//! one of these hangs, there is no sign, and the service manager starts another conman, which adopts the containers.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::{Request, header};
use http_body_util::Full;
use keeper::manager::{Manager, Word};
use model::id::Incarnation;
use model::wire::node::HostStatus;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::node::{self, Address, Dialer};
use crate::telemetry::watchdog::Verdict;

/// How often people are shown what goes on, where there is no watchdog.
const STATUS_EVERY: Duration = Duration::from_secs(10);

/// What a node consists of, as far as its service manager cares.
#[derive(Debug, Clone, Default)]
pub(super) struct Roles {
    /// The host's node API, and its registration.
    pub(super) host: Option<(Address, watch::Receiver<Option<Incarnation>>)>,
    /// Where the gateway listens.
    pub(super) gateway: Option<Address>,
    /// The way to both.
    pub(super) dialer: Dialer,
    /// What the watchdog says of them.
    pub(super) verdict: Option<Arc<Verdict>>,
}

/// Keeps the manager informed, for as long as the node runs.
pub(super) async fn inform(manager: Arc<Manager>, mut roles: Roles, stopping: CancellationToken) {
    if let Some((_, registration)) = &mut roles.host
        && registration.wait_for(Option::is_some).await.is_err()
    {
        // The host has ended, which is said where it is handled.
        return;
    }
    manager.tell(&Word::Ready);
    let every = manager.beat_every().unwrap_or(STATUS_EVERY);
    tokio::select! {
        () = watch_over(&manager, &roles, every) => {}
        () = stopping.cancelled() => {}
    }
    // What stops closes its sockets before it has ended, and is busy meanwhile: how long that may take is up to the
    // manager's own time to stop, and a watchdog that cut a drain short would lose what it is for.
    let mut beats = tokio::time::interval(every);
    loop {
        beats.tick().await;
        manager.tell(&Word::Alive);
    }
}

/// Gives signs of life, as long as every role answers.
async fn watch_over(manager: &Manager, roles: &Roles, every: Duration) {
    let mut beats = tokio::time::interval(every);
    beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        beats.tick().await;
        match tokio::time::timeout(every, pulse(roles)).await {
            Ok(Ok(status)) => {
                manager.tell(&Word::Alive);
                manager.tell(&Word::Status(&status));
            }
            Ok(Err(error)) => {
                tracing::error!(error = format!("{error:#}"), "no sign of life is given");
            }
            Err(_) => tracing::error!("no sign of life is given: no answer in time"),
        }
    }
}

/// Has every role answer, and says what they are at.
async fn pulse(roles: &Roles) -> anyhow::Result<String> {
    if let Some(verdict) = &roles.verdict {
        anyhow::ensure!(verdict.is_good(), "the watchdog does not agree");
    }
    let mut words = Vec::new();
    if let Some((address, _)) = &roles.host {
        let body = get(&roles.dialer, address, "/node/v1/status")
            .await
            .context("ask the host")?;
        let status: HostStatus = serde_json::from_slice(&body).context("read the host's status")?;
        words.push(in_words(&status));
    }
    if let Some(address) = &roles.gateway {
        let asked = get(&roles.dialer, address, "/healthz").await;
        match asked {
            Ok(_) => {}
            // It listens where its certificate is not for, as on all addresses: it has shown that, so it lives.
            Err(error) if is_about_certificates(&error) => {}
            Err(error) => return Err(error.context("ask the gateway")),
        }
        words.push(format!("gateway on {address}"));
    }
    Ok(words.join("; "))
}

/// Whether a connection came to the showing of certificates, and no further.
fn is_about_certificates(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::InvalidData)
}

async fn get(dialer: &Dialer, address: &Address, path: &str) -> anyhow::Result<Bytes> {
    let request = Request::get(path)
        .header(header::HOST, "localhost")
        .body(Full::default())?;
    let answer = node::ask(dialer, address, request).await?;
    anyhow::ensure!(
        answer.status().is_success(),
        "it answered {}",
        answer.status()
    );
    Ok(answer.into_body())
}

fn in_words(status: &HostStatus) -> String {
    let HostStatus {
        host, containers, ..
    } = status;
    let state = match (status.draining, status.incarnation) {
        (true, _) => "draining",
        (false, Some(_)) => "registered",
        (false, None) => "not registered",
    };
    let keeper = match status.keeper_pid {
        Some(_) => "",
        None => ", without a keeper",
    };
    format!("{host} {state}{keeper}, containers: {}", containers.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> HostStatus {
        HostStatus {
            host: "h1".parse().unwrap(),
            incarnation: Some(Incarnation(7)),
            lease_margin_ms: 2_900,
            draining: false,
            conman_pid: 1,
            keeper_pid: Some(2),
            containers: Vec::new(),
        }
    }

    #[test]
    fn a_status_is_one_line_for_people() {
        assert_eq!(in_words(&status()), "h1 registered, containers: 0");
        let draining = HostStatus {
            draining: true,
            keeper_pid: None,
            ..status()
        };
        assert_eq!(
            in_words(&draining),
            "h1 draining, without a keeper, containers: 0"
        );
        let lost = HostStatus {
            incarnation: None,
            ..status()
        };
        assert_eq!(in_words(&lost), "h1 not registered, containers: 0");
    }

    /// A gateway that is not there.
    fn nobody() -> Roles {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Roles {
            host: None,
            gateway: Some(Address::Tcp(free.local_addr().unwrap().to_string())),
            dialer: Dialer::default(),
            verdict: None,
        }
    }

    #[tokio::test]
    async fn nobody_who_answers_is_no_pulse() {
        let error = format!("{:#}", pulse(&nobody()).await.unwrap_err());
        assert!(error.starts_with("ask the gateway: connect to"), "{error}");
    }

    #[tokio::test]
    async fn nobody_who_answers_is_a_sign_of_life_only_while_stopping() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("manager");
        let heard = tokio::net::UnixDatagram::bind(&path).unwrap();
        let patience = Duration::from_millis(20);
        let manager = Arc::new(Manager::at(path.as_os_str(), Some(patience)).unwrap());
        let stopping = CancellationToken::new();
        let mut informing = tokio::spawn(inform(manager, nobody(), stopping.clone()));
        let mut word = [0; 64];

        let ended = tokio::time::timeout(10 * patience, &mut informing).await;
        assert!(ended.is_err(), "the manager hears of it until it ends");
        let length = heard.recv(&mut word).await.unwrap();
        assert_eq!(&word[..length], b"READY=1");
        let alive = heard.try_recv(&mut word);
        assert_eq!(alive.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);

        stopping.cancel();
        for _ in 0..5 {
            let length = heard.recv(&mut word).await.unwrap();
            assert_eq!(&word[..length], b"WATCHDOG=1");
        }
        informing.abort();
    }
}
