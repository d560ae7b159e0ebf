//! An independent witness of how many containers of a repl are alive. It guards nothing.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use model::id::{ContainerId, HostId};
use model::wire::keeper::{KeeperRefusal, WitnessEvent, WitnessLine, WitnessPlan};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::clock;
use crate::failure::Step;

/// The files, opened by the keeper, used by the init.
pub(crate) struct Witness {
    lock: OwnedFd,
    record: OwnedFd,
    container: ContainerId,
    host: HostId,
}

impl Witness {
    /// Opens the files. A lock belongs to this opening, which the init alone goes on holding.
    pub(crate) fn open(
        plan: &WitnessPlan,
        container: &ContainerId,
        host: &HostId,
    ) -> Result<Self, KeeperRefusal> {
        let open = |path, flags| {
            rustix::fs::open(
                path,
                flags | OFlags::CREATE | OFlags::CLOEXEC,
                Mode::from_raw_mode(0o600),
            )
            .step("open witness files")
        };
        Ok(Self {
            lock: open(&plan.lock, OFlags::RDWR)?,
            record: open(&plan.record, OFlags::WRONLY | OFlags::APPEND)?,
            container: container.clone(),
            host: host.clone(),
        })
    }

    /// Adds its fds to a list.
    pub(crate) fn collect_fds(&self, list: &mut Vec<RawFd>) {
        list.push(self.lock.as_raw_fd());
        list.push(self.record.as_raw_fd());
    }

    /// Takes the lock for the rest of this process' life and records whether it was free.
    pub(crate) fn testify(&self) -> Result<(), Errno> {
        let event = match rustix::fs::flock(&self.lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => WitnessEvent::Start,
            Err(Errno::WOULDBLOCK) => WitnessEvent::Overlap,
            Err(errno) => return Err(errno),
        };
        let line = WitnessLine {
            repl: self.container.repl.to_string(),
            epoch: self.container.epoch,
            host: self.host.to_string(),
            event,
            monotonic_raw_ns: clock::raw_now_ns(),
        };
        let mut text = serde_json::to_vec(&line).map_err(|_| Errno::INVAL)?;
        text.push(b'\n');
        // In one write to a file opened for appending: whole lines, whoever else writes.
        rustix::io::write(&self.record, &text).map(drop)
    }
}
