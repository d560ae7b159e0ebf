//! What the keeper may do: its deadline and the epochs that it has seen. A plain value; `now` is given.

use std::collections::BTreeMap;

use model::id::{ContainerId, Epoch, ReplId};
use model::mutant::{DEADLINE_ENFORCED, EPOCH_RISES, START_BEFORE_DEADLINE, removed};
use model::time::BootTime;
use model::wire::keeper::{ARM_AHEAD_MAX, KeeperRefusal, KeeperRefusalCode};

use crate::failure::refused;

/// The deadline and the epochs.
///
/// The epochs of a repl are never forgotten while the keeper lives: some tens of bytes for each repl that this
/// host ever carried, against starting an older owner's container after a newer one's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Book {
    deadline: Option<BootTime>,
    seen: BTreeMap<ReplId, Epoch>,
    going_down: GoingDown,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum GoingDown {
    #[default]
    No,
    Yes,
}

/// What an Arm does.
#[derive(Debug, PartialEq, Eq)]
pub enum Arming {
    /// The kernel's timer must be set to this.
    Later(BootTime),
    /// This one, from before, holds.
    Unchanged(BootTime),
}

impl Book {
    /// The deadline, if there is one yet.
    pub fn deadline(&self) -> Option<BootTime> {
        self.deadline
    }

    /// From here on nothing is admitted.
    pub fn go_down(&mut self) {
        self.going_down = GoingDown::Yes;
    }

    /// Whether the keeper is going down.
    pub fn is_going_down(&self) -> bool {
        self.going_down == GoingDown::Yes
    }

    /// Moves the deadline, never backwards.
    ///
    /// # Errors
    /// `DeadlineTooFar` for one that is more than [`ARM_AHEAD_MAX`] ahead.
    pub fn arm(&mut self, now: BootTime, deadline: BootTime) -> Result<Arming, KeeperRefusal> {
        if deadline > now.plus(ARM_AHEAD_MAX) {
            return Err(refused(
                KeeperRefusalCode::DeadlineTooFar,
                "arm",
                format!(
                    "{} ms ahead, at most {} are allowed",
                    deadline.since(now).as_millis(),
                    ARM_AHEAD_MAX.as_millis()
                ),
            ));
        }
        let deadline = if removed(DEADLINE_ENFORCED) {
            deadline.plus(ARM_AHEAD_MAX)
        } else {
            deadline
        };
        match self.deadline {
            Some(held) if held >= deadline => Ok(Arming::Unchanged(held)),
            _ => {
                self.deadline = Some(deadline);
                Ok(Arming::Later(deadline))
            }
        }
    }

    /// Whether anything may be started now.
    ///
    /// # Errors
    /// Why not: going down, no deadline, or past it.
    pub fn is_open(&self, now: BootTime) -> Result<(), KeeperRefusal> {
        let refuse = |code, message: String| Err(refused(code, "admit", message));
        if self.is_going_down() {
            return refuse(
                KeeperRefusalCode::GoingDown,
                "the keeper is going down".to_owned(),
            );
        }
        match self.deadline {
            None => refuse(
                KeeperRefusalCode::NoDeadline,
                "no deadline was armed yet".to_owned(),
            ),
            Some(deadline) if now >= deadline && !removed(START_BEFORE_DEADLINE) => refuse(
                KeeperRefusalCode::PastDeadline,
                format!("{} ms past it", now.since(deadline).as_millis()),
            ),
            Some(_) => Ok(()),
        }
    }

    /// Whether a container may be started now. Its epoch is seen from then on.
    ///
    /// # Errors
    /// Why not: as of [`Book::is_open`], or an epoch that is not above all that were seen.
    pub fn admit(&mut self, now: BootTime, id: &ContainerId) -> Result<(), KeeperRefusal> {
        self.is_open(now)?;
        match self.seen.get(&id.repl) {
            Some(seen) if *seen >= id.epoch && !removed(EPOCH_RISES) => Err(refused(
                KeeperRefusalCode::StaleEpoch,
                "admit",
                format!("epoch {seen} of {} was seen", id.repl),
            )),
            _ => {
                self.seen.insert(id.repl.clone(), id.epoch);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(repl: &str, epoch: u64) -> ContainerId {
        ContainerId {
            repl: repl.parse().expect("a name"),
            epoch: Epoch(epoch),
        }
    }

    fn code<T: std::fmt::Debug>(result: Result<T, KeeperRefusal>) -> KeeperRefusalCode {
        result.expect_err("a refusal").code
    }

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn nothing_starts_without_a_deadline_or_at_or_past_it() {
        let mut book = Book::default();
        let start = book.admit(BootTime(5), &id("a", 1));
        assert_eq!(code(start), KeeperRefusalCode::NoDeadline);
        book.arm(BootTime(5), BootTime(10)).expect("armed");
        let start = book.admit(BootTime(10), &id("a", 1));
        assert_eq!(code(start), KeeperRefusalCode::PastDeadline);
        // A refused one was not seen.
        book.admit(BootTime(9), &id("a", 1)).expect("admitted");
    }

    #[test]
    fn epochs_only_rise_for_each_repl_by_itself() {
        let mut book = Book::default();
        book.arm(BootTime(0), BootTime(SECOND)).expect("armed");
        book.admit(BootTime(1), &id("a", 5)).expect("first");
        for epoch in [4, 5] {
            let start = book.admit(BootTime(1), &id("a", epoch));
            assert_eq!(code(start), KeeperRefusalCode::StaleEpoch);
        }
        book.admit(BootTime(1), &id("b", 4)).expect("another repl");
        book.admit(BootTime(1), &id("a", 6)).expect("a newer one");
    }

    #[test]
    fn the_deadline_never_moves_backwards_nor_too_far() {
        let mut book = Book::default();
        let far = ARM_AHEAD_MAX.as_nanos() as u64;
        let arm = book.arm(BootTime(7), BootTime(7 + far + 1));
        assert_eq!(code(arm), KeeperRefusalCode::DeadlineTooFar);
        assert_eq!(book.deadline(), None);
        let later = book.arm(BootTime(7), BootTime(7 + far));
        assert_eq!(later, Ok(Arming::Later(BootTime(7 + far))));
        let older = book.arm(BootTime(8), BootTime(SECOND));
        assert_eq!(older, Ok(Arming::Unchanged(BootTime(7 + far))));
        assert_eq!(book.deadline(), Some(BootTime(7 + far)));
    }

    #[test]
    fn going_down_admits_nothing() {
        let mut book = Book::default();
        book.arm(BootTime(0), BootTime(SECOND)).expect("armed");
        book.go_down();
        let start = book.admit(BootTime(1), &id("a", 1));
        assert_eq!(code(start), KeeperRefusalCode::GoingDown);
    }
}
