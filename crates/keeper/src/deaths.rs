//! The keeper's other half: deaths, asked for or not.
//!
//! Every death is noticed in one place, by reaping. SIGCHLD only says that it is time to look.

use std::collections::BTreeSet;

use model::id::ContainerId;
use model::wire::keeper::{Event, FromKeeper, KeeperRefusalCode, WireExit};
use rustix::process::{Signal, WaitOptions};
use serde_json::json;

use crate::clock::boot_now;
use crate::container::{Container, News, Phase, Reaped};
use crate::failure::refused;
use crate::manager::Word;
use crate::note::{Level, note};
use crate::processes;
use crate::server::{GOING_DOWN_MAX, Server};
use crate::shared;
use crate::sys;

impl Server<'_> {
    /// Kills containers, all at once.
    pub(crate) fn kill(&mut self, ids: &[ContainerId]) {
        let processes = if ids.iter().any(|id| self.is_plain_process(id)) {
            processes::all()
        } else {
            Vec::new()
        };
        for id in ids {
            let refusal = refused(KeeperRefusalCode::Failed, "start", "it was killed");
            self.refuse_ordered(id, refusal);
        }
        self.watched.kill(ids);
        for id in ids {
            self.watched.lift(id);
        }
        if self.kill_by_one_write(ids) {
            return;
        }
        // First every PID 1, which is what kills; then what is slower.
        for pass in [Container::kill_init_of_native, Container::finish_killing] {
            for id in ids {
                if let Some(container) = self.containers.get_mut(id) {
                    pass(container, &processes);
                }
            }
        }
    }

    /// When these are all that is alive: one write, and the kernel goes through them by itself. Whether it was done.
    fn kill_by_one_write(&mut self, ids: &[ContainerId]) -> bool {
        let named: BTreeSet<&ContainerId> = ids.iter().collect();
        let is_alive = |container: &&Container| !matches!(container.phase, Phase::Ended(_));
        let mut alive = self.containers.values().filter(is_alive);
        let Some(cgroup) = alive.next().and_then(Container::cgroup_of_host) else {
            return false;
        };
        let all = self.containers.values().filter(is_alive).all(|container| {
            named.contains(&container.id) && container.cgroup_of_host() == Some(cgroup)
        });
        // A kernel without `cgroup.kill` refuses it: then one by one.
        if !all || shared::write_file(cgroup.join("cgroup.kill"), "1").is_err() {
            return false;
        }
        for id in ids {
            if let Some(container) = self.containers.get_mut(id) {
                container.killed();
            }
        }
        true
    }

    fn is_plain_process(&self, id: &ContainerId) -> bool {
        self.containers
            .get(id)
            .is_some_and(Container::is_plain_process)
    }

    pub(crate) fn take_signals(&mut self) {
        while let Some(signal) = sys::read_signal(&self.signals) {
            if signal != libc::SIGCHLD && self.down_by.is_none() {
                self.go_down();
            }
        }
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get();
            let is_it = |container: &&mut Container| {
                container.pid == pid && !matches!(container.phase, Phase::Ended(_))
            };
            self.preparer.reaped(pid);
            self.watched.reaped(pid);
            // Others are preparers, guards, and orphans of plain processes: reaped, and that is all.
            if let Some(container) = self.containers.values_mut().find(is_it) {
                let news = container.take_reports();
                let id = container.id.clone();
                if let News::Started = news {
                    self.has_started(&id);
                }
                self.reaped(&id, processes::wire_exit(status));
            }
        }
        self.end_orphans();
    }

    fn reaped(&mut self, id: &ContainerId, status: WireExit) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let plain = container.is_plain_process();
        self.watched.unlimit(id);
        match container.reaped(status) {
            Reaped::StartFailed(request, refusal) => {
                self.containers.remove(id);
                self.refuse_start(id, request, refusal);
            }
            Reaped::Exited(exit) if plain => self.orphaned.push((id.clone(), exit)),
            Reaped::Exited(exit) => self.tell_exited(id.clone(), exit),
        }
    }

    fn tell_exited(&mut self, id: ContainerId, exit: WireExit) {
        let event = Event::Exited { id, exit };
        self.say(&FromKeeper::Event { event }, &[]);
    }

    /// The keeper is the subreaper of plain processes: what an init that was itself killed has left comes here,
    /// and is killed before the container is called dead. Each of their deaths brings us here again.
    fn end_orphans(&mut self) {
        if self.orphaned.is_empty() {
            return;
        }
        let all = processes::all();
        let this = std::process::id() as i32;
        let orphans: Vec<_> = all
            .iter()
            .filter(|process| process.parent == this)
            .filter(|process| !self.containers.values().any(|held| held.pid == process.pid))
            .filter(|process| !self.preparer.is_one(process.pid))
            .filter(|process| !self.watched.is_guard(process.pid))
            .collect();
        if orphans.is_empty() {
            for (id, exit) in std::mem::take(&mut self.orphaned) {
                self.tell_exited(id, exit);
            }
        }
        for orphan in orphans {
            for process in processes::descendants(&all, orphan.pid) {
                processes::signal(process.pid, Signal::KILL);
            }
            processes::signal(orphan.pid, Signal::KILL);
        }
    }

    fn go_down(&mut self) {
        note(
            Level::Info,
            "going down",
            json!({"containers": self.alive()}),
        );
        self.beats.tell(&Word::Stopping);
        self.book.go_down();
        self.down_by = Some(boot_now().plus(GOING_DOWN_MAX));
        let held = self.containers.keys().chain(self.ordered.keys());
        let held = held.chain(self.watched.held.keys());
        let all: Vec<ContainerId> = held.cloned().collect();
        self.kill(&all);
    }
}
