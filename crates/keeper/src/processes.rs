//! Processes as `/proc` shows them: who descends from whom.

use std::collections::BTreeSet;

use model::wire::keeper::WireExit;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};

/// One process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    /// Its id.
    pub(crate) pid: i32,
    /// Its parent.
    pub(crate) parent: i32,
    /// Its session.
    pub(crate) session: i32,
    /// Whether it has ended and waits to be reaped.
    pub(crate) zombie: bool,
}

/// All processes in sight.
pub(crate) fn all() -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(|pid| {
            parse(
                pid,
                &std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?,
            )
        })
        .collect()
}

/// Reads `/proc/PID/stat`: `pid (name) state parent group session …`, where the name may have anything in it.
fn parse(pid: i32, stat: &str) -> Option<Process> {
    let after_name = &stat[stat.rfind(')')? + 1..];
    let mut fields = after_name.split_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let _group = fields.next()?;
    let session = fields.next()?.parse().ok()?;
    Some(Process {
        pid,
        parent,
        session,
        zombie: matches!(state, "Z" | "X"),
    })
}

/// When a process was started, in clock ticks since the machine was; `None` if it is gone.
pub(crate) fn start_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = &stat[stat.rfind(')')? + 1..];
    // The 22nd field; the third is the first behind the name.
    after_name.split_whitespace().nth(19)?.parse().ok()
}

/// Those of `all` that descend from `ancestor` and are not dead, parents first.
pub(crate) fn descendants(all: &[Process], ancestor: i32) -> Vec<Process> {
    let mut found: Vec<Process> = Vec::new();
    let mut parents = vec![ancestor];
    while let Some(parent) = parents.pop() {
        for process in all.iter().filter(|process| process.parent == parent) {
            parents.push(process.pid);
            found.push(*process);
        }
    }
    found.retain(|process| !process.zombie);
    found
}

/// Sends a signal to a process that may be gone.
pub(crate) fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid).filter(|pid| pid.as_raw_nonzero().get() > 1) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// SIGKILL to every process of a session, whatever process groups its shell has made.
///
/// A look at `/proc` misses what is forked meanwhile. But who has a SIGKILL pending forks no more: so once a look finds
/// nobody that was not sent one, there is nobody left.
pub(crate) fn kill_session(session: i32) {
    let mut sent = BTreeSet::new();
    loop {
        let mut members = all();
        members.retain(|one| one.session == session && !one.zombie && !sent.contains(&one.pid));
        if members.is_empty() {
            return;
        }
        for process in members {
            signal(process.pid, Signal::KILL);
            sent.insert(process.pid);
        }
    }
}

/// Kills the descendants of this process and reaps them, until it has none: each round sees the orphans that the
/// last one made. A child that ends makes the wait return, so this never spins.
pub(crate) fn kill_descendants_and_reap() {
    let this = rustix::process::getpid().as_raw_nonzero().get();
    loop {
        for process in descendants(&all(), this) {
            signal(process.pid, Signal::KILL);
        }
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(_) | Err(Errno::INTR) => {}
            // No child is left, so no descendant is.
            Err(_) => return,
        }
    }
}

/// How a process ended.
pub(crate) fn wire_exit(status: WaitStatus) -> WireExit {
    match (status.exit_status(), status.terminating_signal()) {
        (_, Some(signal)) => WireExit::Signal { signal },
        (Some(code), None) => WireExit::Code { code },
        // Neither: only asked of ended processes.
        (None, None) => WireExit::Signal {
            signal: libc::SIGKILL,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32) -> Process {
        Process {
            pid,
            parent,
            session: 1,
            zombie: false,
        }
    }

    #[test]
    fn a_name_may_have_anything_in_it() {
        let read = parse(7, "7 (a) S 9) Z 3 4 5 6").expect("readable");
        assert_eq!(read.parent, 3);
        assert_eq!(read.session, 5);
        assert!(read.zombie);
        assert_eq!(parse(7, "7 (a"), None);
    }

    #[test]
    fn descendants_are_found_through_zombies() {
        let mut all = vec![process(2, 1), process(3, 2), process(4, 3), process(9, 1)];
        all[1].zombie = true;
        let found: Vec<i32> = descendants(&all, 2).iter().map(|one| one.pid).collect();
        assert_eq!(found, [4]);
    }
}
