//! One request and its copies to several endpoints: when another is sent, and what their answers mean together.
//!
//! ```text
//! send ──answer──────────────────────────────► done
//!   ├──late, repeatable──────► send a copy to the next endpoint, and wait for either
//!   ├──not done──────────────► send to the next endpoint, whatever the request is
//!   └──lost, repeatable──────► send a copy; not repeatable ─► in doubt
//! ```
//!
//! **The rule of repetition.** A read may be repeated. A transaction may be repeated if and only if it *spends* a
//! compare: one that held when it committed and can never hold again, for the transaction itself has changed what was
//! compared, and revisions do not come back. Then at most one of the copies commits, however late the others arrive:
//! after the answer, after somebody else's writes, after years. All other transactions (a claim of an absent key, a
//! renewal, which compares what it does not write) go to one endpoint at a time, and to another only when it is
//! certain that the first has not taken it.
//!
//! **What a rejection of a copy means.** The other copy may have committed and so caused it. It counts only when no
//! other copy is on its way or lost; else the transaction is in doubt, and its caller reads before it acts.
//!
//! No clock and no network here: the driver is in the module above.

use std::collections::HashMap;

use model::store::{Operation, Target, Txn};

/// Whether copies of the transaction are harmless: it spends one of its compares.
pub(super) fn is_repeatable(txn: &Txn) -> bool {
    let written: HashMap<&str, bool> = txn
        .operations
        .iter()
        .map(|operation| match operation {
            Operation::Put { key, .. } => (key.as_str(), false),
            Operation::Delete { key } => (key.as_str(), true),
        })
        .collect();
    txn.compares.iter().any(|compare| {
        // What is absent now may be absent again later.
        if compare.revision.0 == 0 {
            return false;
        }
        match (written.get(compare.key.as_str()), compare.target) {
            (Some(_), Target::Modified) => true,
            // A put keeps the revision of the creation.
            (Some(is_deleted), Target::Create) => *is_deleted,
            (None, _) => false,
        }
    })
}

/// An answer to one copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer<A> {
    /// Nothing that happens to other copies can change it.
    Final(A),
    /// A rejection.
    Rejection(A),
}

/// Why one copy has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// It was certainly not carried out, and will not be: not sent, or refused before anything was done.
    NotDone(String),
    /// It may have been carried out, or may be yet.
    Lost(String),
    /// No endpoint will take it, now or later.
    Hopeless(String),
}

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event<A> {
    /// The last copy has had no answer for a while.
    Late,
    /// A copy was answered.
    Answered(Answer<A>),
    /// A copy was not.
    Failed(Failure),
    /// The time for all of it is over.
    Expired,
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next<A> {
    /// Send a copy to the next endpoint.
    Send,
    /// Wait for what happens.
    Wait,
    /// It is over.
    Done(Result<A, Failure>),
}

/// The state of one request.
#[derive(Debug)]
pub(super) struct Race<A> {
    is_repeatable: bool,
    endpoints_left: usize,
    pending: usize,
    lost: Option<String>,
    not_done: String,
    rejection: Option<A>,
}

impl<A> Race<A> {
    /// Before the first copy, which is to be sent at once. `endpoints` is at least one.
    pub(super) fn new(is_repeatable: bool, endpoints: usize) -> Self {
        Self {
            is_repeatable,
            endpoints_left: endpoints.saturating_sub(1),
            pending: 1,
            lost: None,
            not_done: String::new(),
            rejection: None,
        }
    }

    /// Takes what has happened.
    pub(super) fn step(&mut self, event: Event<A>) -> Next<A> {
        match event {
            Event::Late if self.is_repeatable => self.send_or(|_| Next::Wait),
            Event::Late => Next::Wait,
            Event::Answered(Answer::Final(answer)) => Next::Done(Ok(answer)),
            Event::Answered(Answer::Rejection(answer)) => {
                self.pending -= 1;
                self.rejection = Some(answer);
                self.settle()
            }
            Event::Failed(Failure::Hopeless(why)) => Next::Done(Err(Failure::Hopeless(why))),
            Event::Failed(Failure::NotDone(why)) => {
                self.pending -= 1;
                self.not_done = why;
                // This copy was none. Where no other is on its way, the next is the first.
                let is_first = self.pending == 0 && self.lost.is_none() && self.rejection.is_none();
                if is_first || self.is_repeatable {
                    return self.send_or(Self::settle);
                }
                self.settle()
            }
            Event::Failed(Failure::Lost(why)) => {
                self.pending -= 1;
                self.lost = Some(why);
                if self.is_repeatable {
                    return self.send_or(Self::settle);
                }
                self.settle()
            }
            Event::Expired => Next::Done(Err(match self.pending {
                0 => self.failure(),
                _ => Failure::Lost("no answer in time".to_owned()),
            })),
        }
    }

    fn send_or(&mut self, otherwise: impl FnOnce(&mut Self) -> Next<A>) -> Next<A> {
        // A rejection is as good as the copies that are on their way: more of them would not make it better.
        if self.endpoints_left == 0 || self.rejection.is_some() {
            return otherwise(self);
        }
        self.endpoints_left -= 1;
        self.pending += 1;
        Next::Send
    }

    fn settle(&mut self) -> Next<A> {
        if self.pending > 0 {
            return Next::Wait;
        }
        match self.rejection.take() {
            Some(rejection) if self.lost.is_none() => Next::Done(Ok(rejection)),
            _ => Next::Done(Err(self.failure())),
        }
    }

    fn failure(&self) -> Failure {
        match &self.lost {
            Some(why) => Failure::Lost(why.clone()),
            None => Failure::NotDone(self.not_done.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use model::departure::{Departure, transaction};
    use model::id::{ContainerId, Epoch, Incarnation, Revision};
    use model::keys::{self, Free, Owner, OwnerRecord};

    use super::*;

    fn lost() -> Event<u32> {
        Event::Failed(Failure::Lost("lost".to_owned()))
    }

    fn not_done() -> Event<u32> {
        Event::Failed(Failure::NotDone("refused".to_owned()))
    }

    fn rejected(by: u32) -> Event<u32> {
        Event::Answered(Answer::Rejection(by))
    }

    fn committed(at: u32) -> Event<u32> {
        Event::Answered(Answer::Final(at))
    }

    fn in_doubt(next: &Next<u32>) -> bool {
        matches!(next, Next::Done(Err(Failure::Lost(_))))
    }

    /// Which transactions of the protocol may be sent twice, and which not.
    #[test]
    fn what_spends_a_compare_is_repeatable() {
        let host = "host-1".parse().unwrap();
        let repl = "blue".parse().unwrap();
        let mine = Incarnation(7);
        let owner = Owner {
            repl: "blue".parse().unwrap(),
            epoch: Epoch(5),
            record: OwnerRecord {
                host: "host-2".parse().unwrap(),
                incarnation: Incarnation(3),
                nonce: 1,
            },
        };
        let text = String::new;
        let claim = |free| keys::claim(&repl, free, Revision(2), &host, mine, text());
        let released = Departure {
            id: ContainerId {
                repl: repl.clone(),
                epoch: Epoch(5),
            },
            heir: None,
        };
        let orphan = Free::Orphan {
            owner: &owner,
            host_create: Revision(0),
        };
        for (name, txn, expected) in [
            ("claim of an orphan", claim(orphan), true),
            ("release", transaction(&[released]), true),
            ("steal", keys::steal(&host, mine, Revision(9)), true),
            ("retire", keys::retire(&host, mine), true),
            // Released in between, it would be claimed again by a copy that nobody waits for.
            ("claim of nobody's", claim(Free::Absent), false),
            ("register", keys::register(&host, text(), text()), false),
            // An old record would overwrite a newer one.
            ("update", keys::update_host(&host, mine, text()), false),
            ("renew", keys::renew(&host, mine, text()), false),
            ("nothing", Txn::default(), false),
        ] {
            assert_eq!(is_repeatable(&txn), expected, "{name}");
        }
    }

    #[test]
    fn a_late_answer_is_raced_by_a_copy() {
        let mut race = Race::new(true, 2);
        assert_eq!(race.step(Event::Late), Next::Send);
        assert_eq!(race.step(Event::Late), Next::Wait);
        assert_eq!(race.step(committed(4)), Next::Done(Ok(4)));
    }

    #[test]
    fn what_is_not_repeatable_goes_elsewhere_only_when_it_was_not_done() {
        let mut race = Race::new(false, 3);
        assert_eq!(race.step(Event::Late), Next::Wait);
        assert_eq!(race.step(not_done()), Next::Send);
        assert!(in_doubt(&race.step(lost())));
        let mut race = Race::new(false, 2);
        assert_eq!(race.step(not_done()), Next::Send);
        let over = race.step(not_done());
        assert_eq!(over, Next::Done(Err(Failure::NotDone("refused".into()))));
    }

    #[test]
    fn a_rejection_counts_when_no_copy_can_have_caused_it() {
        let mut race = Race::new(true, 2);
        assert_eq!(race.step(rejected(1)), Next::Done(Ok(1)));
        // Both rejected: neither committed.
        let mut race = Race::new(true, 3);
        race.step(Event::Late);
        assert_eq!(race.step(rejected(1)), Next::Wait);
        assert_eq!(race.step(Event::Late), Next::Wait);
        assert_eq!(race.step(rejected(2)), Next::Done(Ok(2)));
        // The other was refused at the door.
        let mut race = Race::new(true, 2);
        race.step(Event::Late);
        race.step(rejected(1));
        assert_eq!(race.step(not_done()), Next::Done(Ok(1)));
        // The other was lost: it may be what was rejected against.
        let mut race = Race::new(true, 2);
        assert_eq!(race.step(lost()), Next::Send);
        assert!(in_doubt(&race.step(rejected(1))));
        // The other is still on its way.
        let mut race = Race::new(true, 2);
        race.step(Event::Late);
        race.step(rejected(1));
        assert!(in_doubt(&race.step(Event::Expired)));
    }

    #[test]
    fn a_commit_of_either_copy_is_a_commit() {
        let mut race = Race::new(true, 2);
        race.step(Event::Late);
        race.step(rejected(1));
        assert_eq!(race.step(committed(9)), Next::Done(Ok(9)));
    }

    #[test]
    fn what_nobody_takes_is_over_at_once() {
        let mut race = Race::<u32>::new(true, 3);
        let hopeless = Failure::Hopeless("permission denied".into());
        let over = race.step(Event::Failed(hopeless.clone()));
        assert_eq!(over, Next::Done(Err(hopeless)));
    }
}
