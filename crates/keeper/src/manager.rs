//! What the service manager that started this process is told, as `sd_notify(3)` has it: ready, alive, stopping.
//!
//! Nothing here ever waits: a manager that does not read must hold neither the keeper nor anybody's renewals. What
//! it does not take at once is lost, and the next word says the same again.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use model::time::BootTime;

/// The way to the service manager.
#[derive(Debug)]
pub struct Manager {
    socket: UnixDatagram,
    watchdog: Option<Duration>,
}

/// What it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word<'a> {
    /// What was started serves.
    Ready,
    /// It still works.
    Alive,
    /// It hangs, and is to be ended now rather than when its signs of life are missed.
    Hangs,
    /// It ends, in order.
    Stopping,
    /// A line for people.
    Status(&'a str),
}

impl Word<'_> {
    /// As it is sent.
    pub fn text(&self) -> String {
        match self {
            Word::Ready => "READY=1".to_owned(),
            Word::Alive => "WATCHDOG=1".to_owned(),
            Word::Hangs => "WATCHDOG=trigger".to_owned(),
            Word::Stopping => "STOPPING=1".to_owned(),
            // One line: a second one would be another assignment.
            Word::Status(status) => format!("STATUS={}", status.replace('\n', " ")),
        }
    }
}

impl Manager {
    /// The manager of this process, if it has one that wants to be told.
    pub fn of_process() -> Option<Self> {
        let variable = |name| std::env::var_os(name);
        let address = variable("NOTIFY_SOCKET")?;
        let watchdog = watchdog(
            variable("WATCHDOG_USEC"),
            variable("WATCHDOG_PID"),
            std::process::id(),
        );
        Self::at(&address, watchdog).ok()
    }

    /// The manager that listens at this address, as in `NOTIFY_SOCKET`, with the watchdog's patience.
    ///
    /// # Errors
    /// When there is no such socket.
    pub fn at(address: &OsStr, watchdog: Option<Duration>) -> io::Result<Self> {
        let address = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(address)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, watchdog })
    }

    /// Tells it, or loses the word.
    pub fn tell(&self, word: &Word<'_>) {
        let _ = self.socket.send(word.text().as_bytes());
    }

    /// How often it wants to hear [`Word::Alive`], at the least: with room for one that is late.
    pub fn beat_every(&self) -> Option<Duration> {
        self.watchdog.map(|patience| patience / 2)
    }
}

/// How long the manager waits for a sign of life before it ends this process.
fn watchdog(usec: Option<OsString>, of: Option<OsString>, this: u32) -> Option<Duration> {
    let number = |text: OsString| text.to_str()?.parse::<u64>().ok();
    // Inherited from a parent that it was meant for.
    if of.is_some_and(|pid| number(pid) != Some(this.into())) {
        return None;
    }
    let patience = Duration::from_micros(usec.and_then(number)?);
    (!patience.is_zero()).then_some(patience)
}

/// When the next sign of life is due.
#[derive(Debug)]
pub(crate) struct Beats {
    manager: Option<Manager>,
    next: Option<BootTime>,
}

impl Beats {
    /// Says that the keeper is ready.
    pub(crate) fn begin(manager: Option<Manager>, now: BootTime) -> Self {
        if let Some(manager) = &manager {
            manager.tell(&Word::Ready);
        }
        let every = manager.as_ref().and_then(Manager::beat_every);
        Self {
            next: every.map(|every| now.plus(every)),
            manager,
        }
    }

    /// When [`Beats::beat`] has to be called.
    pub(crate) fn next(&self) -> Option<BootTime> {
        self.next
    }

    /// Gives a sign of life if one is due.
    pub(crate) fn beat(&mut self, now: BootTime) {
        if self.next.is_none_or(|next| now < next) {
            return;
        }
        if let Some(manager) = &self.manager {
            manager.tell(&Word::Alive);
            self.next = manager.beat_every().map(|every| now.plus(every));
        }
    }

    /// Says what the keeper does now.
    pub(crate) fn tell(&self, word: &Word<'_>) {
        if let Some(manager) = &self.manager {
            manager.tell(word);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn heard(listener: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let length = listener.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    #[test]
    fn says_what_sd_notify_has() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        let manager = Manager::at(path.as_os_str(), None).unwrap();
        for (word, text) in [
            (Word::Ready, "READY=1"),
            (Word::Alive, "WATCHDOG=1"),
            (Word::Hangs, "WATCHDOG=trigger"),
            (Word::Stopping, "STOPPING=1"),
            (Word::Status("two\nlines"), "STATUS=two lines"),
        ] {
            manager.tell(&word);
            assert_eq!(heard(&listener), text);
        }
        assert_eq!(manager.beat_every(), None);
    }

    #[test]
    fn finds_an_abstract_name() {
        let name = format!("conman-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixDatagram::bind_addr(&address).unwrap();
        let manager = Manager::at(OsStr::new(&format!("@{name}")), None).unwrap();
        manager.tell(&Word::Ready);
        assert_eq!(heard(&listener), "READY=1");
    }

    #[test]
    fn never_waits_for_one_that_does_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let _listener = UnixDatagram::bind(&path).unwrap();
        let manager = Manager::at(path.as_os_str(), None).unwrap();
        // More than any queue holds.
        for _ in 0..10_000 {
            manager.tell(&Word::Alive);
        }
    }

    #[test]
    fn beats_twice_within_the_patience_and_not_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        let manager = Manager::at(path.as_os_str(), Some(Duration::from_secs(10))).unwrap();
        let began = BootTime(0);
        let mut beats = Beats::begin(Some(manager), began);
        assert_eq!(heard(&listener), "READY=1");
        beats.beat(began.plus(Duration::from_secs(4)));
        let due = began.plus(Duration::from_secs(5));
        assert_eq!(beats.next(), Some(due));
        beats.beat(due);
        beats.tell(&Word::Stopping);
        assert_eq!(heard(&listener), "WATCHDOG=1");
        assert_eq!(heard(&listener), "STOPPING=1");
        assert_eq!(beats.next(), Some(due.plus(Duration::from_secs(5))));
    }

    #[test]
    fn a_watchdog_for_another_process_is_none() {
        let text = |text: &str| Some(OsString::from(text));
        let ten = Some(Duration::from_secs(10));
        assert_eq!(watchdog(text("10000000"), text("7"), 7), ten);
        assert_eq!(watchdog(text("10000000"), None, 7), ten);
        assert_eq!(watchdog(text("10000000"), text("8"), 7), None);
        assert_eq!(watchdog(text("0"), None, 7), None);
        assert_eq!(watchdog(text("soon"), None, 7), None);
        assert_eq!(watchdog(None, None, 7), None);
    }
}
