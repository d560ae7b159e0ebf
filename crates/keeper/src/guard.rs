//! The guard: a child of the keeper that outlives it for a moment, kills what the keeper could only watch, and lifts the
//! limits of what dies with the keeper.
//!
//! ```text
//! keeper                          guard
//!   │ Add{container} + pidfd       │
//!   │ Limit{container} + file      │
//!   │ Drop{container}              │
//!   │ ───────────────────────────► │  holds the handles and the control files
//!   ✝ (end of file)                │  lifts the limits, SIGKILL to every process of a handle, then ends
//! ```
//!
//! The keeper's own children die with it by the kernel's hand. Containers that others have started do not; if the
//! keeper is killed at its deadline because it was stopped, this is what kills them. What is left is the case
//! in which the guard is stopped too.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use model::id::ContainerId;
use model::wire::keeper::KeeperRefusal;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::failure::Step;
use crate::link::{Link, LinkState};
use crate::packet::{self, Received, Wait};
use crate::quota::{Quota, Quotas};
use crate::sys::{self, Cloned};

/// The guard's niceness: it sleeps until it is needed, and then at once.
const PRIORITY: i32 = -20;

/// What the guard is told.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    /// Hold this one; its handle comes along.
    Add(ContainerId),
    /// This one's limit of processor time is lifted by this; the control file comes along.
    Limit(ContainerId, String),
    /// This one has ended.
    Drop(ContainerId),
}

/// The keeper's side.
pub(crate) struct Guard {
    link: Link,
    pid: i32,
}

impl Guard {
    /// Forks one.
    pub(crate) fn fork() -> Result<Self, KeeperRefusal> {
        let (keepers, guards) = packet::pair().step("make guard socket")?;
        match sys::clone3(0, None).step("fork guard")? {
            Cloned::Parent { pid, .. } => Ok(Self {
                link: Link::new(keepers),
                pid,
            }),
            Cloned::Child => {
                let worked =
                    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| guard(&guards)));
                sys::exit_now(if worked.is_ok() { 0 } else { 1 })
            }
        }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Has it hold one more.
    pub(crate) fn add(&mut self, id: &ContainerId, pidfd: BorrowedFd<'_>) -> LinkState {
        self.say(&Order::Add(id.clone()), &[pidfd])
    }

    /// Has it hold the control file of one more limit.
    pub(crate) fn limit(&mut self, id: &ContainerId, quota: &Quota) -> LinkState {
        let unlimited = quota.unlimited().to_owned();
        self.say(&Order::Limit(id.clone(), unlimited), &[quota.file()])
    }

    /// Has it let go of one that has ended.
    pub(crate) fn drop_one(&mut self, id: &ContainerId) -> LinkState {
        self.say(&Order::Drop(id.clone()), &[])
    }

    fn say(&mut self, order: &Order, fds: &[BorrowedFd<'_>]) -> LinkState {
        // In order, and at once: a guard that is stopped fills its socket and is taken for gone.
        match self.link.send(order, fds) {
            LinkState::Up if !self.link.is_waiting() => LinkState::Up,
            _ => LinkState::Broken,
        }
    }
}

/// The guard's life. The signals that the keeper has blocked stay so: a Ctrl-C is the keeper's business.
fn guard(keeper: &OwnedFd) {
    if sys::close_all_but(&mut [0, 1, 2, keeper.as_raw_fd()]).is_err() {
        return;
    }
    // Nobody's terminal, and nobody's group: what is sent to the keeper's is not for it. It is no leader yet.
    let _ = rustix::process::setsid();
    // What dies is limited by nothing then, and must not have to wait for the guard. Fails for no root.
    let _ = rustix::process::setpriority_process(None, PRIORITY);
    let mut held: BTreeMap<ContainerId, OwnedFd> = BTreeMap::new();
    let mut quotas = Quotas::default();
    while let Received::Packet(bytes, fds) = packet::receive(keeper, Wait::Yes) {
        match (serde_json::from_slice(&bytes), fds.into_iter().next()) {
            (Ok(Order::Add(id)), Some(pidfd)) => drop(held.insert(id, pidfd)),
            (Ok(Order::Limit(id, unlimited)), Some(file)) => {
                quotas.insert(id, Quota::new(file, unlimited));
            }
            (Ok(Order::Drop(id)), _) => {
                held.remove(&id);
                quotas.remove(&id);
            }
            _ => return,
        }
    }
    quotas.lift_all();
    for pidfd in held.values() {
        // Fails only for one that has ended.
        let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
    }
}
