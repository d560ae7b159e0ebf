//! Commands that conman has run in a container, each with a channel of its own.

use std::os::fd::{AsFd, OwnedFd};

use model::wire::keeper::{
    ExecPlan, FromExec, KeeperRefusal, KeeperRefusalCode, ToExec, TtySize, WireExit,
};
use rustix::process::{Pid, Signal};
use rustix::pty::OpenptFlags;

use super::spawn::{self, Program, Terminal, Tie};
use crate::failure::{Step, refused};
use crate::packet::{self, Received, Wait};
use crate::processes;

/// A running command.
pub(super) struct Exec {
    /// Its PID, which is also its session's and its process group's.
    pub(super) pid: i32,
    /// Conman's way to it.
    pub(super) channel: OwnedFd,
}

/// Whether a command is still conman's.
#[derive(PartialEq, Eq)]
pub(super) enum Channel {
    /// It is.
    Open,
    /// Conman let go of it, and it was killed.
    Closed,
}

/// Runs a command. What became of it is said on its channel.
pub(super) fn start(plan: &ExecPlan, mut fds: Vec<OwnedFd>, tie: Tie) -> Option<Exec> {
    if fds.is_empty() {
        return None;
    }
    let channel = fds.remove(0);
    let started = match plan.tty {
        None => start_plain(plan, &fds, tie).map(|pid| (pid, None)),
        Some(size) => start_on_terminal(plan, size, tie).map(|(pid, master)| (pid, Some(master))),
    };
    match started {
        Ok((pid, master)) => {
            let said = FromExec::Started { pid: pid as u32 };
            let masters: Vec<_> = master.iter().map(AsFd::as_fd).collect();
            let exec = Exec { pid, channel };
            // A conman that has gone meanwhile is noticed as a closed channel.
            let _ = packet::send_value(&exec.channel, &said, &masters);
            Some(exec)
        }
        Err(refusal) => {
            let _ = packet::send_value(&channel, &FromExec::Failed(refusal), &[]);
            None
        }
    }
}

fn start_plain(plan: &ExecPlan, fds: &[OwnedFd], tie: Tie) -> Result<i32, KeeperRefusal> {
    let [stdin, stdout, stderr] = fds else {
        return Err(refused(
            KeeperRefusalCode::BadMessage,
            "read exec",
            "an exec without a terminal comes with a channel and three fds",
        ));
    };
    let program = Program::new(&plan.command, &plan.env, &plan.cwd)?;
    let standard = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    spawn::spawn(&program, standard, Terminal::None, tie)
}

fn start_on_terminal(
    plan: &ExecPlan,
    size: TtySize,
    tie: Tie,
) -> Result<(i32, OwnedFd), KeeperRefusal> {
    let program = Program::new(&plan.command, &plan.env, &plan.cwd)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags).step("open terminal")?;
    rustix::pty::unlockpt(&master).step("open terminal")?;
    // By its master, not by a path, which could lead elsewhere.
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).step("open terminal")?;
    rustix::termios::tcsetwinsize(
        &master,
        rustix::termios::Winsize {
            ws_row: size.rows,
            ws_col: size.columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        },
    )
    .step("size terminal")?;
    let standard = [slave.as_fd(); 3];
    let pid = spawn::spawn(&program, standard, Terminal::Controlling, tie)?;
    Ok((pid, master))
}

impl Exec {
    /// Does what conman says on the channel.
    pub(super) fn listen(&self) -> Channel {
        match packet::receive(&self.channel, Wait::No) {
            Received::Packet(bytes, _) => {
                match serde_json::from_slice(&bytes) {
                    Ok(ToExec::Kill) => processes::kill_session(self.pid),
                    Ok(ToExec::Signal { signal }) => self.signal(signal),
                    Err(_) => {}
                }
                Channel::Open
            }
            Received::Nothing | Received::TooLarge => Channel::Open,
            Received::Closed => {
                processes::kill_session(self.pid);
                Channel::Closed
            }
        }
    }

    fn signal(&self, number: i32) {
        if let (Some(pid), Some(signal)) = (Pid::from_raw(self.pid), Signal::from_named_raw(number))
        {
            // It may have just ended.
            let _ = rustix::process::kill_process_group(pid, signal);
        }
    }

    /// Says how it ended.
    pub(super) fn ended(self, exit: WireExit) {
        let _ = packet::send_value(&self.channel, &FromExec::Exited { exit }, &[]);
    }
}
