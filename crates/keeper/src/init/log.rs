//! The program's output: from its pipe into two files, used in turn.
//!
//! Spliced within the kernel, so that it costs the init no memory. See
//! [`model::wire::keeper::LogPlan`] for how a reader tells which file is growing.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags};

/// The two files.
pub(crate) struct Log {
    files: [OwnedFd; 2],
    bytes_max: u64,
}

impl Log {
    /// `files` are empty and open for writing.
    pub(crate) fn new(files: [OwnedFd; 2], bytes_max: u64) -> Self {
        Self { files, bytes_max }
    }

    /// Adds its fds to a list.
    pub(crate) fn collect_fds(&self, list: &mut Vec<RawFd>) {
        list.extend(self.files.iter().map(AsRawFd::as_raw_fd));
    }
}

/// The pipe between program and log: the init's end, which never waits, and the program's.
pub(super) fn pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (output, program_output) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&output, true)?;
    Ok((output, program_output))
}

/// Whether there may be more output later.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// There may.
    Open,
    /// Every writer is gone.
    Ended,
}

/// Moves output into the files.
pub(super) struct Pump<'a> {
    log: &'a Log,
    output: OwnedFd,
    growing: usize,
    written: u64,
}

/// How much is moved before other events get their turn, in steps of at most a pipe's buffer.
const STEPS_MAX: usize = 16;

impl<'a> Pump<'a> {
    pub(super) fn new(log: &'a Log, output: OwnedFd) -> Self {
        Self {
            log,
            output,
            growing: 0,
            written: 0,
        }
    }

    /// The init's end of the pipe.
    pub(super) fn output(&self) -> &OwnedFd {
        &self.output
    }

    /// Moves what is there.
    pub(super) fn pump(&mut self) -> Output {
        for _ in 0..STEPS_MAX {
            match self.move_some() {
                Ok(0) => return Output::Ended,
                Ok(_) => {}
                Err(Errno::AGAIN) => return Output::Open,
                // The disk is full or broken. The program goes on, its output is lost.
                Err(_) => match self.discard_some() {
                    Ok(0) => return Output::Ended,
                    Ok(_) => {}
                    Err(_) => return Output::Open,
                },
            }
        }
        Output::Open
    }

    fn move_some(&mut self) -> Result<usize, Errno> {
        let room = self.log.bytes_max.saturating_sub(self.written);
        let mut offset = self.written;
        let moved = rustix::pipe::splice(
            &self.output,
            None,
            &self.log.files[self.growing],
            Some(&mut offset),
            usize::try_from(room).unwrap_or(usize::MAX).min(1 << 20),
            SpliceFlags::MOVE | SpliceFlags::NONBLOCK,
        )?;
        self.written += moved as u64;
        if self.written >= self.log.bytes_max {
            let other = 1 - self.growing;
            rustix::fs::ftruncate(&self.log.files[other], 0)?;
            self.growing = other;
            self.written = 0;
        }
        Ok(moved)
    }

    fn discard_some(&self) -> Result<usize, Errno> {
        rustix::io::read(&self.output, &mut [0_u8; 4096][..])
    }
}
