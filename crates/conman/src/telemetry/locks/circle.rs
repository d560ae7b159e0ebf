//! Who waits for each other: circles among those who hold locks and wait for others.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Held, Party, Waiting};

/// Whoever can hold a lock and wait for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    /// A task, whichever thread runs it.
    Task(u64),
    /// A thread that runs no task.
    Thread(u32),
}

/// Somebody at a lock, as seen at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SeenParty {
    pub(crate) who: Who,
    /// The number of the operation that it is there for.
    pub(crate) operation: Option<u64>,
    /// The operation's name, for people.
    pub(crate) name: Option<String>,
    pub(crate) since: Duration,
}

/// A lock, as seen at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SeenLock {
    pub(crate) name: &'static str,
    pub(crate) waiting: Waiting,
    pub(crate) holder: Option<SeenParty>,
    pub(crate) waiters: Vec<SeenParty>,
}

/// One who waits, in a circle, for what the next one holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) waiter: SeenParty,
    pub(crate) lock: &'static str,
    pub(crate) holder: Who,
}

impl From<&Party> for SeenParty {
    fn from(party: &Party) -> Self {
        let task = party.task.and_then(|task| task.to_string().parse().ok());
        Self {
            who: task.map_or(Who::Thread(party.thread), Who::Task),
            operation: party.operation.as_ref().map(|entry| entry.id()),
            name: party.operation.as_ref().map(|entry| entry.name()),
            since: party.since.elapsed(),
        }
    }
}

impl From<&Held> for SeenLock {
    fn from(held: &Held) -> Self {
        Self {
            name: held.name,
            waiting: held.waiting,
            holder: held.holder.as_ref().map(SeenParty::from),
            waiters: held.waiters.iter().map(SeenParty::from).collect(),
        }
    }
}

/// Those who wait for each other, and will for ever unless somebody is called off: each waited for at least `waited`.
///
/// Each circle is found once, from its least member. A task may wait with one hand for what it holds in the other and go
/// on all the same, so a lock that is awaited makes no circle with one member.
pub(crate) fn circles(locks: &[SeenLock], waited: Duration) -> Vec<Vec<Link>> {
    let mut edges: BTreeMap<Who, Vec<Link>> = BTreeMap::new();
    for lock in locks {
        let Some(holder) = &lock.holder else {
            continue;
        };
        let may_count = |waiter: &&SeenParty| {
            waiter.since >= waited && (lock.waiting == Waiting::Blocks || waiter.who != holder.who)
        };
        for waiter in lock.waiters.iter().filter(may_count) {
            edges.entry(waiter.who).or_default().push(Link {
                waiter: waiter.clone(),
                lock: lock.name,
                holder: holder.who,
            });
        }
    }
    let mut found = vec![];
    for start in edges.keys() {
        walk(*start, *start, &edges, &mut vec![], &mut found);
    }
    found
}

fn walk(
    start: Who,
    at: Who,
    edges: &BTreeMap<Who, Vec<Link>>,
    path: &mut Vec<Link>,
    found: &mut Vec<Vec<Link>>,
) {
    for link in edges.get(&at).into_iter().flatten() {
        if link.holder == start {
            let mut circle = path.clone();
            circle.push(link.clone());
            found.push(circle);
        } else if link.holder > start && path.iter().all(|one| one.waiter.who != link.holder) {
            path.push(link.clone());
            walk(start, link.holder, edges, path, found);
            path.pop();
        }
    }
}

/// A circle, for people.
pub(crate) fn in_words(circle: &[Link]) -> String {
    let links = circle.iter().map(|link| {
        let waiter = link.waiter.name.as_deref().unwrap_or("no operation");
        format!("{waiter} waits for the lock of the {}", link.lock)
    });
    links.collect::<Vec<_>>().join(", whose holder ") + ", whose holder is the first of these"
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn party(number: u64) -> SeenParty {
        SeenParty {
            who: Who::Task(number),
            operation: Some(number),
            name: Some(format!("start {number}")),
            since: SECOND * 3,
        }
    }

    fn lock(name: &'static str, holder: u64, waiters: &[u64]) -> SeenLock {
        SeenLock {
            name,
            waiting: Waiting::Blocks,
            holder: Some(party(holder)),
            waiters: waiters.iter().copied().map(party).collect(),
        }
    }

    #[test]
    fn two_that_wait_for_each_other_are_one_circle_that_can_be_read() {
        let locks = [lock("first", 1, &[2]), lock("second", 2, &[1])];
        let found = circles(&locks, SECOND);
        let words: Vec<_> = found.iter().map(|circle| in_words(circle)).collect();
        let expected = "start 1 waits for the lock of the second, whose holder start 2 waits for the lock of the \
                        first, whose holder is the first of these";
        assert_eq!(words, [expected]);
    }

    #[test]
    fn a_ring_of_three_is_one_circle_and_a_line_is_none() {
        let ring = [lock("a", 1, &[3]), lock("b", 2, &[1]), lock("c", 3, &[2])];
        assert_eq!(circles(&ring, SECOND).len(), 1);
        assert_eq!(circles(&ring[1..], SECOND), Vec::<Vec<Link>>::new());
        // As yet nobody has waited for so long.
        assert_eq!(circles(&ring, SECOND * 4), Vec::<Vec<Link>>::new());
    }

    #[test]
    fn who_waits_for_itself_does_so_for_ever_only_where_the_thread_blocks() {
        let mut own = lock("own", 1, &[1]);
        assert_eq!(circles(std::slice::from_ref(&own), SECOND).len(), 1);
        own.waiting = Waiting::Yields;
        assert_eq!(circles(&[own], SECOND).len(), 0);
    }
}
