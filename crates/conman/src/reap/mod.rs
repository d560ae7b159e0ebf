//! `conman reap`: Docker's containers killed by their PIDs, each death proven, and the engine left to clean up.
//!
//! ```text
//! Look ─► Prepare (restart policy off, PID 1 held and known) ─► [Grace] ─► Kill ─► all proven dead ─► Look again
//!   ▲                                                                                                   │
//!   └───────────────────── something new lives ◄────────────────────────────────────────────────────────┤
//!                                                                                                       ▼
//!                      Over ◄─ Restore (restart policies as before) ◄─ Look for the last time ◄─ Settle
//! ```
//!
//! Why not `docker kill`: the engine holds a container's lock while it takes its network apart, one after the other,
//! and the call waits for that lock. The processes need no engine to die.
//!
//! This module decides, and knows no clock and no process: the driver tells it what happened and does what it says.

pub mod driver;
pub mod report;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::docker::DockerId;
use crate::docker::engine::RestartPolicy;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// How long after SIGTERM SIGKILL comes; zero for SIGKILL at once.
    pub grace: Duration,
    /// When to give up, from the beginning.
    pub timeout: Duration,
    /// What becomes of the restart policies that were turned off.
    pub policies: Policies,
}

/// What becomes of restart policies when all is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policies {
    /// They are put back: the containers start again with the engine, as after any shutdown.
    Restored,
    /// They stay off.
    LeftOff,
}

/// A container that seems to be alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its id.
    pub id: DockerId,
    /// Its name; its short id where nobody says.
    pub name: String,
    /// What it was made from, where somebody says.
    pub image: String,
    /// How it is alive.
    pub state: Alive,
}

/// How a container is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alive {
    /// It runs.
    Running,
    /// It runs, and is frozen.
    Paused,
    /// It has ended, and the engine is about to start it again.
    Restarting,
    /// Something of it is alive that the engine does not call running yet, or any more.
    Between,
    /// The engine says nothing; the cgroup trees do.
    Unlisted,
}

impl Alive {
    /// As it is printed.
    pub const fn as_str(self) -> &'static str {
        match self {
            Alive::Running => "running",
            Alive::Paused => "paused",
            Alive::Restarting => "restarting",
            Alive::Between => "starting or ending",
            Alive::Unlisted => "alive",
        }
    }
}

/// What came of preparing a container's death.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prepared {
    /// Its processes are held, and it will not be started again by a policy that was read.
    Held {
        /// The PID of its PID 1.
        pid: u32,
        /// The policy that was turned off.
        policy: Option<RestartPolicy>,
    },
    /// Nothing of it is alive.
    Ended {
        /// The policy that was turned off.
        policy: Option<RestartPolicy>,
    },
    /// It is not held: why.
    Failed(String),
}

/// What the driver tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// What is alive: all that was ever found and is so still or again, and all that is new.
    Looked(Vec<Found>),
    /// What came of a look: it was not possible.
    LookFailed(String),
    /// What came of [`Effect::Prepare`].
    Prepared(DockerId, Prepared),
    /// The signals of [`Effect::Kill`] are sent.
    KillsSent,
    /// Proven dead: its PID 1's handle says so, and its cgroup is empty.
    Dead(DockerId),
    /// The engine has recorded its end and cleaned up after it.
    Settled(DockerId),
    /// Its restart policy is as it was, or cannot be put back: why.
    Restored(DockerId, Result<(), String>),
    /// The engine does not answer: nothing more is asked of it.
    EngineSilent(String),
    /// Time has passed.
    Tick,
}

/// What the driver is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// See what is alive.
    Look,
    /// Turn the restart policy off, hold the processes.
    Prepare(Vec<Found>),
    /// SIGTERM to each PID 1.
    Terminate(Vec<DockerId>),
    /// SIGKILL to everything in them, all at once.
    Kill(Vec<DockerId>),
    /// Tell when the engine has settled each.
    AwaitSettled(Vec<DockerId>),
    /// Put these policies back.
    Restore(Vec<(DockerId, RestartPolicy)>),
    /// It is over.
    Finish,
}

/// Where one container stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stand {
    /// Its death is being prepared.
    Preparing,
    /// Its processes are held.
    Held,
    /// SIGTERM was sent.
    Terminated,
    /// SIGKILL was sent.
    Killed,
    /// It is proven dead, at this time from the beginning.
    Dead(Duration),
    /// Nothing of it was alive when it was looked at closely.
    Ended,
    /// It could not be held: why.
    Unheld(String),
}

/// One container, and what is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// As it was found.
    pub found: Found,
    /// Where it stands.
    pub stand: Stand,
    /// The PID of its PID 1.
    pub pid: Option<u32>,
    /// The policy that is off and was not.
    pub policy: Option<RestartPolicy>,
    /// Whether the engine has settled it.
    pub settled: bool,
}

impl Container {
    /// Whether it is proven that nothing of it lives.
    pub fn is_proven(&self) -> bool {
        matches!(self.stand, Stand::Dead(_) | Stand::Ended)
    }

    fn is_alive_in_hand(&self) -> bool {
        matches!(self.stand, Stand::Held | Stand::Terminated | Stand::Killed)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Looking,
    Preparing,
    Grace { until: Duration },
    Killing,
    Settling,
    LookingLast,
    Restoring,
    Over,
}

/// The whole of one reaping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reap {
    options: Options,
    phase: Phase,
    containers: BTreeMap<DockerId, Container>,
    /// Why nothing more is asked of the engine.
    silent: Option<String>,
    /// Why the last look failed.
    look_failed: Option<String>,
    sent: Option<Duration>,
    settled: Option<Duration>,
    notes: Vec<String>,
}

impl Reap {
    /// A reaping that begins now, and what to do first. `silent` says why the engine cannot be asked, if it cannot.
    pub fn begin(options: Options, silent: Option<String>) -> (Self, Vec<Effect>) {
        let reap = Self {
            options,
            phase: Phase::Looking,
            containers: BTreeMap::new(),
            silent,
            look_failed: None,
            sent: None,
            settled: None,
            notes: Vec::new(),
        };
        (reap, vec![Effect::Look])
    }

    /// All containers that were ever found.
    pub fn containers(&self) -> &BTreeMap<DockerId, Container> {
        &self.containers
    }

    /// When the last SIGKILL was sent.
    pub fn sent(&self) -> Option<Duration> {
        self.sent
    }

    /// When the engine had settled the last one.
    pub fn settled(&self) -> Option<Duration> {
        self.settled
    }

    /// Why the engine is not asked, if it is not.
    pub fn silent(&self) -> Option<&str> {
        self.silent.as_deref()
    }

    /// What else is to be said.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Whether every death is proven: of all that were found, with a look after the last death that found no more.
    pub fn is_proven(&self) -> bool {
        self.look_failed.is_none() && self.containers.values().all(Container::is_proven)
    }

    /// When to tick, if nothing happens before.
    pub fn wakeup(&self) -> Option<Duration> {
        match self.phase {
            Phase::Over => None,
            Phase::Grace { until } => Some(until.min(self.options.timeout)),
            _ => Some(self.options.timeout),
        }
    }

    /// Takes what happened, `now` from the beginning.
    pub fn step(&mut self, event: Event, now: Duration) -> Vec<Effect> {
        if self.phase == Phase::Over {
            return Vec::new();
        }
        let effects = self.take(event, now);
        if now >= self.options.timeout && self.phase != Phase::Over {
            return self.give_up();
        }
        effects
    }

    fn take(&mut self, event: Event, now: Duration) -> Vec<Effect> {
        match event {
            Event::Looked(found) => self.looked(found, now),
            Event::LookFailed(why) => {
                self.look_failed = Some(why);
                self.phase = Phase::Over;
                vec![Effect::Finish]
            }
            Event::Prepared(id, prepared) => {
                self.prepared(&id, prepared);
                self.advance(now)
            }
            Event::KillsSent => {
                self.sent = Some(now);
                Vec::new()
            }
            Event::Dead(id) => {
                if let Some(container) = self.containers.get_mut(&id)
                    && container.is_alive_in_hand()
                {
                    container.stand = Stand::Dead(now);
                }
                self.advance(now)
            }
            Event::Settled(id) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.settled = true;
                }
                self.advance(now)
            }
            Event::Restored(id, result) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    let policy = container.policy.take();
                    if let (Err(why), Some(policy)) = (result, policy) {
                        self.notes.push(format!(
                            "{}: its restart policy was {} and is off now: {why}",
                            container.found.name, policy.name
                        ));
                    }
                }
                self.advance(now)
            }
            Event::EngineSilent(why) => {
                self.silent.get_or_insert(why);
                self.advance(now)
            }
            Event::Tick => self.advance(now),
        }
    }

    fn looked(&mut self, found: Vec<Found>, now: Duration) -> Vec<Effect> {
        let is_last = match self.phase {
            Phase::Looking => false,
            Phase::LookingLast => true,
            _ => return Vec::new(),
        };
        self.look_failed = None;
        // Until the engine has settled one that is proven dead, it may still call it running.
        let is_new = |found: &Found| match self.containers.get(&found.id).map(|one| &one.stand) {
            Some(Stand::Dead(_)) => is_last || found.state == Alive::Unlisted,
            Some(_) | None => true,
        };
        let new: Vec<Found> = found.into_iter().filter(is_new).collect();
        if new.is_empty() {
            return self.nothing_new(is_last, now);
        }
        for found in &new {
            let before = self.containers.get(&found.id);
            let container = Container {
                found: found.clone(),
                stand: Stand::Preparing,
                pid: None,
                // What was read after it was turned off says nothing.
                policy: before.and_then(|before| before.policy.clone()),
                settled: false,
            };
            self.containers.insert(found.id.clone(), container);
        }
        self.phase = Phase::Preparing;
        vec![Effect::Prepare(new)]
    }

    fn nothing_new(&mut self, is_last: bool, now: Duration) -> Vec<Effect> {
        if is_last {
            return self.restore();
        }
        if self.silent.is_some() {
            return self.finish();
        }
        self.phase = Phase::Settling;
        let unsettled = self.containers.values().filter(|one| !one.settled);
        let unsettled: Vec<_> = unsettled.map(|one| one.found.id.clone()).collect();
        if unsettled.is_empty() {
            return self.advance(now);
        }
        vec![Effect::AwaitSettled(unsettled)]
    }

    fn prepared(&mut self, id: &DockerId, prepared: Prepared) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        if container.stand != Stand::Preparing {
            return;
        }
        let policy = match prepared {
            Prepared::Held { pid, policy } => {
                container.stand = Stand::Held;
                container.pid = Some(pid);
                policy
            }
            Prepared::Ended { policy } => {
                container.stand = Stand::Ended;
                policy
            }
            Prepared::Failed(why) => {
                container.stand = Stand::Unheld(why);
                None
            }
        };
        if policy.is_some() {
            container.policy = policy;
        }
    }

    /// Goes on if nothing more is to be waited for.
    fn advance(&mut self, now: Duration) -> Vec<Effect> {
        let is_all =
            |reap: &Self, is_so: fn(&Container) -> bool| reap.containers.values().all(is_so);
        match self.phase {
            Phase::Preparing if is_all(self, |one| one.stand != Stand::Preparing) => {
                self.begin_killing(now)
            }
            Phase::Grace { until }
                if now >= until || is_all(self, |one| !one.is_alive_in_hand()) =>
            {
                self.kill()
            }
            Phase::Killing if is_all(self, |one| !one.is_alive_in_hand()) => {
                // One that cannot be held cannot be killed: looking again would find it again.
                if self.containers.values().any(|one| !one.is_proven()) {
                    return self.finish();
                }
                self.phase = Phase::Looking;
                vec![Effect::Look]
            }
            Phase::Settling if self.silent.is_some() => self.finish(),
            Phase::Settling if is_all(self, |one| one.settled) => {
                self.settled = Some(now);
                self.phase = Phase::LookingLast;
                vec![Effect::Look]
            }
            Phase::Restoring if is_all(self, |one| one.policy.is_none()) => self.finish(),
            _ => Vec::new(),
        }
    }

    fn begin_killing(&mut self, now: Duration) -> Vec<Effect> {
        if self.options.grace.is_zero() {
            return self.kill();
        }
        let held = self.containers.values_mut();
        let held = held.filter(|one| one.stand == Stand::Held);
        let ids: Vec<_> = held
            .map(|one| {
                one.stand = Stand::Terminated;
                one.found.id.clone()
            })
            .collect();
        if ids.is_empty() {
            return self.kill();
        }
        self.phase = Phase::Grace {
            until: now + self.options.grace,
        };
        vec![Effect::Terminate(ids)]
    }

    fn kill(&mut self) -> Vec<Effect> {
        self.phase = Phase::Killing;
        let held = self.containers.values_mut();
        let held = held.filter(|one| matches!(one.stand, Stand::Held | Stand::Terminated));
        let ids: Vec<_> = held
            .map(|one| {
                one.stand = Stand::Killed;
                one.found.id.clone()
            })
            .collect();
        if ids.is_empty() {
            // None is left to wait for: the time does not matter.
            return self.advance(Duration::ZERO);
        }
        vec![Effect::Kill(ids)]
    }

    fn restore(&mut self) -> Vec<Effect> {
        let changed = self.containers.values();
        let changed = changed.filter_map(|one| Some((one.found.id.clone(), one.policy.clone()?)));
        let changed: Vec<_> = changed.collect();
        if changed.is_empty() || self.options.policies == Policies::LeftOff {
            return self.finish();
        }
        self.phase = Phase::Restoring;
        vec![Effect::Restore(changed)]
    }

    fn give_up(&mut self) -> Vec<Effect> {
        if matches!(self.phase, Phase::Looking | Phase::LookingLast) {
            // What lives now nobody has seen.
            self.look_failed = Some("the time was over before the last look".to_owned());
        }
        self.finish()
    }

    fn finish(&mut self) -> Vec<Effect> {
        self.phase = Phase::Over;
        if let Some(why) = &self.silent {
            self.notes.push(format!(
                "{why}: containers that it starts again by a restart policy come back when it goes on"
            ));
        } else if self.options.policies == Policies::Restored {
            let off = self.containers.values();
            for one in off.filter(|one| one.policy.is_some()) {
                self.notes.push(format!(
                    "{}: its restart policy is still off: the time was over before it could be put back",
                    one.found.name
                ));
            }
        }
        vec![Effect::Finish]
    }

    /// Why the last look failed, if it did.
    pub fn look_failed(&self) -> Option<&str> {
        self.look_failed.as_deref()
    }
}

#[cfg(test)]
mod tests;
