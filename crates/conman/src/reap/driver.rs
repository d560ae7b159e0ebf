//! Does what the decider says: asks the engine, holds processes, sends signals, watches for deaths.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use rustix::process::Signal;
use serde_json::Value;
use tokio::sync::{Semaphore, mpsc};

use super::{Alive, Effect, Event, Found, Options, Prepared, Reap};
use crate::docker::DockerId;
use crate::docker::engine::{Engine, EngineError, Listed, RestartPolicy};
use crate::docker::process::{HoldError, Process, hold};
use crate::docker::shim::{self, FindError};
use crate::docker::tree::{CgroupOf, Trees};

/// How long the engine may take for an answer before it is taken for hung. Busy ones take milliseconds.
pub const ENGINE_MAX: Duration = Duration::from_secs(3);

/// How many calls are made at the engine at once: more than it works at would only wait there.
const CALLS_MAX: usize = 16;

/// The states in which something may be alive.
const STATES: [&str; 5] = ["running", "paused", "restarting", "created", "removing"];

/// Which containers: Docker's own filters, by key.
pub type Filters = BTreeMap<String, Vec<String>>;

/// Why nothing was killed at all.
#[derive(Debug, thiserror::Error)]
pub enum CannotReap {
    /// The engine cannot be asked.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// It is silent, and without it nobody knows which containers match.
    #[error(
        "{0}; which containers match a filter only the engine knows: nothing was killed (without a filter, all of \
         its containers would be found in the cgroup trees)"
    )]
    FilterNeedsEngine(EngineError),
    /// It is silent, and the containers of several are here.
    #[error(transparent)]
    Find(#[from] FindError),
    /// The machine does not let us look.
    #[error("look at this machine: {0}")]
    Machine(#[from] io::Error),
}

/// What is alive and matches.
///
/// # Errors
/// See [`CannotReap`].
pub async fn look(engine: &Engine, filters: &Filters) -> Result<Seen, CannotReap> {
    let trees = Trees::of_this_machine()?;
    let world = World {
        engine: engine.clone(),
        filters: filters.clone(),
        trees,
    };
    match world.list().await {
        Ok(found) => Ok(Seen {
            world,
            found,
            silent: None,
        }),
        Err(error @ EngineError::Silent(_)) if filters.is_empty() => Ok(Seen {
            found: world.search().await?,
            world,
            silent: Some(error.to_string()),
        }),
        Err(error @ EngineError::Silent(_)) => Err(CannotReap::FilterNeedsEngine(error)),
        Err(error) => Err(error.into()),
    }
}

/// What the first look has seen.
#[derive(Debug)]
pub struct Seen {
    world: World,
    /// What is alive.
    pub found: Vec<Found>,
    /// Why the engine is not asked, if it is not.
    pub silent: Option<String>,
}

/// What a person who waits is told.
pub type Watcher = dyn Fn(&Reap) + Send;

/// Reaps what was seen, and what appears meanwhile. `began` is where times are counted from.
///
/// # Errors
/// When the machine does not let us look; a container that cannot be killed is in the result instead.
pub async fn reap(
    seen: Seen,
    options: Options,
    began: Instant,
    watcher: &Watcher,
) -> io::Result<Reap> {
    let (reap, effects) = Reap::begin(options, seen.silent);
    let (events, inbox) = mpsc::unbounded_channel();
    let driver = Driver {
        world: Arc::new(seen.world),
        reap,
        held: BTreeMap::new(),
        calls: Arc::new(Semaphore::new(CALLS_MAX)),
        events,
        began,
    };
    driver.run(effects, seen.found, inbox, watcher).await
}

/// What there is to look at.
#[derive(Debug)]
struct World {
    engine: Engine,
    filters: Filters,
    trees: Trees,
}

impl World {
    /// What the engine says.
    async fn list(&self) -> Result<Vec<Found>, EngineError> {
        let mut filters = self.filters.clone();
        filters.insert("status".to_owned(), STATES.map(str::to_owned).to_vec());
        let listed = self.engine.list(&filters, ENGINE_MAX).await?;
        let trees = self.trees.all().unwrap_or_default();
        Ok(listed.iter().filter_map(|one| found(one, &trees)).collect())
    }

    /// What the kernel says, when the engine says nothing.
    async fn search(&self) -> Result<Vec<Found>, FindError> {
        // A stopped engine's socket can still be connected to, and tells whose it is.
        let listener = self.engine.listener_pid().await.ok();
        let alive = shim::find(&self.trees, listener)?;
        let found = alive.into_keys().map(|id| Found {
            name: id.short().to_owned(),
            image: String::new(),
            state: Alive::Unlisted,
            id,
        });
        Ok(found.collect())
    }
}

/// What the engine's line means. One that is made and not started, or dead and being removed, has no process.
fn found(listed: &Listed, trees: &BTreeMap<DockerId, CgroupOf>) -> Option<Found> {
    let id: DockerId = listed.id.parse().ok()?;
    let state = match listed.state.as_str() {
        "running" => Alive::Running,
        "paused" => Alive::Paused,
        "restarting" => Alive::Restarting,
        _ => {
            let is_empty = trees.get(&id)?.is_empty().unwrap_or(false);
            (!is_empty).then_some(Alive::Between)?
        }
    };
    let name = listed.names.first();
    let name = name.map_or(id.short(), |name| name.trim_start_matches('/'));
    Some(Found {
        name: name.to_owned(),
        image: listed.image.clone(),
        state,
        id,
    })
}

/// The processes of a container, held.
#[derive(Debug, Clone)]
struct Held {
    /// PID 1 first.
    processes: Vec<Process>,
    cgroup: CgroupOf,
}

/// What a task of ours tells: an event, and what was held for it.
enum Told {
    Event(Event),
    Held(DockerId, Held, Option<RestartPolicy>),
}

struct Driver {
    world: Arc<World>,
    reap: Reap,
    held: BTreeMap<DockerId, Held>,
    calls: Arc<Semaphore>,
    events: mpsc::UnboundedSender<Told>,
    began: Instant,
}

impl Driver {
    async fn run(
        mut self,
        effects: Vec<Effect>,
        first: Vec<Found>,
        mut inbox: mpsc::UnboundedReceiver<Told>,
        watcher: &Watcher,
    ) -> io::Result<Reap> {
        // The first look was had already.
        debug_assert_eq!(effects, [Effect::Look]);
        if self.take(Told::Event(Event::Looked(first))) {
            return Ok(self.reap);
        }
        loop {
            watcher(&self.reap);
            let wakeup = self.reap.wakeup().unwrap_or_default();
            let wakeup = tokio::time::sleep_until((self.began + wakeup).into());
            let told = tokio::select! {
                // What has happened before the time was over counts.
                biased;
                told = inbox.recv() => told.unwrap_or(Told::Event(Event::Tick)),
                () = wakeup => Told::Event(Event::Tick),
            };
            if self.take(told) {
                return Ok(self.reap);
            }
        }
    }

    /// Whether it is over.
    fn take(&mut self, told: Told) -> bool {
        let event = match told {
            Told::Event(event) => event,
            Told::Held(id, held, policy) => {
                let pid = held.processes.first().map_or(0, |process| process.pid);
                self.held.insert(id.clone(), held);
                Event::Prepared(id, Prepared::Held { pid, policy })
            }
        };
        let mut effects = self.reap.step(event, self.began.elapsed());
        while !effects.is_empty() {
            let mut more = Vec::new();
            for effect in effects {
                if effect == Effect::Finish {
                    return true;
                }
                if let Some(event) = self.perform(effect) {
                    more.extend(self.reap.step(event, self.began.elapsed()));
                }
            }
            effects = more;
        }
        false
    }

    /// Begins an effect; gives the event of one that is done at once.
    fn perform(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Look => self.look(),
            Effect::Prepare(found) => self.prepare(found),
            Effect::Terminate(ids) => {
                for id in &ids {
                    self.terminate(id);
                }
            }
            Effect::Kill(ids) => {
                self.kill(&ids);
                return Some(Event::KillsSent);
            }
            Effect::AwaitSettled(ids) => self.await_settled(ids),
            Effect::Restore(policies) => self.restore(policies),
            Effect::Finish => {}
        }
        None
    }

    fn look(&self) {
        let (world, events) = (self.world.clone(), self.events.clone());
        let silent = self.reap.silent().is_some();
        let held: Vec<(Found, CgroupOf)> = self
            .held
            .iter()
            .filter_map(|(id, held)| {
                let found = &self.reap.containers().get(id)?.found;
                Some((found.clone(), held.cgroup.clone()))
            })
            .collect();
        tokio::spawn(async move {
            let looked = match silent {
                false => match world.list().await {
                    Err(error @ EngineError::Silent(_)) => {
                        let silent = Event::EngineSilent(error.to_string());
                        tell(&events, silent);
                        without_engine(&world, held).await
                    }
                    other => other.map_err(|error| error.to_string()),
                },
                true => without_engine(&world, held).await,
            };
            tell(
                &events,
                looked.map_or_else(Event::LookFailed, Event::Looked),
            );
        });
    }

    fn prepare(&self, found: Vec<Found>) {
        let silent = self.reap.silent().is_some();
        for found in found {
            let (world, events) = (self.world.clone(), self.events.clone());
            let calls = self.calls.clone();
            tokio::spawn(async move {
                // Closed never: the driver holds it.
                let _turn = calls.acquire().await;
                let id = found.id.clone();
                let told = match world.hold(&found, silent).await {
                    Ok((Some(held), policy)) => Told::Held(id, held, policy),
                    Ok((None, policy)) => {
                        Told::Event(Event::Prepared(id, Prepared::Ended { policy }))
                    }
                    Err(why) => Told::Event(Event::Prepared(id, Prepared::Failed(why))),
                };
                let _ = events.send(told);
            });
        }
    }

    fn terminate(&self, id: &DockerId) {
        let Some(held) = self.held.get(id) else {
            return;
        };
        if let Some(first) = held.processes.first()
            && let Err(error) = first.signal(Signal::TERM)
        {
            tracing::warn!(%id, %error, "send SIGTERM");
        }
        self.watch(id.clone(), held.clone());
    }

    /// Every PID 1, which is what kills, and what else is held.
    fn kill(&self, ids: &[DockerId]) {
        let held: Vec<_> = ids
            .iter()
            .filter_map(|id| Some((id, self.held.get(id)?)))
            .collect();
        for (id, held) in &held {
            for process in &held.processes {
                if let Err(error) = process.signal(Signal::KILL) {
                    tracing::warn!(%id, pid = process.pid, %error, "send SIGKILL");
                }
            }
        }
        for (id, held) in held {
            self.watch(id.clone(), held.clone());
        }
    }

    /// Tells of a death. A second watcher of the same tells it again, which changes nothing.
    fn watch(&self, id: DockerId, held: Held) {
        let (world, events) = (self.world.clone(), self.events.clone());
        tokio::spawn(async move {
            // One that is frozen by a v1 tree takes its signal only when it is not.
            if let Err(error) = held.cgroup.thaw() {
                tracing::warn!(%id, %error, "thaw a paused container");
            }
            match see_die(&id, &held, &world.trees).await {
                Ok(()) => tell(&events, Event::Dead(id)),
                // Without a proof it is not dead: it stays in the report as what it is.
                Err(error) => tracing::warn!(%id, %error, "prove a container dead"),
            }
        });
    }

    fn await_settled(&self, ids: Vec<DockerId>) {
        // Whatever it takes: the decider's time is the limit.
        let patience = Duration::from_secs(24 * 60 * 60);
        for id in ids {
            let (world, events) = (self.world.clone(), self.events.clone());
            tokio::spawn(async move {
                let event = match world.engine.settled(id.as_str(), patience).await {
                    Ok(_) => Event::Settled(id),
                    Err(error) => Event::EngineSilent(error.to_string()),
                };
                tell(&events, event);
            });
        }
    }

    fn restore(&self, policies: Vec<(DockerId, RestartPolicy)>) {
        for (id, policy) in policies {
            let (world, events) = (self.world.clone(), self.events.clone());
            let calls = self.calls.clone();
            tokio::spawn(async move {
                let _turn = calls.acquire().await;
                let set = world.engine.set_restart_policy(&id, &policy, ENGINE_MAX);
                let result = match set.await {
                    // It was to be removed at its end: there is nothing to start again.
                    Err(error) if error.is_not_found() => Ok(()),
                    other => other.map_err(|error| error.to_string()),
                };
                tell(&events, Event::Restored(id, result));
            });
        }
    }
}

fn tell(events: &mpsc::UnboundedSender<Told>, event: Event) {
    // Nobody listens when it is over.
    let _ = events.send(Told::Event(event));
}

/// With a filter, only what matched once is known to match.
async fn without_engine(world: &World, held: Vec<(Found, CgroupOf)>) -> Result<Vec<Found>, String> {
    if world.filters.is_empty() {
        return world.search().await.map_err(|error| error.to_string());
    }
    let is_alive = |(found, cgroup): (Found, CgroupOf)| {
        let is_alive = !cgroup.is_empty().unwrap_or(false);
        is_alive.then_some(Found {
            state: Alive::Unlisted,
            ..found
        })
    };
    Ok(held.into_iter().filter_map(is_alive).collect())
}

/// The proof: every held process has ended, and nothing is left in the cgroup.
async fn see_die(id: &DockerId, held: &Held, trees: &Trees) -> io::Result<()> {
    for process in &held.processes {
        process.ended().await?;
    }
    // Without a PID namespace of its own, the end of its PID 1 was only that.
    held.cgroup.end(id, trees).await
}

impl World {
    /// Turns the restart policy off and holds the processes. Without any, nothing of it is alive.
    async fn hold(
        &self,
        found: &Found,
        silent: bool,
    ) -> Result<(Option<Held>, Option<RestartPolicy>), String> {
        if silent || found.state == Alive::Unlisted {
            return Ok((self.hold_all(&found.id)?, None));
        }
        let id = &found.id;
        let inspected = match self.engine.inspect(id.as_str(), ENGINE_MAX).await {
            Ok(inspected) => inspected,
            Err(error) if error.is_not_found() => return Ok((None, None)),
            // Somebody holds this container's lock: the kernel knows its processes all the same.
            Err(EngineError::Silent(_)) => return Ok((self.hold_all(id)?, None)),
            Err(error) => return Err(error.to_string()),
        };
        let policy = inspected.host_config.restart_policy;
        let mut turned_off = None;
        if !policy.is_never() {
            let off = RestartPolicy::never();
            match self.engine.set_restart_policy(id, &off, ENGINE_MAX).await {
                Ok(()) => turned_off = Some(policy),
                Err(error) if error.is_not_found() => return Ok((None, None)),
                Err(error) => {
                    tracing::warn!(%id, %error, "turn the restart policy off");
                }
            }
        }
        if inspected.state.pid == 0 {
            if found.state == Alive::Restarting {
                self.call_off_restart(id).await?;
            }
            // Between its creation and its first process, and between the last and its end.
            return Ok((self.hold_all(id)?, turned_off));
        }
        match hold(inspected.state.pid, id, &self.trees) {
            Ok((process, cgroup)) => Ok((
                Some(Held {
                    processes: vec![process],
                    cgroup,
                }),
                turned_off,
            )),
            // It may have been started again under another number.
            Err(HoldError::Ended(_)) => Ok((self.hold_all(id)?, turned_off)),
            Err(error) => Err(error.to_string()),
        }
    }

    /// One that waits to be started again has no process that could be killed, and turning its policy off does not
    /// end the wait: a stop does.
    async fn call_off_restart(&self, id: &DockerId) -> Result<(), String> {
        let path = format!("/containers/{id}/stop?t=0");
        let stopped = self
            .engine
            .call::<Value>(Method::POST, &path, None, ENGINE_MAX)
            .await;
        match stopped {
            Err(error) if !error.is_not_found() => Err(format!("call off its next start: {error}")),
            _ => Ok(()),
        }
    }

    /// Whatever is in the container's cgroup.
    fn hold_all(&self, id: &DockerId) -> Result<Option<Held>, String> {
        let all = self.trees.all().map_err(|error| error.to_string())?;
        let Some(cgroup) = all.get(id) else {
            return Ok(None);
        };
        let pids = cgroup.processes().map_err(|error| error.to_string())?;
        let mut processes = Vec::new();
        let mut seen = BTreeSet::new();
        for pid in pids {
            match hold(pid, id, &self.trees) {
                Ok((process, _)) if seen.insert(pid) => processes.push(process),
                Ok(_) | Err(HoldError::Ended(_) | HoldError::Stranger { .. }) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        // The oldest is PID 1.
        processes.sort_by_key(|process| (process.start_ticks, process.pid));
        let held = Held {
            processes,
            cgroup: cgroup.clone(),
        };
        Ok((!held.processes.is_empty()).then_some(held))
    }
}
