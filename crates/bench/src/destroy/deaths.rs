//! Deaths, as this program sees them: pidfds, polled together on a thread of their own.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;

/// How long the last death may take before the benchmark gives up.
const DEATHS_MAX: Duration = Duration::from_secs(120);

/// A watch over processes that are to die.
pub(crate) struct Watch {
    handles: Vec<OwnedFd>,
}

impl Watch {
    /// Over the processes with these PIDs, all alive.
    pub(crate) fn over(pids: &[i32]) -> anyhow::Result<Self> {
        let handles = pids.iter().map(|pid| {
            // SAFETY: takes numbers only, and gives a new descriptor that nobody else has.
            unsafe {
                match libc::syscall(libc::SYS_pidfd_open, *pid, 0) {
                    ..0 => Err(io::Error::last_os_error()),
                    fd => Ok(OwnedFd::from_raw_fd(fd as i32)),
                }
            }
        });
        let handles = handles.collect::<io::Result<Vec<_>>>();
        Ok(Self {
            handles: handles.context("hold the processes")?,
        })
    }

    /// Begins to watch; times count from `began`.
    pub(crate) fn begin(self, began: Instant) -> JoinHandle<anyhow::Result<Vec<Duration>>> {
        std::thread::spawn(move || watch(self.handles, began))
    }
}

fn watch(mut left: Vec<OwnedFd>, began: Instant) -> anyhow::Result<Vec<Duration>> {
    let mut deaths = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let mut polled: Vec<libc::pollfd> = left
            .iter()
            .map(|handle| libc::pollfd {
                fd: handle.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            })
            .collect();
        let patience = DEATHS_MAX.saturating_sub(began.elapsed()).as_millis() as i32;
        // SAFETY: the array lives through the call, and its length is given.
        let ready = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as u64, patience) };
        let now = began.elapsed();
        match ready {
            ..0 => return Err(io::Error::last_os_error()).context("poll"),
            0 => anyhow::bail!("{} do not die", left.len()),
            _ => {}
        }
        let mut dead = polled.iter().map(|one| one.revents != 0);
        left.retain(|_| !dead.next().unwrap_or(false));
        deaths.resize(polled.len() - left.len() + deaths.len(), now);
    }
    Ok(deaths)
}

/// The times of all deaths, when the last is seen.
pub(crate) fn joined(
    watch: JoinHandle<anyhow::Result<Vec<Duration>>>,
) -> anyhow::Result<Vec<Duration>> {
    watch
        .join()
        .unwrap_or_else(|_| Err(anyhow::anyhow!("the watch panicked")))
}
