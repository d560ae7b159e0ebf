//! What happens to a host: its machine is told, and its effects are done after the time that they take.

use std::time::Duration;

use model::api::{Refusal, RefusalCode};
use model::host::{Answer, Death, Effect, Event, Host};
use model::id::{ContainerId, Ticket};
use model::lease::{LeaseEffect, LeaseEvent};
use model::time::BootTime;
use model::timing::KILL_BOUND;

use super::node::{Conman, Machine};
use super::plan::{Fault, assumed};
use super::queue::Happening;
use super::report::Violation;
use super::{Fleet, repl_number};

impl Fleet {
    // ---- its machine ----

    pub(super) fn plan_wake(&mut self, host: u32) {
        let node = &mut self.nodes[host as usize];
        if node.quiet_since.is_some() || !node.is_running() {
            return;
        }
        let Some(at) = node.host.wakeup() else {
            return;
        };
        let at = node.world_time(at).max(self.now);
        if node.wake_at.is_none_or(|planned| planned > at) {
            node.wake_at = Some(at);
            self.queue.plan(at, Happening::Wake { host });
        }
    }

    pub(super) fn wake(&mut self, host: u32) {
        let node = &mut self.nodes[host as usize];
        if node.wake_at.is_none_or(|at| at > self.now) {
            return;
        }
        node.wake_at = None;
        if !node.is_running() || node.quiet_since.is_some() {
            return;
        }
        // The very time that it asked for: a clock that is read later would move all beats.
        let due = node.host.wakeup();
        let local = node.clock(self.now);
        if let Some(due) = due.filter(|due| node.world_time(*due) <= self.now) {
            let is_just_due = local.since(due) < Duration::from_micros(1);
            self.step(host, Event::Tick, if is_just_due { due } else { local });
        }
        self.plan_wake(host);
    }

    /// A result is back, unless it was for a conman that is no more.
    pub(super) fn told(&mut self, host: u32, life: u32, event: Event) {
        let node = &mut self.nodes[host as usize];
        if node.life != life || node.machine == Machine::Gone || node.conman == Conman::Dead {
            return;
        }
        if !node.is_running() {
            node.deferred.push(event);
            return;
        }
        self.tell(host, event);
    }

    pub(super) fn tell(&mut self, host: u32, event: Event) {
        self.touch(host);
        let acked = match event {
            Event::Lease(LeaseEvent::RenewAcked { sent }) => Some(sent),
            _ => None,
        };
        let local = self.nodes[host as usize].clock(self.now);
        self.step(host, event, local);
        if let Some(sent) = acked {
            self.rest(host, sent);
        }
        self.plan_wake(host);
    }

    pub(super) fn step(&mut self, host: u32, event: Event, local: BootTime) {
        let node = &mut self.nodes[host as usize];
        let effects = node.host.step(event, local);
        let is_fenced = node.host.lease().is_fenced();
        if is_fenced && !node.was_fenced {
            self.fenced(host);
        }
        self.nodes[host as usize].was_fenced = is_fenced;
        self.do_all(host, effects, local);
    }

    fn fenced(&mut self, host: u32) {
        self.report.fences += 1;
        let is_blameless = self.reason(host) == "nothing";
        self.report.false_fences += u64::from(is_blameless);
    }

    pub(super) fn do_all(&mut self, host: u32, effects: Vec<Effect>, local: BootTime) {
        for effect in effects {
            self.begin(host, effect, local);
        }
    }

    /// Begins what a machine wants done at its time.
    fn begin(&mut self, host: u32, effect: Effect, local: BootTime) {
        match effect {
            Effect::Lease(LeaseEffect::Arm { deadline }) => {
                if let Some(book) = &mut self.nodes[host as usize].keeper {
                    // A refusal is the keeper's: what it armed before holds.
                    let _ = book.arm(local, deadline);
                    self.arm_kernel(host);
                }
            }
            Effect::Start { id } => self.start(host, id),
            Effect::Kill { ids } => {
                for id in ids {
                    self.kill(host, id);
                }
            }
            // Programs here end at once when they are asked to.
            Effect::Terminate { id } => self.kill(host, id),
            Effect::Prepare { .. } => {
                let back = self.network(host) + self.network(host);
                self.plan_tell(host, self.now + back, Event::Told);
            }
            Effect::Answer { ticket, answer } => self.answered(host, ticket, answer),
            Effect::Changed { .. } | Effect::Cleanup { .. } | Effect::Reached { .. } => {}
            effect => self.send(host, effect, local),
        }
    }

    pub(super) fn plan_tell(&mut self, host: u32, at: u64, event: Event) {
        let life = self.nodes[host as usize].life;
        let event = Box::new(event);
        self.queue.plan(at, Happening::Tell { host, life, event });
    }

    // ---- containers ----

    fn start(&mut self, host: u32, id: ContainerId) {
        let local = self.nodes[host as usize].clock(self.now);
        let admitted = match &mut self.nodes[host as usize].keeper {
            Some(book) => book.admit(local, &id).map_err(|refused| refused.message),
            None => Err("no keeper".to_owned()),
        };
        if let Err(message) = admitted {
            let refusal = Refusal::new(RefusalCode::StartFailed, message);
            return self.plan_tell(host, self.now, Event::StartFailed { id, refusal });
        }
        self.lives(host, &id);
        let takes = self.draw(host, assumed::START);
        self.plan_tell(
            host,
            self.now + takes,
            Event::Started {
                id,
                idle_timeout: None,
            },
        );
    }

    fn lives(&mut self, host: u32, id: &ContainerId) {
        let repl = repl_number(&id.repl);
        self.report.starts += 1;
        self.trace(1, repl as u64 ^ u64::from(host) << 32);
        if self.highest[repl] >= id.epoch {
            let what = Violation::EpochTwice(id.to_string());
            self.report.violations.push(what);
        }
        self.highest[repl] = self.highest[repl].max(id.epoch);
        if let Some((other, _)) = self.alive[repl] {
            let paused = &self.nodes[other as usize];
            if paused.machine == Machine::Paused || paused.is_overdue {
                self.report.pause_windows += 1;
            } else {
                let what = format!("{id} on h{host}, and on h{other}");
                self.report.violations.push(Violation::TwoAlive(what));
            }
        }
        self.alive[repl] = Some((host, id.epoch));
        let node = &mut self.nodes[host as usize];
        node.alive.insert(id.repl.clone(), id.epoch);
    }

    fn kill(&mut self, host: u32, id: ContainerId) {
        let takes = if self.nodes[host as usize].has(Fault::SlowKill) {
            assumed::KILL_SLOW
        } else {
            assumed::KILL
        };
        let at = self.now + self.draw(host, takes);
        let keeper = self.nodes[host as usize].keeper_life;
        self.queue.plan(at, Happening::Dies { host, keeper, id });
    }

    pub(super) fn dies(&mut self, host: u32, keeper: u32, id: &ContainerId) {
        let node = &self.nodes[host as usize];
        if node.keeper_life != keeper || node.machine == Machine::Gone {
            return;
        }
        self.is_dead(host, id, Death::Program);
    }

    /// A container is dead; its user is without it.
    pub(super) fn is_dead(&mut self, host: u32, id: &ContainerId, death: Death) {
        let node = &mut self.nodes[host as usize];
        if node.alive.get(&id.repl) != Some(&id.epoch) {
            return;
        }
        node.alive.remove(&id.repl);
        let life = node.life;
        let repl = repl_number(&id.repl);
        self.trace(2, repl as u64);
        if self.alive[repl] == Some((host, id.epoch)) {
            self.alive[repl] = None;
            self.user_lost(repl, host);
        }
        let id = id.clone();
        self.told(host, life, Event::Dead { id, death });
    }

    // ---- its keeper ----

    /// Plans the kernel's kill at the deadline, unless that is planned, or nobody goes through this host's beats.
    pub(super) fn arm_kernel(&mut self, host: u32) {
        let node = &mut self.nodes[host as usize];
        let deadline = node.keeper.as_ref().and_then(|book| book.deadline());
        if let Some(deadline) = deadline.filter(|_| !node.is_armed) {
            node.is_armed = true;
            let keeper = node.keeper_life;
            // As late as is allowed.
            let at = node.world_time(deadline.plus(KILL_BOUND));
            self.queue.plan(at, Happening::KernelKills { host, keeper });
        }
    }

    pub(super) fn kernel_kills(&mut self, host: u32, keeper: u32) {
        let node = &mut self.nodes[host as usize];
        if node.keeper_life != keeper || node.machine == Machine::Gone {
            return;
        }
        node.is_armed = false;
        if node.quiet_since.is_some() {
            return;
        }
        if node.machine == Machine::Paused {
            node.is_overdue = true;
            return;
        }
        let deadline = node.keeper.as_ref().and_then(|book| book.deadline());
        let at = deadline.map(|deadline| node.world_time(deadline.plus(KILL_BOUND)));
        if at.is_some_and(|at| at > self.now) {
            return self.arm_kernel(host);
        }
        self.keeper_dies(host);
    }

    /// The keeper is gone, and everything that it held; another comes.
    pub(super) fn keeper_dies(&mut self, host: u32) {
        self.touch(host);
        let node = &mut self.nodes[host as usize];
        if node.keeper.take().is_none() {
            return;
        }
        node.keeper_life += 1;
        node.is_armed = false;
        node.is_overdue = false;
        let (life, keeper) = (node.life, node.keeper_life);
        self.told(host, life, Event::KeeperLost);
        let alive = self.nodes[host as usize].alive.clone();
        for (repl, epoch) in alive {
            self.is_dead(host, &ContainerId { repl, epoch }, Death::WithKeeper);
        }
        let at = self.now + self.draw(host, assumed::RESTART);
        self.queue
            .plan(at, Happening::KeeperStarts { host, keeper });
    }

    pub(super) fn keeper_starts(&mut self, host: u32, keeper: u32) {
        let node = &mut self.nodes[host as usize];
        if node.keeper_life == keeper && node.machine != Machine::Gone && node.keeper.is_none() {
            node.keeper = Some(keeper::book::Book::default());
            self.keeper_connects(host);
        }
    }

    /// A conman and a keeper find each other.
    pub(super) fn keeper_connects(&mut self, host: u32) {
        let node = &self.nodes[host as usize];
        if node.keeper.is_some() {
            let local = node.clock(self.now);
            let running = node.alive.iter().map(|(repl, epoch)| {
                let id = ContainerId {
                    repl: repl.clone(),
                    epoch: *epoch,
                };
                (id, local)
            });
            let running = running.collect();
            let life = node.life;
            self.told(host, life, Event::Keeper { running });
        }
    }

    // ---- its conman ----

    /// Conman is gone: what it was told is forgotten, what it has sent is not.
    pub(super) fn conman_dies(&mut self, host: u32) -> u32 {
        self.touch(host);
        let node = &mut self.nodes[host as usize];
        node.life += 1;
        node.conman = Conman::Dead;
        node.deferred.clear();
        node.wake_at = None;
        node.was_fenced = false;
        let life = node.life;
        self.drop_asks(host);
        life
    }

    pub(super) fn conman_starts(&mut self, host: u32, life: u32) {
        let node = &mut self.nodes[host as usize];
        if node.life != life || node.machine == Machine::Gone {
            return;
        }
        node.conman = Conman::Running;
        node.host = Host::new(node.id.clone(), self.plan.capacity, self.plan.timing);
        self.keeper_connects(host);
        self.plan_wake(host);
    }

    /// A stopped conman, or machine, goes on: it hears what has come meanwhile.
    pub(super) fn goes_on(&mut self, host: u32) {
        if !self.nodes[host as usize].is_running() {
            return;
        }
        let deferred = std::mem::take(&mut self.nodes[host as usize].deferred);
        for event in deferred {
            self.tell(host, event);
        }
        self.plan_wake(host);
    }

    fn answered(&mut self, host: u32, ticket: Ticket, answer: Answer) {
        match answer {
            Answer::Opened { epoch } => self.let_in(host, ticket, epoch),
            Answer::Refused(refusal) => self.host_answers(host, ticket, Err(refusal)),
            Answer::Stopped | Answer::Drained(_) => {}
        }
    }
}
