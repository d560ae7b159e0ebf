//! The supervisor: the one task that starts, restarts and ends the processes of a fleet.
//!
//! ```text
//!   started ──ended by itself──► (backoff) ──► started again
//!      │
//!      ├──hangs: killed──► ended by itself
//!      ├──preempt──► notice: drain ──30 s──► both killed ──► gone; another host in its place
//!      └──stop─────► all killed
//! ```
//!
//! It knows processes, not repls. What a killed host's repls do is the business of the protocol: to that, a
//! preempted host is a machine that has vanished.

use std::collections::BTreeMap;
use std::io;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use model::api::{Refusal, RefusalCode};
use model::id::HostId;
use model::timing::PREEMPTION_NOTICE;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::backoff::Backoff;
use super::node_client;
use super::process::{self, Process, Role};
use super::signs::{Hangs, Signs};
use crate::config::{Up, host_name};
use crate::node::{Address, Dialer};

/// What the supervisor is asked to do.
#[derive(Debug)]
pub(super) enum Order {
    /// The drill: give the host notice, and take it away when that is over. Answered with the report of
    /// its drain.
    Preempt { host: HostId, reply: Reply },
}

type Reply = oneshot::Sender<Result<serde_json::Value, Refusal>>;

enum Event {
    Ended(HostId, Role, io::Result<ExitStatus>),
    /// The conman with this process id.
    Hangs(HostId, u32, Hangs),
    RestartDue(HostId, Role),
    NoticeOver(HostId),
    Cleaned,
}

/// Whether a host's processes are to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// They are started again when they end.
    Kept,
    /// The notice runs.
    Noticed,
    /// They are killed and not started again.
    Taken,
}

struct Slot {
    /// `None` between its end and its next start.
    process: Option<Process>,
    started: Instant,
    backoff: Backoff,
}

struct Host {
    fate: Fate,
    slots: [Slot; 2],
}

impl Host {
    fn slot(&mut self, role: Role) -> &mut Slot {
        &mut self.slots[role as usize]
    }

    fn is_down(&self) -> bool {
        self.slots.iter().all(|slot| slot.process.is_none())
    }

    fn kill(&self) {
        // The keeper first: with it the containers die, whatever conman does meanwhile.
        for process in self.slots.iter().filter_map(|slot| slot.process.as_ref()) {
            process.kill();
        }
    }
}

/// All processes of a fleet.
pub(super) struct Fleet {
    up: Arc<Up>,
    hosts: BTreeMap<HostId, Host>,
    /// The number of the host that was started last.
    last: u32,
    events: FuturesUnordered<BoxFuture<'static, Event>>,
}

impl Fleet {
    /// Starts the first hosts.
    ///
    /// # Errors
    /// When a process cannot be started; those that were are killed when this is dropped.
    pub(super) fn start(up: Arc<Up>) -> io::Result<Self> {
        let mut fleet = Self {
            up,
            hosts: BTreeMap::new(),
            last: 0,
            events: FuturesUnordered::new(),
        };
        for _ in 0..fleet.up.hosts {
            fleet.add_host()?;
        }
        Ok(fleet)
    }

    fn add_host(&mut self) -> io::Result<()> {
        self.last += 1;
        let host = host_name(self.last);
        let slot = || Slot {
            process: None,
            started: Instant::now(),
            backoff: Backoff::default(),
        };
        let slots = [slot(), slot()];
        self.hosts.insert(
            host.clone(),
            Host {
                fate: Fate::Kept,
                slots,
            },
        );
        for role in Role::ALL {
            self.start_process(&host, role)?;
        }
        Ok(())
    }

    fn start_process(&mut self, host: &HostId, role: Role) -> io::Result<()> {
        let Some(there) = self.hosts.get_mut(host) else {
            return Ok(());
        };
        let common = &self.up.common;
        let signs = match role {
            // It has no watchdog: its deadline is the kernel's.
            Role::Keeper => None,
            Role::Conman => Some(Signs::listen(&common.signs_socket(host))?),
        };
        let (process, ending) = process::start(common, host, role, signs.as_ref())?;
        let pid = process.pid;
        tracing::info!(%host, role = role.as_str(), pid, "started");
        if let Some(signs) = signs {
            let host = host.clone();
            self.events.push(Box::pin(async move {
                Event::Hangs(host, pid, signs.fail().await)
            }));
        }
        let slot = there.slot(role);
        slot.process = Some(process);
        slot.started = Instant::now();
        let host = host.clone();
        self.events.push(Box::pin(async move {
            Event::Ended(host, role, ending.wait().await)
        }));
        Ok(())
    }

    /// Supervises. Returns only when an order's sender is gone for good; drop it to end sooner.
    pub(super) async fn run(&mut self, orders: &mut mpsc::Receiver<Order>) {
        loop {
            tokio::select! {
                Some(event) = self.events.next() => self.take(event),
                order = orders.recv() => match order {
                    Some(Order::Preempt { host, reply }) => {
                        self.preempt(&host, reply);
                    }
                    None => return,
                },
            }
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Ended(host, role, status) => self.ended(&host, role, &status),
            Event::Hangs(host, pid, why) => self.end_hung(&host, pid, why),
            Event::RestartDue(host, role) => {
                let wanted = self
                    .hosts
                    .get(&host)
                    .is_some_and(|there| there.fate != Fate::Taken);
                if wanted && let Err(error) = self.start_process(&host, role) {
                    tracing::error!(%host, role = role.as_str(), %error, "could not be started again");
                    self.restart_later(host, role, Duration::ZERO);
                }
            }
            Event::NoticeOver(host) => {
                if let Some(there) = self.hosts.get_mut(&host) {
                    tracing::warn!(%host, "the notice is over: the machine is gone");
                    there.fate = Fate::Taken;
                    there.kill();
                    self.forget_if_down(&host);
                }
            }
            Event::Cleaned => {}
        }
    }

    /// A process that has ended since gives no signs either.
    fn end_hung(&mut self, host: &HostId, pid: u32, why: Hangs) {
        let there = self.hosts.get_mut(host);
        let process = there.and_then(|there| there.slot(Role::Conman).process.as_ref());
        if let Some(process) = process.filter(|process| process.pid == pid) {
            tracing::error!(%host, pid, %why, "conman hangs: killing it");
            process.kill();
        }
    }

    fn ended(&mut self, host: &HostId, role: Role, status: &io::Result<ExitStatus>) {
        let Some(there) = self.hosts.get_mut(host) else {
            return;
        };
        let slot = there.slot(role);
        slot.process = None;
        let lived = slot.started.elapsed();
        let how = match status {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        if there.fate == Fate::Taken {
            self.forget_if_down(host);
        } else if self.up.restart {
            tracing::error!(%host, role = role.as_str(), how, "ended by itself: starting it again");
            self.restart_later(host.clone(), role, lived);
        } else {
            tracing::error!(%host, role = role.as_str(), how, "ended by itself, and stays so (--restart false)");
        }
    }

    fn restart_later(&mut self, host: HostId, role: Role, lived: Duration) {
        let Some(there) = self.hosts.get_mut(&host) else {
            return;
        };
        let delay = there.slot(role).backoff.ended(lived);
        let due = Instant::now() + delay;
        self.events.push(Box::pin(async move {
            tokio::time::sleep_until(due).await;
            Event::RestartDue(host, role)
        }));
    }

    fn preempt(&mut self, host: &HostId, reply: Reply) {
        let due = Instant::now() + PREEMPTION_NOTICE;
        match self.hosts.get_mut(host) {
            Some(there) if there.fate == Fate::Kept => there.fate = Fate::Noticed,
            // Safe to repeat: the first notice runs, and a drain does what is left of it.
            Some(there) if there.fate == Fate::Noticed => {}
            _ => {
                let message = format!("there is no host {host} on this machine");
                // Whoever asked may have gone; here and below.
                let _ = reply.send(Err(Refusal::new(RefusalCode::UnknownHost, message)));
                return;
            }
        }
        tracing::warn!(%host, "preempted: 30 seconds from now the machine is gone");
        let noticed = host.clone();
        self.events.push(Box::pin(async move {
            tokio::time::sleep_until(due).await;
            Event::NoticeOver(noticed)
        }));
        let address = Address::Unix(self.up.common.host_socket(host));
        let host = host.clone();
        // Beside the supervisor: a host that does not answer must not stop it.
        tokio::spawn(async move {
            let dialer = Dialer::default();
            let drained =
                tokio::time::timeout_at(due, node_client::preempt(&dialer, &address, None));
            let answer = match drained.await {
                Ok(Ok(report)) => {
                    tracing::info!(%host, ?report, "drained");
                    Ok(serde_json::json!(report))
                }
                Ok(Err(error)) => Err(format!("{host} could not be drained: {error:#}")),
                Err(_) => Err(format!("{host} did not drain within its notice")),
            };
            let answer = answer.map_err(|message| {
                tracing::error!(message);
                Refusal::new(RefusalCode::HostUnreachable, message)
            });
            let _ = reply.send(answer);
        });
    }

    /// A taken host whose processes are dead: cleans up after it, and puts another in its place.
    fn forget_if_down(&mut self, host: &HostId) {
        if !self
            .hosts
            .get(host)
            .is_some_and(|there| there.fate == Fate::Taken && there.is_down())
        {
            return;
        }
        self.hosts.remove(host);
        let (up, gone) = (self.up.clone(), host.clone());
        self.events.push(Box::pin(async move {
            let cleaned = tokio::task::spawn_blocking(move || super::clean_host(&up.common, &gone));
            if let Err(error) = cleaned.await {
                tracing::error!(%error, "cleaning up after a host panicked");
            }
            Event::Cleaned
        }));
        if self.up.restart
            && let Err(error) = self.add_host()
        {
            tracing::error!(%error, "no replacement could be started");
        }
    }

    /// Kills all, and returns when all are dead, with the hosts that were still there.
    pub(super) async fn stop(mut self) -> Vec<HostId> {
        for host in self.hosts.values_mut() {
            host.fate = Fate::Taken;
            host.kill();
        }
        let hosts: Vec<_> = self.hosts.keys().cloned().collect();
        while !self.hosts.values().all(Host::is_down) {
            match self.events.next().await {
                Some(Event::Ended(host, role, _)) => {
                    if let Some(host) = self.hosts.get_mut(&host) {
                        host.slot(role).process = None;
                    }
                }
                Some(_) => {}
                None => break,
            }
        }
        hosts
    }
}
