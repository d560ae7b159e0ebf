//! Commands in containers, and ways for scripts and tests to meet.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use model::wire::keeper::*;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::{await_readable, receive, send};

/// A command in a container, without a terminal.
pub(crate) struct Exec {
    pub(crate) channel: OwnedFd,
    pub(crate) stdin: Option<OwnedFd>,
    output: Option<OwnedFd>,
}

pub(crate) fn exec_plan(command: &[&str], tty: Option<TtySize>) -> ExecPlan {
    ExecPlan {
        command: command.iter().map(|&word| word.to_owned()).collect(),
        env: BTreeMap::from([("PATH".into(), "/usr/bin:/bin".into())]),
        cwd: "/".into(),
        tty,
    }
}

pub(crate) fn channel() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC;
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("pair")
}

pub(crate) fn from_exec(channel: &OwnedFd) -> Option<(FromExec, Vec<OwnedFd>)> {
    let (bytes, fds) = receive(channel)?;
    Some((serde_json::from_slice(&bytes).expect("a message"), fds))
}

impl Exec {
    /// Sends the command, without waiting for its start.
    pub(crate) fn ask(control: &OwnedFd, command: &[&str]) -> Self {
        let (mine, theirs) = channel();
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("pipe");
        let (stdin, stdin_mine) = pipe();
        let (output, output_theirs) = pipe();
        let plan = ToInit::Exec(exec_plan(command, None));
        let fds = [&theirs, &stdin, &output_theirs, &output_theirs].map(AsFd::as_fd);
        send(control, &plan, &fds);
        Self {
            channel: mine,
            stdin: Some(stdin_mine),
            output: Some(output),
        }
    }

    pub(crate) fn start(control: &OwnedFd, command: &[&str]) -> Self {
        let exec = Self::ask(control, command);
        match from_exec(&exec.channel) {
            Some((FromExec::Started { .. }, fds)) if fds.is_empty() => exec,
            other => panic!("not started: {other:?}"),
        }
    }

    /// All that it writes, until its end and that of all its children.
    pub(crate) fn output(&mut self) -> String {
        let mut text = String::new();
        let output = self.output.take().expect("read once");
        read_all(output, &mut text);
        text
    }

    pub(crate) fn exit(&self) -> WireExit {
        match from_exec(&self.channel) {
            Some((FromExec::Exited { exit }, _)) => {
                assert!(from_exec(&self.channel).is_none(), "more after the end");
                exit
            }
            other => panic!("not ended: {other:?}"),
        }
    }
}

fn read_all(fd: OwnedFd, text: &mut String) {
    loop {
        await_readable(&fd);
        let mut bytes = [0; 4096];
        match rustix::io::read(&fd, &mut bytes[..]).expect("read") {
            0 => return,
            length => text.push_str(&String::from_utf8_lossy(&bytes[..length])),
        }
    }
}

/// A witness' record.
pub(crate) struct WitnessLines(pub(crate) Vec<WitnessLine>);

impl WitnessLines {
    pub(crate) fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).expect("record");
        let lines = text.lines().map(serde_json::from_str);
        Self(lines.collect::<Result<_, _>>().expect("whole lines"))
    }
}

/// A named pipe: how a script tells a test that it has come so far.
pub(crate) struct Signpost {
    reader: OwnedFd,
}

impl Signpost {
    pub(crate) fn new(path: &Path) -> Self {
        use rustix::fs::{FileType, Mode, OFlags};
        let mode = Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, mode, 0).expect("fifo");
        // Open for writing too, so that it never ends.
        let reader = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        Self {
            reader: reader.expect("fifo"),
        }
    }

    /// Writes a line for a script that reads.
    pub(crate) fn say(&self, word: &str) {
        rustix::io::write(&self.reader, format!("{word}\n").as_bytes()).expect("write");
    }

    /// The next line.
    pub(crate) fn line(&self) -> String {
        let mut line = String::new();
        loop {
            await_readable(&self.reader);
            let mut byte = [0];
            rustix::io::read(&self.reader, &mut byte[..]).expect("read");
            if byte[0] == b'\n' {
                return line;
            }
            line.push(byte[0].into());
        }
    }
}
