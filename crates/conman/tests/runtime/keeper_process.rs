//! A real keeper, in a process of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal};

/// A keeper that is killed when it is dropped.
pub struct KeeperProcess(Child);

/// Beside this test program's directory, where Cargo builds it for the whole workspace.
fn program() -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let program = this.ancestors().nth(2).unwrap().join("conman-keeper");
    assert!(program.exists(), "build it first: cargo build -p keeper");
    program
}

impl KeeperProcess {
    pub fn start(socket: &Path, native: bool) -> Self {
        let mut command = Command::new(program());
        command.arg(socket).arg("h1").stdin(Stdio::null());
        if native {
            command.arg(keeper::UID_BASE_DEFAULT.to_string());
        }
        Self(command.spawn().unwrap())
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
