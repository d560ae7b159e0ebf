//! What hangs, and what is done about it: a plain value that is shown what is under way, again and again.
//!
//! ```text
//! in time ─► overdue, or in a circle ─► told to end ──fence_after──► its repl fenced ──restart_after──► hopeless
//!    ▲                                      │                            │                                │
//!    └──────────── it is over ◄─────────────┴────────────────────────────┘           the process must end ┘
//! ```
//!
//! Most of what hangs ends when it is told to, for a future that nobody wakes can be dropped. What does not has a
//! thread that is blocked: then its repl is given up, and when that does not help either, the process is.
//!
//! Time here passes only while somebody looks: what stood still with the whole process, or with its machine, was not
//! stuck meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::timing::{
    WATCHDOG_CIRCLE_AFTER, WATCHDOG_FENCE_AFTER, WATCHDOG_LOOK_EVERY, WATCHDOG_RESTART_AFTER,
    WATCHDOG_SILENCE_MAX,
};

use crate::telemetry::locks::circle::{Link, SeenLock, circles};
use crate::telemetry::operations::{Kind, Stage};

/// An operation, as it was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SeenOperation {
    pub(super) id: u64,
    pub(super) kind: Kind,
    pub(super) stage: Stage,
    pub(super) age: Duration,
    pub(super) patience: Duration,
}

/// Everything, as it was seen at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) operations: Vec<SeenOperation>,
    pub(super) locks: Vec<SeenLock>,
    /// How often the process has given a sign of life so far.
    pub(super) beats: u64,
}

/// What is to be done. Orders of one step are carried out in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Tell the operation to end.
    Cancel(u64),
    /// Give up the one repl that it is on.
    Fence(u64),
    /// Tell people: this is new.
    Tell,
    /// Give up the process.
    Restart(Hopeless),
}

/// Why the process is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hopeless {
    /// An operation outlives its repl.
    Operation(u64),
    /// A circle that no operation is a part of.
    Circle,
    /// None of its tasks runs.
    Silent,
    /// What it is at cannot be read.
    Blind,
}

impl Hopeless {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Hopeless::Operation(_) => "an operation ended neither when told nor with its repl",
            Hopeless::Circle => "threads wait for each other, for no operation",
            Hopeless::Silent => "no task runs",
            Hopeless::Blind => "what is under way cannot be read",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Escalation {
    Cancelled { at: Duration },
    Fenced { at: Duration },
    GivenUp,
}

/// What has been done about what hangs. All of its times are of its own clock.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Decider {
    now: Duration,
    /// The last look, by the caller's clock.
    looked: Option<Duration>,
    /// When each operation that is under way began.
    begun: BTreeMap<u64, Duration>,
    escalations: BTreeMap<u64, Escalation>,
    stuck: BTreeSet<u64>,
    /// Since when there is a circle without an operation.
    nameless_since: Option<Duration>,
    blind_since: Option<Duration>,
    beats: u64,
    beaten: Duration,
    is_hopeless: bool,
}

impl Decider {
    /// Takes one look; `None` where nothing could be seen. `now` counts from any beginning, without steps back.
    pub(super) fn step(&mut self, seen: Option<&Seen>, now: Duration) -> Vec<Order> {
        let spent = self.pass(now);
        let mut orders = vec![];
        let Some(seen) = seen else {
            let since = *self.blind_since.get_or_insert(self.now);
            if self.is_over(since, WATCHDOG_SILENCE_MAX) {
                self.give_up(Hopeless::Blind, &mut orders);
            }
            return orders;
        };
        self.blind_since = None;
        self.listen(seen.beats, &mut orders);
        let circles = circles(&seen.locks, WATCHDOG_CIRCLE_AFTER);
        let mut due = self.overdue(seen, spent);
        let in_circles = circles.iter().flatten();
        let in_circles = in_circles.filter_map(|link| link.waiter.operation);
        self.stuck = due.iter().copied().chain(in_circles).collect();
        due.extend(circles.iter().filter_map(|circle| victim(circle)));
        self.escalations.retain(|id, _| due.contains(id));
        for operation in seen.operations.iter().filter(|one| due.contains(&one.id)) {
            self.escalate(operation, &mut orders);
        }
        self.look_at_nameless(&circles, &mut orders);
        orders
    }

    /// The operations that hang, as of the last look.
    pub(super) fn stuck(&self) -> &BTreeSet<u64> {
        &self.stuck
    }

    fn pass(&mut self, now: Duration) -> Duration {
        let before = self.looked.replace(now).unwrap_or(now);
        let spent = now.saturating_sub(before).min(WATCHDOG_LOOK_EVERY * 2);
        self.now += spent;
        spent
    }

    fn is_over(&self, since: Duration, patience: Duration) -> bool {
        self.now.saturating_sub(since) >= patience
    }

    fn listen(&mut self, beats: u64, orders: &mut Vec<Order>) {
        if beats != self.beats {
            (self.beats, self.beaten) = (beats, self.now);
        } else if self.is_over(self.beaten, WATCHDOG_SILENCE_MAX) {
            self.give_up(Hopeless::Silent, orders);
        }
    }

    /// Those that have taken longer than they may; `spent` has passed since the last look.
    fn overdue(&mut self, seen: &Seen, spent: Duration) -> BTreeSet<u64> {
        let begun = seen.operations.iter().map(|operation| {
            let id = operation.id;
            let is_new = || self.now.saturating_sub(operation.age.min(spent));
            (id, self.begun.get(&id).copied().unwrap_or_else(is_new))
        });
        self.begun = begun.collect();
        let is_overdue = |operation: &&SeenOperation| {
            let begun = self.begun.get(&operation.id);
            begun.is_some_and(|begun| self.now.saturating_sub(*begun) > operation.patience)
        };
        let overdue = seen.operations.iter().filter(is_overdue);
        overdue.map(|operation| operation.id).collect()
    }

    fn escalate(&mut self, operation: &SeenOperation, orders: &mut Vec<Order>) {
        let id = operation.id;
        let next = match self.escalations.get(&id) {
            None => {
                orders.extend([Order::Cancel(id), Order::Tell]);
                Escalation::Cancelled { at: self.now }
            }
            Some(Escalation::Cancelled { at }) if self.is_over(*at, WATCHDOG_FENCE_AFTER) => {
                orders.extend([Order::Fence(id), Order::Tell]);
                Escalation::Fenced { at: self.now }
            }
            Some(Escalation::Fenced { at })
                if self.is_over(*at, WATCHDOG_RESTART_AFTER) && may_end_with_process(operation) =>
            {
                self.give_up(Hopeless::Operation(id), orders);
                Escalation::GivenUp
            }
            Some(_) => return,
        };
        self.escalations.insert(id, next);
    }

    fn look_at_nameless(&mut self, circles: &[Vec<Link>], orders: &mut Vec<Order>) {
        if circles.iter().all(|circle| victim(circle).is_some()) {
            self.nameless_since = None;
            return;
        }
        match self.nameless_since {
            None => {
                self.nameless_since = Some(self.now);
                orders.push(Order::Tell);
            }
            Some(since) if self.is_over(since, WATCHDOG_RESTART_AFTER) => {
                self.give_up(Hopeless::Circle, orders);
            }
            Some(_) => {}
        }
    }

    fn give_up(&mut self, why: Hopeless, orders: &mut Vec<Order>) {
        if !std::mem::replace(&mut self.is_hopeless, true) {
            orders.extend([Order::Tell, Order::Restart(why)]);
        }
    }
}

/// Whether another process would do better. It would wait for the kernel's proof of a death, and for a store that is
/// silent, as this one does; whatever else does not end when it is told to has a thread that is blocked.
fn may_end_with_process(operation: &SeenOperation) -> bool {
    match operation.kind {
        Kind::Claim | Kind::Start | Kind::Route | Kind::Exec => true,
        Kind::Kill => operation.stage != Stage::Proof,
        Kind::Release => false,
    }
}

/// The one operation of a circle that is told to end, so that the others can go on: the youngest.
fn victim(circle: &[Link]) -> Option<u64> {
    circle.iter().filter_map(|link| link.waiter.operation).max()
}

#[cfg(test)]
mod tests;
