//! What a router is told, and what it wants done.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::api::Refusal;
use crate::id::{Epoch, HostId, Incarnation, ReplId, Ticket};
use crate::keys::Host;
use crate::time::BootTime;
use crate::wire::node::NodeRefusal;

/// What a router is told. Times are on the gateway's CLOCK_BOOTTIME.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A session wants to reach a repl.
    Open {
        /// Who is answered.
        ticket: Ticket,
        /// Which repl.
        repl: ReplId,
        /// After how long it is refused at the latest.
        patience: Duration,
    },
    /// The session's client has gone away.
    Gone {
        /// Which.
        ticket: Ticket,
    },
    /// All hosts, after a change of any of them.
    Hosts {
        /// By name.
        hosts: BTreeMap<HostId, Host>,
    },
    /// The store's answer to [`Effect::Resolve`].
    Resolved {
        /// Which repl.
        repl: ReplId,
        /// What it said.
        resolution: Resolution,
    },
    /// A host's answer to [`Effect::Ask`].
    Answered {
        /// Whose ask.
        ticket: Ticket,
        /// Which of its asks: answers to earlier ones are late, and worth nothing.
        attempt: u32,
        /// What it said. A host that was not reached says [`crate::api::RefusalCode::HostUnreachable`].
        answer: Result<Joined, NodeRefusal>,
    },
    /// Time has passed.
    Tick,
}

/// Who owns a repl, by a read of the store: a hint, like every read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// A host that is registered.
    Owned {
        /// The owner.
        host: Host,
        /// The owner's epoch.
        epoch: Epoch,
    },
    /// Nobody.
    Free,
    /// There is no such repl.
    Unknown,
    /// The store did not say.
    Failed(Refusal),
}

/// A host has joined the session to the repl's container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Joined {
    /// Which container.
    pub epoch: Epoch,
    /// How many containers the host carries now, if it said so.
    pub load: Option<u32>,
}

/// What a router wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Read who owns the repl. Always answered, within the driver's patience.
    Resolve {
        /// Which repl.
        repl: ReplId,
    },
    /// Ask a host for a way in. The host may hold the request while the container starts or moves.
    Ask {
        /// For whom.
        ticket: Ticket,
        /// Comes back with the answer.
        attempt: u32,
        /// Whom.
        host: Host,
        /// As the owner at this epoch; without, it is to claim the repl.
        epoch: Option<Epoch>,
        /// When the session ends.
        deadline: BootTime,
    },
    /// Nobody waits any longer for the answer to this ticket's ask: its host is registered no more, or its client is gone.
    Drop {
        /// Whose.
        ticket: Ticket,
    },
    /// The session is joined: its last ask's stream is the way in.
    Grant {
        /// Which.
        ticket: Ticket,
        /// Where it is.
        host: HostId,
        /// The host's registration.
        incarnation: Incarnation,
        /// Which container.
        epoch: Epoch,
    },
    /// The session has failed.
    Refuse {
        /// Which.
        ticket: Ticket,
        /// Why.
        no_way: NoWay,
    },
}

/// Why there is no way in: what the client is told, and which host said so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoWay {
    /// What the client is told.
    pub refusal: Refusal,
    /// Who said so, if a host did.
    pub host: Option<HostId>,
    /// As the owner at this epoch.
    pub epoch: Option<Epoch>,
}

impl From<Refusal> for NoWay {
    fn from(refusal: Refusal) -> Self {
        Self {
            refusal,
            host: None,
            epoch: None,
        }
    }
}
