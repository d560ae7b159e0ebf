//! What a host is told, and what it wants done.

use std::time::Duration;

use super::container::{Target, Ticket};
use crate::api::Refusal;
use crate::departure::Left;
use crate::id::{ContainerId, Epoch, HostId, Incarnation, ReplId};
use crate::lease::{LeaseEffect, LeaseEvent};
use crate::time::BootTime;
use crate::wire::node::{DrainPhase, DrainReport, NodeRefusal, OwnerHint};

/// What the store said of a repl's owner, confirmed by a committed transaction where it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ownership {
    /// This host's registration owns it at this epoch, by a *committed* compare.
    Mine {
        /// The epoch.
        epoch: Epoch,
    },
    /// Somebody else does, or nobody.
    NotMine(Option<OwnerHint>),
    /// It could not be found out, or the claim cannot be made.
    Failed(Refusal),
}

/// How fast a host is to be emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainOrder {
    /// From SIGTERM to SIGKILL; cut to what the budget allows.
    pub grace: Duration,
    /// From the notice until the host is to be empty; `None` where nothing presses.
    pub budget: Option<Duration>,
}

/// What a container died of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// Its program was seen to end, by itself or by a signal.
    Program,
    /// Nobody saw it: the keeper died, and took it along.
    WithKeeper,
}

/// One of this host's claims as the store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Which container it is the claim of.
    pub id: ContainerId,
    /// From the repl's spec.
    pub idle_timeout: Option<Duration>,
}

/// What a host is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A keeper is there, and this is everything that it holds.
    Keeper {
        /// What runs, and since when.
        running: Vec<(ContainerId, BootTime)>,
    },
    /// The keeper is gone. [`Event::Dead`] comes for each of its containers.
    KeeperLost,
    /// News for the lease: results of its effects.
    Lease(LeaseEvent),
    /// The claims that the store has of this registration.
    Claims {
        /// Of which registration.
        incarnation: Incarnation,
        /// All of them.
        claims: Vec<Claim>,
    },
    /// A session wants in. With an epoch, its gateway holds this host for the owner.
    Open {
        /// Who waits for the answer.
        ticket: Ticket,
        /// Which repl.
        repl: ReplId,
        /// The owner's epoch as the gateway knows it; `None` asks for a claim.
        epoch: Option<Epoch>,
    },
    /// Another host says that it handed these repls to this one.
    HandedOff {
        /// Which, with their new epochs, in the order in which they are to be started.
        repls: Vec<(ReplId, Epoch)>,
    },
    /// The number of sessions joined to a container changed.
    Sessions {
        /// Which container.
        id: ContainerId,
        /// How many there are now.
        count: u32,
    },
    /// Somebody wants the container ended.
    Stop {
        /// Who waits for the answer.
        ticket: Ticket,
        /// Which repl.
        repl: ReplId,
        /// At which epoch.
        epoch: Epoch,
        /// From SIGTERM to SIGKILL.
        grace: Duration,
    },
    /// The host is to be emptied.
    Drain {
        /// Who waits for the report.
        ticket: Ticket,
        /// How fast.
        order: DrainOrder,
    },
    /// The host takes repls again.
    Undrain,
    /// The host's record in the store says that it is draining.
    SaidDraining,
    /// The answer to [`Effect::ReadTargets`].
    Targets {
        /// Who can take repls over.
        targets: Vec<Target>,
    },
    /// The answer to [`Effect::Prepare`]: all have answered, or cannot be reached.
    Told,
    /// What heirs have said of repls that were handed off to them.
    HeardOf {
        /// Of how many.
        count: u32,
        /// How many of these run.
        started: u32,
    },
    /// The answer to [`Effect::Ask`], and to each part of [`Effect::Confirm`].
    Asked {
        /// Which repl.
        repl: ReplId,
        /// What the store said.
        ownership: Ownership,
    },
    /// The answer to [`Effect::Claim`].
    Claimed {
        /// Which repl.
        repl: ReplId,
        /// What became of it.
        ownership: Ownership,
    },
    /// The container's process runs.
    Started {
        /// Which.
        id: ContainerId,
        /// From the repl's spec.
        idle_timeout: Option<Duration>,
    },
    /// The container could not be started; nothing of it runs.
    StartFailed {
        /// Which.
        id: ContainerId,
        /// Why.
        refusal: Refusal,
    },
    /// The container is proven dead.
    Dead {
        /// Which.
        id: ContainerId,
        /// Of what, as far as anybody saw.
        death: Death,
    },
    /// The answer to [`Effect::Depart`], in any number of parts.
    Departed {
        /// Which, and what became of them.
        departed: Vec<(ContainerId, Left)>,
    },
    /// Time has passed.
    Tick,
}

/// What a host wants done. Effects of one step may be done at the same time; none waits for another.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Something for the lease. [`LeaseEffect::Fence`] never comes here: it is a `Kill`.
    Lease(LeaseEffect),
    /// Read all claims of this registration, as of its join or later: an older answer would leave out claims whose
    /// containers another process of this host has started.
    ReadClaims {
        /// Of which.
        incarnation: Incarnation,
    },
    /// Find out who owns the repl; confirm it by a committed transaction if it is this host.
    Ask {
        /// Which repl.
        repl: ReplId,
        /// This host's registration.
        incarnation: Incarnation,
    },
    /// Find out by committed transactions whether these repls are this host's at these epochs.
    Confirm {
        /// Which repls.
        repls: Vec<(ReplId, Epoch)>,
        /// This host's registration.
        incarnation: Incarnation,
    },
    /// Claim the repl if it is free.
    Claim {
        /// Which repl.
        repl: ReplId,
        /// This host's registration.
        incarnation: Incarnation,
    },
    /// Start the container. Those of one host are started in the order of these effects.
    Start {
        /// Which.
        id: ContainerId,
    },
    /// Send SIGTERM.
    Terminate {
        /// To whom.
        id: ContainerId,
    },
    /// Send SIGKILL to all of these at once.
    Kill {
        /// To whom.
        ids: Vec<ContainerId>,
    },
    /// Give up these repls, proven dead, until it has worked or the lease is lost; and tell each heir what is its
    /// own, in this order.
    Depart {
        /// Which, and to whom; without a target the repl is free.
        departures: Vec<(ContainerId, Option<Target>)>,
    },
    /// Remove what the dead container left.
    Cleanup {
        /// Which.
        id: ContainerId,
    },
    /// Find out who can take repls over.
    ReadTargets,
    /// Tell these hosts which repls are about to be theirs, and wait until they have prepared.
    Prepare {
        /// Whom, of what.
        told: Vec<(HostId, Vec<ReplId>)>,
    },
    /// A phase of the drain has ended.
    Reached {
        /// Which.
        phase: DrainPhase,
        /// How long after the notice.
        after: Duration,
    },
    /// Write into the host's record whether it takes new repls.
    SayDraining {
        /// Whether it does not.
        draining: bool,
    },
    /// Answer a caller.
    Answer {
        /// Whom.
        ticket: Ticket,
        /// With what.
        answer: Answer,
    },
    /// This repl's state is new: tell those who follow.
    Changed {
        /// Which repl.
        repl: ReplId,
    },
}

/// What a caller is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The container runs here at this epoch.
    Opened {
        /// The epoch.
        epoch: Epoch,
    },
    /// Not here, or not now.
    Refused(NodeRefusal),
    /// It has ended, and the repl is given up.
    Stopped,
    /// The host is empty, or its time is over.
    Drained(DrainReport),
}

/// Which of the hosts has most room; ties by rendezvous, so that repls spread.
pub(super) fn pick_target(targets: &mut [Target], repl: &ReplId) -> Option<Target> {
    let best = targets
        .iter_mut()
        .filter(|target| target.room > 0)
        .max_by_key(|target| (target.room, weight(repl, &target.host)))?;
    best.room -= 1;
    Some(best.clone())
}

fn weight(repl: &ReplId, host: &HostId) -> u64 {
    crate::rendezvous::rendezvous(repl.as_str(), host.as_str())
}
