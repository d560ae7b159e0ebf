//! A stage for scenes with one repl, and a small world of a store, hosts and clients around a router.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::api::{Refusal, RefusalCode};
use model::id::{Epoch, HostId, Incarnation, ReplId, Ticket};
use model::keys::{Host, HostRecord, HostState};
use model::routing::{Effect, Event, Joined, Resolution, Router};
use model::time::BootTime;
use model::timing::PARK_MAX;
use model::wire::node::{NodeRefusal, OwnerHint};

pub(crate) fn host_id(number: u8) -> HostId {
    format!("host-{number}").parse().unwrap()
}

pub(crate) fn repl_id(number: u8) -> ReplId {
    ["blue", "green"][usize::from(number)].parse().unwrap()
}

fn host(number: u8, incarnation: u64) -> Host {
    Host {
        id: host_id(number),
        incarnation: Incarnation(incarnation),
        record: HostRecord {
            address: format!("unix:/{number}"),
            boot_id: "boot".to_owned(),
            state: HostState::Active,
            capacity: 10,
            process: 1,
        },
    }
}

/// A router, a clock, and hosts that say what a scene says.
pub(crate) struct Stage {
    pub(crate) router: Router,
    pub(crate) hosts: BTreeMap<HostId, Host>,
    now: BootTime,
    attempts: BTreeMap<Ticket, u32>,
}

impl Stage {
    pub(crate) fn new(hosts: u8) -> Self {
        let hosts = (0..hosts).map(|number| (host_id(number), host(number, 1)));
        let mut stage = Self {
            router: Router::default(),
            hosts: hosts.collect(),
            now: BootTime(1_000_000_000),
            attempts: BTreeMap::new(),
        };
        stage.tell_hosts();
        stage
    }

    pub(crate) fn step(&mut self, event: Event) -> Vec<Effect> {
        let effects = self.router.step(event, self.now);
        for effect in &effects {
            if let Effect::Ask {
                ticket, attempt, ..
            } = effect
            {
                self.attempts.insert(*ticket, *attempt);
            }
        }
        effects
    }

    pub(crate) fn tell_hosts(&mut self) -> Vec<Effect> {
        let hosts = self.hosts.clone();
        self.step(Event::Hosts { hosts })
    }

    pub(crate) fn open(&mut self, ticket: u64) -> Vec<Effect> {
        self.open_at(ticket, 0)
    }

    pub(crate) fn open_other(&mut self, ticket: u64) -> Vec<Effect> {
        self.open_at(ticket, 1)
    }

    fn open_at(&mut self, ticket: u64, repl: u8) -> Vec<Effect> {
        self.step(Event::Open {
            ticket: Ticket(ticket),
            repl: repl_id(repl),
            patience: PARK_MAX,
        })
    }

    pub(crate) fn gone(&mut self, ticket: u64) -> Vec<Effect> {
        let ticket = Ticket(ticket);
        self.step(Event::Gone { ticket })
    }

    pub(crate) fn resolved(&mut self, resolution: Resolution) -> Vec<Effect> {
        let repl = repl_id(0);
        self.step(Event::Resolved { repl, resolution })
    }

    pub(crate) fn resolved_other(&mut self, resolution: Resolution) -> Vec<Effect> {
        let repl = repl_id(1);
        self.step(Event::Resolved { repl, resolution })
    }

    pub(crate) fn owned(&mut self, host: u8, epoch: u64) -> Vec<Effect> {
        let (host, epoch) = (self.hosts[&host_id(host)].clone(), Epoch(epoch));
        self.resolved(Resolution::Owned { host, epoch })
    }

    pub(crate) fn answer(
        &mut self,
        ticket: u64,
        answer: Result<Joined, NodeRefusal>,
    ) -> Vec<Effect> {
        let attempt = self.attempts[&Ticket(ticket)];
        self.answer_attempt(ticket, attempt, answer)
    }

    pub(crate) fn answer_attempt(
        &mut self,
        ticket: u64,
        attempt: u32,
        answer: Result<Joined, NodeRefusal>,
    ) -> Vec<Effect> {
        let ticket = Ticket(ticket);
        self.step(Event::Answered {
            ticket,
            attempt,
            answer,
        })
    }

    /// Lets time pass until the router wants to be woken.
    pub(crate) fn next_tick(&mut self) -> Vec<Effect> {
        self.now = self.router.wakeup().expect("nothing is waited for");
        self.step(Event::Tick)
    }

    /// Lets time pass until a session is refused.
    pub(crate) fn until_refused(&mut self) -> Refusal {
        loop {
            for effect in self.next_tick() {
                if let Effect::Refuse { no_way, .. } = effect {
                    return no_way.refusal;
                }
            }
        }
    }
}

/// What happens to the world.
#[derive(Debug, Clone)]
pub(crate) enum Action {
    Open(u8),
    Gone(u8),
    /// Carries out one of the effects that are under way.
    Run(u8),
    /// Milliseconds.
    Advance(u16),
    /// Hands a repl over, or gives it an owner.
    Move(u8, u8),
    Free(u8),
    CutOff(u8),
    Reach(u8),
    Leave(u8),
    Register(u8),
    Drain(u8),
    StoreAway,
    StoreBack,
    /// The watch on the hosts catches up.
    TellHosts,
    /// Whether reads of the store see the past.
    Stale(bool),
}

/// What is under way.
enum Pending {
    Resolve(ReplId),
    Ask {
        ticket: Ticket,
        attempt: u32,
        host: Host,
        epoch: Option<Epoch>,
    },
}

type Owner = (HostId, Incarnation, Epoch);

pub(crate) struct World {
    pub(crate) router: Router,
    now: BootTime,
    revision: u64,
    hosts: BTreeMap<HostId, Host>,
    cut_off: BTreeSet<HostId>,
    owners: BTreeMap<ReplId, Owner>,
    /// The owners before the last change of each: what a stale read shows.
    past: BTreeMap<ReplId, Owner>,
    store_is_away: bool,
    is_stale: bool,
    pending: Vec<Pending>,
    next_ticket: u64,
    open: BTreeMap<Ticket, ReplId>,
    granted: BTreeMap<Ticket, Epoch>,
    refused: BTreeSet<Ticket>,
    gone: BTreeSet<Ticket>,
    highest: BTreeMap<ReplId, Epoch>,
}

impl World {
    pub(crate) fn new(hosts: u8) -> Self {
        let mut world = Self {
            router: Router::default(),
            now: BootTime(1_000_000_000),
            revision: 1,
            hosts: (0..hosts).map(|n| (host_id(n), host(n, 1))).collect(),
            cut_off: BTreeSet::new(),
            owners: BTreeMap::new(),
            past: BTreeMap::new(),
            store_is_away: false,
            is_stale: false,
            pending: vec![],
            next_ticket: 0,
            open: BTreeMap::new(),
            granted: BTreeMap::new(),
            refused: BTreeSet::new(),
            gone: BTreeSet::new(),
            highest: BTreeMap::new(),
        };
        world.act(&Action::TellHosts);
        world
    }

    pub(crate) fn open_tickets(&self) -> Vec<Ticket> {
        self.open.keys().copied().collect()
    }

    pub(crate) fn was_granted(&self, ticket: Ticket) -> bool {
        self.granted.contains_key(&ticket)
    }

    fn revision(&mut self) -> u64 {
        self.revision += 1;
        self.revision
    }

    fn own(&mut self, repl: &ReplId, host: &HostId) -> Epoch {
        let epoch = Epoch(self.revision());
        if let Some(before) = self.owners.remove(repl) {
            self.past.insert(repl.clone(), before);
        }
        let incarnation = self.hosts[host].incarnation;
        self.owners
            .insert(repl.clone(), (host.clone(), incarnation, epoch));
        epoch
    }

    fn live_owner(&self, repl: &ReplId) -> Option<&Owner> {
        self.owners.get(repl).filter(|(host, incarnation, _)| {
            let host = self.hosts.get(host);
            host.is_some_and(|host| host.incarnation == *incarnation)
        })
    }

    pub(crate) fn act(&mut self, action: &Action) {
        match action {
            Action::Open(repl) => {
                let ticket = Ticket(self.next_ticket);
                self.next_ticket += 1;
                let repl = repl_id(*repl);
                self.open.insert(ticket, repl.clone());
                let patience = PARK_MAX;
                self.step(Event::Open {
                    ticket,
                    repl,
                    patience,
                });
            }
            Action::Gone(which) => {
                let tickets = self.open_tickets();
                if let Some(ticket) = tickets.get(usize::from(*which) % tickets.len().max(1)) {
                    self.open.remove(ticket);
                    self.gone.insert(*ticket);
                    self.step(Event::Gone { ticket: *ticket });
                }
            }
            Action::Run(which) => {
                if !self.pending.is_empty() {
                    let index = usize::from(*which) % self.pending.len();
                    let pending = self.pending.swap_remove(index);
                    self.run(pending);
                }
            }
            Action::Advance(by_ms) => {
                self.now = self.now.plus(Duration::from_millis(u64::from(*by_ms)));
                if self.router.wakeup().is_some_and(|at| at <= self.now) {
                    self.step(Event::Tick);
                    let overdue = self.router.wakeup().filter(|at| *at <= self.now);
                    assert_eq!(overdue, None, "a tick leaves nothing that is due");
                }
            }
            Action::Move(repl, host) => {
                if self.hosts.contains_key(&host_id(*host)) {
                    self.own(&repl_id(*repl), &host_id(*host));
                }
            }
            Action::Free(repl) => {
                if let Some(before) = self.owners.remove(&repl_id(*repl)) {
                    self.past.insert(repl_id(*repl), before);
                }
            }
            Action::CutOff(host) => {
                self.cut_off.insert(host_id(*host));
            }
            Action::Reach(host) => {
                self.cut_off.remove(&host_id(*host));
            }
            Action::Leave(host) => {
                self.hosts.remove(&host_id(*host));
            }
            Action::Register(number) => {
                let incarnation = self.revision();
                self.hosts
                    .entry(host_id(*number))
                    .or_insert_with(|| host(*number, incarnation))
                    .record
                    .state = HostState::Active;
            }
            Action::Drain(number) => {
                if let Some(host) = self.hosts.get_mut(&host_id(*number)) {
                    host.record.state = HostState::Draining;
                }
            }
            Action::StoreAway => self.store_is_away = true,
            Action::StoreBack => self.store_is_away = false,
            Action::TellHosts => {
                let hosts = self.hosts.clone();
                self.step(Event::Hosts { hosts });
            }
            Action::Stale(is_stale) => self.is_stale = *is_stale,
        }
    }

    /// Everything works again from here on.
    pub(crate) fn heal(&mut self) {
        for number in 0..3 {
            self.act(&Action::Reach(number));
            self.act(&Action::Register(number));
        }
        self.act(&Action::StoreBack);
        self.act(&Action::Stale(false));
        self.act(&Action::TellHosts);
    }

    /// Runs what is under way, and lets time pass only where nothing is.
    pub(crate) fn settle(&mut self, at_most_ms: u64) {
        let end = self.now.plus(Duration::from_millis(at_most_ms));
        loop {
            if !self.pending.is_empty() {
                self.act(&Action::Run(0));
            } else if let Some(at) = self.router.wakeup().filter(|at| *at <= end) {
                self.now = self.now.max(at);
                self.step(Event::Tick);
            } else {
                return;
            }
        }
    }

    fn run(&mut self, pending: Pending) {
        match pending {
            Pending::Resolve(repl) => {
                let resolution = self.read(&repl);
                self.step(Event::Resolved { repl, resolution });
            }
            Pending::Ask {
                ticket,
                attempt,
                host,
                epoch,
            } => {
                let repl = self.open.get(&ticket).cloned();
                // The driver has dropped an ask whose session is over.
                if let Some(repl) = repl {
                    let answer = self.ask(&repl, &host, epoch);
                    self.step(Event::Answered {
                        ticket,
                        attempt,
                        answer,
                    });
                }
            }
        }
    }

    fn read(&self, repl: &ReplId) -> Resolution {
        if self.store_is_away {
            return Resolution::Failed(Refusal::new(RefusalCode::StoreUnavailable, "away"));
        }
        let owner = if self.is_stale {
            self.past.get(repl).or(self.owners.get(repl))
        } else {
            self.owners.get(repl)
        };
        match owner.and_then(|(host, incarnation, epoch)| {
            let host = self.hosts.get(host)?;
            (host.incarnation == *incarnation).then(|| (host.clone(), *epoch))
        }) {
            Some((host, epoch)) => Resolution::Owned { host, epoch },
            None => Resolution::Free,
        }
    }

    fn ask(
        &mut self,
        repl: &ReplId,
        asked: &Host,
        epoch: Option<Epoch>,
    ) -> Result<Joined, NodeRefusal> {
        let refuse = |code, hint| {
            let refusal = Refusal::new(code, "no");
            Err(NodeRefusal { refusal, hint })
        };
        let now = self.hosts.get(&asked.id);
        let is_there = now.is_some_and(|now| now.incarnation == asked.incarnation);
        if !is_there || self.cut_off.contains(&asked.id) {
            return refuse(RefusalCode::HostUnreachable, None);
        }
        let is_draining = now.is_some_and(|now| now.record.state == HostState::Draining);
        match (self.live_owner(repl).cloned(), epoch) {
            (Some((owner, _, mine)), wanted)
                if owner == asked.id && wanted.is_none_or(|wanted| wanted == mine) =>
            {
                Ok(Joined {
                    epoch: mine,
                    load: Some(1),
                })
            }
            (None, None) if is_draining => refuse(RefusalCode::Draining, None),
            (None, None) if self.store_is_away => refuse(RefusalCode::StoreUnavailable, None),
            (None, None) => Ok(Joined {
                epoch: self.own(repl, &asked.id),
                load: Some(1),
            }),
            (Some((owner, _, epoch)), _) => {
                let host = Some(owner);
                refuse(RefusalCode::NotOwner, Some(OwnerHint { host, epoch }))
            }
            (None, Some(epoch)) => {
                let hint = OwnerHint { host: None, epoch };
                refuse(RefusalCode::NotOwner, Some(hint))
            }
        }
    }

    fn step(&mut self, event: Event) {
        for effect in self.router.step(event, self.now) {
            match effect {
                Effect::Resolve { repl } => self.pending.push(Pending::Resolve(repl)),
                Effect::Ask {
                    ticket,
                    attempt,
                    host,
                    epoch,
                    ..
                } => {
                    let repl = &self.open[&ticket];
                    let highest = self.highest.get(repl).copied();
                    assert!(
                        epoch.is_none_or(|epoch| Some(epoch) >= highest),
                        "{repl} asked at {epoch:?}, below {highest:?}"
                    );
                    self.pending.push(Pending::Ask {
                        ticket,
                        attempt,
                        host,
                        epoch,
                    });
                }
                Effect::Drop { ticket } => self.pending.retain(
                    |pending| !matches!(pending, Pending::Ask { ticket: its, .. } if *its == ticket),
                ),
                Effect::Grant { ticket, epoch, .. } => {
                    let repl = self.over(ticket);
                    let highest = self.highest.entry(repl).or_insert(epoch);
                    assert!(epoch >= *highest, "granted {epoch} below {highest}");
                    *highest = epoch;
                    self.granted.insert(ticket, epoch);
                }
                Effect::Refuse { ticket, no_way } => {
                    self.over(ticket);
                    self.refused.insert(ticket);
                    assert!(no_way.refusal.is_retryable(), "{no_way:?}");
                }
            }
        }
    }

    /// A session ends once, and never after its client has gone.
    fn over(&mut self, ticket: Ticket) -> ReplId {
        assert!(!self.gone.contains(&ticket), "{ticket:?} has gone");
        self.open.remove(&ticket).expect("a session ends once")
    }
}
