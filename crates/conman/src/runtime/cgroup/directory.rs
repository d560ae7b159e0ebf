//! One cgroup's directory: what its files say, and what is written to them.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

/// Whether no process is left in a v2 directory and below it; true when it does not exist.
pub(crate) fn is_empty_v2(directory: &Path) -> io::Result<bool> {
    match std::fs::read_to_string(directory.join("cgroup.events")) {
        Ok(events) => Ok(says_empty(&events)),
        Err(error) if is_gone(&error) => Ok(true),
        Err(error) => Err(named(error, directory)),
    }
}

fn says_empty(events: &str) -> bool {
    events.lines().any(|line| line == "populated 0")
}

/// Waits until [`is_empty_v2`].
pub(crate) async fn emptied_v2(directory: &Path) -> io::Result<()> {
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::FileExt;

    let file = match std::fs::File::open(directory.join("cgroup.events")) {
        Ok(file) => file,
        Err(error) if is_gone(&error) => return Ok(()),
        Err(error) => return Err(named(error, directory)),
    };
    // The kernel raises POLLPRI at each change of the file after it was read last.
    let reader = file.try_clone()?;
    let watched = crate::runtime::ready::watch(OwnedFd::from(file), tokio::io::Interest::PRIORITY)?;
    let mut buffer = [0; 128];
    loop {
        let read = match reader.read_at(&mut buffer, 0) {
            Ok(read) => read,
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => return Err(named(error, directory)),
        };
        if says_empty(&String::from_utf8_lossy(&buffer[..read])) {
            return Ok(());
        }
        watched
            .ready(tokio::io::Interest::PRIORITY)
            .await?
            .clear_ready();
    }
}

/// As [`is_empty_v2`], for a v1 directory.
pub(crate) fn is_empty_v1(directory: &Path) -> io::Result<bool> {
    let mut processes = BTreeSet::new();
    collect_processes(directory, &mut processes)?;
    Ok(processes.is_empty())
}

/// Adds the processes in a directory and below it, as the host sees them.
pub(crate) fn collect_processes(directory: &Path, into: &mut BTreeSet<u32>) -> io::Result<()> {
    match std::fs::read_to_string(directory.join("cgroup.procs")) {
        Ok(text) => into.extend(text.lines().filter_map(|line| line.parse::<u32>().ok())),
        Err(error) if is_gone(&error) => return Ok(()),
        Err(error) => return Err(named(error, directory)),
    }
    for child in children(directory)? {
        collect_processes(&child, into)?;
    }
    Ok(())
}

/// Removes a directory and all below it; what is gone already is no error.
pub(crate) fn remove_tree(directory: &Path) -> io::Result<()> {
    // Most have no children: one system call.
    match std::fs::remove_dir(directory) {
        Ok(()) => return Ok(()),
        Err(error) if is_gone(&error) => return Ok(()),
        Err(_) => {}
    }
    for child in children(directory)? {
        remove_tree(&child)?;
    }
    gone_is_fine(std::fs::remove_dir(directory)).map_err(|error| named(error, directory))
}

/// The directories in a directory; none when it does not exist.
pub(crate) fn children(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        Err(error) => return Err(named(error, directory)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Writes a control file.
pub(crate) fn write(path: &Path, text: &str) -> io::Result<()> {
    std::fs::write(path, text).map_err(|error| named(error, path))
}

/// The same error, with the path in its text.
pub(crate) fn named(error: io::Error, path: &Path) -> io::Error {
    let kind = if is_gone(&error) {
        io::ErrorKind::NotFound
    } else {
        error.kind()
    };
    io::Error::new(kind, format!("{}: {error}", path.display()))
}

/// A cgroup that is removed while one of its files is open answers ENODEV.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

pub(crate) fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if is_gone(&error) => Ok(()),
        other => other,
    }
}
