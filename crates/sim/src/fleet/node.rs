//! One machine of the fleet: its conman, its keeper, what runs on it, and what is wrong with it.

use std::collections::{BTreeMap, BTreeSet};

use keeper::book::Book;
use model::host::{Event, Host};
use model::id::{Epoch, HostId, ReplId, Revision};
use model::time::BootTime;

use super::plan::{Fault, Plan};

/// Whether a machine is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Machine {
    Up,
    /// The hypervisor has stopped it.
    Paused,
    /// It was taken away, or broke.
    Gone,
}

/// Whether its conman runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Conman {
    Running,
    Stopped,
    Dead,
}

/// One machine.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: HostId,
    pub(super) host: Host,
    pub(super) machine: Machine,
    pub(super) conman: Conman,
    /// Counts the conmans: what was for an earlier one is lost.
    pub(super) life: u32,
    pub(super) keeper: Option<Book>,
    /// Counts the keepers.
    pub(super) keeper_life: u32,
    /// Whether the kernel's kill at the deadline is planned.
    pub(super) is_armed: bool,
    /// The deadline passed while the machine was paused.
    pub(super) is_overdue: bool,
    pub(super) alive: BTreeMap<ReplId, Epoch>,
    /// Every repl that the store may have a claim of this host's for.
    pub(super) owned: BTreeSet<ReplId>,
    /// What came while its conman or its machine was stopped.
    pub(super) deferred: Vec<Event>,
    pub(super) wake_at: Option<u64>,
    /// Since the beat that was sent at this time nothing has happened here but beats, and none of these were gone through.
    pub(super) quiet_since: Option<BootTime>,
    pub(super) beat: u64,
    /// The store's revision at its last join.
    pub(super) joined: Revision,
    /// When its last beat was committed.
    pub(super) beaten_at: u64,
    /// Draws so far that were not for beats.
    pub(super) draws: u64,
    rate_ppm: u64,
    /// What is wrong, and until when.
    pub(super) wrong: BTreeMap<Fault, u64>,
    /// What befell it last: to say what a death came from.
    pub(super) last_fault: Option<(Fault, u64)>,
    pub(super) was_fenced: bool,
}

impl Node {
    pub(super) fn new(number: u32, rate_ppm: u64, plan: &Plan) -> Self {
        // A name of the right form by construction.
        let id: HostId = format!("h{number}")
            .parse()
            .unwrap_or_else(|_| unreachable!());
        Self {
            host: Host::new(id.clone(), plan.capacity, plan.timing),
            id,
            machine: Machine::Up,
            conman: Conman::Running,
            life: 0,
            keeper: Some(Book::default()),
            keeper_life: 0,
            is_armed: false,
            is_overdue: false,
            alive: BTreeMap::new(),
            owned: BTreeSet::new(),
            deferred: vec![],
            wake_at: None,
            quiet_since: None,
            beat: 0,
            joined: Revision::ABSENT,
            beaten_at: 0,
            draws: 0,
            rate_ppm,
            wrong: BTreeMap::new(),
            last_fault: None,
            was_fenced: false,
        }
    }

    /// Its clock at the world's time.
    pub(super) fn clock(&self, world: u64) -> BootTime {
        let local = u128::from(world) * u128::from(self.rate_ppm) / 1_000_000;
        BootTime(u64::try_from(local).unwrap_or(u64::MAX))
    }

    /// The world's time at which its clock shows `local` at the earliest.
    pub(super) fn world_time(&self, local: BootTime) -> u64 {
        let world = (u128::from(local.0) * 1_000_000).div_ceil(u128::from(self.rate_ppm));
        u64::try_from(world).unwrap_or(u64::MAX)
    }

    pub(super) fn is_running(&self) -> bool {
        self.machine == Machine::Up && self.conman == Conman::Running
    }

    pub(super) fn has(&self, fault: Fault) -> bool {
        self.wrong.contains_key(&fault)
    }

    /// Whether what it says arrives anywhere.
    pub(super) fn says(&self) -> bool {
        !self.has(Fault::Partition) && !self.has(Fault::PartitionOut)
    }

    /// Whether it hears the store.
    pub(super) fn hears(&self) -> bool {
        !self.has(Fault::Partition) && !self.has(Fault::PartitionIn)
    }
}
