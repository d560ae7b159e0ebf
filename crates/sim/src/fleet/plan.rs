//! What is simulated: the fleet, what goes wrong in it, and what is assumed of everything that is not conman.

use std::time::Duration;

use model::timing::{FAST, Timing};

/// The hosts of one cell at the most: one store's worth.
pub const CELL_HOSTS_MAX: u32 = 2_500;

/// What takes time outside conman's rules. From the first to the second, evenly.
pub mod assumed {
    use std::time::Duration;

    /// One way between two machines.
    pub const NETWORK: (Duration, Duration) = (micros(200), micros(800));
    /// The store's own part of a transaction or a read.
    pub const STORE: (Duration, Duration) = (micros(1_000), micros(5_000));
    /// The same while its leader is slow.
    pub const STORE_SLOW: (Duration, Duration) = (millis(200), millis(1_200));
    /// How long a host waits for the store's answer.
    pub const STORE_PATIENCE: Duration = millis(1_000);
    /// From a start to the first answer of the program.
    pub const START: (Duration, Duration) = (millis(30), millis(80));
    /// From SIGKILL to the proof of death.
    pub const KILL: (Duration, Duration) = (millis(1), millis(34));
    /// The same where a kernel is slow.
    pub const KILL_SLOW: (Duration, Duration) = (millis(500), millis(8_000));
    /// Until a gateway knows that a host does not answer.
    pub const DIAL_PATIENCE: Duration = millis(1_000);
    /// When a user who was refused tries again.
    pub const TRY_AGAIN: (Duration, Duration) = (millis(500), millis(1_500));
    /// Until a lost machine is replaced.
    pub const REPLACEMENT: (Duration, Duration) = (millis(60_000), millis(120_000));
    /// Until a conman or a keeper that died is back.
    pub const RESTART: (Duration, Duration) = (millis(200), millis(500));

    const fn millis(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    const fn micros(microseconds: u64) -> Duration {
        Duration::from_micros(microseconds)
    }
}

macro_rules! faults {
    ($($fault:ident = $name:literal, $scope:ident, $least:literal..$most:literal: $text:literal;)*) => {
        /// What goes wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Fault {
            $(#[doc = $text] $fault,)*
        }

        impl Fault {
            /// All of them.
            pub const ALL: &[Fault] = &[$(Fault::$fault),*];

            /// What people call it.
            pub const fn name(self) -> &'static str {
                match self { $(Fault::$fault => $name,)* }
            }

            /// Whether it befalls one host, or the whole cell.
            pub const fn scope(self) -> Scope {
                match self { $(Fault::$fault => Scope::$scope,)* }
            }

            /// How long it lasts, in milliseconds.
            pub(super) const fn lasts_ms(self) -> (u64, u64) {
                match self { $(Fault::$fault => ($least, $most),)* }
            }
        }
    };
}

/// Whom a fault befalls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// One host.
    Host,
    /// The whole cell: its store, or many hosts at once.
    Cell,
}

faults! {
    Preemption = "preemption", Host, 30_000..30_001: "A machine is taken away thirty seconds after a notice.";
    Wave = "wave of preemptions", Cell, 30_000..30_001: "A tenth of a zone is given notice at once.";
    MachineCrash = "machine lost", Host, 0..1: "A machine is gone without notice.";
    ConmanCrash = "conman crash", Host, 0..1: "A conman dies and is started again.";
    ConmanPause = "conman stopped", Host, 100..10_000: "A conman is stopped (SIGSTOP, a deadlock), and goes on.";
    KeeperCrash = "keeper crash", Host, 0..1: "A keeper dies, and its containers with it.";
    VmPause = "machine paused", Host, 100..10_000: "The hypervisor stops a whole machine, and lets it go on.";
    Partition = "partition", Host, 100..8_000: "A host and everybody else do not hear each other.";
    PartitionOut = "partition, requests", Host, 100..8_000: "What a host says to the store does not arrive.";
    PartitionIn = "partition, answers", Host, 100..8_000: "What a host says to the store arrives, and no answer comes back.";
    SlowKill = "slow kill", Host, 2_000..20_000: "A kernel takes seconds to kill.";
    StoreOutage = "store outage", Cell, 100..6_000: "Nothing reaches the store.";
    SlowLeader = "slow leader", Cell, 1_000..10_000: "The store takes up to more than a second for everything.";
    LateCommit = "late commits", Cell, 1_000..10_000: "The store says nothing, and commits up to two seconds after everybody gave up.";
    StaleRead = "stale reads", Cell, 1_000..10_000: "Reads see the store as it was some changes ago, some of them torn.";
    WatchGap = "watch gap", Cell, 500..5_000: "The gateway hears of no change until its watch, compacted away, is listed anew.";
}

/// How often each fault comes.
#[derive(Debug, Clone, PartialEq)]
pub struct Rates(Vec<(Fault, f64)>);

impl Rates {
    /// Nothing goes wrong.
    pub fn none() -> Self {
        Self(vec![])
    }

    /// With this fault so many times an hour: on each host, or in the cell.
    #[must_use]
    pub fn with(mut self, fault: Fault, per_hour: f64) -> Self {
        if per_hour > 0.0 {
            self.0.push((fault, per_hour));
        }
        self
    }

    /// Everything goes wrong: each host is hit some `intensity` times an hour by each of its faults, the cell ten times by
    /// each of its own.
    pub fn everything(intensity: f64) -> Self {
        let rate = |fault: &Fault| match fault.scope() {
            Scope::Host => (*fault, intensity),
            Scope::Cell => (*fault, 10.0 * intensity),
        };
        Self(Fault::ALL.iter().map(rate).collect())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Fault, f64)> + use<'_> {
        self.0.iter().copied()
    }
}

/// Whether the beats of hosts to which nothing happens are gone through one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beats {
    /// They are.
    Every,
    /// Not those that nothing depends on.
    Skipped,
}

/// What is simulated.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How many machines.
    pub hosts: u32,
    /// How many repls; each has one user, who wants it all the time.
    pub repls: u32,
    /// Into how many zones the machines are spread.
    pub zones: u32,
    /// Whether the first zone is lost at half time, and not replaced.
    pub lose_zone: bool,
    /// How many containers a host carries at the most.
    pub capacity: u32,
    /// The fleet's timings.
    pub timing: Timing,
    /// How long faults come. Some time to get over them follows.
    pub length: Duration,
    /// Reproduces the run.
    pub seed: u64,
    /// What goes wrong, and how often.
    pub rates: Rates,
    /// How beats are gone through.
    pub beats: Beats,
}

impl Plan {
    /// A fleet to which nothing happens for an hour, with twice the room that it needs.
    pub fn new(hosts: u32, repls: u32, seed: u64) -> Self {
        Self {
            hosts,
            repls,
            zones: 3,
            lose_zone: false,
            capacity: 2 * repls.div_ceil(hosts.max(1)).max(1),
            timing: FAST,
            length: Duration::from_secs(3_600),
            seed,
            rates: Rates::none(),
            beats: Beats::Skipped,
        }
    }

    /// Cuts a large fleet into cells that have nothing to do with each other, each with a store of its own.
    pub fn cells(&self) -> Vec<Plan> {
        let count = self.hosts.div_ceil(CELL_HOSTS_MAX).max(1);
        let share = |all: u32, cell: u32| all / count + u32::from(cell < all % count);
        let cell = |cell: u32| Plan {
            hosts: share(self.hosts, cell),
            repls: share(self.repls, cell),
            seed: self.seed.wrapping_add(u64::from(cell) << 32),
            ..self.clone()
        };
        (0..count).map(cell).collect()
    }
}
