//! The terminal that a person sits at: raw mode, its size, what is typed, its signals, and a screen of one's own on it.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// The other screen, without a cursor; lines that are too long are cut off at the edge.
const ENTER: &str = "\u{1B}[?1049h\u{1B}[?25l\u{1B}[?7l";
/// What was there before.
const LEAVE: &str = "\u{1B}[?7h\u{1B}[?25h\u{1B}[?1049l";
/// To the first place of the first line.
const HOME: &str = "\u{1B}[H";
/// Whatever is right of here on this line is removed. What is drawn over the same text does not flicker.
const CLEAR_LINE: &str = "\u{1B}[K";
/// As is whatever is below.
const CLEAR_REST: &str = "\u{1B}[J";

/// The terminal in raw mode, until dropped.
pub(super) struct Raw {
    before: Termios,
}

impl Raw {
    /// `None` when standard input is no terminal: then its bytes are as they are.
    pub(super) fn begin() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(stdin.as_fd())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin.as_fd(), OptionalActions::Drain, &raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // If the terminal is gone there is nothing to put back.
        let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Drain, &self.before);
    }
}

/// The columns and rows of the terminal that is looked at, if there is one.
pub(super) fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(io::stdout().as_fd())
        .or_else(|_| tcgetwinsize(io::stdin().as_fd()))
        .ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// What is typed, until the end of the input. The thread is left behind in its read at the end.
pub(super) fn keys() -> io::Result<mpsc::Receiver<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::Builder::new()
        .name("keys".into())
        .spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = io::stdin().lock().read(&mut buffer) {
                if sender.blocking_send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        })?;
    Ok(receiver)
}

/// Writes to the terminal at once.
pub(super) fn show(bytes: &[u8]) -> io::Result<()> {
    let mut screen = io::stdout().lock();
    screen.write_all(bytes)?;
    screen.flush()
}

/// What a terminal's process is told by signals.
pub(super) struct Signals {
    pub(super) resized: Signal,
    pub(super) hung_up: Signal,
    pub(super) terminated: Signal,
    pub(super) interrupted: Signal,
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            resized: signal(SignalKind::window_change())?,
            hung_up: signal(SignalKind::hangup())?,
            terminated: signal(SignalKind::terminate())?,
            interrupted: signal(SignalKind::interrupt())?,
        })
    }
}

/// A screen of one's own, which is drawn again and again; dropped, the terminal is as it was.
pub(super) struct Screen {
    _raw: Option<Raw>,
}

impl Screen {
    pub(super) fn enter() -> io::Result<Self> {
        let raw = Raw::begin()?;
        show(ENTER.as_bytes())?;
        Ok(Self { _raw: raw })
    }

    /// How many lines there is room for.
    pub(super) fn rows(&self) -> usize {
        size().map_or(24, |(_, rows)| usize::from(rows))
    }

    /// Shows these lines, as many as there is room for, in place of what was there.
    pub(super) fn draw(&self, lines: &[String]) -> io::Result<()> {
        let shown = &lines[..lines.len().min(self.rows())];
        let text: Vec<String> = shown
            .iter()
            .map(|line| format!("{line}{CLEAR_LINE}"))
            .collect();
        show(format!("{HOME}{}{CLEAR_REST}", text.join("\r\n")).as_bytes())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // If the terminal is gone there is nothing to leave.
        let _ = show(LEAVE.as_bytes());
    }
}
