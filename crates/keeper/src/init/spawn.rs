//! Starts programs: the container's own, and those that conman asks for.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use model::wire::keeper::{KeeperRefusal, KeeperRefusalCode};
use rustix::io::Errno;
use rustix::process::Signal;

use crate::failure::{Step, failed, refused};
use crate::sys::{self, CStrings};

/// Where a command is looked for when its environment has no `PATH`.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program with all that `execve` needs, allocated before any fork.
pub(crate) struct Program {
    /// The files to try, in this order.
    candidates: Vec<CString>,
    arguments: CStrings,
    environment: CStrings,
    directory: CString,
    name: String,
}

impl Program {
    /// Refused when the kernel could not take it.
    pub(crate) fn new(
        command: &[String],
        env: &BTreeMap<String, String>,
        cwd: &Path,
    ) -> Result<Self, KeeperRefusal> {
        let bad = |message: &str| refused(KeeperRefusalCode::BadMessage, "read command", message);
        let nul = || bad("command, env and cwd must not have a NUL byte");
        let name = command
            .first()
            .filter(|name| !name.is_empty())
            .ok_or_else(|| bad("command must name a program"))?;
        if !cwd.is_absolute() {
            return Err(bad("cwd must be absolute"));
        }
        let files: Vec<String> = if name.contains('/') {
            vec![name.clone()]
        } else {
            let path = env.get("PATH").map_or(PATH_DEFAULT, String::as_str);
            path.split(':')
                .filter(|directory| !directory.is_empty())
                .map(|directory| format!("{directory}/{name}"))
                .collect()
        };
        Ok(Self {
            candidates: files
                .into_iter()
                .map(CString::new)
                .collect::<Result<_, _>>()
                .map_err(|_| nul())?,
            arguments: CStrings::new(command.iter().cloned()).ok_or_else(nul)?,
            environment: CStrings::new(env.iter().map(|(name, value)| format!("{name}={value}")))
                .ok_or_else(nul)?,
            directory: CString::new(cwd.as_os_str().as_bytes()).map_err(|_| nul())?,
            name: name.clone(),
        })
    }
}

/// Whether standard input is a terminal that the program's session gets as its own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Terminal {
    /// It is not.
    None,
    /// It is.
    Controlling,
}

/// What binds a program to its init.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Tie {
    /// Nothing more is needed.
    None,
    /// SIGKILL when the init dies.
    DieWithInit,
}

/// The steps of a child between fork and program, as they are told to the parent.
const STEPS: &[&str] = &[
    "start a session",
    "take the terminal",
    "connect standard fds",
    "reset signals",
    "enter working directory",
    "execute command",
];
const EXECUTE: usize = 5;

/// Starts a program in a session of its own. Returns when its `execve` has succeeded, with its PID.
pub(super) fn spawn(
    program: &Program,
    standard: [BorrowedFd<'_>; 3],
    terminal: Terminal,
    tie: Tie,
) -> Result<i32, KeeperRefusal> {
    // Closed by the kernel at execve: end of file is success.
    let (told, tell) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).step("make start pipe")?;
    let Some(pid) = sys::fork().step("fork")? else {
        let (step, errno) = become_program(program, standard, terminal, tie);
        let mut words = [0_u8; 8];
        words[..4].copy_from_slice(&(step as u32).to_ne_bytes());
        words[4..].copy_from_slice(&errno.raw_os_error().to_ne_bytes());
        let _ = rustix::io::write(&tell, &words);
        sys::exit_now(127);
    };
    drop(tell);
    match read_failure(&told) {
        None => Ok(pid),
        Some((step, errno)) => {
            // The child is ending: it is reaped here, not left for somebody to wonder about.
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::io::retry_on_intr(|| {
                    rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())
                });
            }
            Err(explain(program, step, errno))
        }
    }
}

fn read_failure(told: &OwnedFd) -> Option<(usize, Errno)> {
    let mut words = [0_u8; 8];
    let read = rustix::io::retry_on_intr(|| rustix::io::read(told, &mut words[..]));
    if read != Ok(words.len()) {
        return None;
    }
    let [a, b, c, d, e, f, g, h] = words;
    let step = u32::from_ne_bytes([a, b, c, d]) as usize;
    let errno = Errno::from_raw_os_error(i32::from_ne_bytes([e, f, g, h]));
    Some((step, errno))
}

fn explain(program: &Program, step: usize, errno: Errno) -> KeeperRefusal {
    let mut refusal = failed(STEPS.get(step).copied().unwrap_or("start"), errno);
    if step == EXECUTE {
        refusal.code = match errno {
            Errno::NOENT | Errno::NOTDIR => KeeperRefusalCode::CommandNotFound,
            Errno::ACCESS | Errno::NOEXEC | Errno::PERM | Errno::ISDIR | Errno::LIBBAD => {
                KeeperRefusalCode::CommandNotExecutable
            }
            _ => refusal.code,
        };
        refusal.message = format!("{}: {}", program.name, refusal.message);
    } else if step == EXECUTE - 1 {
        refusal.message = format!(
            "{}: {}",
            program.directory.to_string_lossy(),
            refusal.message
        );
    }
    refusal
}

/// In the forked child. Returns only on failure, with the step that failed.
fn become_program(
    program: &Program,
    standard: [BorrowedFd<'_>; 3],
    terminal: Terminal,
    tie: Tie,
) -> (usize, Errno) {
    let steps = || -> Result<(), (usize, Errno)> {
        let at = |step: usize| move |errno: Errno| (step, errno);
        rustix::process::setsid().map_err(at(0))?;
        if terminal == Terminal::Controlling {
            rustix::process::ioctl_tiocsctty(standard[0].as_fd()).map_err(at(1))?;
        }
        // The init's own 0 to 2 are /dev/null, so none of these is overwritten before it is used.
        rustix::stdio::dup2_stdin(standard[0]).map_err(at(2))?;
        rustix::stdio::dup2_stdout(standard[1]).map_err(at(2))?;
        rustix::stdio::dup2_stderr(standard[2]).map_err(at(2))?;
        if tie == Tie::DieWithInit {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(at(3))?;
        }
        sys::ignore_nothing();
        sys::block_signals(&[]).map_err(at(3))?;
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        rustix::process::chdir(program.directory.as_c_str()).map_err(at(4))
    };
    if let Err(failure) = steps() {
        return failure;
    }
    let mut found = Errno::NOENT;
    for file in &program.candidates {
        match sys::execute(file, &program.arguments, &program.environment) {
            Errno::NOENT | Errno::NOTDIR => {}
            // As a shell does: a later directory may have one that may be executed.
            Errno::ACCESS => found = Errno::ACCESS,
            errno => return (EXECUTE, errno),
        }
    }
    (EXECUTE, found)
}
