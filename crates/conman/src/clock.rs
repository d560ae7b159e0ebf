//! The clocks of the rules. Nothing else in conman reads them.

use model::time::{BootTime, RawTime};
use rustix::time::{ClockId, clock_gettime};

/// CLOCK_BOOTTIME: a host's own deadlines.
pub fn boottime() -> BootTime {
    BootTime(nanoseconds(ClockId::Boottime))
}

/// CLOCK_MONOTONIC_RAW: observation of others.
pub fn raw() -> RawTime {
    RawTime(nanoseconds(ClockId::MonotonicRaw))
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    // Both clocks start at zero when the machine boots and never go back.
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// Waits until a point on [`boottime`]; without one, for ever.
pub async fn until(wakeup: Option<BootTime>) {
    match wakeup {
        Some(at) => tokio::time::sleep(at.since(boottime())).await,
        None => std::future::pending().await,
    }
}
