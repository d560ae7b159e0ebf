//! A fleet in a world that goes wrong by chance: the same machines as in production, thousands of them, one event after
//! another, everything from one seed.
//!
//! ```text
//!   queue ── the earliest ──► host (Host::step, Book) ── effects ──► queue, store
//!                        ├──► router (Router::step) ──── effects ──► queue
//!                        ├──► observers (Observer::step) ─ thefts ─► store
//!                        └──► faults: what strikes, and when it is over
//! ```
//!
//! **What is skipped.** A host to which nothing happens beats, and its machine is after each acknowledged beat what it was
//! before, moved by one period. Such beats are not gone through: when something happens to the host, the last of them is made up
//! for in one step (`Fleet::touch`). Nobody watches a host's beats but while they may stop: `observers` says why that is the same.
//! [`plan::Beats::Every`] skips nothing; a test compares both.
//!
//! **The invariant** is checked at every start of a container; that every user comes back, at the end.

mod faults;
mod gateway;
mod hosts;
mod node;
mod observers;
pub mod plan;
mod queue;
mod random;
pub mod report;
mod requests;

use std::collections::BTreeMap;

use model::host::Event;
use model::id::{Epoch, HostId, ReplId};
use model::keys;
use model::lease::LeaseEvent;
use model::time::BootTime;
use model::timing::CLOCK_DRIFT_PPM_MAX;

use self::gateway::Gateway;
use self::node::Node;
use self::observers::Watching;
use self::plan::{Beats, Fault, Plan};
use self::queue::{Happening, Queue};
use self::random::{Chance, nanoseconds};
use self::report::{Report, Violation};
use crate::store::Store;

/// How many changes ago a read may see the store.
const STALENESS_MAX: usize = 8;

/// How far a simulation has come.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Which cell.
    pub cell: usize,
    /// Of how many.
    pub cells: usize,
    /// The share of its time that has passed.
    pub share: f64,
}

/// Simulates all cells of a fleet, one after the other.
pub fn simulate(plan: &Plan, mut progress: impl FnMut(Progress)) -> Report {
    let mut whole: Option<Report> = None;
    let cells = plan.cells();
    let count = cells.len();
    for (cell, plan) in cells.into_iter().enumerate() {
        let report = Fleet::new(plan).run(|share| {
            progress(Progress {
                cell: cell + 1,
                cells: count,
                share,
            });
        });
        match &mut whole {
            Some(whole) => whole.merge(report),
            None => whole = Some(report),
        }
    }
    whole.unwrap_or_default()
}

/// One cell.
struct Fleet {
    plan: Plan,
    chance: Chance,
    now: u64,
    /// When faults stop to come.
    calm_at: u64,
    queue: Queue,
    nodes: Vec<Node>,
    store: Store,
    nonces: u64,
    gateway: Gateway,
    watching: BTreeMap<u32, Watching>,
    /// What is wrong with the store and the watches, and until when.
    wrong: BTreeMap<Fault, u64>,
    outage: Option<Outage>,
    /// What silenced the store last, and until when.
    last_silence: Option<(Fault, u64)>,
    /// Where each repl's container is alive.
    alive: Vec<Option<(u32, Epoch)>>,
    /// The highest epoch at which each repl was started.
    highest: Vec<Epoch>,
    zone_lost_at: Option<u64>,
    writes_this_second: (u64, u64),
    report: Report,
}

/// An outage of the store that goes on.
#[derive(Debug, Clone, Copy)]
struct Outage {
    since: u64,
    fences_before: u64,
}

impl Fleet {
    fn new(plan: Plan) -> Self {
        let chance = Chance(plan.seed);
        let half = CLOCK_DRIFT_PPM_MAX / 2;
        let rate = |host: u32| {
            let drawn = chance.draw(&[u64::from(host), 1]) % CLOCK_DRIFT_PPM_MAX;
            1_000_000 - half + drawn
        };
        let nodes = (0..plan.hosts).map(|host| Node::new(host, rate(host), &plan));
        let repls = plan.repls as usize;
        Self {
            now: 0,
            calm_at: nanoseconds(plan.length),
            queue: Queue::default(),
            nodes: nodes.collect(),
            store: Store::new(STALENESS_MAX),
            nonces: 0,
            gateway: Gateway::new(),
            watching: BTreeMap::new(),
            wrong: BTreeMap::new(),
            outage: None,
            last_silence: None,
            alive: vec![None; repls],
            highest: vec![Epoch(0); repls],
            zone_lost_at: None,
            writes_this_second: (0, 0),
            report: Report::default(),
            chance,
            plan,
        }
    }

    fn run(mut self, mut progress: impl FnMut(f64)) -> Report {
        for host in 0..self.plan.hosts {
            self.keeper_connects(host);
        }
        self.place_all();
        self.plan_faults();
        // To get over everything: the longest fault, two thefts, and then some.
        let patience = 2 * (self.plan.timing.hold + self.plan.timing.steal);
        let end = self.calm_at + nanoseconds(patience) + 60_000_000_000;
        while let Some((at, happening)) = self.queue.next() {
            if at > end {
                break;
            }
            self.now = self.now.max(at);
            self.report.events += 1;
            if self.report.events.is_multiple_of(1 << 16) {
                progress(self.now as f64 / end as f64);
            }
            self.happens(happening);
        }
        self.now = end;
        self.finish()
    }

    fn happens(&mut self, happening: Happening) {
        match happening {
            Happening::Wake { host } => self.wake(host),
            Happening::Tell { host, life, event } => self.told(host, life, *event),
            Happening::AtStore {
                host,
                life,
                effect,
                sent,
                answer,
            } => self.at_store(host, life, *effect, sent, answer),
            Happening::KernelKills { host, keeper } => self.kernel_kills(host, keeper),
            Happening::Dies { host, keeper, id } => self.dies(host, keeper, &id),
            Happening::KeeperStarts { host, keeper } => self.keeper_starts(host, keeper),
            Happening::ConmanStarts { host, life } => self.conman_starts(host, life),
            Happening::Boots { host } => self.boots(host),
            Happening::Observe { host } => self.observe(host),
            Happening::Strikes { fault, host, count } => self.strikes(fault, host, count),
            Happening::Over { fault, host } => self.over(fault, host),
            Happening::ZoneLost => self.lose_zone(),
            Happening::RouterWake => self.router_wakes(),
            Happening::Resolves { repl } => self.resolves(&repl),
            Happening::HostsSeen => self.hosts_seen(),
            Happening::Asks {
                host,
                ticket,
                repl,
                epoch,
            } => self.asks(host, ticket, repl, epoch),
            Happening::Answers {
                ticket,
                attempt,
                answer,
            } => self.answers(ticket, attempt, *answer),
            Happening::UserOpens { repl } => self.user_opens(repl),
        }
    }

    fn finish(mut self) -> Report {
        for host in 0..self.plan.hosts {
            // What was skipped until the end was written too.
            self.touch(host);
        }
        self.gateway.finish(self.now, &mut self.report);
        let seconds = self.now as f64 / 1e9;
        self.report.simulated_seconds = seconds;
        self.report.host_seconds = seconds * f64::from(self.plan.hosts);
        let beats_per_second = f64::from(self.plan.hosts) / self.plan.timing.renew.as_secs_f64();
        self.report.store_writes_peak += beats_per_second.ceil() as u64;
        let waiting = self.gateway.waiting();
        if waiting > 0 {
            self.report.violations.push(Violation::NeverBack(waiting));
        }
        self.report
    }

    /// Makes up for the beats that were skipped at a host: from here on each of them is gone through, until nothing happens
    /// there again. Its machine takes the answer to the last but one, and sends the last.
    fn touch(&mut self, host: u32) {
        let renew = nanoseconds(self.plan.timing.renew);
        let node = &mut self.nodes[host as usize];
        let Some(BootTime(since)) = node.quiet_since.take() else {
            return;
        };
        let skipped = node.clock(self.now).0.saturating_sub(since) / renew;
        if skipped > 0 {
            let last = BootTime(since + skipped * renew);
            let sent = BootTime(last.0 - renew);
            node.beat += skipped - 1;
            self.report.store_writes += skipped - 1;
            let acked = Event::Lease(LeaseEvent::RenewAcked { sent });
            let effects = node.host.step(acked, last);
            self.do_all(host, effects, last);
        }
        self.arm_kernel(host);
        self.plan_wake(host);
    }

    /// Whether a host may beat unwatched from here on; the answer to its beat of this time has just come.
    fn rest(&mut self, host: u32, sent: BootTime) {
        let node = &self.nodes[host as usize];
        let is_quiet = self.plan.beats == Beats::Skipped
            && self.wrong.is_empty()
            && node.wrong.is_empty()
            && node.is_running()
            && node.keeper.is_some()
            && !self.watching.contains_key(&host)
            && node.host.wakeup() == Some(sent.plus(self.plan.timing.renew));
        if is_quiet {
            self.nodes[host as usize].quiet_since = Some(sent);
        }
    }

    /// Counts a commit that is not a skipped beat.
    fn wrote(&mut self, is_beat: bool) {
        self.report.store_writes += 1;
        if is_beat {
            return;
        }
        let second = self.now / 1_000_000_000;
        if self.writes_this_second.0 != second {
            self.writes_this_second = (second, 0);
        }
        self.writes_this_second.1 += 1;
        let peak = &mut self.report.store_writes_peak;
        *peak = self.writes_this_second.1.max(*peak);
    }

    /// Goes into the trace. Epochs and beats do not: what is skipped has them run differently.
    fn trace(&mut self, what: u64, whom: u64) {
        for word in [self.now, what, whom] {
            self.report.trace = random::mix(self.report.trace ^ word).rotate_left(17);
        }
    }

    fn is_wrong(&self, fault: Fault) -> bool {
        self.wrong.contains_key(&fault)
    }

    fn number_of(&self, host: &HostId) -> Option<u32> {
        let number = host.as_str().strip_prefix('h')?.parse().ok()?;
        (number < self.plan.hosts).then_some(number)
    }

    fn is_registered(&self, host: u32) -> bool {
        let key = keys::host(&self.nodes[host as usize].id);
        self.store.now().contains_key(&key)
    }
}

/// The number of a repl of the fleet's.
fn repl_number(repl: &ReplId) -> usize {
    let number = repl.as_str().strip_prefix('r').map(str::parse);
    number.and_then(Result::ok).unwrap_or_default()
}

fn repl_id(number: u32) -> ReplId {
    // A name of the right form by construction.
    format!("r{number}")
        .parse()
        .unwrap_or_else(|_| unreachable!())
}
