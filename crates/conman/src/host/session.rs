//! A session's way from the node API to a container's port, and the words between hosts.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use model::api::{Refusal, RefusalCode};
use model::id::{ContainerId, HostId};
use model::keys::{self, HostRecord};
use model::timing::KILL_BOUND;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::Handle;
use super::actor::Input;
use super::live::Live;
use super::ownership::decode;
use crate::node::{self, Address, Dialer, Stream};
use crate::runtime::{Exit, Runtime};
use crate::store::Store;

/// Counts as a session of a container for as long as it lives.
pub(super) struct Joined {
    handle: Handle,
    id: ContainerId,
}

impl Joined {
    pub(super) fn new(handle: &Handle, id: ContainerId) -> Self {
        let joined = Self {
            handle: handle.clone(),
            id,
        };
        joined.send(true);
        joined
    }

    fn send(&self, joined: bool) {
        // The actor ends only with the process.
        let _ = self.handle.inputs.send(Input::Session {
            id: self.id.clone(),
            joined,
        });
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.send(false);
    }
}

/// Connects to a port of a container that may only just be starting.
///
/// The kernel gives no event when somebody begins to listen, so a container's first connection is tried
/// again, at growing distances, until it is accepted, the container dies, or `port_ready` after
/// its start has passed. Once it has accepted one, a refusal is the user's own answer.
pub(super) async fn dial(
    runtime: &dyn Runtime,
    live: &Live,
    port: u16,
    port_ready: Duration,
    wait: Duration,
) -> Result<TcpStream, Refusal> {
    let began = Instant::now();
    let mut pause = Duration::from_micros(500);
    loop {
        // Before the connection: another session may find it ready while this one is being refused for the last time.
        let was_ready = live.ready.load(Ordering::Relaxed);
        let refusal = match runtime.dial(&live.running.id, port).await {
            Ok(stream) => {
                live.ready.store(true, Ordering::Relaxed);
                return Ok(stream);
            }
            Err(refusal) => refusal,
        };
        if live.gone.is_cancelled() {
            return Err(ended(live));
        }
        if refusal.code == RefusalCode::NotRunning {
            return Err(ending(live, refusal).await);
        }
        if refusal.code == RefusalCode::PortNotListening && was_ready {
            // Its server listened before. Either the user's program has closed the port, or the whole container is
            // dying and its death is not proven yet: that is known within the kernel's bound, and if it is the platform
            // that kills it, it is known already.
            let patience = match live.killed.is_cancelled() {
                true => wait.saturating_sub(began.elapsed()),
                false => KILL_BOUND,
            };
            return Err(
                match tokio::time::timeout(patience, live.gone.cancelled()).await {
                    Ok(()) => ended(live),
                    Err(_) if live.killed.is_cancelled() => ended(live),
                    Err(_) => refusal,
                },
            );
        }
        let may_become_ready = refusal.code == RefusalCode::PortNotListening
            && live.since.elapsed() < port_ready
            && began.elapsed() < wait;
        if !may_become_ready {
            return Err(refusal);
        }
        tokio::select! {
            () = live.gone.cancelled() => return Err(ended(live)),
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// The runtime knows of a container's end a moment before it is proven: then the session is to look for the next
/// container, once the proof is there.
pub(super) async fn ending(live: &Live, refusal: Refusal) -> Refusal {
    if refusal.code != RefusalCode::NotRunning {
        return refusal;
    }
    // Without a proof in time the session asks again, and waits in the host's machine.
    let _ = tokio::time::timeout(KILL_BOUND, live.gone.cancelled()).await;
    Refusal::new(RefusalCode::NotOwner, refusal.message)
}

/// What a session is told whose container ended before it could be joined: whose doing it was.
fn ended(live: &Live) -> Refusal {
    let repl = &live.running.id.repl;
    let served = live.ready.load(Ordering::Relaxed);
    let was_taken = live.killed.is_cancelled() || live.exit.get() == Some(&Exit::Unknown);
    if served || was_taken {
        let message = format!("the container of {repl} has just ended");
        Refusal::new(RefusalCode::NotOwner, message)
    } else {
        Refusal::new(
            RefusalCode::ExitedAtOnce,
            format!("the program of {repl} ended before its port accepted a connection"),
        )
    }
}

/// Carries a session's bytes both ways until both sides have ended.
pub(super) async fn carry(upgrade: OnUpgrade, mut container: TcpStream, joined: Joined) {
    match upgrade.await {
        Ok(upgraded) => {
            let mut session = TokioIo::new(upgraded);
            // How a session ends is the business of its two ends; here it only ends.
            let _ = tokio::io::copy_bidirectional(&mut session, &mut container).await;
        }
        Err(error) => tracing::debug!(%error, "a gateway went away before its session began"),
    }
    drop(joined);
}

/// Gives the container's socket to the gateway, which is on this machine, and counts the session until that is through with it.
pub(super) async fn hand_out(upgrade: OnUpgrade, container: TcpStream, joined: Joined) {
    let given = async {
        let parts = upgrade
            .await?
            .downcast::<TokioIo<Stream>>()
            .map_err(|_| anyhow::anyhow!("the connection is not one to a gateway"))?;
        let Stream::Unix(mut stream) = parts.io.into_inner() else {
            anyhow::bail!("a gateway elsewhere cannot be given a socket");
        };
        if parts.read_buf.is_empty() {
            // It says that it is ready for it.
            stream.read_u8().await?;
        }
        node::give_descriptor(&stream, container.as_fd()).await?;
        drop(container);
        // It says nothing more: what comes is the session's end.
        let _ = stream.read_u8().await;
        anyhow::Ok(())
    };
    if let Err(error) = given.await {
        tracing::debug!(%error, "a gateway went away before its session began");
    }
    drop(joined);
}

/// Tells a host something, and reads its answer.
pub(super) async fn tell<T: DeserializeOwned>(
    dialer: &Dialer,
    store: &dyn Store,
    host: &HostId,
    what: &str,
    message: &impl Serialize,
) -> anyhow::Result<T> {
    let item = store
        .get(&keys::host(host))
        .await?
        .context("find the host, which is no longer registered")?;
    let record: HostRecord = decode(&item.value).context("read the host's record")?;
    let address: Address = record.address.parse()?;
    node::ask_json(dialer, &address, &format!("/node/v1/{what}"), message).await
}

/// The container that an answer spoke of, if it still runs.
pub(super) fn find(handle: &Handle, id: &ContainerId) -> Result<Arc<Live>, Refusal> {
    handle.live.get(id).ok_or_else(|| {
        Refusal::new(
            RefusalCode::NotOwner,
            format!("the container of {} has just ended", id.repl),
        )
    })
}
