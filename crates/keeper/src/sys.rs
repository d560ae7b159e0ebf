//! The kernel's interfaces that rustix does not offer, each behind a safe function.

use std::ffi::{CStr, c_int};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::io::Errno;

/// The libc crate's constant of this name is cut to 32 bits.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// This side of a [`clone3`].
pub(crate) enum Cloned {
    /// In the new process.
    Child,
    /// In the caller.
    Parent {
        /// The new process, as the caller sees it.
        pid: i32,
        /// And for good.
        pidfd: OwnedFd,
    },
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

fn check(returned: c_int) -> Result<c_int, Errno> {
    if returned < 0 {
        Err(last_errno())
    } else {
        Ok(returned)
    }
}

/// Forks, into new namespaces (`flags`: CLONE_NEW…) and optionally into a v2 cgroup. The child is a copy
/// of this process, which must have one thread only; SIGCHLD tells of its end.
pub(crate) fn clone3(flags: c_int, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned, Errno> {
    let mut pidfd: c_int = -1;
    // SAFETY: clone_args is plain numbers, for which zero is "not used".
    let mut arguments: libc::clone_args = unsafe { MaybeUninit::zeroed().assume_init() };
    arguments.flags = flags as u64 | libc::CLONE_PIDFD as u64;
    arguments.pidfd = ptr::from_mut(&mut pidfd) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: the structure lives through the call and its size is given. Without CLONE_VM the child has its
    // own copy of the memory and goes on from here with its own copy of this stack, as after fork.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            ptr::from_ref(&arguments),
            size_of::<libc::clone_args>(),
        )
    };
    match returned {
        -1 => Err(last_errno()),
        0 => Ok(Cloned::Child),
        pid => Ok(Cloned::Parent {
            pid: pid as i32,
            // SAFETY: the kernel has just made this fd for us, with CLOEXEC.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
    }
}

/// Ends this process at once, running nothing: for a forked child, which must not run its parent's
/// destructors and exit handlers.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: takes a number, does not return, touches no memory.
    unsafe { libc::_exit(code) }
}

/// Sets attributes (MOUNT_ATTR_…) of one mount, with the user namespace for MOUNT_ATTR_IDMAP.
pub(crate) fn mount_setattr(
    mount: BorrowedFd<'_>,
    set: u64,
    user_namespace: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let attributes = libc::mount_attr {
        attr_set: set
            | if user_namespace.is_some() {
                libc::MOUNT_ATTR_IDMAP
            } else {
                0
            },
        attr_clr: 0,
        propagation: 0,
        userns_fd: user_namespace.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    // SAFETY: the path and the structure live through the call, the size is the structure's.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            ptr::from_ref(&attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    check(returned as c_int).map(drop)
}

/// Closes every fd but these. All are above 2 or are among the standard three; order does not matter.
pub(crate) fn close_all_but(keep: &mut [RawFd]) -> Result<(), Errno> {
    keep.sort_unstable();
    let mut first: u32 = 0;
    let close = |from: u32, to: u32| -> Result<(), Errno> {
        // SAFETY: takes numbers only. That nothing uses the closed fds any more is the caller's promise: it
        // is a freshly forked child that forgets, not drops, what it has from its parent.
        let returned = unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) };
        check(returned as c_int).map(drop)
    };
    for fd in keep.iter() {
        let fd = *fd as u32;
        if fd > first {
            close(first, fd - 1)?;
        }
        first = fd + 1;
    }
    close(first, u32::MAX)
}

fn signal_set(signals: &[c_int]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset makes the set whole, sigaddset changes it.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        set.assume_init()
    }
}

/// Blocks exactly these signals.
pub(crate) fn block_signals(signals: &[c_int]) -> Result<(), Errno> {
    let set = signal_set(signals);
    // SAFETY: the set lives through the call; no old set is asked for.
    check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const set, ptr::null_mut()) })
        .map(drop)
}

/// An fd that is readable when one of these (blocked) signals is pending.
pub(crate) fn signal_fd(signals: &[c_int]) -> Result<OwnedFd, Errno> {
    let set = signal_set(signals);
    // SAFETY: the set lives through the call.
    let fd = check(unsafe {
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    })?;
    // SAFETY: the kernel has just made this fd for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes one pending signal's number from a [`signal_fd`].
pub(crate) fn read_signal(fd: &OwnedFd) -> Option<c_int> {
    let mut information = [0_u8; size_of::<libc::signalfd_siginfo>()];
    match rustix::io::read(fd, &mut information[..]) {
        // The signal's number is the first field, of 32 bits.
        Ok(length) if length >= 4 => Some(i32::from_ne_bytes([
            information[0],
            information[1],
            information[2],
            information[3],
        ])),
        _ => None,
    }
}

/// Ignores no signal, whatever this process' parent ignored, but SIGPIPE: a vanished reader is an error
/// number here.
pub(crate) fn ignore_only_sigpipe() {
    for signal in 1..=64 {
        let action = if signal == libc::SIGPIPE {
            libc::SIG_IGN
        } else {
            libc::SIG_DFL
        };
        // SAFETY: only sets a disposition. It fails for SIGKILL, SIGSTOP and libc's own, which have none.
        unsafe { libc::signal(signal, action) };
    }
}

/// Gives SIGPIPE its default action too: what a program expects at its start.
pub(crate) fn ignore_nothing() {
    // SAFETY: only sets a disposition.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Replaces this process by a program. Returns only if that failed.
pub(crate) fn execute(path: &CStr, arguments: &CStrings, environment: &CStrings) -> Errno {
    // SAFETY: both arrays end with a null pointer and point to strings that live as long as they.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    last_errno()
}

/// Strings as `execve` takes them.
pub(crate) struct CStrings {
    /// What the pointers point into.
    _strings: Vec<std::ffi::CString>,
    pointers: Vec<*const std::ffi::c_char>,
}

impl CStrings {
    /// None if one of them has a NUL byte.
    pub(crate) fn new(texts: impl Iterator<Item = String>) -> Option<Self> {
        let strings: Vec<_> = texts
            .map(std::ffi::CString::new)
            .collect::<Result<_, _>>()
            .ok()?;
        let mut pointers: Vec<_> = strings.iter().map(|string| string.as_ptr()).collect();
        pointers.push(ptr::null());
        Some(Self {
            _strings: strings,
            pointers,
        })
    }

    fn as_ptr(&self) -> *const *const std::ffi::c_char {
        self.pointers.as_ptr()
    }
}

/// Brings up the loopback of this process' network namespace.
pub(crate) fn loopback_up() -> Result<(), Errno> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: ifreq is plain bytes, for which zero is valid.
    let mut request: libc::ifreq = unsafe { MaybeUninit::zeroed().assume_init() };
    request.ifr_name[0] = b'l' as _;
    request.ifr_name[1] = b'o' as _;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as _;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which lives through the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })
        .map(drop)
}

/// Forks by the C library, whose call a container's filter allows. `None` in the child.
pub(crate) fn fork() -> Result<Option<i32>, Errno> {
    // SAFETY: this process has one thread, so the child may do whatever it could do.
    match unsafe { libc::fork() } {
        -1 => Err(last_errno()),
        0 => Ok(None),
        pid => Ok(Some(pid)),
    }
}
