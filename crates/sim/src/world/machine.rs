//! One machine: its conman, its keeper, its kernel, its clock.

use std::collections::BTreeSet;

use keeper::book::Book;
use model::host::{Effect, Event, Host};
use model::id::{ContainerId, HostId, Revision};
use model::observer::Observer;
use model::time::{BootTime, RawTime};
use model::timing::Timing;

use crate::store::Keys;

/// How many containers a machine carries.
pub(super) const CAPACITY: u32 = 8;

/// Something under way on a machine.
#[derive(Debug, Clone, PartialEq)]
pub enum Pending {
    /// An effect that was sent at this time and has not been done yet.
    Do(Effect, BootTime),
    /// A result on its way back.
    Tell(Event),
    /// A container that was sent SIGKILL, and is alive until the kernel is done with it.
    Die(ContainerId),
}

impl Pending {
    /// Whether conman takes part in it: a stopped one does not.
    pub(super) fn is_conmans(&self) -> bool {
        !matches!(self, Pending::Die(_))
    }

    /// Whether it tells that a keeper comes or goes. These come through one channel, in order: its driver has one task, and
    /// one connection, for each keeper after the other.
    pub(super) fn is_of_keeper(&self) -> bool {
        matches!(
            self,
            Pending::Tell(Event::Keeper { .. } | Event::KeeperLost)
        )
    }
}

/// The keeper and what it is the parent of.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Keeper {
    pub(super) book: Book,
    /// Whose PID 1 is not dead yet.
    pub(super) alive: BTreeSet<ContainerId>,
}

/// Whether conman runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Conman {
    /// It does.
    Running,
    /// It is stopped, or hangs.
    Paused,
}

/// One machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Machine {
    pub(super) id: HostId,
    pub(super) host: Host,
    pub(super) observer: Observer,
    pub(super) keeper: Option<Keeper>,
    pub(super) conman: Conman,
    /// What its observer sees of the store, while that is not the present.
    pub(super) sees: Option<Keys>,
    pub(super) pending: Vec<Pending>,
    /// What waits until it is let go.
    pub(super) held: Vec<Pending>,
    /// How fast its clock runs, in parts per million of the world's.
    rate_ppm: u64,
    pub(super) beat: u64,
    /// The store's revision at its last join.
    pub(super) joined: Revision,
}

impl Machine {
    pub(super) fn new(number: usize, rate_ppm: u64, timing: Timing) -> Self {
        // A name of the right form by construction.
        let id: HostId = format!("host-{number}")
            .parse()
            .unwrap_or_else(|_| unreachable!());
        Self {
            host: Host::new(id.clone(), CAPACITY, timing),
            observer: Observer::new(id.clone(), timing),
            id,
            keeper: None,
            conman: Conman::Running,
            sees: None,
            pending: vec![],
            held: vec![],
            rate_ppm,
            beat: 0,
            joined: Revision::ABSENT,
        }
    }

    /// Whether its conman runs.
    pub fn conman(&self) -> Conman {
        self.conman
    }

    /// Whether its observer sees the past.
    pub fn is_frozen(&self) -> bool {
        self.sees.is_some()
    }

    /// How much is held back on it.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Its clock at the world's time.
    pub(super) fn clock(&self, world: u64) -> BootTime {
        let local = u128::from(world) * u128::from(self.rate_ppm) / 1_000_000;
        BootTime(u64::try_from(local).unwrap_or(u64::MAX))
    }

    /// Its other clock: of the same rate, for a rate is a crystal's.
    pub(super) fn raw_clock(&self, world: u64) -> RawTime {
        RawTime(self.clock(world).0)
    }

    /// The world's time at which its clock shows `local` at the earliest.
    pub(super) fn world_time(&self, local: u64) -> u64 {
        let world = (u128::from(local) * 1_000_000).div_ceil(u128::from(self.rate_ppm));
        u64::try_from(world).unwrap_or(u64::MAX)
    }

    /// The place in `pending` of what comes next, if anything can.
    pub(super) fn next_pending(&self) -> Option<usize> {
        match self.conman {
            Conman::Running => (!self.pending.is_empty()).then_some(0),
            Conman::Paused => self
                .pending
                .iter()
                .position(|pending| !pending.is_conmans()),
        }
    }
}
