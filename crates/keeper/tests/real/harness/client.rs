//! The wire, as a test speaks it: packets, a keeper's client, what it started.

use std::collections::{BTreeMap, VecDeque};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use model::id::ContainerId;
use model::time::BootTime;
use model::wire::keeper::*;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::Serialize;

use super::{Exec, PATIENCE};

/// Waits until the fd is readable or hung up.
pub(crate) fn await_readable(fd: impl AsFd) {
    assert!(is_readable_within(fd, PATIENCE), "nothing came in time");
}

pub(crate) fn is_readable_within(fd: impl AsFd, within: Duration) -> bool {
    let mut poll = [PollFd::new(&fd, PollFlags::IN)];
    let timeout = Timespec {
        tv_sec: within.as_secs() as i64,
        tv_nsec: within.subsec_nanos().into(),
    };
    rustix::event::poll(&mut poll, Some(&timeout)).expect("poll") > 0
}

pub(crate) fn boot_now() -> BootTime {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    BootTime(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
}

pub(crate) fn send(socket: impl AsFd, value: &impl Serialize, fds: &[BorrowedFd<'_>]) {
    let bytes = serde_json::to_vec(value).expect("serialize");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
    }
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(&bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )
    .expect("send");
}

/// One packet; `None` at end of file.
pub(crate) fn receive(socket: impl AsFd) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
    await_readable(&socket);
    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    );
    let length = message.map_or(0, |message| message.bytes);
    let mut fds = Vec::new();
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    bytes.truncate(length);
    (length > 0).then_some((bytes, fds))
}

/// A connection to a keeper.
pub(crate) struct Client {
    pub(crate) socket: OwnedFd,
    next: u64,
    answers: BTreeMap<u64, (Answer, Vec<OwnedFd>)>,
    events: VecDeque<Event>,
}

impl Client {
    pub(crate) fn connect(path: &Path) -> Self {
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .expect("socket");
        rustix::net::connect(&socket, &SocketAddrUnix::new(path).expect("path")).expect("connect");
        Self {
            socket,
            next: 1,
            answers: BTreeMap::new(),
            events: VecDeque::new(),
        }
    }

    /// Sends a request, without waiting for its answer.
    pub(crate) fn ask(&mut self, request: Request) -> u64 {
        let id = self.next;
        self.next += 1;
        send(&self.socket, &ToKeeper { id, request }, &[]);
        id
    }

    /// The number of the last request.
    pub(crate) fn asked(&self) -> u64 {
        self.next - 1
    }

    /// Takes one message, if the keeper is there.
    fn take(&mut self) -> Option<()> {
        let (bytes, fds) = receive(&self.socket)?;
        match serde_json::from_slice(&bytes).expect("a message") {
            FromKeeper::Answer { id, answer } => {
                assert!(self.answers.insert(id, (answer, fds)).is_none());
            }
            FromKeeper::Event { event } => self.events.push_back(event),
        }
        Some(())
    }

    pub(crate) fn answer(&mut self, id: u64) -> (Answer, Vec<OwnedFd>) {
        loop {
            if let Some(answer) = self.answers.remove(&id) {
                return answer;
            }
            self.take().expect("the keeper is there");
        }
    }

    pub(crate) fn request(&mut self, request: Request) -> (Answer, Vec<OwnedFd>) {
        let id = self.ask(request);
        self.answer(id)
    }

    pub(crate) fn done(&mut self, request: Request) {
        assert_eq!(self.request(request).0, Answer::Done);
    }

    pub(crate) fn refused(&mut self, request: Request) -> KeeperRefusal {
        match self.request(request).0 {
            Answer::Refused(refusal) => refusal,
            other => panic!("not refused: {other:?}"),
        }
    }

    /// Arms the deadline so far ahead.
    pub(crate) fn arm(&mut self, ahead: Duration) -> BootTime {
        let deadline = boot_now().plus(ahead);
        match self.request(Request::Arm { deadline }).0 {
            Answer::Armed { deadline } => deadline,
            other => panic!("not armed: {other:?}"),
        }
    }

    pub(crate) fn started(&mut self, asked: u64) -> Running {
        match self.answer(asked) {
            (Answer::Started(held), fds) => running(held, fds),
            (other, _) => panic!("not started: {other:?}"),
        }
    }

    pub(crate) fn start(&mut self, container: ContainerId, launch: Launch) -> Running {
        let asked = self.ask(Request::Start {
            container,
            launch: Box::new(launch),
        });
        self.started(asked)
    }

    /// The exit of this container; those of others are kept.
    pub(crate) fn exit_of(&mut self, id: &ContainerId) -> WireExit {
        loop {
            let found = self.events.iter().position(|event| {
                let Event::Exited { id: other, .. } = event;
                other == id
            });
            if let Some(Event::Exited { exit, .. }) =
                found.and_then(|index| self.events.remove(index))
            {
                return exit;
            }
            self.take().expect("the keeper is there");
        }
    }

    /// Everything that the keeper holds, with the fds of what runs.
    pub(crate) fn list(&mut self) -> Vec<(Held, Vec<OwnedFd>)> {
        let mut all = Vec::new();
        let mut after = None;
        loop {
            let (Answer::Listed { held, more }, fds) = self.request(Request::List { after }) else {
                panic!("no list");
            };
            let mut fds = fds.into_iter();
            after = held.last().map(|held| held.id.clone());
            for held in held {
                let its = match held.state {
                    HeldState::Running => fds.by_ref().take(2).collect(),
                    HeldState::Watched => fds.by_ref().take(1).collect(),
                    HeldState::Exited { .. } => vec![],
                };
                all.push((held, its));
            }
            assert_eq!(fds.count(), 0, "fds of nobody");
            if !more {
                return all;
            }
        }
    }
}

/// A started container.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) held: Held,
    pub(crate) pidfd: OwnedFd,
    pub(crate) control: OwnedFd,
}

pub(crate) fn running(held: Held, fds: Vec<OwnedFd>) -> Running {
    let [pidfd, control] = <[OwnedFd; 2]>::try_from(fds).expect("two fds");
    Running {
        held,
        pidfd,
        control,
    }
}

impl Running {
    /// Runs a script without a terminal; what it writes comes back with how it ended.
    pub(crate) fn script(&self, script: &str) -> (WireExit, String) {
        let mut exec = Exec::start(&self.control, &["sh", "-c", script]);
        drop(exec.stdin.take());
        let output = exec.output();
        (exec.exit(), output)
    }

    /// Waits until PID 1 is dead.
    pub(crate) fn await_dead(&self) {
        await_readable(&self.pidfd);
    }

    pub(crate) fn is_dead(&self) -> bool {
        is_readable_within(&self.pidfd, Duration::ZERO)
    }
}
