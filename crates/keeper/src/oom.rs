//! Who dies when the machine has no memory left: rather any program than the keeper, and so all of them.

use rustix::fs::{Mode, OFlags};

use crate::shared::write_file;

const FILE: &std::ffi::CStr = c"/proc/self/oom_score_adj";

/// Below every ordinary process, above what the kernel never kills.
const KEEPERS_SCORE: &str = "-900";

/// The score that was there before: what programs get.
pub(crate) struct ScoreBefore(Option<String>);

/// Protects this process, where it may.
pub(crate) fn protect() -> ScoreBefore {
    ScoreBefore(read().filter(|_| write_file(FILE, KEEPERS_SCORE).is_ok()))
}

impl ScoreBefore {
    /// Gives a forked child the score from before. Raising it is always allowed.
    pub(crate) fn restore(&self) {
        if let Some(before) = &self.0 {
            // At worst, a container that is killed later than others for want of memory.
            let _ = write_file(FILE, before);
        }
    }
}

fn read() -> Option<String> {
    let file = rustix::fs::open(FILE, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut text = [0_u8; 16];
    let length = rustix::io::read(&file, &mut text[..]).ok()?;
    Some(String::from_utf8_lossy(&text[..length]).trim().to_owned())
}
