//! Every timing constant of the protocol, in one place, with its order proved at compile time.
//!
//! The rule (DESIGN.md, "Time"): `steal ≥ hold × (1 + drift) + kill bound + margin`. A thief waits,
//! from the *receipt* of the last beat it saw, longer than the owner's deadline can last from the
//! *sending* of that beat, even when the two clocks drift apart, plus the time that the kernel needs
//! to kill everything at the deadline.

use std::time::Duration;

/// One set of timings. All of a fleet's hosts must use the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How often a host renews, from the sending of one renewal to the next.
    pub renew: Duration,
    /// How long a host may act after *sending* a renewal that was acknowledged later.
    pub hold: Duration,
    /// How long an observer must have seen the same beat, from receipt, before it steals.
    pub steal: Duration,
    /// How long a started container may take until its port accepts a connection.
    pub port_ready: Duration,
}

/// The most by which two machines' clocks may differ in rate, in parts per million: ten times what
/// a crystal out of its range does, and what NTP may slew (500 ppm) on top.
pub const CLOCK_DRIFT_PPM_MAX: u64 = 10_000;

/// How long the kernel may take from the deadline until the last process of the host's containers is
/// dead. Measured: under 1 ms for a few, 34 ms for 200 containers; the rest is for a loaded machine.
pub const KILL_BOUND: Duration = Duration::from_millis(300);

/// What is kept in hand beyond what the rule needs.
pub const STEAL_MARGIN: Duration = Duration::from_millis(50);

/// The default: a lost host's repls are free after about three and a half seconds.
pub const FAST: Timing = Timing {
    renew: Duration::from_millis(500),
    hold: Duration::from_millis(3_000),
    steal: Duration::from_millis(3_400),
    port_ready: PORT_READY_MAX,
};

/// For fleets that would rather live through long outages of the store.
pub const PATIENT: Timing = Timing {
    renew: Duration::from_millis(5_000),
    hold: Duration::from_millis(30_000),
    steal: Duration::from_millis(30_700),
    port_ready: PORT_READY_MAX,
};

/// How long before its deadline a host without an acknowledged renewal kills its containers itself.
pub const FENCE_LEAD: Duration = Duration::from_millis(100);

/// How long before the deadline the keeper kills containers that are not its children: the kernel does not
/// kill those with it.
pub const WATCHED_LEAD: Duration = Duration::from_millis(20);

/// How many other hosts observe each host.
pub const OBSERVERS_PER_HOST: usize = 3;

/// How often an observer reads the beats of those it observes.
pub const OBSERVE_EVERY: Duration = Duration::from_millis(250);

/// How long a gateway holds a request for a repl that cannot be reached yet.
pub const PARK_MAX: Duration = Duration::from_secs(15);

/// How long a gateway waits at first before it asks again where nothing tells that asking is worth while: a host that denies
/// what the store says, a store or a host that cannot be reached. Doubles up to [`REROUTE_PAUSE_MAX`].
pub const REROUTE_PAUSE_MIN: Duration = Duration::from_millis(20);

/// The longest such pause.
pub const REROUTE_PAUSE_MAX: Duration = Duration::from_millis(500);

/// How long a gateway waits for a read of the store before it holds the store to be unreachable.
pub const RESOLVE_MAX: Duration = Duration::from_secs(2);

/// How long a request to an endpoint of the store has no answer before a copy goes to another, if it may have copies, and
/// before new requests go to another in any case.
pub const STORE_HEDGE_AFTER: Duration = Duration::from_millis(200);

/// How long a connection to an endpoint of the store may take to be made.
pub const STORE_CONNECT_MAX: Duration = Duration::from_secs(1);

/// How long a request to the store may take with all its copies.
pub const STORE_REQUEST_MAX: Duration = Duration::from_secs(5);

/// How long to wait before a store that failed is asked again: its clients all come back at once.
pub const STORE_RETRY: Duration = Duration::from_millis(200);

/// How long every call must have failed before the store counts as unreachable.
pub const STORE_UNREACHABLE_AFTER: Duration = Duration::from_secs(1);

/// How often a watch asks for a sign of life.
pub const WATCH_PING_EVERY: Duration = Duration::from_millis(500);

/// How long a watch hears nothing before it goes elsewhere.
pub const WATCH_SILENCE_MAX: Duration = Duration::from_millis(1_500);

/// [`Timing::port_ready`] of every profile.
pub const PORT_READY_MAX: Duration = Duration::from_secs(10);

/// The default grace of a destroy, from SIGTERM to SIGKILL.
pub const DESTROY_GRACE: Duration = Duration::from_secs(5);

/// The grace of an operator's drain when nothing is said; a preemption has none.
pub const OPERATOR_GRACE: Duration = Duration::from_secs(10);

/// How long a drain waits for the store to name targets, and for these to be told and prepared, before it kills
/// all the same.
pub const DRAIN_TELL_MAX: Duration = Duration::from_millis(100);

/// How long the first of a drain's dead waits for others to leave with it, so that those with users can go first.
pub const DRAIN_GATHER: Duration = Duration::from_millis(20);

/// What a drain keeps of its budget for deaths, releases and starts elsewhere: no grace reaches into it.
pub const DRAIN_RESERVE: Duration = Duration::from_secs(5);

/// How long an empty host waits for news that what it handed off runs.
pub const DRAIN_STARTED_MAX: Duration = Duration::from_secs(3);

/// From the notice of preemption until the machine is gone: what the large clouds give.
pub const PREEMPTION_NOTICE: Duration = Duration::from_secs(30);

/// How long a conman that its service manager stops may drain: a part of the notice, for when the machine goes
/// down, the keeper, the engines and the network are stopped only after it.
pub const STOP_MAX: Duration = Duration::from_secs(14);

/// How long a gateway that stops waits for the answers to the requests that it has taken: a repl that moves because its host
/// was lost takes less.
pub const STOP_ANSWERS_MAX: Duration = Duration::from_secs(5);

/// How long a claim may take with all its tries before it counts as stuck: longer than the store's own patience.
pub const CLAIM_STUCK_AFTER: Duration = Duration::from_secs(8);

/// The same of a start whose runtime says nothing else.
pub const START_STUCK_AFTER: Duration = Duration::from_secs(30);

/// The same of a kill, from the order to the proof of death.
pub const KILL_STUCK_AFTER: Duration = Duration::from_secs(5);

/// The same of a release or hand-off, from the proof of death to the store's word.
pub const RELEASE_STUCK_AFTER: Duration = Duration::from_secs(8);

/// By how much what has a patience of its own (a parked session, a command with a timeout) may outlast it.
pub const OVERRUN_STUCK_AFTER: Duration = Duration::from_secs(5);

/// How often the watchdog looks at what is under way.
pub const WATCHDOG_LOOK_EVERY: Duration = Duration::from_millis(500);

/// How long each one in a circle must have waited before the circle is held to be one.
pub const WATCHDOG_CIRCLE_AFTER: Duration = Duration::from_secs(2);

/// How long what was told to end may take before its repl is fenced.
pub const WATCHDOG_FENCE_AFTER: Duration = Duration::from_secs(2);

/// From there until the process is given up.
pub const WATCHDOG_RESTART_AFTER: Duration = Duration::from_secs(3);

/// How long a process may give no sign of life, or hide what it is at, before it is given up.
pub const WATCHDOG_SILENCE_MAX: Duration = Duration::from_secs(6);

/// How long the watchdog itself may not have looked before nobody believes in it any more.
pub const WATCHDOG_ABSENT_MAX: Duration = Duration::from_secs(5);

impl Timing {
    /// Whether the order that the invariant rests on holds. Every profile is checked at compile time,
    /// every configured one at start.
    pub const fn is_safe(&self) -> bool {
        let hold_us = self.hold.as_micros() as u64;
        let drifted_us = hold_us + hold_us * CLOCK_DRIFT_PPM_MAX / 1_000_000;
        let needed_us = drifted_us + (KILL_BOUND.as_micros() + STEAL_MARGIN.as_micros()) as u64;
        self.steal.as_micros() as u64 >= needed_us
            // Two renewals may fail in a row before the deadline is in danger.
            && self.renew.as_micros() * 3 <= self.hold.as_micros()
    }
}

const _: () = assert!(FAST.is_safe());
// Fencing early must leave room for a late renewal.
const _: () = assert!(FENCE_LEAD.as_millis() * 4 <= FAST.renew.as_millis());
const _: () = assert!(PATIENT.is_safe());
// conman's own kill comes first, as long as conman is well.
const _: () = assert!(WATCHED_LEAD.as_millis() < FENCE_LEAD.as_millis());
// An observer that looks less often than this would add more than it must to every failover.
const _: () = assert!(OBSERVE_EVERY.as_millis() * 2 <= FAST.renew.as_millis());
// A request that waits through the silent loss of a host must still be there when its repl is free.
const _: () = assert!(PARK_MAX.as_millis() > 2 * FAST.steal.as_millis() + 1_000);
const _: () = assert!(REROUTE_PAUSE_MIN.as_millis() < REROUTE_PAUSE_MAX.as_millis());
// Within its patience a session must be able to see a store fail and come back.
const _: () =
    assert!(RESOLVE_MAX.as_millis() * 3 + REROUTE_PAUSE_MAX.as_millis() < PARK_MAX.as_millis());
// The next renewal goes to another endpoint than one that is silent, and there is time for it.
const _: () = assert!(STORE_HEDGE_AFTER.as_millis() * 2 < FAST.renew.as_millis());
// Two signs of life may be late.
const _: () = assert!(WATCH_PING_EVERY.as_millis() * 3 <= WATCH_SILENCE_MAX.as_millis());
const _: () = assert!(PORT_READY_MAX.as_millis() < PARK_MAX.as_millis());
const _: () = assert!(DESTROY_GRACE.as_millis() < PREEMPTION_NOTICE.as_millis());
// The phases of a drain fit into the shortest notice, each with its own end, whichever of them hangs.
const _: () = assert!(
    DRAIN_TELL_MAX.as_millis() + OPERATOR_GRACE.as_millis() + DRAIN_RESERVE.as_millis()
        < PREEMPTION_NOTICE.as_millis()
);
const _: () =
    assert!(KILL_BOUND.as_millis() + DRAIN_STARTED_MAX.as_millis() < DRAIN_RESERVE.as_millis());
// The keeper stands behind a conman that hangs in the middle of it.
const _: () = assert!(FAST.hold.as_millis() + KILL_BOUND.as_millis() < DRAIN_RESERVE.as_millis());
// A stop cut short would take away what every drain is promised.
const _: () = assert!(
    DRAIN_TELL_MAX.as_millis() + DRAIN_RESERVE.as_millis() < STOP_MAX.as_millis()
        && STOP_MAX.as_millis() * 2 < PREEMPTION_NOTICE.as_millis()
);
const _: () = assert!(
    STOP_ANSWERS_MAX.as_millis() > FAST.steal.as_millis() + 1_000
        && STOP_MAX.as_millis() + STOP_ANSWERS_MAX.as_millis() < PREEMPTION_NOTICE.as_millis()
);
// What is slow because others are must not be held to be stuck.
const _: () = assert!(
    STORE_REQUEST_MAX.as_millis() < CLAIM_STUCK_AFTER.as_millis()
        && STORE_REQUEST_MAX.as_millis() < RELEASE_STUCK_AFTER.as_millis()
        && KILL_BOUND.as_millis() * 10 <= KILL_STUCK_AFTER.as_millis()
);
// What hangs is found within 5 s of its deadline, and its repl is of use again 10 s later: there is time for a start.
const _: () = assert!(
    WATCHDOG_LOOK_EVERY.as_millis() * 2 + WATCHDOG_CIRCLE_AFTER.as_millis() <= 5_000
        && WATCHDOG_FENCE_AFTER.as_millis() + WATCHDOG_RESTART_AFTER.as_millis() <= 6_000
        && WATCHDOG_SILENCE_MAX.as_millis() <= 6_000
);
