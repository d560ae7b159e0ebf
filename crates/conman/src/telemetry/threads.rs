//! The threads of this process as the kernel shows them.
//!
//! What there is: each thread's name and state, the kernel function that it sleeps in, its system call, and, for root,
//! its stack within the kernel. What there is not: its stack in the program, for which it would have to be stopped and
//! its memory read. What a task awaits is in its operation's tree instead.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One thread of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Thread)]
pub struct ThreadReport {
    /// Its number, as below `/proc/<pid>/task`.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// What it does, as `S (sleeping)`.
    pub state: String,
    /// The kernel function that it sleeps in; `0` for none.
    pub sleeps_in: String,
    /// The number of its system call; absent while it is in none, or where that is not shown.
    pub system_call: Option<u32>,
    /// Its stack within the kernel, innermost first; empty where it is not shown, which needs root.
    pub kernel_stack: Vec<String>,
}

/// The threads of this process. One that ends meanwhile is left out.
pub(crate) fn threads() -> Vec<ThreadReport> {
    let Ok(entries) = std::fs::read_dir("/proc/self/task") else {
        return vec![];
    };
    let mut threads: Vec<_> = entries
        .filter_map(|entry| read(&entry.ok()?.path()))
        .collect();
    threads.sort_by_key(|thread| thread.id);
    threads
}

fn read(directory: &Path) -> Option<ThreadReport> {
    let file = |name| std::fs::read_to_string(directory.join(name));
    let status = file("status").ok()?;
    let state = status.lines().find_map(|line| line.strip_prefix("State:"));
    let system_call = file("syscall").unwrap_or_default();
    let stack = file("stack").unwrap_or_default();
    Some(ThreadReport {
        id: directory.file_name()?.to_str()?.parse().ok()?,
        name: file("comm").ok()?.trim().to_owned(),
        state: state?.trim().to_owned(),
        sleeps_in: file("wchan").unwrap_or_default(),
        system_call: system_call.split(' ').next()?.parse().ok(),
        kernel_stack: stack.lines().map(frame).collect(),
    })
}

/// `[<0>] futex_wait_queue+0x60/0x90` without what only its addresses would say.
fn frame(line: &str) -> String {
    let function = line.split_once("] ").map_or(line, |(_, rest)| rest);
    let function = function.split('+').next().unwrap_or(function);
    function.to_owned()
}

impl fmt::Display for ThreadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "thread {} {}: {}", self.id, self.name, self.state)?;
        if self.sleeps_in != "0" && !self.sleeps_in.is_empty() {
            write!(f, " in {}", self.sleeps_in)?;
        }
        if let Some(number) = self.system_call {
            write!(f, ", system call {number}")?;
        }
        if !self.kernel_stack.is_empty() {
            write!(f, ", kernel stack {}", self.kernel_stack.join(" < "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_thread_is_among_them_and_runs() {
        let me = rustix::thread::gettid().as_raw_pid().unsigned_abs();
        let threads = threads();
        let mine = threads.iter().find(|thread| thread.id == me).unwrap();
        assert!(mine.state.starts_with('R'), "{mine}");
    }

    #[test]
    fn a_frame_is_its_function() {
        assert_eq!(
            frame("[<0>] futex_wait_queue+0x60/0x90"),
            "futex_wait_queue"
        );
        assert_eq!(frame("odd"), "odd");
    }
}
