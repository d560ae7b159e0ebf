//! Points in time, as the rules see them: nanoseconds on a named clock, given from outside.

use std::time::Duration;

use serde::{Deserialize, Serialize};

macro_rules! clock {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// This point moved `by` into the future; stops at the end of the clock's range.
            pub fn plus(self, by: Duration) -> Self {
                Self(self.0.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
            }

            /// How long after `earlier` this point is; zero if it is not after it.
            pub fn since(self, earlier: Self) -> Duration {
                Duration::from_nanos(self.0.saturating_sub(earlier.0))
            }
        }
    };
}

clock! {
    /// Nanoseconds of CLOCK_BOOTTIME: goes on while the machine sleeps. A host's own deadlines are on it.
    BootTime
}

clock! {
    /// Nanoseconds of CLOCK_MONOTONIC_RAW: not slewed by NTP. Observation of others is on it.
    RawTime
}

/// A duration as the wire and the logs have it; of one that is longer than they can say, the longest.
pub fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
