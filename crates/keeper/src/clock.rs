//! The host's deadline, as a timer of the kernel.
//!
//! The timer sends SIGKILL to this very process when it fires. Nothing of ours has to run then: not if the
//! process is stopped, not if it hangs. PR_SET_PDEATHSIG does the rest in the containers.

use std::mem::MaybeUninit;
use std::ptr;

use model::time::BootTime;
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

/// Now, on CLOCK_BOOTTIME.
pub(crate) fn boot_now() -> BootTime {
    BootTime(nanoseconds(clock_gettime(ClockId::Boottime)))
}

/// Now, on CLOCK_MONOTONIC_RAW, in nanoseconds.
pub(crate) fn raw_now_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::MonotonicRaw))
}

fn nanoseconds(time: rustix::time::Timespec) -> u64 {
    // Neither clock is ever negative.
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The timer. Not inherited by forked children.
pub(crate) struct DeadlineTimer(libc::timer_t);

impl DeadlineTimer {
    /// Makes the timer, not armed.
    pub(crate) fn new() -> Result<Self, Errno> {
        // SAFETY: sigevent is plain numbers, for which zero is valid.
        let mut event: libc::sigevent = unsafe { MaybeUninit::zeroed().assume_init() };
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGKILL;
        let mut timer = MaybeUninit::uninit();
        // SAFETY: both structures live through the call.
        let returned =
            unsafe { libc::timer_create(libc::CLOCK_BOOTTIME, &raw mut event, timer.as_mut_ptr()) };
        if returned < 0 {
            return Err(last_errno());
        }
        // SAFETY: timer_create succeeded and has written it.
        Ok(Self(unsafe { timer.assume_init() }))
    }

    /// Sets the point at which this process is killed. A point in the past kills it now.
    pub(crate) fn arm(&self, deadline: BootTime) -> Result<(), Errno> {
        let setting = libc::itimerspec {
            it_interval: libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: libc::timespec {
                tv_sec: (deadline.0 / 1_000_000_000) as libc::time_t,
                // Zero would disarm it, and zero is long past.
                tv_nsec: (deadline.0 % 1_000_000_000).max(1) as _,
            },
        };
        // SAFETY: the timer exists as long as self, the setting lives through the call.
        let returned = unsafe {
            libc::timer_settime(
                self.0,
                libc::TIMER_ABSTIME,
                &raw const setting,
                ptr::null_mut(),
            )
        };
        if returned < 0 {
            Err(last_errno())
        } else {
            Ok(())
        }
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}
