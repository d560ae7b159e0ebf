//! A host's lease: how long it may keep containers alive.
//!
//! ```text
//!            Join             Joined            RenewRejected, or too near the deadline
//!   Down ───────────► Joining ───────► Held ────────────────────────────────────────► Fenced
//!    ▲                  │               │ ▲                                              │
//!    │     JoinFailed   │               └─┘ RenewAcked: deadline = its *send* + hold     │
//!    ◄──────────────────┘                                                                │
//!    └───────────────────────────── Emptied: every container is proven dead ─────────────┘
//! ```
//!
//! The happy path: join once, then a renewal every `renew`, each acknowledged one moving the deadline,
//! which is passed to the keeper so that the *kernel* enforces it. Fencing here only comes a little before
//! the keeper's timer and saves the keeper's life; nothing rests on it.
//!
//! Times are on the host's CLOCK_BOOTTIME.

use std::time::Duration;

use crate::id::Incarnation;
use crate::mutant::{DEADLINE_FROM_SEND, removed};
use crate::time::BootTime;
use crate::timing::{FENCE_LEAD, Timing};

/// What a lease is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseEvent {
    /// The host is ready to have one: a keeper is there, and what runs on the host is known.
    Join,
    /// The registration was committed, new or resumed; it also wrote a beat, sent at `sent`.
    Joined {
        /// The registration.
        incarnation: Incarnation,
        /// When the transaction was sent.
        sent: BootTime,
    },
    /// The registration did not work; it may be tried again.
    JoinFailed,
    /// A renewal sent at `sent` was committed.
    RenewAcked {
        /// When it was sent: what the deadline counts from.
        sent: BootTime,
    },
    /// A renewal was rejected: the registration is gone, somebody has stolen it.
    RenewRejected,
    /// A renewal got no answer. It may have been committed, but nothing may be concluded from it.
    RenewFailed,
    /// Every container of the lost registration is proven dead.
    Emptied,
    /// Time has passed.
    Tick,
}

/// What a lease wants done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseEffect {
    /// Register, or resume the registration that is there.
    Join,
    /// Write the next beat.
    Renew {
        /// For this registration.
        incarnation: Incarnation,
    },
    /// Give the keeper its new deadline.
    Arm {
        /// The deadline.
        deadline: BootTime,
    },
    /// Kill everything now.
    Fence {
        /// Why.
        cause: FenceCause,
    },
}

/// Why a host lost the right to its containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FenceCause {
    /// Another host found this one silent and deleted its registration.
    Stolen,
    /// The store has not acknowledged a renewal for too long.
    Unrenewed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Down,
    Joining,
    Held {
        incarnation: Incarnation,
        deadline: BootTime,
        renew_in_flight: bool,
        renew_at: BootTime,
    },
    Fenced,
}

/// The lease of one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    timing: Timing,
    state: State,
}

impl Lease {
    /// No lease yet.
    pub fn new(timing: Timing) -> Self {
        Self {
            timing,
            state: State::Down,
        }
    }

    /// The registration, while it is held and its deadline is not reached.
    pub fn incarnation(&self, now: BootTime) -> Option<Incarnation> {
        match self.state {
            State::Held {
                incarnation,
                deadline,
                ..
            } if now < deadline => Some(incarnation),
            _ => None,
        }
    }

    /// What is left until the deadline; zero without a lease.
    pub fn margin(&self, now: BootTime) -> Duration {
        self.deadline()
            .map_or(Duration::ZERO, |deadline| deadline.since(now))
    }

    /// The deadline, while the lease is held.
    pub fn deadline(&self) -> Option<BootTime> {
        match self.state {
            State::Held { deadline, .. } => Some(deadline),
            _ => None,
        }
    }

    /// Whether the lease was lost and not everything is proven dead yet.
    pub fn is_fenced(&self) -> bool {
        self.state == State::Fenced
    }

    /// When [`LeaseEvent::Tick`] is due.
    pub fn wakeup(&self) -> Option<BootTime> {
        match self.state {
            State::Held {
                deadline,
                renew_in_flight,
                renew_at,
                ..
            } => {
                let fence_at = fence_at(deadline);
                Some(if renew_in_flight {
                    fence_at
                } else {
                    fence_at.min(renew_at)
                })
            }
            _ => None,
        }
    }

    /// Takes one event. What it wants done comes back, to be done in order.
    pub fn step(&mut self, event: LeaseEvent, now: BootTime) -> Vec<LeaseEffect> {
        match (self.state, event) {
            (State::Down, LeaseEvent::Join) => {
                self.state = State::Joining;
                vec![LeaseEffect::Join]
            }
            (State::Joining, LeaseEvent::JoinFailed) => {
                self.state = State::Down;
                vec![]
            }
            (State::Joining, LeaseEvent::Joined { incarnation, sent }) => {
                let deadline = sent.plus(self.timing.hold);
                self.state = State::Held {
                    incarnation,
                    deadline,
                    renew_in_flight: false,
                    renew_at: sent.plus(self.timing.renew),
                };
                vec![LeaseEffect::Arm { deadline }]
            }
            (
                State::Held {
                    incarnation,
                    deadline,
                    renew_at,
                    ..
                },
                LeaseEvent::RenewAcked { sent },
            ) => {
                let sent = if removed(DEADLINE_FROM_SEND) {
                    now
                } else {
                    sent
                };
                // Acknowledgements may arrive out of order; an older one must not shorten anything.
                let deadline = deadline.max(sent.plus(self.timing.hold));
                self.state = State::Held {
                    incarnation,
                    deadline,
                    renew_in_flight: false,
                    renew_at,
                };
                let mut effects = vec![LeaseEffect::Arm { deadline }];
                effects.extend(self.tick(now));
                effects
            }
            (
                State::Held {
                    incarnation,
                    deadline,
                    ..
                },
                LeaseEvent::RenewFailed,
            ) => {
                self.state = State::Held {
                    incarnation,
                    deadline,
                    renew_in_flight: false,
                    // Not at once: a store that refuses quickly must not be flooded.
                    renew_at: now.plus(self.timing.renew / 4),
                };
                self.tick(now)
            }
            (State::Held { .. }, LeaseEvent::RenewRejected) => self.fence(FenceCause::Stolen),
            (State::Held { .. }, LeaseEvent::Tick) => self.tick(now),
            (State::Fenced, LeaseEvent::Emptied) => {
                self.state = State::Down;
                vec![]
            }
            // Late answers to a lease that is no more, and ticks without one.
            _ => vec![],
        }
    }

    fn fence(&mut self, cause: FenceCause) -> Vec<LeaseEffect> {
        self.state = State::Fenced;
        vec![LeaseEffect::Fence { cause }]
    }

    fn tick(&mut self, now: BootTime) -> Vec<LeaseEffect> {
        let State::Held {
            incarnation,
            deadline,
            renew_in_flight,
            renew_at,
        } = self.state
        else {
            return vec![];
        };
        if now >= fence_at(deadline) {
            return self.fence(FenceCause::Unrenewed);
        }
        if renew_in_flight || now < renew_at {
            return vec![];
        }
        self.state = State::Held {
            incarnation,
            deadline,
            renew_in_flight: true,
            renew_at: now.plus(self.timing.renew),
        };
        vec![LeaseEffect::Renew { incarnation }]
    }
}

fn fence_at(deadline: BootTime) -> BootTime {
    BootTime(
        deadline
            .0
            .saturating_sub(u64::try_from(FENCE_LEAD.as_nanos()).unwrap_or(u64::MAX)),
    )
}
