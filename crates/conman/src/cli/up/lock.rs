//! The state directory's locks: one `up` at a time, and none before all of an earlier one is dead.
//!
//! `lock` is held by `up` for as long as it lives. `members` is held, shared, by every process that it
//! starts; whoever has `lock` and then `members` alone knows that nothing of an earlier run lives. The kernel
//! lets go of both when a process ends, however it ends.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::cli::exit::CannotStart;

fn open(path: &Path) -> Result<File, CannotStart> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| CannotStart(format!("open {}: {error}", path.display())))
}

/// The right to run a fleet on a state directory, until dropped.
#[derive(Debug)]
pub(super) struct StateLock {
    _file: File,
}

impl StateLock {
    /// Takes it.
    ///
    /// # Errors
    /// When another process has it; says which.
    pub(super) fn take(state: &Path) -> Result<Self, CannotStart> {
        let path = state.join("lock");
        let mut file = open(&path)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut holder = String::new();
            // Best effort: only to say who.
            let _ = file.read_to_string(&mut holder);
            let holder = match holder.trim() {
                "" => String::new(),
                pid => format!(" (process {pid})"),
            };
            return Err(CannotStart(format!(
                "the state directory {} is in use by another `conman up`{holder}; end that one, or \
                 give this one a directory of its own with --state",
                state.display()
            )));
        }
        let note = || -> std::io::Result<()> {
            file.set_len(0)?;
            file.rewind()?;
            write!(file, "{}", std::process::id())
        };
        let mut note = note;
        note().map_err(|error| CannotStart(format!("write {}: {error}", path.display())))?;
        Ok(Self { _file: file })
    }
}

/// Blocks until every process of an earlier run is dead. Call with [`StateLock`] in hand.
pub(super) fn wait_for_members(state: &Path) -> Result<(), CannotStart> {
    let path = state.join("members");
    let file = open(&path)?;
    rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))
        .map_err(|error| CannotStart(format!("lock {}: {error}", path.display())))
}

/// What a process that belongs to a fleet holds for as long as it lives.
pub(in crate::cli) fn join_members(state: &Path) -> Result<File, CannotStart> {
    let path = state.join("members");
    let file = open(&path)?;
    flock(&file, FlockOperation::NonBlockingLockShared)
        .map_err(|error| CannotStart(format!("join {}: {error}", path.display())))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let state = tempfile::tempdir().unwrap();
        let lock = StateLock::take(state.path()).unwrap();
        let refused = StateLock::take(state.path()).unwrap_err().to_string();
        let ours = format!("(process {})", std::process::id());
        assert!(
            refused.contains("is in use by another `conman up`"),
            "{refused}"
        );
        assert!(refused.contains(&ours), "{refused}");
        drop(lock);
        drop(StateLock::take(state.path()).unwrap());
    }

    #[test]
    fn members_are_waited_for() {
        let state = tempfile::tempdir().unwrap();
        let (one, two) = (
            join_members(state.path()).unwrap(),
            join_members(state.path()).unwrap(),
        );
        let path = state.path().to_owned();
        let waits = std::thread::spawn(move || wait_for_members(&path).unwrap());
        drop(one);
        assert!(!waits.is_finished());
        drop(two);
        waits.join().unwrap();
    }
}
