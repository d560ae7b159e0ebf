//! What is to happen, in the order of time; what is due at the same time in the order in which it was planned.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use model::host;
use model::id::{ContainerId, ReplId, Ticket};
use model::routing::Joined;
use model::time::BootTime;
use model::wire::node::NodeRefusal;

use super::plan::Fault;

/// One thing that is to happen.
#[derive(Debug)]
pub(super) enum Happening {
    /// A host's machine wants to be woken.
    Wake { host: u32 },
    /// A result comes back to the conman that lived this life.
    Tell {
        host: u32,
        life: u32,
        event: Box<host::Event>,
    },
    /// A host's request is at the store.
    AtStore {
        host: u32,
        life: u32,
        effect: Box<host::Effect>,
        sent: BootTime,
        answer: Answering,
    },
    /// The deadline of this keeper, and what the kernel takes from it.
    KernelKills { host: u32, keeper: u32 },
    /// The kernel is done with a container of this keeper's.
    Dies {
        host: u32,
        keeper: u32,
        id: ContainerId,
    },
    /// A dead keeper is replaced.
    KeeperStarts { host: u32, keeper: u32 },
    /// A dead conman is replaced.
    ConmanStarts { host: u32, life: u32 },
    /// A lost machine is replaced.
    Boots { host: u32 },
    /// The observers of a host that may be silent look at it.
    Observe { host: u32 },
    /// A fault comes.
    Strikes { fault: Fault, host: u32, count: u64 },
    /// It is over.
    Over { fault: Fault, host: u32 },
    /// The first zone is lost.
    ZoneLost,
    /// The router wants to be woken.
    RouterWake,
    /// A read for the router is answered.
    Resolves { repl: ReplId },
    /// The router is told of the hosts.
    HostsSeen,
    /// The router's ask is at the host.
    Asks {
        host: u32,
        ticket: Ticket,
        repl: ReplId,
        epoch: Option<model::id::Epoch>,
    },
    /// The host's answer, or its silence, is at the router.
    Answers {
        ticket: Ticket,
        attempt: u32,
        answer: Box<Result<Joined, NodeRefusal>>,
    },
    /// A user wants a repl.
    UserOpens { repl: u32 },
}

/// Whether an answer comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answering {
    /// It does.
    Comes,
    /// It is lost; who asked has given up, or will.
    Lost,
}

#[derive(Debug)]
struct Due {
    at: u64,
    order: u64,
    happening: Happening,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    /// The earliest is the greatest: the heap gives the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

/// Everything that is planned.
#[derive(Debug, Default)]
pub(super) struct Queue {
    heap: BinaryHeap<Due>,
    planned: u64,
}

impl Queue {
    pub(super) fn plan(&mut self, at: u64, happening: Happening) {
        self.planned += 1;
        self.heap.push(Due {
            at,
            order: self.planned,
            happening,
        });
    }

    pub(super) fn next(&mut self) -> Option<(u64, Happening)> {
        self.heap.pop().map(|due| (due.at, due.happening))
    }
}
