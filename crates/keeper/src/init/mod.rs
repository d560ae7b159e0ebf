//! The init: PID 1 of a native container, or the supervisor of a plain process.
//!
//! It is the keeper's own code in a forked child: nothing is executed for it, so a container costs a few
//! private pages and no start of a program.
//!
//! ```text
//! forked ─► waiting ──Go──► made its own ──► program runs ──► program ended ─► exits
//!              │                 │  Failed        │ Started        Exited
//!              └─ end of file ───┴────────────────┴─► exits: the keeper is gone
//! ```
//!
//! In a native container it first becomes root of its user namespace, then not dumpable, then arms its
//! death signal, and never changes ids again (that would disarm it). Then it makes the container from
//! inside, drops what the program must not have, and starts the program as its child. From then on it
//! waits for events: children to reap, SIGTERM to pass on, the program's output to file, and commands
//! to run.

mod exec;
mod log;
mod privileges;
mod root;
mod spawn;
mod supervise;

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use model::wire::keeper::{KeeperRefusal, KeeperRefusalCode};
use rustix::process::{DumpableBehavior, Signal, WaitOptions};
use seccompiler::BpfProgram;

use crate::failure::{Step, refused};
use crate::mounts::Root;
use crate::oom::ScoreBefore;
use crate::packet::{self, Wait};
use crate::report::{FromInit, Go};
use crate::sys;
use crate::witness::Witness;

pub(crate) use log::Log;
pub(crate) use spawn::Program;

/// The signals that an init takes from its signal fd.
const SIGNALS: &[i32] = &[libc::SIGTERM, libc::SIGCHLD];

/// All that an init is born with: everything was opened and allocated by the keeper.
pub(crate) struct Birth<'a> {
    /// The walls; `None` for a plain process.
    pub(crate) native: Option<Walls<'a>>,
    /// The program.
    pub(crate) program: &'a Program,
    /// Where its output goes.
    pub(crate) log: Log,
    /// The socket to the keeper.
    pub(crate) keeper: OwnedFd,
    /// Where conman's commands come from.
    pub(crate) control: OwnedFd,
    /// The witness, if one is wanted.
    pub(crate) witness: Option<Witness>,
    /// The limit of open files that programs get.
    pub(crate) open_files: rustix::process::Rlimit,
    /// The score for the out-of-memory killer that programs get.
    pub(crate) oom_score: &'a ScoreBefore,
}

/// A native container's walls.
pub(crate) struct Walls<'a> {
    /// Its root, as detached mounts; taken when they are attached.
    pub(crate) root: Option<Root>,
    /// Of each v1 cgroup that it is to join, the file to write to.
    pub(crate) tasks: Vec<OwnedFd>,
    /// Its host name.
    pub(crate) hostname: String,
    /// Whether it is in a v2 cgroup of its own, which it may then read.
    pub(crate) cgroup: bool,
    /// Its filter.
    pub(crate) seccomp: &'a BpfProgram,
}

/// Lives the init's life in a freshly forked child.
pub(crate) fn run(birth: Birth<'_>) -> ! {
    // A panic must not unwind into the keeper's code, of which this is a copy.
    let lived = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| live(birth)));
    sys::exit_now(lived.unwrap_or(EXIT_BROKEN))
}

/// The init's own exit code when it could not do its work; the keeper goes by the report instead.
const EXIT_BROKEN: i32 = 125;

fn live(mut birth: Birth<'_>) -> i32 {
    let mut keep: Vec<RawFd> = vec![0, 1, 2, birth.keeper.as_raw_fd(), birth.control.as_raw_fd()];
    birth.log.collect_fds(&mut keep);
    if let Some(witness) = &birth.witness {
        witness.collect_fds(&mut keep);
    }
    if let Some(walls) = &birth.native {
        keep.extend(walls.tasks.iter().map(AsRawFd::as_raw_fd));
        if let Some(root) = &walls.root {
            root.collect_fds(&mut keep);
        }
    }
    if sys::close_all_but(&mut keep).is_err() {
        return EXIT_BROKEN;
    }
    if packet::receive_value::<Go>(&birth.keeper, Wait::Yes).is_none() {
        // The keeper is gone, or gave up before it said go.
        return EXIT_BROKEN;
    }
    let (root, tasks) = match &mut birth.native {
        Some(walls) => (walls.root.take(), std::mem::take(&mut walls.tasks)),
        None => (None, Vec::new()),
    };
    match join_cgroups(tasks).and_then(|()| make(&birth, root)) {
        Ok(supervisor) => {
            let _ = packet::send_value(&birth.keeper, &FromInit::Started, &[]);
            supervisor.run()
        }
        Err(refusal) => {
            let _ = packet::send_value(&birth.keeper, &FromInit::Failed(refusal), &[]);
            EXIT_BROKEN
        }
    }
}

/// Joins the v1 cgroups, and closes the ways there. Nothing runs before this that could be out of its limits.
fn join_cgroups(tasks: Vec<OwnedFd>) -> Result<(), KeeperRefusal> {
    for tasks in tasks {
        // Zero is whoever writes.
        rustix::io::write(&tasks, b"0").step("join cgroup")?;
    }
    Ok(())
}

/// Everything from go to the running program.
fn make<'a>(
    birth: &'a Birth<'_>,
    root: Option<Root>,
) -> Result<supervise::Supervisor<'a>, KeeperRefusal> {
    // SIGPIPE stays ignored, as the keeper has it: a vanished reader is an error number here.
    sys::block_signals(SIGNALS).step("block signals")?;
    let signals = sys::signal_fd(SIGNALS).step("make signal fd")?;
    birth.oom_score.restore();
    if let (Some(walls), Some(root)) = (&birth.native, root) {
        privileges::become_root()?;
        arm_death(&birth.keeper)?;
        root::make(root, walls)?;
    } else {
        rustix::process::setsid().step("start a session")?;
        // Orphaned descendants come to this process, so that none gets out of its tree.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .step("become subreaper")?;
    }
    quiet_standard_fds().step("open /dev/null")?;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, birth.open_files)
        .step("limit open files")?;
    // One byte: too little for a file, and the kernel's sign to start no core handler of the host's either.
    let no_core = rustix::process::Rlimit {
        current: Some(1),
        maximum: Some(1),
    };
    rustix::process::setrlimit(rustix::process::Resource::Core, no_core)
        .step("limit core dumps")?;
    if let Some(witness) = &birth.witness {
        witness.testify().step("write witness record")?;
    }
    if let Some(walls) = &birth.native {
        privileges::drop_all(walls.seccomp)?;
    }
    let (output, program_output) = log::pipe().step("make log pipe")?;
    let null = rustix::fs::open(
        c"/dev/null",
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .step("open /dev/null")?;
    let standard = [null.as_fd(), program_output.as_fd(), program_output.as_fd()];
    let pid = spawn::spawn(birth.program, standard, spawn::Terminal::None, tie(birth))?;
    if birth.native.is_some() {
        still_armed()?;
    }
    Ok(supervise::Supervisor::new(birth, signals, output, pid))
}

fn tie(birth: &Birth<'_>) -> spawn::Tie {
    match birth.native {
        // The PID namespace dies with the init.
        Some(_) => spawn::Tie::None,
        None => spawn::Tie::DieWithInit,
    }
}

/// From here on the kernel kills this process when the keeper dies.
fn arm_death(keeper: &OwnedFd) -> Result<(), KeeperRefusal> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .step("become not dumpable")?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .step("arm death signal")?;
    // A keeper that died before the signal was armed has closed its end by now: fds are closed before the
    // death signals are sent.
    let mut poll = [rustix::event::PollFd::new(
        keeper,
        rustix::event::PollFlags::IN,
    )];
    let now = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    rustix::event::poll(&mut poll, Some(&now)).step("look for the keeper")?;
    if poll[0].revents().is_empty() {
        Ok(())
    } else {
        sys::exit_now(EXIT_BROKEN)
    }
}

/// The death signal must have lived through everything that came after it.
fn still_armed() -> Result<(), KeeperRefusal> {
    match rustix::process::parent_process_death_signal() {
        Ok(Some(Signal::KILL)) => Ok(()),
        _ => Err(refused(
            KeeperRefusalCode::Failed,
            "check death signal",
            "it is not armed any more",
        )),
    }
}

/// The init holds no file of the keeper's: its own standard fds lead nowhere.
fn quiet_standard_fds() -> Result<(), rustix::io::Errno> {
    let null = rustix::fs::open(
        c"/dev/null",
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)
}

/// Reaps one ended child, if there is one.
fn reap() -> Option<(i32, model::wire::keeper::WireExit)> {
    match rustix::process::wait(WaitOptions::NOHANG) {
        Ok(Some((pid, status))) => Some((
            pid.as_raw_nonzero().get(),
            crate::processes::wire_exit(status),
        )),
        _ => None,
    }
}
