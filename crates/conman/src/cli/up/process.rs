//! The processes of a fleet: this same binary, started again as a keeper or as a node.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use model::id::HostId;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::process::{Child, Command};

use super::signs::Signs;
use crate::config::{Common, Store};
use crate::node::Address;

/// What a process of a host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Keeper,
    Conman,
}

impl Role {
    pub(super) const ALL: [Role; 2] = [Role::Keeper, Role::Conman];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Role::Keeper => "keeper",
            Role::Conman => "conman",
        }
    }
}

/// A process that was started and may have ended since. Its handle never means another one.
#[derive(Debug)]
pub(super) struct Process {
    handle: OwnedFd,
    pub(super) pid: u32,
}

impl Process {
    /// SIGKILL; nothing happens if it has ended.
    pub(super) fn kill(&self) {
        match pidfd_send_signal(&self.handle, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => tracing::error!(pid = self.pid, %error, "could not be killed"),
        }
    }
}

/// The end of a process, to be waited for.
#[derive(Debug)]
pub(super) struct Ending(Child);

impl Ending {
    pub(super) async fn wait(mut self) -> io::Result<ExitStatus> {
        self.0.wait().await
    }
}

/// Starts a process of a host. Must be called on the thread that lives as long as the supervisor: the
/// death signal comes at the end of the thread that started the process.
pub(super) fn start(
    common: &Common,
    host: &HostId,
    role: Role,
    signs: Option<&Signs>,
) -> io::Result<(Process, Ending)> {
    let mut command = ourselves(match role {
        Role::Keeper => "keeper",
        Role::Conman => "serve",
    });
    let path = |path: &std::path::Path| path.as_os_str().to_owned();
    match role {
        Role::Keeper => {
            command.arg("--socket").arg(common.keeper_socket(host));
            command.arg("--state").arg(path(&common.state));
        }
        Role::Conman => {
            let address = Address::Unix(common.host_socket(host)).to_string();
            command.arg("--host-address").arg(address);
            command
                .arg("--keeper-socket")
                .arg(common.keeper_socket(host));
            command.arg("--state").arg(path(&common.state));
            match &common.store {
                Store::Sqlite(file) => {
                    command.arg("--store").arg(path(file));
                }
                Store::Etcd(options) => {
                    command.args(["--store", "etcd"]);
                    if let Some(options) = options {
                        let endpoints = options.endpoints.join(",");
                        command.arg("--store-endpoints").arg(endpoints);
                        command.arg("--store-prefix").arg(&options.prefix);
                    }
                }
            }
            command.arg("--workspaces").arg(path(&common.workspaces));
            command.arg("--session-log").arg(path(&common.session_log));
            command
                .arg("--docker-engine")
                .arg(common.docker.engine.to_string());
            command.arg("--docker-network").arg(&common.docker.network);
            command
                .arg("--docker-pull")
                .arg(common.docker.pull.as_str());
            if let Some(image) = &common.docker.image {
                command.arg("--image").arg(image);
            }
            command.arg("--profile").arg(common.profile.as_str());
            command
                .arg("--host-capacity")
                .arg(common.host_capacity.to_string());
            let milliseconds = |grace: Duration| format!("{}ms", grace.as_millis());
            command
                .arg("--drain-grace")
                .arg(milliseconds(common.drains.operator_grace));
            command
                .arg("--preemption-grace")
                .arg(milliseconds(common.drains.preemption_grace));
            command.arg("--log").arg(&common.log);
            command.arg("--log-format").arg(common.log_format.as_str());
            if let Some(witness) = &common.witness {
                command.arg("--witness").arg(path(witness));
            }
            if let Some(cgroup) = &common.cgroup {
                command.arg("--cgroup").arg(path(cgroup));
            }
        }
    }
    command.arg("--host").arg(host.as_str());
    command.arg("--runtime").arg(common.runtime.as_str());
    command.arg("--tied-to").arg(std::process::id().to_string());
    command.stdout(Stdio::null());
    if let Some(signs) = signs {
        signs.expect_of(&mut command);
    }
    spawn(command)
}

/// This program with a subcommand: the very file that runs now, also after an upgrade has replaced its name.
pub(super) fn ourselves(subcommand: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("conman").arg(subcommand);
    // All that it is to know is in its arguments: our own variables are not meant for it, and the service manager that
    // has started us knows nothing of it.
    let is_ours = |name: &str| {
        name.starts_with("CONMAN_") || name == "NOTIFY_SOCKET" || name.starts_with("WATCHDOG_")
    };
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_ours) {
            command.env_remove(name);
        }
    }
    command
}

/// Starts what is tied to us. As [`start`], on the thread that lives as long as the supervisor.
pub(super) fn spawn(mut command: Command) -> io::Result<(Process, Ending)> {
    // Out of the terminal's foreground group: its Ctrl-C is for the supervisor.
    command.process_group(0);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let child = command.spawn()?;
    let pid = child
        .id()
        .ok_or_else(|| io::Error::other("ended at once"))?;
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let raw = raw.ok_or_else(|| io::Error::other("has no process id"))?;
    // It is our child and not waited for yet: the id is still its own.
    let handle = pidfd_open(raw, PidfdFlags::empty())?;
    Ok((Process { handle, pid }, Ending(child)))
}
