//! A real keeper: `conman keeper`, in a process of its own.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal};

/// A keeper that is killed when it is dropped.
pub struct KeeperProcess(Child);

impl KeeperProcess {
    pub fn start(socket: &Path, native: bool) -> Self {
        let runtime = if native { "native" } else { "process" };
        let mut command = Command::new(env!("CARGO_BIN_EXE_conman"));
        command.args(["keeper", "--host", "h1", "--runtime", runtime, "--socket"]);
        Self(command.arg(socket).stdin(Stdio::null()).spawn().unwrap())
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    /// Waits for its end; whether that was a regular one.
    pub async fn ended(mut self) -> bool {
        let ended = tokio::task::spawn_blocking(move || self.0.wait().unwrap().success());
        tokio::time::timeout(std::time::Duration::from_secs(10), ended)
            .await
            .expect("the keeper ends")
            .unwrap()
    }
}

impl Drop for KeeperProcess {
    fn drop(&mut self) {
        // Ended already, in the usual case.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
