use super::*;

const GRACE: Duration = Duration::from_secs(5);

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn id(digit: char) -> DockerId {
    digit.to_string().repeat(64).parse().unwrap()
}

fn found(digit: char) -> Found {
    Found {
        id: id(digit),
        name: format!("name-{digit}"),
        image: "image".to_owned(),
        state: Alive::Running,
    }
}

fn held(digit: char) -> Event {
    let prepared = Prepared::Held {
        pid: 7,
        policy: None,
    };
    Event::Prepared(id(digit), prepared)
}

fn always() -> RestartPolicy {
    RestartPolicy {
        name: "always".to_owned(),
        maximum_retry_count: 0,
    }
}

fn options(grace: Duration) -> Options {
    Options {
        grace,
        timeout: at(25_000),
        policies: Policies::Restored,
    }
}

fn begun(grace: Duration, silent: Option<&str>) -> Reap {
    let (reap, effects) = Reap::begin(options(grace), silent.map(str::to_owned));
    assert_eq!(effects, [Effect::Look]);
    reap
}

/// Up to the moment in which both are killed.
fn both_killed() -> Reap {
    let mut reap = begun(Duration::ZERO, None);
    let both = vec![found('a'), found('b')];
    let prepare = reap.step(Event::Looked(both.clone()), at(1));
    assert_eq!(prepare, [Effect::Prepare(both)]);
    assert_eq!(reap.step(held('a'), at(2)), []);
    let kill = reap.step(held('b'), at(3));
    assert_eq!(kill, [Effect::Kill(vec![id('a'), id('b')])], "all at once");
    assert_eq!(reap.step(Event::KillsSent, at(4)), []);
    reap
}

#[test]
fn all_are_killed_at_once_proven_settled_and_looked_for_again() {
    let mut reap = both_killed();
    assert!(!reap.is_proven());
    assert_eq!(reap.step(Event::Dead(id('b')), at(10)), []);
    assert_eq!(reap.step(Event::Dead(id('a')), at(20)), [Effect::Look]);
    // The engine is slow: it still calls the dead running.
    let settle = reap.step(Event::Looked(vec![found('a')]), at(30));
    assert_eq!(settle, [Effect::AwaitSettled(vec![id('a'), id('b')])]);
    assert_eq!(reap.step(Event::Settled(id('a')), at(40)), []);
    assert_eq!(reap.step(Event::Settled(id('b')), at(50)), [Effect::Look]);
    assert_eq!(reap.step(Event::Looked(vec![]), at(60)), [Effect::Finish]);
    assert!(reap.is_proven());
    let report = report::Report::of(&reap);
    assert_eq!((report.count, report.proven), (2, 2));
    assert_eq!((report.sent, report.first), (Some(at(4)), Some(at(10))));
    assert_eq!((report.median, report.last), (Some(at(10)), Some(at(20))));
    assert_eq!(report.settled, Some(at(50)));
    assert_eq!(reap.wakeup(), None);
}

#[test]
fn nothing_there_is_proven_by_one_more_look() {
    let mut reap = begun(Duration::ZERO, None);
    assert_eq!(reap.step(Event::Looked(vec![]), at(1)), [Effect::Look]);
    assert_eq!(reap.step(Event::Looked(vec![]), at(2)), [Effect::Finish]);
    assert!(reap.is_proven());
    assert_eq!(report::Report::of(&reap).median, None);
}

#[test]
fn what_appears_meanwhile_is_killed_too() {
    let mut reap = both_killed();
    reap.step(Event::Dead(id('a')), at(10));
    reap.step(Event::Dead(id('b')), at(11));
    let prepare = reap.step(Event::Looked(vec![found('a'), found('c')]), at(12));
    assert_eq!(
        prepare,
        [Effect::Prepare(vec![found('c')])],
        "not the dead one"
    );
    let kill = reap.step(held('c'), at(13));
    assert_eq!(kill, [Effect::Kill(vec![id('c')])]);
    assert_eq!(reap.step(Event::Dead(id('c')), at(14)), [Effect::Look]);
}

#[test]
fn one_that_lives_again_after_all_is_settled_is_killed_again() {
    let mut reap = both_killed();
    for digit in ['a', 'b'] {
        reap.step(Event::Dead(id(digit)), at(10));
    }
    reap.step(Event::Looked(vec![]), at(11));
    for digit in ['a', 'b'] {
        reap.step(Event::Settled(id(digit)), at(12));
    }
    let prepare = reap.step(Event::Looked(vec![found('a')]), at(13));
    assert_eq!(prepare, [Effect::Prepare(vec![found('a')])]);
    assert!(!reap.is_proven());
}

#[test]
fn sigterm_comes_first_and_what_heeds_it_is_not_killed() {
    let mut reap = begun(GRACE, None);
    reap.step(Event::Looked(vec![found('a'), found('b')]), at(1));
    reap.step(held('a'), at(2));
    let terminate = reap.step(held('b'), at(3));
    assert_eq!(terminate, [Effect::Terminate(vec![id('a'), id('b')])]);
    assert_eq!(reap.wakeup(), Some(at(3) + GRACE));
    assert_eq!(reap.step(Event::Dead(id('a')), at(100)), []);
    assert_eq!(reap.step(Event::Tick, at(200)), [], "not before its time");
    let kill = reap.step(Event::Tick, at(3) + GRACE);
    assert_eq!(kill, [Effect::Kill(vec![id('b')])]);
}

#[test]
fn when_all_heed_it_the_grace_is_over() {
    let mut reap = begun(GRACE, None);
    reap.step(Event::Looked(vec![found('a')]), at(1));
    reap.step(held('a'), at(2));
    assert_eq!(reap.step(Event::Dead(id('a')), at(9)), [Effect::Look]);
    assert_eq!(reap.sent(), None, "no SIGKILL was sent");
}

#[test]
fn restart_policies_are_put_back_at_the_end_or_left_off() {
    let ended = |options: Options| {
        let (mut reap, _) = Reap::begin(options, None);
        reap.step(Event::Looked(vec![found('a'), found('b')]), at(1));
        let prepared = Prepared::Held {
            pid: 7,
            policy: Some(always()),
        };
        reap.step(Event::Prepared(id('a'), prepared), at(2));
        reap.step(held('b'), at(3));
        for event in [Event::Dead, Event::Settled] {
            for digit in ['a', 'b'] {
                reap.step(event(id(digit)), at(4));
            }
            reap.step(Event::Looked(vec![]), at(5));
        }
        reap
    };
    let mut reap = ended(options(Duration::ZERO));
    assert_eq!(reap.phase, Phase::Restoring);
    let failed = Event::Restored(id('a'), Err("no".to_owned()));
    assert_eq!(reap.step(failed, at(6)), [Effect::Finish]);
    assert_eq!(
        reap.notes(),
        ["name-a: its restart policy was always and is off now: no"]
    );
    assert!(reap.is_proven());
    let left_off = Options {
        policies: Policies::LeftOff,
        ..options(Duration::ZERO)
    };
    let reap = ended(left_off);
    assert_eq!(reap.phase, Phase::Over);
    assert_eq!(reap.notes(), &[] as &[String], "it was asked for");
}

#[test]
fn a_policy_turned_off_in_an_earlier_round_is_remembered() {
    let mut reap = begun(Duration::ZERO, None);
    reap.step(Event::Looked(vec![found('a')]), at(1));
    let ended = Prepared::Ended {
        policy: Some(always()),
    };
    // It was between two lives; the next look finds the next one, whose policy is read as off.
    assert_eq!(
        reap.step(Event::Prepared(id('a'), ended), at(2)),
        [Effect::Look]
    );
    reap.step(Event::Looked(vec![found('a')]), at(3));
    reap.step(held('a'), at(4));
    assert_eq!(reap.containers()[&id('a')].policy, Some(always()));
}

#[test]
fn one_that_cannot_be_held_is_no_proof_and_does_not_spare_the_others() {
    let mut reap = begun(Duration::ZERO, None);
    reap.step(Event::Looked(vec![found('a'), found('b')]), at(1));
    reap.step(
        Event::Prepared(id('a'), Prepared::Failed("why".to_owned())),
        at(2),
    );
    let kill = reap.step(held('b'), at(3));
    assert_eq!(kill, [Effect::Kill(vec![id('b')])]);
    assert_eq!(reap.step(Event::Dead(id('b')), at(4)), [Effect::Finish]);
    assert!(!reap.is_proven());
    let problem = report::problem(&reap.containers()[&id('a')]);
    assert_eq!(problem.as_deref(), Some("was not killed: why"));
}

#[test]
fn a_silent_engine_is_not_waited_for() {
    let mut reap = begun(Duration::ZERO, Some("hung"));
    let unlisted = Found {
        state: Alive::Unlisted,
        ..found('a')
    };
    reap.step(Event::Looked(vec![unlisted]), at(1));
    reap.step(held('a'), at(2));
    assert_eq!(reap.step(Event::Dead(id('a')), at(3)), [Effect::Look]);
    assert_eq!(reap.step(Event::Looked(vec![]), at(4)), [Effect::Finish]);
    assert!(reap.is_proven());
    assert_eq!(reap.settled(), None);
    assert!(reap.notes()[0].starts_with("hung: "), "{:?}", reap.notes());
}

#[test]
fn an_engine_that_hangs_in_the_middle_ends_the_settling() {
    let mut reap = both_killed();
    for digit in ['a', 'b'] {
        reap.step(Event::Dead(id(digit)), at(10));
    }
    reap.step(Event::Looked(vec![]), at(11));
    let silent = Event::EngineSilent("hung".to_owned());
    assert_eq!(reap.step(silent, at(12)), [Effect::Finish]);
    assert!(reap.is_proven(), "a look after the last death found none");
}

#[test]
fn time_ends_everything_and_proves_nothing() {
    let mut reap = both_killed();
    assert_eq!(reap.wakeup(), Some(at(25_000)));
    reap.step(Event::Dead(id('a')), at(10));
    assert_eq!(reap.step(Event::Tick, at(25_000)), [Effect::Finish]);
    assert!(!reap.is_proven());
    assert_eq!(
        reap.step(Event::Dead(id('b')), at(25_001)),
        [],
        "it is over"
    );
    // Before the last look, nobody knows what else lives.
    let mut reap = both_killed();
    for digit in ['a', 'b'] {
        reap.step(Event::Dead(id(digit)), at(10));
    }
    reap.step(Event::Tick, at(25_000));
    assert!(!reap.is_proven());
    assert!(reap.look_failed().is_some());
}

#[test]
fn a_look_that_fails_proves_nothing() {
    let mut reap = both_killed();
    for digit in ['a', 'b'] {
        reap.step(Event::Dead(id(digit)), at(10));
    }
    let failed = Event::LookFailed("broken".to_owned());
    assert_eq!(reap.step(failed, at(11)), [Effect::Finish]);
    assert!(!reap.is_proven());
}
