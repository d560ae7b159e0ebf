//! A container's PID 1, held so that it cannot be mistaken for another process.
//!
//! A PID is only a number: between the engine's answer and the signal the process may have ended, and the number may be
//! somebody else's. So the handle comes first, then the look at whose it is, then the question whether the process
//! of the handle still lives. As long as it does, its number is its own, and what was read was read of it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::Interest;

use super::DockerId;
use super::tree::{CgroupOf, Trees};
use crate::runtime::ready;

/// Why a process is not held.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// It has ended.
    #[error("process {0} has ended")]
    Ended(u32),
    /// It is not of that container.
    #[error("process {pid} is not of container {}: its number was used again", id.short())]
    Stranger {
        /// Its number.
        pid: u32,
        /// The container that it was looked for.
        id: DockerId,
    },
    /// The kernel said no.
    #[error("process {pid}: {source}")]
    Kernel {
        /// Its number.
        pid: u32,
        /// What it said.
        source: io::Error,
    },
}

/// A process of a container.
#[derive(Debug, Clone)]
pub struct Process {
    /// Its number, for people.
    pub pid: u32,
    /// When it was started, in clock ticks since the machine was: with the number, one process for good.
    pub start_ticks: u64,
    handle: Arc<OwnedFd>,
}

impl Process {
    /// Its handle.
    pub fn handle(&self) -> &Arc<OwnedFd> {
        &self.handle
    }

    /// Sends a signal. One that has ended is no error.
    ///
    /// # Errors
    /// The kernel's.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(&self.handle, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        let mut poll = [PollFd::new(&self.handle, PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut poll, Some(&now))).unwrap_or(0) > 0
    }

    /// Ends when it has ended.
    ///
    /// # Errors
    /// When the reactor can watch no more.
    pub async fn ended(&self) -> io::Result<()> {
        // A descriptor of its own: the reactor takes each only once, and several may wait for the same end.
        let watched = ready::watch(self.handle.try_clone()?, Interest::READABLE)?;
        watched.readable().await?.retain_ready();
        Ok(())
    }
}

/// Holds a process and its container's cgroup, if it is of that container.
///
/// # Errors
/// See [`HoldError`].
pub fn hold(pid: u32, id: &DockerId, trees: &Trees) -> Result<(Process, CgroupOf), HoldError> {
    let ended = || HoldError::Ended(pid);
    let kernel = |source: io::Error| HoldError::Kernel { pid, source };
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let handle = match rustix::process::pidfd_open(number.ok_or_else(ended)?, PidfdFlags::empty()) {
        Ok(handle) => Arc::new(handle),
        Err(Errno::SRCH) => return Err(ended()),
        Err(errno) => return Err(kernel(errno.into())),
    };
    let looked = (|| -> io::Result<_> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        Ok((stat, cgroups))
    })();
    let process = |start_ticks| Process {
        pid,
        start_ticks,
        handle: handle.clone(),
    };
    if process(0).has_ended() {
        return Err(ended());
    }
    let (stat, cgroups) = looked.map_err(kernel)?;
    let malformed = || kernel(io::Error::other("its stat file is none"));
    let stat = Stat::parse(&stat).ok_or_else(malformed)?;
    match trees.cgroup_of(&cgroups, id) {
        Some(cgroup) => Ok((process(stat.start_ticks), cgroup)),
        None => Err(HoldError::Stranger {
            pid,
            id: id.clone(),
        }),
    }
}

/// What `/proc/PID/stat` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// The process's parent.
    pub parent: u32,
    /// Its session.
    pub session: u32,
    /// When it was started, in clock ticks since the machine was.
    pub start_ticks: u64,
}

impl Stat {
    /// Reads `pid (name) state parent group session … starttime …`, where the name may have anything in it.
    pub fn parse(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_whitespace().collect();
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            session: fields.get(3)?.parse().ok()?,
            start_ticks: fields.get(19)?.parse().ok()?,
        })
    }

    /// Of a process that may have ended.
    pub fn of(pid: u32) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_file_is_read_whatever_the_name() {
        let text = "12 (a) b (c)) S 7 12 9 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 8443 4 5";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.parent, stat.session, stat.start_ticks), (7, 9, 8443));
        assert_eq!(Stat::parse("12 (a"), None);
        assert_eq!(Stat::parse("12 (a) S 1"), None);
        let own = Stat::of(std::process::id()).unwrap();
        assert!(own.start_ticks > 0);
    }

    #[test]
    fn a_number_that_was_used_again_is_no_container() {
        // The engine named this number; by now it is a process of somebody else's.
        let mut other = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let id: DockerId = "ab".repeat(32).parse().unwrap();
        let trees = Trees::of_this_machine().unwrap();
        let refused = hold(other.id(), &id, &trees).unwrap_err();
        assert!(matches!(refused, HoldError::Stranger { .. }), "{refused}");
        assert!(refused.to_string().contains("abababababab"), "{refused}");
        assert_eq!(other.try_wait().unwrap(), None, "nobody touched it");
        let pid = other.id();
        other.kill().unwrap();
        // Dead and not reaped: the number is still its own, and there is nothing to hold.
        let dead = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        let other_id = rustix::process::WaitId::Pid(Pid::from_child(&other));
        rustix::process::waitid(other_id, dead).unwrap();
        let ended = hold(pid, &id, &trees).unwrap_err();
        assert!(matches!(ended, HoldError::Ended(_)), "{ended}");
        other.wait().unwrap();
        let ended = hold(pid, &id, &trees).unwrap_err();
        assert!(
            matches!(ended, HoldError::Ended(_) | HoldError::Stranger { .. }),
            "{ended}"
        );
    }
}
