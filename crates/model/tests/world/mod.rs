//! A small world for the host's machine: a store that answers late, hosts that pause, crash and lose their
//! keeper, clocks that drift. Nothing in it is scheduled by time alone: what is under way is done when
//! the test says so, in any order, or never.

use std::collections::BTreeMap;
use std::time::Duration;

use model::departure::{self, Departure, Heir, Left};
use model::host::container::Target;
use model::host::{Claim, Death, DrainOrder, Effect, Event, Host, Ownership};
use model::id::{ContainerId, Epoch, HostId, Incarnation, ReplId, Revision};
use model::keys::{self, HostRecord, HostState, OwnerRecord};
use model::lease::{LeaseEffect, LeaseEvent};
use model::observer::{Observer, Seen};
use model::store::{Compare, KeyValue, Operation, Target as CompareTarget, Txn};
use model::time::{BootTime, RawTime};
use model::timing::{FAST, KILL_BOUND};

type Keys = BTreeMap<String, KeyValue>;

/// A store that keeps its past, so that reads can be stale.
pub(crate) struct Store {
    past: Vec<Keys>,
    pub(crate) thefts: u32,
}

impl Store {
    fn new() -> Self {
        Self {
            past: vec![Keys::new()],
            thefts: 0,
        }
    }

    fn now(&self) -> &Keys {
        self.past.last().expect("the past is never empty")
    }

    /// The keys as they were up to `staleness` commits ago.
    fn read(&self, staleness: usize) -> &Keys {
        &self.past[self.past.len().saturating_sub(1 + staleness)]
    }

    fn holds(&self, compare: &Compare) -> bool {
        let item = self.now().get(&compare.key);
        let revision = item.map_or(Revision::ABSENT, |item| match compare.target {
            CompareTarget::Create => item.create,
            CompareTarget::Modified => item.modified,
        });
        revision == compare.revision
    }

    fn commit(&mut self, txn: &Txn) -> Option<Revision> {
        if !txn.compares.iter().all(|compare| self.holds(compare)) {
            return None;
        }
        let revision = Revision(self.past.len() as u64);
        let mut keys = self.now().clone();
        for operation in &txn.operations {
            match operation {
                Operation::Put { key, value } => {
                    let create = keys.get(key).map_or(revision, |item| item.create);
                    let item = KeyValue {
                        key: key.clone(),
                        value: value.clone(),
                        create,
                        modified: revision,
                    };
                    keys.insert(key.clone(), item);
                }
                Operation::Delete { key } => {
                    keys.remove(key);
                }
            }
        }
        self.past.push(keys);
        Some(revision)
    }
}

/// Something under way at a host.
#[derive(Debug, Clone)]
enum Pending {
    /// An effect that has not been done yet.
    Do(Effect, BootTime),
    /// A result on its way back.
    Tell(Event),
}

pub(crate) struct Node {
    id: HostId,
    host: Host,
    observer: Observer,
    /// What its kernel runs, and when each was started on the world's clock.
    alive: BTreeMap<ContainerId, Duration>,
    keeper_deadline: Option<BootTime>,
    keeper_seen: BTreeMap<ReplId, Epoch>,
    keeper_is_there: bool,
    conman_is_paused: bool,
    pending: Vec<Pending>,
    /// How fast its clock runs, in parts per million of the world's.
    rate_ppm: u64,
    beat: u64,
}

pub(crate) struct World {
    now: Duration,
    pub(crate) store: Store,
    pub(crate) nodes: Vec<Node>,
    next_ticket: u64,
    epochs_started: BTreeMap<(ReplId, Epoch), HostId>,
    pub(crate) most_alive: usize,
    pub(crate) starts: u32,
}

/// One thing that the test lets happen.
#[derive(Debug, Clone)]
pub(crate) enum Action {
    Advance(u16),
    Run(u8, u8, u8),
    Lose(u8, u8),
    Open(u8, u8, bool),
    Stop(u8, u8, u16),
    Drain(u8, u16),
    Undrain(u8),
    Pause(u8),
    Resume(u8),
    CrashConman(u8),
    KillKeeper(u8),
    StartKeeper(u8),
    Exit(u8),
    Observe(u8, u8),
}

pub(crate) fn repl(number: u8) -> ReplId {
    format!("repl-{}", number % 2).parse().expect("a name")
}

impl World {
    pub(crate) fn new(rates_ppm: &[u64]) -> Self {
        let mut store = Store::new();
        for number in 0..2 {
            let put = Operation::Put {
                key: keys::spec(&repl(number)),
                value: "{}".into(),
            };
            store.commit(&Txn {
                compares: vec![],
                operations: vec![put],
            });
        }
        let nodes = rates_ppm.iter().enumerate().map(|(number, rate_ppm)| {
            let id: HostId = format!("host-{number}").parse().expect("a name");
            Node {
                host: Host::new(id.clone(), 8, FAST),
                observer: Observer::new(id.clone(), FAST),
                id,
                alive: BTreeMap::new(),
                keeper_deadline: None,
                keeper_seen: BTreeMap::new(),
                keeper_is_there: false,
                conman_is_paused: false,
                pending: vec![],
                rate_ppm: *rate_ppm,
                beat: 0,
            }
        });
        Self {
            now: Duration::ZERO,
            store,
            nodes: nodes.collect(),
            next_ticket: 0,
            epochs_started: BTreeMap::new(),
            most_alive: 0,
            starts: 0,
        }
    }

    fn local(&self, node: usize) -> BootTime {
        let nanoseconds = self.now.as_nanos() * u128::from(self.nodes[node].rate_ppm) / 1_000_000;
        BootTime(nanoseconds as u64)
    }

    fn tell(&mut self, node: usize, event: Event) {
        let now = self.local(node);
        let effects = self.nodes[node].host.step(event, now);
        for effect in effects {
            match effect {
                // These are between conman, its callers and the kernel of one machine: never late.
                Effect::Kill { ids } => ids.iter().for_each(|id| self.kill(node, id)),
                Effect::Answer { .. }
                | Effect::Changed { .. }
                | Effect::Cleanup { .. }
                | Effect::Reached { .. } => {}
                other => self.nodes[node].pending.push(Pending::Do(other, now)),
            }
        }
    }

    fn kill(&mut self, node: usize, id: &ContainerId) {
        if self.nodes[node].alive.remove(id).is_some() {
            let dead = Event::Dead {
                id: id.clone(),
                death: Death::Program,
            };
            self.nodes[node].pending.push(Pending::Tell(dead));
        }
    }

    /// What no schedule can hold up: time passes, kernels kill.
    fn advance(&mut self, by: Duration) {
        let end = self.now + by;
        while self.now < end {
            self.now = (self.now + Duration::from_millis(25)).min(end);
            for node in 0..self.nodes.len() {
                // The worst machine: it takes the whole bound from the deadline to the death.
                let due = self.nodes[node]
                    .keeper_deadline
                    .is_some_and(|deadline| self.local(node) >= deadline.plus(KILL_BOUND));
                if due && self.nodes[node].keeper_is_there {
                    self.keeper_dies(node);
                }
                let now = self.local(node);
                let is_due = self.nodes[node].host.wakeup().is_some_and(|at| at <= now);
                if is_due && !self.nodes[node].conman_is_paused {
                    self.tell(node, Event::Tick);
                }
            }
        }
    }

    fn keeper_dies(&mut self, node: usize) {
        let ids: Vec<_> = self.nodes[node].alive.keys().cloned().collect();
        for id in ids {
            self.kill(node, &id);
        }
        self.nodes[node].keeper_is_there = false;
        self.nodes[node].keeper_deadline = None;
        self.nodes[node]
            .pending
            .push(Pending::Tell(Event::KeeperLost));
    }

    fn keeper_event(&self, node: usize) -> Event {
        let running = self.nodes[node].alive.keys();
        Event::Keeper {
            running: running.map(|id| (id.clone(), BootTime(0))).collect(),
        }
    }

    fn run(&mut self, node: usize, which: usize, staleness: usize) {
        if self.nodes[node].pending.is_empty() || self.nodes[node].conman_is_paused {
            return;
        }
        let pending = &mut self.nodes[node].pending;
        let mut which = which % pending.len();
        // Keepers come and go through one channel: of these, the first is told first.
        if is_of_keeper(&pending[which]) {
            which = pending.iter().position(is_of_keeper).unwrap_or(which);
        }
        match pending.remove(which) {
            Pending::Tell(event) => self.tell(node, event),
            Pending::Do(effect, sent) => {
                for event in self.perform(node, effect, sent, staleness) {
                    self.nodes[node].pending.push(Pending::Tell(event));
                }
            }
        }
    }

    fn perform(
        &mut self,
        node: usize,
        effect: Effect,
        sent: BootTime,
        staleness: usize,
    ) -> Vec<Event> {
        let me = self.nodes[node].id.clone();
        self.nodes[node].beat += 1;
        let beat = self.nodes[node].beat.to_string();
        match effect {
            Effect::Lease(LeaseEffect::Join) => {
                let read = self.store.now().get(&keys::host(&me)).cloned();
                let record = host_record();
                let (txn, resumed) = match read {
                    Some(item) => {
                        let mine = Incarnation(item.create.0);
                        (keys::resume(&me, mine, record, beat), Some(mine))
                    }
                    None => (keys::register(&me, record, beat), None),
                };
                let committed = self.store.commit(&txn);
                let event = committed.map_or(LeaseEvent::JoinFailed, |revision| {
                    let incarnation = resumed.unwrap_or(Incarnation(revision.0));
                    LeaseEvent::Joined { incarnation, sent }
                });
                vec![Event::Lease(event)]
            }
            Effect::Lease(LeaseEffect::Renew { incarnation }) => {
                let event = match self.store.commit(&keys::renew(&me, incarnation, beat)) {
                    Some(_) => LeaseEvent::RenewAcked { sent },
                    None => LeaseEvent::RenewRejected,
                };
                vec![Event::Lease(event)]
            }
            Effect::Lease(LeaseEffect::Arm { deadline }) => {
                if self.nodes[node].keeper_is_there {
                    let armed = &mut self.nodes[node].keeper_deadline;
                    *armed = Some(armed.map_or(deadline, |before| before.max(deadline)));
                }
                vec![]
            }
            Effect::ReadClaims { incarnation } => {
                let claims = self.claims(&me, incarnation, staleness);
                vec![Event::Claims {
                    incarnation,
                    claims,
                }]
            }
            Effect::Ask { repl, incarnation } => {
                let ownership = self.ask(&me, &repl, incarnation, beat, staleness);
                vec![Event::Asked { repl, ownership }]
            }
            Effect::Claim { repl, incarnation } => {
                let ownership = self.claim(&me, &repl, incarnation, beat, staleness);
                vec![Event::Claimed { repl, ownership }]
            }
            Effect::Confirm { repls, incarnation } => self.confirm(&me, &repls, incarnation, beat),
            Effect::Start { id } => vec![self.start(node, id)],
            Effect::Depart { departures } => self.depart(departures),
            Effect::ReadTargets => vec![Event::Targets {
                targets: self.targets(node),
            }],
            Effect::Prepare { .. } => vec![Event::Told],
            Effect::SayDraining { .. } => vec![Event::SaidDraining],
            Effect::Terminate { .. } => vec![],
            other => unreachable!("{other:?} is done at once"),
        }
    }

    fn confirm(
        &mut self,
        me: &HostId,
        repls: &[(ReplId, Epoch)],
        mine: Incarnation,
        beat: String,
    ) -> Vec<Event> {
        let txn = keys::confirm(repls, me, mine, beat);
        let registered = self.store.holds(&txn.compares[0]);
        let mut asked = vec![];
        for ((repl, epoch), compare) in repls.iter().zip(&txn.compares[1..]) {
            let ownership = match registered && self.store.holds(compare) {
                true => Ownership::Mine { epoch: *epoch },
                false => Ownership::NotMine(None),
            };
            let repl = repl.clone();
            asked.push(Event::Asked { repl, ownership });
        }
        self.store.commit(&txn);
        asked
    }

    /// As the driver does it: batches, and those that were rejected for another's sake again.
    fn depart(&mut self, departures: Vec<(ContainerId, Option<Target>)>) -> Vec<Event> {
        let departures = departures.into_iter().map(|(id, target)| Departure {
            id,
            heir: target.map(|target| Heir {
                record: owner_record(&target.host, target.incarnation),
                host: target.host,
                incarnation: target.incarnation,
            }),
        });
        let mut events = vec![];
        for mut batch in departure::split(departures.collect()) {
            let mut departed = vec![];
            while !batch.is_empty() {
                let txn = departure::transaction(&batch);
                if let Some(revision) = self.store.commit(&txn) {
                    for departure in batch.drain(..) {
                        let left = match &departure.heir {
                            Some(heir) => {
                                self.tell_heir(&heir.host, &departure.id.repl, revision);
                                Left::HandedOff(Epoch(revision.0))
                            }
                            None => Left::Released,
                        };
                        departed.push((departure.id, left));
                    }
                } else {
                    let current = txn.compares.iter();
                    let current =
                        current.map(|compare| self.store.now().get(&compare.key).cloned());
                    let (known, again) = departure::judge(batch, &current.collect::<Vec<_>>());
                    assert!(!known.is_empty(), "rejected for nothing");
                    departed.extend(known.into_iter().map(|(one, left)| (one.id, left)));
                    batch = again;
                }
            }
            events.push(Event::Departed { departed });
        }
        events
    }

    fn tell_heir(&mut self, heir: &HostId, repl: &ReplId, revision: Revision) {
        if let Some(heir) = self.find(heir) {
            let repls = vec![(repl.clone(), Epoch(revision.0))];
            let told = Event::HandedOff { repls };
            self.nodes[heir].pending.push(Pending::Tell(told));
        }
    }

    fn find(&self, host: &HostId) -> Option<usize> {
        self.nodes.iter().position(|node| node.id == *host)
    }

    fn claims(&self, me: &HostId, mine: Incarnation, staleness: usize) -> Vec<Claim> {
        let items = self.store.read(staleness).values();
        items
            .filter_map(|item| keys::read_owner(item, decode).ok())
            .filter(|owner| owner.record.host == *me && owner.record.incarnation == mine)
            .map(|owner| Claim {
                id: ContainerId {
                    repl: owner.repl,
                    epoch: owner.epoch,
                },
                idle_timeout: None,
            })
            .collect()
    }

    fn ask(
        &mut self,
        me: &HostId,
        repl: &ReplId,
        mine: Incarnation,
        beat: String,
        staleness: usize,
    ) -> Ownership {
        let item = self.store.read(staleness).get(&keys::owner(repl)).cloned();
        let owner = item.and_then(|item| keys::read_owner(&item, decode).ok());
        match owner {
            Some(owner) if owner.record.host == *me && owner.record.incarnation == mine => {
                let txn = keys::confirm(&[(repl.clone(), owner.epoch)], me, mine, beat);
                match self.store.commit(&txn) {
                    Some(_) => Ownership::Mine { epoch: owner.epoch },
                    None => Ownership::NotMine(None),
                }
            }
            _ => Ownership::NotMine(None),
        }
    }

    fn claim(
        &mut self,
        me: &HostId,
        repl: &ReplId,
        mine: Incarnation,
        beat: String,
        staleness: usize,
    ) -> Ownership {
        let read = self.store.read(staleness);
        let owner = read.get(&keys::owner(repl));
        let owner = owner.and_then(|item| keys::read_owner(item, decode).ok());
        let create = |key: &String| read.get(key).map_or(Revision::ABSENT, |item| item.create);
        let host_create = owner.as_ref().map_or(Revision::ABSENT, |owner| {
            create(&keys::host(&owner.record.host))
        });
        let spec_create = create(&keys::spec(repl));
        let Some(free) = keys::freedom(owner.as_ref(), host_create) else {
            return self.ask(me, repl, mine, beat, staleness);
        };
        let record = owner_record(me, mine);
        let txn = keys::claim(repl, free, spec_create, me, mine, record);
        match self.store.commit(&txn) {
            Some(revision) => Ownership::Mine {
                epoch: Epoch(revision.0),
            },
            None => Ownership::NotMine(None),
        }
    }

    /// What the keeper does with a start: it refuses past its deadline, and an epoch that it has seen.
    fn start(&mut self, node: usize, id: ContainerId) -> Event {
        let now = self.local(node);
        let world_now = self.now;
        let keeper = &mut self.nodes[node];
        let is_late = keeper
            .keeper_deadline
            .is_none_or(|deadline| now >= deadline);
        let is_old = keeper.keeper_seen.get(&id.repl) >= Some(&id.epoch);
        if !keeper.keeper_is_there || is_late || is_old {
            let refusal = model::api::Refusal::new(model::api::RefusalCode::StartFailed, "refused");
            return Event::StartFailed { id, refusal };
        }
        keeper.keeper_seen.insert(id.repl.clone(), id.epoch);
        keeper.alive.insert(id.clone(), world_now);
        self.starts += 1;
        let before = self
            .epochs_started
            .insert((id.repl.clone(), id.epoch), self.nodes[node].id.clone());
        assert_eq!(before, None, "{id} was started twice");
        Event::Started {
            id,
            idle_timeout: None,
        }
    }

    fn observe(&mut self, node: usize, staleness: usize) {
        if self.nodes[node].conman_is_paused {
            return;
        }
        let read = self.store.read(staleness);
        let seen: Vec<Seen> = read
            .values()
            .filter_map(|item| {
                let host: HostId = item.key.strip_prefix(keys::HOSTS)?.parse().ok()?;
                let beat = read.get(&keys::beat(&host));
                Some(Seen {
                    beat: beat.map_or(Revision::ABSENT, |beat| beat.modified),
                    incarnation: Incarnation(item.create.0),
                    host,
                })
            })
            .collect();
        let now = RawTime(self.local(node).0);
        for theft in self.nodes[node].observer.step(&seen, now) {
            let seen = theft.seen;
            let txn = keys::steal(&seen.host, seen.incarnation, seen.beat);
            self.store.thefts += u32::from(self.store.commit(&txn).is_some());
        }
    }

    pub(crate) fn act(&mut self, action: &Action) {
        let count = self.nodes.len();
        let at = |number: &u8| usize::from(*number) % count;
        match action {
            Action::Advance(milliseconds) => {
                self.advance(Duration::from_millis((*milliseconds).into()));
            }
            Action::Run(node, which, staleness) => {
                self.run(at(node), (*which).into(), (*staleness).into());
            }
            // A transaction that was sent is committed, and its answer lost; a delivery stays.
            Action::Lose(node, which) => self.lose(at(node), (*which).into()),
            Action::Open(node, number, knows) => {
                let ticket = self.ticket();
                let owner = self.store.now().get(&keys::owner(&repl(*number)));
                let epoch = owner.filter(|_| *knows).map(|item| Epoch(item.modified.0));
                let repl = repl(*number);
                let open = Event::Open {
                    ticket,
                    repl,
                    epoch,
                };
                self.nodes[at(node)].pending.push(Pending::Tell(open));
            }
            Action::Stop(node, number, grace_ms) => {
                let ticket = self.ticket();
                let repl = repl(*number);
                if let Some(item) = self.store.now().get(&keys::owner(&repl)) {
                    let stop = Event::Stop {
                        ticket,
                        repl,
                        epoch: Epoch(item.modified.0),
                        grace: Duration::from_millis((*grace_ms).into()),
                    };
                    self.nodes[at(node)].pending.push(Pending::Tell(stop));
                }
            }
            Action::Drain(node, grace_ms) => {
                let ticket = self.ticket();
                let order = DrainOrder {
                    grace: Duration::from_millis((*grace_ms).into()),
                    budget: None,
                };
                let drain = Event::Drain { ticket, order };
                self.nodes[at(node)].pending.push(Pending::Tell(drain));
            }
            Action::Undrain(node) => {
                self.nodes[at(node)]
                    .pending
                    .push(Pending::Tell(Event::Undrain));
            }
            Action::Pause(node) => self.nodes[at(node)].conman_is_paused = true,
            Action::Resume(node) => self.nodes[at(node)].conman_is_paused = false,
            Action::CrashConman(node) => self.crash(at(node)),
            Action::KillKeeper(node) => {
                if self.nodes[at(node)].keeper_is_there {
                    self.keeper_dies(at(node));
                }
            }
            Action::StartKeeper(node) => {
                let node = at(node);
                if !self.nodes[node].keeper_is_there {
                    self.nodes[node].keeper_is_there = true;
                    self.nodes[node].keeper_seen.clear();
                    let event = self.keeper_event(node);
                    self.nodes[node].pending.push(Pending::Tell(event));
                }
            }
            Action::Exit(node) => {
                let first = self.nodes[at(node)].alive.keys().next().cloned();
                if let Some(id) = first {
                    self.kill(at(node), &id);
                }
            }
            Action::Observe(node, staleness) => self.observe(at(node), (*staleness).into()),
        }
        self.check();
    }

    fn lose(&mut self, node: usize, which: usize) {
        let pending = &self.nodes[node].pending;
        if pending.is_empty() {
            return;
        }
        let which = which % pending.len();
        if let Pending::Do(Effect::Lease(LeaseEffect::Renew { incarnation }), _) = pending[which] {
            self.nodes[node].pending.remove(which);
            let me = self.nodes[node].id.clone();
            self.store
                .commit(&keys::renew(&me, incarnation, "lost".into()));
            let failed = Event::Lease(LeaseEvent::RenewFailed);
            self.nodes[node].pending.push(Pending::Tell(failed));
        }
    }

    fn crash(&mut self, node: usize) {
        let id = self.nodes[node].id.clone();
        // What was sent to the store may still be committed; what was not is forgotten.
        let pending = std::mem::take(&mut self.nodes[node].pending);
        for effect in pending.into_iter().step_by(2) {
            if let Pending::Do(effect, sent) = effect
                && !matches!(
                    effect,
                    Effect::Start { .. } | Effect::Lease(LeaseEffect::Arm { .. })
                )
            {
                self.perform(node, effect, sent, 0);
            }
        }
        self.nodes[node].host = Host::new(id.clone(), 8, FAST);
        self.nodes[node].observer = Observer::new(id, FAST);
        self.nodes[node].conman_is_paused = false;
        if self.nodes[node].keeper_is_there {
            let event = self.keeper_event(node);
            self.nodes[node].pending.push(Pending::Tell(event));
        }
    }

    fn targets(&self, not: usize) -> Vec<Target> {
        let others = self.nodes.iter().enumerate().filter(|(n, _)| *n != not);
        others
            .filter_map(|(_, node)| {
                let item = self.store.now().get(&keys::host(&node.id))?;
                Some(Target {
                    host: node.id.clone(),
                    incarnation: Incarnation(item.create.0),
                    room: 8,
                })
            })
            .collect()
    }

    fn ticket(&mut self) -> model::host::container::Ticket {
        self.next_ticket += 1;
        model::host::container::Ticket(self.next_ticket)
    }

    /// The invariant: at most one container of each repl is alive, on whatever host.
    fn check(&mut self) {
        for number in 0..2 {
            let alive: Vec<_> = self
                .nodes
                .iter()
                .flat_map(|node| node.alive.keys().map(move |id| (&node.id, id)))
                .filter(|(_, id)| id.repl == repl(number))
                .collect();
            assert!(alive.len() <= 1, "two alive at {:?}: {alive:?}", self.now);
            self.most_alive = self.most_alive.max(alive.len());
        }
    }

    /// Lets everything that is under way happen, in order, for `rounds` of 100 ms.
    pub(crate) fn settle(&mut self, rounds: usize) {
        for _ in 0..rounds {
            self.advance(Duration::from_millis(100));
            for node in 0..self.nodes.len() {
                self.act(&Action::StartKeeper(node as u8));
                self.act(&Action::Resume(node as u8));
                for _ in 0..8 {
                    self.run(node, 0, 0);
                }
                self.observe(node, 0);
            }
            self.check();
        }
    }

    /// Whether this repl has a container now.
    pub(crate) fn is_alive(&self, number: u8) -> bool {
        let mut ids = self.nodes.iter().flat_map(|node| node.alive.keys());
        ids.any(|id| id.repl == repl(number))
    }

    /// Everything that a failure's reader needs.
    pub(crate) fn story(&self) -> String {
        let nodes = self.nodes.iter().map(|node| {
            let (host, pending, alive) = (&node.host, &node.pending, &node.alive);
            let keeper = (
                node.keeper_is_there,
                node.keeper_deadline,
                &node.keeper_seen,
            );
            format!("{host:?}\n  alive {alive:?}\n  keeper {keeper:?}\n  pending {pending:?}\n")
        });
        format!(
            "at {:?}\n{}{:?}",
            self.now,
            nodes.collect::<String>(),
            self.store.now()
        )
    }

    /// Which hosts have a lease and know what they own.
    pub(crate) fn ready(&self) -> usize {
        (0..self.nodes.len())
            .filter(|node| self.nodes[*node].host.is_ready(self.local(*node)))
            .count()
    }
}

fn is_of_keeper(pending: &Pending) -> bool {
    matches!(
        pending,
        Pending::Tell(Event::Keeper { .. } | Event::KeeperLost)
    )
}

fn host_record() -> String {
    let record = HostRecord {
        address: "unix:/nowhere".into(),
        boot_id: String::new(),
        state: HostState::Active,
        capacity: 8,
        process: 1,
    };
    serde_json::to_string(&record).expect("plain values")
}

fn owner_record(host: &HostId, incarnation: Incarnation) -> String {
    let record = OwnerRecord {
        host: host.clone(),
        incarnation,
        nonce: 0,
    };
    serde_json::to_string(&record).expect("plain values")
}

fn decode<T: serde::de::DeserializeOwned>(value: &str) -> Option<T> {
    serde_json::from_str(value).ok()
}
