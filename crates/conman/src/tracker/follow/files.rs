//! Files by a pattern: which are there is looked up every second, since no event tells of a path with several
//! variable parts. Each file is followed as one that was named, until it is removed.
//!
//! What a log was rotated to (`a.log.1` while there is an `a.log`) is read by the follower of the log, and packed files
//! do not grow: neither is a source.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use stuck::live::Audience;

use super::super::database::Known;
use super::super::owner::Said;
use super::super::{Source, SourceKind};
use super::{Feeder, Sender, file, rest, thread};
use crate::telemetry::locks::Mutex;

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The paths that are followed.
type Followed = Arc<Mutex<BTreeSet<PathBuf>>>;

/// A file that a pattern matches and nobody follows yet. It counts as followed for as long as this lives.
#[derive(Debug)]
pub(crate) struct Found {
    source: Source,
    path: PathBuf,
    followed: Followed,
}

impl Found {
    /// The name of its source.
    pub(crate) fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// Whose attempts it tells of.
    pub(crate) fn audience(&self) -> Audience {
        self.source.audience
    }

    /// Begins to follow it.
    ///
    /// # Errors
    /// When what was kept of it does not fit it any more, or there is no thread for it.
    pub(crate) fn start(self, known: &Known, sender: Sender) -> anyhow::Result<()> {
        let source = Source {
            name: self.name(),
            kind: SourceKind::File(self.path.clone()),
            ..self.source.clone()
        };
        let feeder = Feeder::resume(&source, known.bookmark.as_deref(), sender)?;
        let follower = file::Follower::open(self.path.clone(), known.place.as_deref(), feeder)?;
        let follower = follower.ending_when_removed();
        thread().spawn(move || {
            follower.run();
            // Only now may it be found again: what is said of its end is said before.
            drop(self);
        })?;
        Ok(())
    }
}

impl Drop for Found {
    fn drop(&mut self) {
        self.followed.lock().remove(&self.path);
    }
}

/// Begins to look for the files of a pattern.
///
/// # Errors
/// When there is no thread for it.
pub(crate) fn find(source: Source, channel: SyncSender<Said>) -> anyhow::Result<()> {
    let SourceKind::Files(pattern) = source.kind.clone() else {
        anyhow::bail!("{} is no pattern", source.name);
    };
    let followed = Followed::new(Mutex::new("followed files", BTreeSet::new()));
    if matching(&pattern).is_empty() {
        tracing::warn!(pattern, "no file matches so far");
    }
    thread().spawn(move || {
        loop {
            for path in matching(&pattern) {
                if !followed.lock().insert(path.clone()) {
                    continue;
                }
                let (source, followed) = (source.clone(), followed.clone());
                let found = Found {
                    source,
                    path,
                    followed,
                };
                if channel.send(Said::Found(found)).is_err() {
                    return;
                }
            }
            rest(LOOK_EVERY);
        }
    })?;
    Ok(())
}

/// The logs that a pattern matches now.
fn matching(pattern: &str) -> Vec<PathBuf> {
    let Ok(paths) = glob::glob(pattern) else {
        // It was looked at when the configuration was read.
        return Vec::new();
    };
    // A directory that may not be read is as one that is not there.
    let paths = paths.filter_map(Result::ok);
    paths
        .filter(|path| path.is_file() && !is_packed(path) && !is_rotated(path))
        .collect()
}

fn is_packed(path: &Path) -> bool {
    let packed = ["gz", "zst", "xz", "bz2"];
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| packed.contains(&extension))
}

/// Whether a log that is there was rotated to this path.
fn is_rotated(path: &Path) -> bool {
    let Some(name) = path.file_name() else {
        return false;
    };
    let name = name.as_bytes();
    (1..name.len())
        .filter(|&length| file::is_rotated(&name[length..]))
        .any(|length| {
            path.with_file_name(std::ffi::OsStr::from_bytes(&name[..length]))
                .is_file()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_log_was_rotated_to_is_no_log_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let names = [
            "a.log",
            "a.log.1",
            "a.log-20260101",
            "a.log.2.gz",
            "b-2026-01-01",
            "b-2026-01-02",
            "c.1",
        ];
        for name in names {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        std::fs::create_dir(directory.path().join("d")).unwrap();
        let found = matching(&format!("{}/*", directory.path().display()));
        let found: Vec<_> = found
            .iter()
            .filter_map(|path| path.file_name()?.to_str())
            .collect();
        assert_eq!(found, ["a.log", "b-2026-01-01", "b-2026-01-02", "c.1"]);
    }
}
