use super::*;
use crate::telemetry::locks::Waiting;
use crate::telemetry::locks::circle::{SeenParty, Who};

const LOOK: Duration = WATCHDOG_LOOK_EVERY;
const PATIENCE: Duration = Duration::from_secs(10);

fn operation(id: u64, age: Duration) -> SeenOperation {
    SeenOperation {
        id,
        kind: Kind::Start,
        stage: Stage::Runtime,
        age,
        patience: PATIENCE,
    }
}

fn party(task: u64, operation: Option<u64>) -> SeenParty {
    SeenParty {
        who: Who::Task(task),
        operation,
        name: None,
        since: WATCHDOG_CIRCLE_AFTER,
    }
}

/// Two that hold what the other waits for.
fn crossed(operations: [Option<u64>; 2]) -> Vec<SeenLock> {
    let lock = |name, holder: usize, waiter: usize| SeenLock {
        name,
        waiting: Waiting::Blocks,
        holder: Some(party(holder as u64, operations[holder])),
        waiters: vec![party(waiter as u64, operations[waiter])],
    };
    vec![lock("first", 0, 1), lock("second", 1, 0)]
}

/// Looks `looks` times at what `see` shows at each moment; the orders, each with the time since the first look.
fn watch(looks: u32, mut see: impl FnMut(Duration) -> Option<Seen>) -> Vec<(Duration, Order)> {
    let mut decider = Decider::default();
    let mut given = vec![];
    for look in 0..looks {
        let now = LOOK * look;
        let seen = see(now).map(|seen| Seen {
            beats: u64::from(look) + 1,
            ..seen
        });
        let orders = decider.step(seen.as_ref(), now);
        given.extend(orders.into_iter().map(|order| (now, order)));
    }
    given
}

/// What is ordered about one operation that never ends.
fn orders_of(kind: Kind, stage: Stage, looks: u32) -> Vec<(Duration, Order)> {
    watch(looks, |now| {
        let operation = SeenOperation {
            kind,
            stage,
            ..operation(1, now)
        };
        Some(Seen {
            operations: vec![operation],
            ..Seen::default()
        })
    })
}

#[test]
fn what_is_overdue_is_told_to_end_then_fenced_then_the_process_is_given_up_once() {
    let found = PATIENCE + LOOK;
    let fenced = found + WATCHDOG_FENCE_AFTER;
    let given_up = fenced + WATCHDOG_RESTART_AFTER;
    let expected = [
        (found, Order::Cancel(1)),
        (found, Order::Tell),
        (fenced, Order::Fence(1)),
        (fenced, Order::Tell),
        (given_up, Order::Tell),
        (given_up, Order::Restart(Hopeless::Operation(1))),
    ];
    assert_eq!(orders_of(Kind::Start, Stage::Runtime, 100), expected);
}

#[test]
fn what_another_process_would_wait_for_as_well_is_no_reason_to_restart() {
    for (kind, stage) in [
        (Kind::Kill, Stage::Proof),
        (Kind::Release, Stage::Store),
        (Kind::Release, Stage::Begun),
    ] {
        let orders = orders_of(kind, stage, 100);
        let last = orders.iter().rfind(|(_, order)| *order != Order::Tell);
        assert_eq!(last.unwrap().1, Order::Fence(1), "{kind:?} at {stage:?}");
    }
    let orders = orders_of(Kind::Kill, Stage::Runtime, 100);
    let restart = Order::Restart(Hopeless::Operation(1));
    assert_eq!(orders.last().unwrap().1, restart);
}

#[test]
fn nothing_is_ordered_in_time() {
    assert_eq!(orders_of(Kind::Claim, Stage::Store, 21), []);
}

#[test]
fn one_that_ends_when_it_is_told_is_forgotten() {
    let mut decider = Decider::default();
    let mut orders = 0;
    for look in 0..30 {
        let under_way = Seen {
            operations: vec![operation(1, LOOK * look)],
            ..Seen::default()
        };
        orders += decider.step(Some(&under_way), LOOK * look).len();
        let is_stuck = decider.stuck().contains(&1);
        assert_eq!(is_stuck, LOOK * look > PATIENCE);
        // The process lives.
        decider.beaten = decider.now;
        if is_stuck {
            break;
        }
    }
    assert_eq!(orders, 2);
    assert_eq!(decider.step(Some(&Seen::default()), LOOK * 30), []);
    assert_eq!(decider.stuck().len(), 0);
    assert_eq!((decider.escalations.len(), decider.begun.len()), (0, 0));
}

#[test]
fn while_everything_stands_still_nothing_grows_older() {
    let mut decider = Decider::default();
    let seen = |age, beats| Seen {
        operations: vec![operation(1, age)],
        beats,
        ..Seen::default()
    };
    assert_eq!(decider.step(Some(&seen(LOOK, 1)), LOOK), []);
    // An hour of SIGSTOP.
    let hour = Duration::from_secs(3_600);
    assert_eq!(decider.step(Some(&seen(hour, 1)), hour), []);
    // And one that nobody has seen before.
    let mut second = seen(hour, 2);
    second.operations.push(operation(2, hour));
    assert_eq!(decider.step(Some(&second), hour * 2), []);
    assert_eq!(decider.stuck().len(), 0);
}

#[test]
fn two_that_wait_for_each_other_are_found_before_their_deadline_and_the_younger_gives_way() {
    let seen = |_| {
        Some(Seen {
            operations: vec![operation(1, LOOK), operation(2, LOOK)],
            locks: crossed([Some(1), Some(2)]),
            beats: 0,
        })
    };
    let orders = watch(1, seen);
    let expected = [Order::Cancel(2), Order::Tell].map(|order| (Duration::ZERO, order));
    assert_eq!(orders, expected);
    let mut decider = Decider::default();
    decider.step(seen(LOOK).as_ref(), LOOK);
    assert_eq!(decider.stuck().iter().copied().collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn a_circle_without_an_operation_ends_the_process() {
    let orders = watch(20, |_| {
        Some(Seen {
            locks: crossed([None, None]),
            ..Seen::default()
        })
    });
    let expected = [
        (Duration::ZERO, Order::Tell),
        (WATCHDOG_RESTART_AFTER, Order::Tell),
        (WATCHDOG_RESTART_AFTER, Order::Restart(Hopeless::Circle)),
    ];
    assert_eq!(orders, expected);
}

#[test]
fn a_process_whose_tasks_do_not_run_or_that_cannot_be_read_is_given_up() {
    let mut silent = Decider::default();
    let orders: Vec<_> = (0..30)
        .flat_map(|look| silent.step(Some(&Seen::default()), LOOK * look))
        .collect();
    let expected = |why| [Order::Tell, Order::Restart(why)];
    assert_eq!(orders, expected(Hopeless::Silent));
    let after = WATCHDOG_SILENCE_MAX;
    let orders = watch(30, |_| None);
    assert_eq!(
        orders,
        expected(Hopeless::Blind).map(|order| (after, order))
    );
    // One look that shows nothing is none.
    let mut looks = 0;
    let orders = watch(30, |_| {
        looks += 1;
        (looks % 10 == 0).then(Seen::default)
    });
    assert_eq!(orders, []);
}
