//! What goes wrong: when it comes, what it does, and how it ends.

use std::time::Duration;

use model::host::{Death, DrainOrder, Event, Host};
use model::id::{ContainerId, Ticket};
use model::timing::{KILL_BOUND, PREEMPTION_NOTICE};

use super::node::{Conman, Machine};
use super::plan::{Fault, Scope, assumed};
use super::queue::Happening;
use super::random::nanoseconds;
use super::{Fleet, Outage};

/// How long after a fault what it has begun is still put down to it.
const AFTERMATH_NS: u64 = 15_000_000_000;

impl Fleet {
    pub(super) fn plan_faults(&mut self) {
        let rates: Vec<(Fault, f64)> = self.plan.rates.iter().collect();
        for (fault, _) in rates {
            let hosts = match fault.scope() {
                Scope::Host => self.plan.hosts,
                Scope::Cell => 1,
            };
            for host in 0..hosts {
                // After the beginning, which takes some seconds.
                self.plan_strike(fault, host, 0, 10_000_000_000);
            }
        }
        if self.plan.lose_zone {
            self.queue.plan(self.calm_at / 2, Happening::ZoneLost);
        }
    }

    fn plan_strike(&mut self, fault: Fault, host: u32, count: u64, after: u64) {
        let rate = self.plan.rates.iter().find(|(one, _)| *one == fault);
        if let Some((_, per_hour)) = rate {
            let purpose = [u64::from(host), 5, fault as u64, count];
            let at = after.saturating_add(self.chance.next(per_hour, &purpose));
            if at < self.calm_at {
                let strikes = Happening::Strikes { fault, host, count };
                self.queue.plan(at, strikes);
            }
        }
    }

    pub(super) fn strikes(&mut self, fault: Fault, host: u32, count: u64) {
        self.plan_strike(fault, host, count + 1, self.now);
        match fault.scope() {
            Scope::Host => self.strike_host(fault, host),
            Scope::Cell => self.strike_cell(fault, count),
        }
    }

    fn lasts(&self, fault: Fault, host: u32) -> u64 {
        let (least, most) = fault.lasts_ms();
        let (least, most) = (Duration::from_millis(least), Duration::from_millis(most));
        let purpose = [u64::from(host), 8, fault as u64, self.now];
        self.chance.between(least, most, &purpose)
    }

    fn strike_host(&mut self, fault: Fault, host: u32) {
        let node = &self.nodes[host as usize];
        if !node.is_running() || node.has(Fault::Preemption) {
            return;
        }
        *self.report.faults.entry(fault.name()).or_default() += 1;
        self.trace(4 + fault as u64, host.into());
        self.touch(host);
        let until = self.now + self.lasts(fault, host);
        let node = &mut self.nodes[host as usize];
        node.last_fault = Some((fault, until));
        match fault {
            Fault::MachineCrash => return self.machine_goes(host),
            Fault::ConmanCrash => {
                let life = self.conman_dies(host);
                let at = self.now + self.restart(host);
                self.queue.plan(at, Happening::ConmanStarts { host, life });
                return self.watch(host);
            }
            Fault::KeeperCrash => {
                self.keeper_dies(host);
                return self.watch(host);
            }
            Fault::ConmanPause => node.conman = Conman::Stopped,
            Fault::VmPause => node.machine = Machine::Paused,
            Fault::Preemption => {
                let (life, ticket) = (node.life, Ticket(0));
                let order = DrainOrder {
                    grace: Duration::ZERO,
                    budget: Some(PREEMPTION_NOTICE),
                };
                self.told(host, life, Event::Drain { ticket, order });
            }
            _ => {}
        }
        let node = &mut self.nodes[host as usize];
        let known = node.wrong.entry(fault).or_default();
        *known = until.max(*known);
        self.queue.plan(until, Happening::Over { fault, host });
        if fault != Fault::SlowKill {
            self.watch(host);
        }
    }

    fn restart(&mut self, host: u32) -> u64 {
        let (least, most) = assumed::RESTART;
        let purpose = [u64::from(host), 9, self.now];
        self.chance.between(least, most, &purpose)
    }

    fn strike_cell(&mut self, fault: Fault, count: u64) {
        *self.report.faults.entry(fault.name()).or_default() += 1;
        self.trace(4 + fault as u64, 0);
        if fault == Fault::Wave {
            let zone = self.chance.draw(&[10, count]) % u64::from(self.plan.zones.max(1));
            for host in 0..self.plan.hosts {
                let is_there = u64::from(host % self.plan.zones.max(1)) == zone;
                let is_drawn = self
                    .chance
                    .draw(&[11, count, u64::from(host)])
                    .is_multiple_of(10);
                if is_there && is_drawn {
                    self.strike_host(Fault::Preemption, host);
                }
            }
            return;
        }
        let silences = matches!(
            fault,
            Fault::StoreOutage | Fault::SlowLeader | Fault::LateCommit
        );
        if silences {
            // What was sent before it comes is as it was.
            for host in 0..self.plan.hosts {
                self.touch(host);
                self.watch(host);
            }
        }
        let until = self.now + self.lasts(fault, 0);
        if silences && self.last_silence.is_none_or(|(_, known)| known < until) {
            self.last_silence = Some((fault, until));
        }
        let known = self.wrong.entry(fault).or_default();
        *known = until.max(*known);
        if fault == Fault::StoreOutage && self.outage.is_none() {
            self.outage = Some(Outage {
                since: self.now,
                fences_before: self.report.fences,
            });
        }
        self.queue.plan(until, Happening::Over { fault, host: 0 });
    }

    pub(super) fn over(&mut self, fault: Fault, host: u32) {
        if fault.scope() == Scope::Cell {
            self.wrong
                .retain(|one, until| *one != fault || *until > self.now);
            if fault == Fault::StoreOutage
                && !self.is_wrong(fault)
                && let Some(outage) = self.outage.take()
                && outage.fences_before == self.report.fences
            {
                let lasted = (self.now - outage.since) as f64 / 1e6;
                self.report.outage_survived_ms = self.report.outage_survived_ms.max(lasted);
            }
            return;
        }
        self.touch(host);
        let node = &mut self.nodes[host as usize];
        node.wrong
            .retain(|one, until| *one != fault || *until > self.now);
        if node.machine == Machine::Gone || node.has(fault) {
            return;
        }
        match fault {
            Fault::Preemption => self.machine_goes(host),
            Fault::ConmanPause if node.conman == Conman::Stopped => {
                node.conman = Conman::Running;
                self.goes_on(host);
            }
            Fault::VmPause if node.machine == Machine::Paused => {
                node.machine = Machine::Up;
                if node.is_overdue {
                    node.is_armed = true;
                    let keeper = node.keeper_life;
                    let at = self.now + nanoseconds(KILL_BOUND);
                    self.queue.plan(at, Happening::KernelKills { host, keeper });
                }
                self.goes_on(host);
            }
            _ => {}
        }
    }

    /// A machine is no more; another of its name comes.
    fn machine_goes(&mut self, host: u32) {
        self.machine_ends(host);
        let (least, most) = assumed::REPLACEMENT;
        let purpose = [u64::from(host), 12, self.now];
        let at = self.now + self.chance.between(least, most, &purpose);
        self.queue.plan(at, Happening::Boots { host });
    }

    fn machine_ends(&mut self, host: u32) {
        self.conman_dies(host);
        let alive = self.nodes[host as usize].alive.clone();
        for (repl, epoch) in alive {
            self.is_dead(host, &ContainerId { repl, epoch }, Death::WithKeeper);
        }
        let node = &mut self.nodes[host as usize];
        node.machine = Machine::Gone;
        node.keeper = None;
        node.keeper_life += 1;
        node.is_armed = false;
        node.is_overdue = false;
        node.wrong.clear();
        self.watch(host);
    }

    pub(super) fn boots(&mut self, host: u32) {
        let node = &mut self.nodes[host as usize];
        node.machine = Machine::Up;
        node.conman = Conman::Running;
        node.host = Host::new(node.id.clone(), self.plan.capacity, self.plan.timing);
        node.keeper = Some(keeper::book::Book::default());
        self.keeper_connects(host);
        self.plan_wake(host);
    }

    pub(super) fn lose_zone(&mut self) {
        self.zone_lost_at = Some(self.now);
        for host in (0..self.plan.hosts).step_by(self.plan.zones.max(1) as usize) {
            if self.nodes[host as usize].machine != Machine::Gone {
                self.machine_ends(host);
            }
        }
    }

    /// What a host's misfortune comes from.
    pub(super) fn reason(&self, host: u32) -> &'static str {
        let node = &self.nodes[host as usize];
        let zone = host.is_multiple_of(self.plan.zones.max(1));
        if self.zone_lost_at == Some(self.now) && zone {
            return "zone lost";
        }
        let lately = [node.last_fault, self.last_silence].into_iter().flatten();
        let mut lately = lately.filter(|(_, until)| until + AFTERMATH_NS > self.now);
        lately.next().map_or("nothing", |(fault, _)| fault.name())
    }
}
