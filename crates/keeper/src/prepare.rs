//! The preparer: a child of the keeper that does everything for a start that may have to wait for a disk.
//!
//! ```text
//! keeper                         preparer
//!   │ Order{container, files…}    │
//!   │ ──────────────────────────► │ opens the log and the witness' files, mounts the overlay and the binds
//!   │ ◄─── Ready{notes} + fds     │
//!   │ ◄─── Failed{refusal}        │ precisely why
//!   │                             ▼ ends with the keeper: end of file, and the death signal
//! ```
//!
//! A process that waits in the kernel for a dead disk cannot be killed. If that were the keeper, the deadline would
//! pass and its containers would live on. So the keeper itself never touches a disk once it serves. A preparer
//! that is late is left to its fate, with the orders that it had, and another one takes its place.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

use model::id::ContainerId;
use model::wire::keeper::{
    KeeperRefusal, KeeperRefusalCode, Launch, LaunchKind, LogPlan, RootPlan, WitnessPlan,
};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::failure::{Step, refused};
use crate::link::{Link, LinkState};
use crate::mounts::{Mounts, Root};
use crate::packet::{self, Received, Wait};
use crate::sys::{self, Cloned};

/// What is to be prepared.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    container: ContainerId,
    log: LogPlan,
    witness: Option<WitnessPlan>,
    root: Option<RootPlan>,
}

/// What became of an order. With `Ready` come fds: two for the log, two for a witness, and for a root the
/// overlay, the devices and each bind.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Delivery {
    /// It is prepared.
    Ready {
        /// For which.
        container: ContainerId,
        /// Where its root is not what was asked for.
        notes: Vec<String>,
    },
    /// It cannot be.
    Failed {
        /// For which.
        container: ContainerId,
        /// Why.
        refusal: KeeperRefusal,
    },
}

/// All that a start needs from disks.
pub(crate) struct Prepared {
    /// The two log files.
    pub(crate) log: [OwnedFd; 2],
    /// The witness' lock and record.
    pub(crate) witness: Option<[OwnedFd; 2]>,
    /// The root's mounts.
    pub(crate) root: Option<Root>,
}

impl Prepared {
    /// Puts together what came; `None` if that is not what the launch needs.
    pub(crate) fn from_fds(launch: &Launch, fds: Vec<OwnedFd>) -> Option<Self> {
        let mut fds = fds.into_iter();
        let log = [fds.next()?, fds.next()?];
        let witness = match launch.witness {
            Some(_) => Some([fds.next()?, fds.next()?]),
            None => None,
        };
        let root = match &launch.kind {
            LaunchKind::Native(plan) => {
                let overlay = fds.next()?;
                let devices = fds.next()?;
                let targets = plan.root.binds.iter().map(|bind| bind.target.clone());
                let binds: Vec<_> = fds.by_ref().zip(targets).collect();
                if binds.len() != plan.root.binds.len() {
                    return None;
                }
                Some(Root {
                    overlay,
                    devices,
                    binds,
                })
            }
            LaunchKind::Process => None,
        };
        Some(Self { log, witness, root })
    }
}

/// What the preparer has said.
pub(crate) enum Heard {
    /// This.
    Delivery(Delivery, Vec<OwnedFd>),
    /// Nothing now.
    Nothing,
    /// It is gone.
    Gone,
}

/// The keeper's side.
pub(crate) struct Preparer {
    mounts: Option<Mounts>,
    link: Link,
    /// The present one, and former ones that could not be killed yet.
    pids: Vec<i32>,
    pidfd: OwnedFd,
}

impl Preparer {
    /// Forks the first one. `mounts` for native containers.
    pub(crate) fn new(mut mounts: Option<Mounts>) -> Result<Self, KeeperRefusal> {
        let (link, pid, pidfd) = fork(mounts.as_mut())?;
        Ok(Self {
            mounts,
            link,
            pids: vec![pid],
            pidfd,
        })
    }

    /// The socket, to be polled.
    pub(crate) fn link(&self) -> &Link {
        &self.link
    }

    /// Whether this child of the keeper is a preparer.
    pub(crate) fn is_one(&self, pid: i32) -> bool {
        self.pids.contains(&pid)
    }

    /// A child of the keeper was reaped.
    pub(crate) fn reaped(&mut self, pid: i32) {
        self.pids.retain(|one| *one != pid);
    }

    /// Gives an order.
    pub(crate) fn order(&mut self, container: &ContainerId, launch: &Launch) -> LinkState {
        let order = Order {
            container: container.clone(),
            log: launch.log.clone(),
            witness: launch.witness.clone(),
            root: match &launch.kind {
                LaunchKind::Native(plan) => Some(plan.root.clone()),
                LaunchKind::Process => None,
            },
        };
        self.link.send(&order, &[])
    }

    /// Sends what waits to be sent.
    pub(crate) fn flush(&mut self) -> LinkState {
        self.link.flush()
    }

    /// Takes a delivery.
    pub(crate) fn hear(&self) -> Heard {
        match self.link.receive() {
            Received::Packet(bytes, fds) => match serde_json::from_slice(&bytes) {
                Ok(delivery) => Heard::Delivery(delivery, fds),
                Err(_) => Heard::Gone,
            },
            Received::Nothing => Heard::Nothing,
            Received::TooLarge | Received::Closed => Heard::Gone,
        }
    }

    /// Puts a new one in its place. The orders that the old one had are lost.
    pub(crate) fn replace(&mut self) -> Result<(), KeeperRefusal> {
        self.kill();
        if let Some(mounts) = &mut self.mounts {
            mounts.next_generation();
        }
        let (link, pid, pidfd) = fork(self.mounts.as_mut())?;
        self.link = link;
        self.pids.push(pid);
        self.pidfd = pidfd;
        Ok(())
    }

    fn kill(&self) {
        // It may be dead already.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Ends it, and waits a moment for its death: one that hangs ends when its disk does.
    pub(crate) fn end(self) {
        self.kill();
        let mut poll = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let moment = Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        let _ = rustix::event::poll(&mut poll, Some(&moment));
    }
}

fn fork(mounts: Option<&mut Mounts>) -> Result<(Link, i32, OwnedFd), KeeperRefusal> {
    let (keepers, preparers) = packet::pair().step("make preparer socket")?;
    match sys::clone3(0, None).step("fork preparer")? {
        Cloned::Parent { pid, pidfd } => Ok((Link::new(keepers), pid, pidfd)),
        Cloned::Child => {
            let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                work(&preparers, mounts);
            }));
            sys::exit_now(if worked.is_ok() { 0 } else { 1 })
        }
    }
}

/// The preparer's life.
fn work(keeper: &OwnedFd, mut mounts: Option<&mut Mounts>) {
    let mut keep = vec![0, 1, 2, keeper.as_raw_fd()];
    if let Some(mounts) = &mounts {
        mounts.collect_fds(&mut keep);
    }
    // Without the signal it would end by end of file; the other way round too.
    let armed = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    if sys::close_all_but(&mut keep).is_err() || armed.is_err() {
        return;
    }
    while let Received::Packet(bytes, _) = packet::receive(keeper, Wait::Yes) {
        let Ok(order) = serde_json::from_slice::<Order>(&bytes) else {
            return;
        };
        let container = order.container.clone();
        let (delivery, fds) = match prepare(order, mounts.as_deref_mut()) {
            Ok((notes, fds)) => (Delivery::Ready { container, notes }, fds),
            Err(refusal) => (Delivery::Failed { container, refusal }, Vec::new()),
        };
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        if packet::send_value_patiently(keeper, &delivery, &borrowed).is_err() {
            return;
        }
    }
}

fn prepare(
    order: Order,
    mounts: Option<&mut Mounts>,
) -> Result<(Vec<String>, Vec<OwnedFd>), KeeperRefusal> {
    let mut fds = Vec::new();
    let log = OFlags::WRONLY | OFlags::TRUNC | OFlags::NOFOLLOW;
    for file in &order.log.files {
        fds.push(open(file, log, "open log")?);
    }
    if let Some(witness) = &order.witness {
        const STEP: &str = "open witness files";
        fds.push(open(&witness.lock, OFlags::RDWR, STEP)?);
        fds.push(open(
            &witness.record,
            OFlags::WRONLY | OFlags::APPEND,
            STEP,
        )?);
    }
    let mut notes = Vec::new();
    if let Some(plan) = &order.root {
        let Some(mounts) = mounts else {
            return Err(refused(
                KeeperRefusalCode::Unsupported,
                "mount overlay",
                "this keeper was started for plain processes only",
            ));
        };
        let root = mounts.root(plan, &mut notes)?;
        fds.push(root.overlay);
        fds.push(root.devices);
        fds.extend(root.binds.into_iter().map(|(mount, _)| mount));
    }
    Ok((notes, fds))
}

fn open(path: &PathBuf, flags: OFlags, step: &str) -> Result<OwnedFd, KeeperRefusal> {
    rustix::fs::open(
        path,
        flags | OFlags::CREATE | OFlags::CLOEXEC,
        Mode::from_raw_mode(0o600),
    )
    .step(step)
    .map_err(|mut refusal| {
        refusal.message = format!("{}: {}", path.display(), refusal.message);
        refusal
    })
}
