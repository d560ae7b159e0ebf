//! An init's long quiet life: it waits for events until its program ends.

use std::os::fd::OwnedFd;

use model::wire::keeper::{ToInit, WireExit};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, Signal};

use super::exec::{self, Channel, Exec};
use super::log::{Output, Pump};
use super::{Birth, EXIT_BROKEN, reap, tie};
use crate::packet::{self, Received, Wait};
use crate::processes;
use crate::report::FromInit;
use crate::sys;

/// An init whose program runs.
pub(super) struct Supervisor<'a> {
    birth: &'a Birth<'a>,
    signals: OwnedFd,
    program: i32,
    pump: Option<Pump<'a>>,
    execs: Vec<Exec>,
    control: Control,
}

#[derive(PartialEq, Eq)]
enum Control {
    Open,
    /// Nobody holds the other end: neither keeper nor conman.
    Closed,
}

impl<'a> Supervisor<'a> {
    pub(super) fn new(
        birth: &'a Birth<'a>,
        signals: OwnedFd,
        output: OwnedFd,
        program: i32,
    ) -> Self {
        Self {
            birth,
            signals,
            program,
            pump: Some(Pump::new(&birth.log, output)),
            execs: Vec::new(),
            control: Control::Open,
        }
    }

    /// Returns the init's own exit code when all is over.
    pub(super) fn run(mut self) -> i32 {
        loop {
            let ready = self.wait();
            if ready.keeper {
                // It never writes to us again: it is gone. (In a native container the kernel is killing us.)
                self.kill_the_rest();
                return EXIT_BROKEN;
            }
            if ready.output {
                self.pump_output();
            }
            if ready.signals
                && let Some(exit) = self.take_signals()
            {
                return self.end(exit);
            }
            if ready.control {
                self.take_command();
            }
            for pid in ready.execs {
                // One that was reaped just now is not there any more.
                let found = self.execs.iter().position(|exec| exec.pid == pid);
                if let Some(index) = found
                    && self.execs[index].listen() == Channel::Closed
                {
                    self.execs.remove(index);
                }
            }
        }
    }

    fn wait(&self) -> Ready {
        let mut polled = vec![
            PollFd::new(&self.birth.keeper, PollFlags::IN),
            PollFd::new(&self.signals, PollFlags::IN),
        ];
        let output = self.pump.as_ref().map(|pump| {
            polled.push(PollFd::new(pump.output(), PollFlags::IN));
            polled.len() - 1
        });
        let control = (self.control == Control::Open).then(|| {
            polled.push(PollFd::new(&self.birth.control, PollFlags::IN));
            polled.len() - 1
        });
        let execs_first = polled.len();
        for exec in &self.execs {
            polled.push(PollFd::new(&exec.channel, PollFlags::IN));
        }
        // Fails only when interrupted or out of memory: then nothing is ready, and it is asked again.
        let _ = rustix::event::poll(&mut polled, None);
        let is_ready = |index: usize| !polled[index].revents().is_empty();
        Ready {
            keeper: is_ready(0),
            signals: is_ready(1),
            output: output.is_some_and(is_ready),
            control: control.is_some_and(is_ready),
            execs: self
                .execs
                .iter()
                .enumerate()
                .filter(|(index, _)| is_ready(execs_first + index))
                .map(|(_, exec)| exec.pid)
                .collect(),
        }
    }

    fn pump_output(&mut self) {
        if self.pump.as_mut().map(Pump::pump) == Some(Output::Ended) {
            self.pump = None;
        }
    }

    /// Passes on SIGTERM, reaps; returns the program's end.
    fn take_signals(&mut self) -> Option<WireExit> {
        while let Some(signal) = sys::read_signal(&self.signals) {
            if signal == libc::SIGTERM
                && let Some(program) = Pid::from_raw(self.program)
            {
                let _ = rustix::process::kill_process(program, Signal::TERM);
            }
        }
        let mut ended = None;
        while let Some((pid, exit)) = reap() {
            if pid == self.program {
                ended = Some(exit);
            } else if let Some(index) = self.execs.iter().position(|exec| exec.pid == pid) {
                self.execs.remove(index).ended(exit);
            }
        }
        ended
    }

    fn take_command(&mut self) {
        match packet::receive(&self.birth.control, Wait::No) {
            Received::Packet(bytes, fds) => {
                if let Ok(ToInit::Exec(plan)) = serde_json::from_slice(&bytes)
                    && let Some(exec) = exec::start(&plan, fds, tie(self.birth))
                {
                    self.execs.push(exec);
                }
            }
            Received::Nothing | Received::TooLarge => {}
            Received::Closed => self.control = Control::Closed,
        }
    }

    /// The program is over, and so is the container.
    fn end(mut self, exit: WireExit) -> i32 {
        self.kill_the_rest();
        // What it wrote last.
        self.pump_output();
        let _ = packet::send_value(&self.birth.keeper, &FromInit::Exited(exit), &[]);
        match exit {
            WireExit::Code { code } => code,
            WireExit::Signal { signal } => 128 + signal,
        }
    }

    /// A PID namespace's processes are killed by the kernel when this one ends. Plain processes are killed
    /// here, as long as there are any: orphans among them come to us.
    fn kill_the_rest(&self) {
        if self.birth.native.is_none() {
            processes::kill_descendants_and_reap();
        }
    }
}

struct Ready {
    keeper: bool,
    signals: bool,
    output: bool,
    control: bool,
    /// By their PIDs: their places change as others end.
    execs: Vec<i32>,
}
