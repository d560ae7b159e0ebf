//! Files that may change under a running process: what is in them, read again when they do.
//!
//! ```text
//! now ─► have the files changed? (looked at once a second) ─► read again; of no use? what was before still counts
//! ```

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::telemetry::locks::Mutex;

/// How often the files are looked at, at the most.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What tells a changed file from the same one.
type Stamp = Vec<Option<(u64, u64, i64, i64)>>;

struct State<T> {
    read: Arc<T>,
    stamp: Stamp,
    looked: Instant,
}

/// What some files say, as it is now.
pub(crate) struct Reloaded<T, E> {
    what: &'static str,
    files: Vec<PathBuf>,
    read: Box<dyn Fn() -> Result<T, E> + Send + Sync>,
    state: Mutex<State<T>>,
}

impl<T, E> std::fmt::Debug for Reloaded<T, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reloaded")
            .field("what", &self.what)
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

impl<T, E: std::fmt::Display> Reloaded<T, E> {
    /// Reads the files for the first time. `what` is what the log calls them.
    ///
    /// # Errors
    /// The reader's.
    pub(crate) fn open(
        what: &'static str,
        files: Vec<PathBuf>,
        read: impl Fn() -> Result<T, E> + Send + Sync + 'static,
    ) -> Result<Self, E> {
        // Before the reading: a change in between is seen at the next look.
        let stamp = stamp(&files);
        let state = State {
            read: Arc::new(read()?),
            stamp,
            looked: Instant::now(),
        };
        Ok(Self {
            what,
            files,
            read: Box::new(read),
            state: Mutex::new(what, state),
        })
    }

    /// What is in the files, or was when they were last of use.
    pub(crate) fn now(&self, now: Instant) -> Arc<T> {
        let mut state = self.state.lock();
        if now.saturating_duration_since(state.looked) >= LOOK_EVERY {
            state.looked = now;
            let stamp = stamp(&self.files);
            if stamp != state.stamp {
                // Said once for each change, also while one file is new and the other is not yet.
                state.stamp = stamp;
                match (self.read)() {
                    Ok(read) => {
                        state.read = Arc::new(read);
                        tracing::info!("{} was changed", self.what);
                    }
                    Err(error) => {
                        tracing::warn!(%error, "{} was changed to what is of no use: what was before still counts", self.what);
                    }
                }
            }
        }
        Arc::clone(&state.read)
    }
}

fn stamp(files: &[PathBuf]) -> Stamp {
    files
        .iter()
        .map(|path| {
            let data = std::fs::metadata(path).ok()?;
            Some((data.ino(), data.size(), data.mtime(), data.mtime_nsec()))
        })
        .collect()
}
