//! The node API: what a gateway (or another host) asks of a host, over HTTP/1.1 on the host's address.
//!
//! ```text
//! POST /node/v1/open        OpenRequest   -> 101 + OPEN_* headers, then the session's bytes
//!                                          | 4xx/5xx with Refusal as JSON
//! POST /node/v1/exec        ExecRequest   -> 200 ExecAnswer | Refusal
//! GET  /node/v1/logs/{repl}?follow=       -> 200 bytes      | Refusal
//! POST /node/v1/stop        StopRequest   -> 200 after proven death and release | Refusal
//! POST /node/v1/prepare     Prepare       -> 200, when what can be done ahead of these is done
//! POST /node/v1/handed-off  HandedOff     -> 200 HandedOffAnswer, when each of them runs or will not
//! POST /node/v1/drain       DrainRequest  -> 200 DrainReport, when it is over
//! POST /node/v1/notice      NoticeRequest -> 202: this machine is about to be gone
//! POST /node/v1/undrain                   -> 200
//! GET  /node/v1/status                    -> 200 HostStatus
//! GET  /node/v1/events                    -> 200 NDJSON of NodeEvent without end: first all there is, then changes
//! GET  /node/v1/metrics                   -> 200 the host's own metrics, Prometheus text
//! ```
//!
//! `open` is the whole of a session's way in: with `epoch` it is a session for an owner (only the exact
//! epoch is accepted, else [`crate::api::RefusalCode::NotOwner`] with a hint); without, it asks the host to claim
//! the repl if it is free, and to start it. The host holds the request while the container starts or
//! moves, and answers when it knows. `kind: port` carries the container's TCP bytes after the 101, or gives the socket that they
//! go over to a gateway on the same machine that offers [`UPGRADE_DESCRIPTOR`];
//! `kind: shell` carries a WebSocket (RFC 6455, the host is the server, no second handshake).

use serde::{Deserialize, Serialize};

use crate::api::{ContainerState, Refusal};
use crate::id::{Epoch, HostId, Incarnation, ReplId};

/// The protocol's name in the `Upgrade` header.
pub const UPGRADE: &str = "conman-session";
/// The same where both are on one machine: after the 101 the gateway says `!` and is given the container's socket itself, beside
/// another `!`. The connection stays open as long as the session.
pub const UPGRADE_DESCRIPTOR: &str = "conman-descriptor";
/// The epoch that the session is joined to, in the answer's headers.
pub const OPEN_EPOCH: &str = "conman-epoch";
/// How many containers the host carries now, in the answer's headers: the gateway's hint for placement.
pub const OPEN_LOAD: &str = "conman-load";

/// Asks for a way into a repl's container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenRequest {
    /// Which repl.
    pub repl: ReplId,
    /// The epoch that the gateway holds this host to be the owner of; `None` asks it to claim.
    pub epoch: Option<Epoch>,
    /// What to.
    pub kind: OpenKind,
    /// How long the host may hold this request, in milliseconds.
    pub wait_ms: u64,
}

/// What a session is joined to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OpenKind {
    /// A TCP port on the container's loopback; `None` for the port of its spec.
    Port(Option<u16>),
    /// The repl's shared terminal.
    Shell {
        /// The first size.
        columns: u16,
        /// The first size.
        rows: u16,
    },
    /// Nothing: only have it running (`POST /v1/repls/{id}/start`).
    Start,
}

/// Runs a command in a repl's container, starting it if need be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Which repl.
    pub repl: ReplId,
    /// As in [`OpenRequest`].
    pub epoch: Option<Epoch>,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// What it reads from standard input.
    #[serde(default)]
    pub stdin: String,
    /// How long the command may take, in milliseconds.
    pub timeout_ms: u64,
}

/// What a command left. Output is UTF-8 with replacement characters for what is not, and is cut at
/// 1 MiB each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecAnswer {
    /// The exit code; 128 + n for signal n.
    pub exit_code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// Whether either was cut.
    pub truncated: bool,
}

/// Ends a repl's container and gives up the repl.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopRequest {
    /// Which repl.
    pub repl: ReplId,
    /// Which owner is meant.
    pub epoch: Epoch,
    /// From SIGTERM to SIGKILL, in milliseconds; zero kills at once.
    pub grace_ms: u64,
}

/// Tells a host which repls are about to be handed off to it. A promise of nothing: it may start to prepare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepare {
    /// The repls, those with connected users first.
    pub repls: Vec<ReplId>,
}

/// Tells a host which repls have been handed off to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedOff {
    /// The repls with their new epochs, those with connected users first: they are started in this order.
    pub repls: Vec<(ReplId, Epoch)>,
}

/// What became of repls that were handed off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedOffAnswer {
    /// How many of them run.
    pub started: u32,
}

/// Why a host is emptied: what decides its defaults.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DrainCause {
    /// Somebody wants it empty.
    #[default]
    Operator,
    /// The machine is about to be gone.
    Preemption,
}

/// Empties a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainRequest {
    /// Why.
    #[serde(default)]
    pub cause: DrainCause,
    /// From SIGTERM to SIGKILL, in milliseconds; zero kills at once. What the host is configured to without it.
    #[serde(default)]
    pub grace_ms: Option<u64>,
    /// The time from the notice until the host is to be empty, in milliseconds.
    #[serde(default)]
    pub budget_ms: Option<u64>,
}

/// Says that the host's machine is about to be gone: a drain with the grace for that begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoticeRequest {
    /// In how many milliseconds; half a minute without it.
    #[serde(default)]
    pub within_ms: Option<u64>,
}

/// The phases of a drain, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DrainPhase {
    /// The store says that nothing new is taken; the host itself has taken nothing since the notice.
    Closed,
    /// The targets are told what is coming.
    Told,
    /// The last signal is sent.
    Sent,
    /// The last container is proven dead.
    Dead,
    /// The last repl is free or handed off in the store.
    Released,
    /// What was handed off runs again.
    Started,
}

impl DrainPhase {
    /// Each of them, in their order.
    pub const ALL: [Self; 6] = [
        Self::Closed,
        Self::Told,
        Self::Sent,
        Self::Dead,
        Self::Released,
        Self::Started,
    ];

    /// As it is written in logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            DrainPhase::Closed => "closed",
            DrainPhase::Told => "told",
            DrainPhase::Sent => "sent",
            DrainPhase::Dead => "dead",
            DrainPhase::Released => "released",
            DrainPhase::Started => "started",
        }
    }
}

/// What a drain did, the end of each phase in milliseconds from the notice. A phase without a time did not end
/// in time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DrainReport {
    /// How many containers there were.
    pub containers: u32,
    /// How many of them were handed to another host.
    pub handed_off: u32,
    /// How many of those are known to run there.
    pub started: u32,
    /// How many were still here when the report was due.
    pub unfinished: u32,
    /// [`DrainPhase::Closed`].
    pub closed_ms: Option<f64>,
    /// [`DrainPhase::Told`].
    pub told_ms: Option<f64>,
    /// [`DrainPhase::Sent`].
    pub sent_ms: Option<f64>,
    /// [`DrainPhase::Dead`].
    pub dead_ms: Option<f64>,
    /// [`DrainPhase::Released`].
    pub released_ms: Option<f64>,
    /// [`DrainPhase::Started`].
    pub started_ms: Option<f64>,
}

impl DrainReport {
    /// Where the end of a phase is written.
    pub fn end_of(&mut self, phase: DrainPhase) -> &mut Option<f64> {
        match phase {
            DrainPhase::Closed => &mut self.closed_ms,
            DrainPhase::Told => &mut self.told_ms,
            DrainPhase::Sent => &mut self.sent_ms,
            DrainPhase::Dead => &mut self.dead_ms,
            DrainPhase::Released => &mut self.released_ms,
            DrainPhase::Started => &mut self.started_ms,
        }
    }
}

/// One container, as its host sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Whose.
    pub repl: ReplId,
    /// At which epoch.
    pub epoch: Epoch,
    /// Its state.
    pub state: ContainerState,
    /// When it started, RFC 3339 UTC.
    pub started_at: Option<String>,
    /// Sessions joined to it now.
    pub sessions: u32,
    /// The host's PID of its PID 1.
    pub pid: Option<u32>,
}

/// A host with all that it carries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostStatus {
    /// Its name.
    pub host: HostId,
    /// Its registration, if it has one.
    pub incarnation: Option<Incarnation>,
    /// What is left until its deadline, in milliseconds.
    pub lease_margin_ms: u64,
    /// Whether it is draining.
    pub draining: bool,
    /// The process id of conman.
    pub conman_pid: u32,
    /// The process id of the keeper, while there is one.
    pub keeper_pid: Option<u32>,
    /// Its containers, by repl.
    pub containers: Vec<ContainerStatus>,
}

/// One change on a host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum NodeEvent {
    /// A container's state changed, or it was there when the stream began.
    Container(ContainerStatus),
    /// A container is gone and its repl was given up.
    Gone {
        /// Whose.
        repl: ReplId,
        /// At which epoch.
        epoch: Epoch,
    },
    /// The host's draining began or ended.
    Draining {
        /// Which.
        draining: bool,
    },
}

/// A refusal as a node answers it: the reason, and who to ask instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRefusal {
    /// What is wrong.
    pub refusal: Refusal,
    /// Where the repl is now, as far as this host knows.
    pub hint: Option<OwnerHint>,
}

/// Who owns a repl, as far as somebody knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerHint {
    /// The owner; `None` when the repl is free.
    pub host: Option<HostId>,
    /// The owner's epoch, or the one that was released.
    pub epoch: Epoch,
}
