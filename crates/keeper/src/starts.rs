//! Starts, from conman's request to its answer.
//!
//! ```text
//! Start ─► admitted, ordered ─► prepared ─► launched ─► reported ─► Started
//!             │                    │           │           │
//!             └────────────────────┴───────────┴───────────┴─► Refused, and nothing is left running
//! ```

use model::id::ContainerId;
use model::wire::keeper::{
    Answer, KeeperRefusal, KeeperRefusalCode, Launch, LaunchKind, NativePlan, START_MAX,
};
use rustix::event::PollFlags;
use serde_json::json;
use std::os::fd::{AsFd, OwnedFd};

use crate::clock::boot_now;
use crate::container::{Container, News, Ordered, Phase};
use crate::failure::refused;
use crate::link::LinkState;
use crate::note::{Level, note};
use crate::prepare::{Delivery, Heard, Prepared};
use crate::server::Server;

impl Server<'_> {
    /// Admits a start and has the preparer begin.
    pub(crate) fn start(
        &mut self,
        request: u64,
        id: ContainerId,
        launch: Box<Launch>,
    ) -> Result<(), KeeperRefusal> {
        self.launcher.supports(&launch)?;
        self.launcher
            .has_room(self.containers.len() + self.ordered.len())?;
        let program = self.launcher.read(&launch)?;
        let now = boot_now();
        self.book.admit(now, &id)?;
        if self.preparer.order(&id, &launch) == LinkState::Broken {
            // Its end is noticed by itself; this start was not tried by anybody.
            return Err(lost("the preparer takes no orders"));
        }
        let ordered = Ordered {
            request,
            until: now.plus(START_MAX),
            program,
            launch,
        };
        self.ordered.insert(id, ordered);
        Ok(())
    }

    /// Takes what the preparer has, and gives it what waits.
    pub(crate) fn take_delivery(&mut self, flags: PollFlags) {
        if flags.contains(PollFlags::OUT) && self.preparer.flush() == LinkState::Broken {
            return self.replace_preparer("it is gone");
        }
        match self.preparer.hear() {
            Heard::Delivery(Delivery::Ready { container, notes }, fds) => {
                // One that was killed meanwhile, or whose asker is gone: its fds are closed, and with them its mounts.
                if let Some(ordered) = self.ordered.remove(&container) {
                    self.launch(container, ordered, notes, fds);
                }
            }
            Heard::Delivery(Delivery::Failed { container, refusal }, _) => {
                self.refuse_ordered(&container, refusal);
            }
            Heard::Nothing => {}
            Heard::Gone => self.replace_preparer("it is gone"),
        }
    }

    fn launch(&mut self, id: ContainerId, ordered: Ordered, notes: Vec<String>, fds: Vec<OwnedFd>) {
        // The deadline may have moved while it was prepared, never backwards; past it this code does not run.
        let now = boot_now();
        let launched = match Prepared::from_fds(&ordered.launch, fds) {
            Some(prepared) => self
                .limit(&id, &ordered)
                .and_then(|()| self.launcher.launch(&id, &ordered, prepared)),
            None => Err(lost("the preparer delivered something else")),
        };
        match launched {
            Ok(launched) => {
                let container = Container::new(id.clone(), launched, &ordered, notes, now);
                self.containers.insert(id, container);
            }
            Err(refusal) => {
                self.watched.unlimit(&id);
                self.refuse_start(&id, Some(ordered.request), refusal);
            }
        }
    }

    fn limit(&mut self, id: &ContainerId, ordered: &Ordered) -> Result<(), KeeperRefusal> {
        match &ordered.launch.kind {
            LaunchKind::Native(NativePlan {
                cpu_quota: Some(quota),
                ..
            }) => self.watched.limit(id, quota),
            _ => Ok(()),
        }
    }

    /// Gives up a start that nothing runs of yet.
    pub(crate) fn refuse_ordered(&mut self, id: &ContainerId, refusal: KeeperRefusal) {
        if let Some(ordered) = self.ordered.remove(id) {
            self.refuse_start(id, Some(ordered.request), refusal);
        }
    }

    /// Answers a start that came to nothing, if somebody waits for the answer.
    pub(crate) fn refuse_start(
        &mut self,
        id: &ContainerId,
        request: Option<u64>,
        refusal: KeeperRefusal,
    ) {
        note(
            Level::Info,
            "start failed",
            json!({"container": id.to_string(), "step": refusal.step, "message": refusal.message}),
        );
        if let Some(request) = request {
            self.answer(request, Answer::Refused(refusal), &[]);
        }
    }

    pub(crate) fn take_reports(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let news = container.take_reports();
        if let News::Started = news {
            self.has_started(id);
        }
    }

    pub(crate) fn has_started(&mut self, id: &ContainerId) {
        let Some(mut container) = self.containers.remove(id) else {
            return;
        };
        container.phase = match container.phase {
            Phase::Starting(start) => {
                let request = start.request;
                container.phase = Phase::Running(start.fds);
                if let (Some(held), Some(fds)) = (container.held(), container.fds()) {
                    let with = [fds.pidfd.as_fd(), fds.control.as_fd()];
                    self.answer(request, Answer::Started(held), &with);
                }
                container.phase
            }
            other => other,
        };
        self.containers.insert(id.clone(), container);
    }

    /// Gives up what takes too long.
    pub(crate) fn give_up_late_starts(&mut self) {
        let now = boot_now();
        for container in self.containers.values_mut() {
            if let Phase::Starting(start) = &container.phase
                && start.until <= now
            {
                container.kill_init();
                container.fail(refused(
                    KeeperRefusalCode::TimedOut,
                    "start",
                    "the init did not report in time",
                ));
            }
        }
        let late: Vec<ContainerId> = self
            .ordered
            .iter()
            .filter(|(_, ordered)| ordered.until <= now)
            .map(|(id, _)| id.clone())
            .collect();
        for id in &late {
            let refusal = refused(
                KeeperRefusalCode::TimedOut,
                "prepare",
                "a file system did not answer in time",
            );
            self.refuse_ordered(id, refusal);
        }
        if !late.is_empty() {
            self.replace_preparer("it hangs");
        }
    }

    /// The orders that the old one had are lost with it.
    fn replace_preparer(&mut self, why: &str) {
        note(Level::Warn, "preparer replaced", json!({"why": why}));
        let lost_orders: Vec<ContainerId> = self.ordered.keys().cloned().collect();
        for id in &lost_orders {
            self.refuse_ordered(id, lost(&format!("the preparer was replaced: {why}")));
        }
        if let Err(refusal) = self.preparer.replace() {
            // Starts are refused from here on; what runs is as safe as before.
            note(
                Level::Warn,
                "no preparer",
                json!({"step": refusal.step, "message": refusal.message}),
            );
        }
    }
}

fn lost(message: &str) -> KeeperRefusal {
    refused(KeeperRefusalCode::Failed, "prepare", message)
}
