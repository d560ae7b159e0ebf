//! An independent witness of how many containers of a repl are alive. It guards nothing.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use model::id::{ContainerId, HostId};
use model::wire::keeper::{WitnessEvent, WitnessLine};
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::clock;

/// The files, opened for the init, and what it says in them.
pub(crate) struct Witness {
    lock: OwnedFd,
    record: OwnedFd,
    container: ContainerId,
    host: HostId,
}

impl Witness {
    /// With the files as opened for this container. A lock belongs to that opening, which the init alone goes on
    /// holding.
    pub(crate) fn new(
        [lock, record]: [OwnedFd; 2],
        container: &ContainerId,
        host: &HostId,
    ) -> Self {
        Self {
            lock,
            record,
            container: container.clone(),
            host: host.clone(),
        }
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
