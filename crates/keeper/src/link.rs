//! A connection that the keeper waits for, but never waits on: to conman, and to the preparer.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use serde::Serialize;

use crate::packet::{self, Received, Wait};

/// The most messages that wait for a side that does not read. One that lets so many lie is hung: its connection is
/// closed, and a conman or its successor asks for the list again.
const WAITING_MAX: usize = 4_096;

/// A connection. Never waits for the other side.
pub(crate) struct Link {
    socket: OwnedFd,
    waiting: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
}

/// Whether the connection can go on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LinkState {
    /// It can.
    Up,
    /// It is broken and to be closed.
    Broken,
}

impl Link {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            waiting: VecDeque::new(),
        }
    }

    /// The socket, to be polled.
    pub(crate) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Whether it is to be polled for writing too.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Takes one packet.
    pub(crate) fn receive(&self) -> Received {
        packet::receive(&self.socket, Wait::No)
    }

    /// Sends, or keeps for later what cannot be sent now.
    pub(crate) fn send(&mut self, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> LinkState {
        let Ok(bytes) = serde_json::to_vec(message) else {
            return LinkState::Broken;
        };
        if self.waiting.is_empty() {
            match packet::send(&self.socket, &bytes, fds) {
                Ok(()) => return LinkState::Up,
                Err(Errno::AGAIN) => {}
                Err(_) => return LinkState::Broken,
            }
        }
        let copies: Result<Vec<OwnedFd>, Errno> = fds
            .iter()
            .map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 3))
            .collect();
        match copies {
            Ok(copies) if self.waiting.len() < WAITING_MAX => {
                self.waiting.push_back((bytes, copies));
                LinkState::Up
            }
            _ => LinkState::Broken,
        }
    }

    /// Sends what has waited, as far as possible.
    pub(crate) fn flush(&mut self) -> LinkState {
        while let Some((bytes, fds)) = self.waiting.front() {
            let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            match packet::send(&self.socket, bytes, &borrowed) {
                Ok(()) => drop(self.waiting.pop_front()),
                Err(Errno::AGAIN) => return LinkState::Up,
                Err(_) => return LinkState::Broken,
            }
        }
        LinkState::Up
    }
}
