//! When processes die, as their pidfds tell it: one thread that does nothing else.

use std::os::fd::OwnedFd;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::event::{Timespec, epoll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// No contender is waited for any longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// A watch over processes that are to die.
pub(crate) struct Watch {
    handles: Vec<OwnedFd>,
}

/// A watch that goes on.
pub(crate) struct Watching(JoinHandle<anyhow::Result<Vec<Duration>>>);

impl Watch {
    /// Over the processes with these PIDs, all alive.
    pub(crate) fn over(pids: &[i32]) -> anyhow::Result<Self> {
        let open = |pid: &i32| {
            let pid = Pid::from_raw(*pid).context("a process id")?;
            pidfd_open(pid, PidfdFlags::empty()).context("hold a process")
        };
        Ok(Self::with(
            pids.iter().map(open).collect::<anyhow::Result<_>>()?,
        ))
    }

    /// Over the processes of these handles.
    pub(crate) fn with(handles: Vec<OwnedFd>) -> Self {
        Self { handles }
    }

    /// Begins to watch; times count from `began`.
    pub(crate) fn begin(self, began: Instant) -> anyhow::Result<Watching> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (number, handle) in self.handles.iter().enumerate() {
            let data = epoll::EventData::new_u64(number as u64);
            epoll::add(&epoll, handle, data, epoll::EventFlags::IN)?;
        }
        let watch = move || collect(&epoll, &self.handles, began);
        Ok(Watching(std::thread::spawn(watch)))
    }
}

impl Watching {
    /// The times of all deaths, when the last is seen.
    pub(crate) fn deaths(self) -> anyhow::Result<Vec<Duration>> {
        self.0
            .join()
            .unwrap_or_else(|_| Err(anyhow::anyhow!("the watch panicked")))
    }
}

fn collect(epoll: &OwnedFd, handles: &[OwnedFd], began: Instant) -> anyhow::Result<Vec<Duration>> {
    let mut deaths = Vec::with_capacity(handles.len());
    let mut events = Vec::with_capacity(handles.len());
    while deaths.len() < handles.len() {
        ensure!(
            began.elapsed() < PATIENCE,
            "{} of {} died",
            deaths.len(),
            handles.len()
        );
        let timeout = Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        events.clear();
        let space = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(epoll, space, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for deaths"),
        }
        let now = began.elapsed();
        for event in &events {
            // The dead stay readable: each is taken out.
            epoll::delete(epoll, &handles[event.data.u64() as usize])?;
            deaths.push(now);
        }
    }
    Ok(deaths)
}
