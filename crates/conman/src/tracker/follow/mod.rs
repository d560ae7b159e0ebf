//! Followers: each reads one source without end and sends what it brought, with the place up to which it read.

mod file;
mod files;
mod input;
mod journal;
mod loki;

use std::sync::mpsc::SyncSender;
use std::time::Duration;

use model::stuck::LogTime;
use serde::Serialize;
use stuck::live::{Bookmark, Lines, Read};
use stuck::plan::PlanError;

use super::database::{Known, Progress};
use super::owner::{Message, Said};
use super::{Source, SourceKind};

pub(super) use self::files::{Found, find};

/// How much is read of a source at a time.
const BLOCK_BYTES: usize = 1 << 20;

/// The tracker has ended.
#[derive(Debug)]
pub(super) struct Gone;

/// Why a follower that tries again has stopped reading.
enum Stopped {
    Gone,
    Failed(anyhow::Error),
}

impl From<Gone> for Stopped {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

impl From<anyhow::Error> for Stopped {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

/// A follower's way to the tracker.
#[derive(Debug, Clone)]
pub(super) struct Sender {
    number: usize,
    channel: SyncSender<Said>,
}

impl Sender {
    pub(super) fn new(number: usize, channel: SyncSender<Said>) -> Self {
        Self { number, channel }
    }

    fn send(&self, message: Message) -> Result<(), Gone> {
        let said = Said::Of(self.number, message);
        self.channel.send(said).map_err(|_| Gone)
    }
}

/// Makes of lines what the tracker takes.
struct Feeder {
    name: String,
    lines: Lines,
    sender: Sender,
    is_planned: bool,
    has_warned: bool,
}

impl Feeder {
    /// Goes on at a bookmark; without one, the first lines decide how all are read.
    fn resume(source: &Source, bookmark: Option<&str>, sender: Sender) -> anyhow::Result<Self> {
        let bookmark: Bookmark = match bookmark {
            Some(text) => serde_json::from_str(text)?,
            None => Bookmark::default(),
        };
        let lines = Lines::resume(source.query.as_ref().clone(), bookmark)?;
        Ok(Self {
            name: source.name.clone(),
            is_planned: !lines.description().is_empty(),
            lines,
            sender,
            has_warned: false,
        })
    }

    /// Reads whole lines and sends what they say, with the place behind them.
    fn feed<P: Serialize>(
        &mut self,
        bytes: Vec<u8>,
        modified: LogTime,
        place: &P,
    ) -> Result<(), Gone> {
        let count = memchr::memchr_iter(b'\n', &bytes).count() as u64;
        let before = self.lines.bookmark().day;
        let read = match self.lines.read(bytes, modified) {
            Ok(read) => read,
            Err(error @ (PlanError::Usage(_) | PlanError::Expr { .. })) => {
                self.sender.send(Message::Wrong(error.to_string()))?;
                return Err(Gone);
            }
            Err(error) => {
                if !std::mem::replace(&mut self.has_warned, true) {
                    tracing::warn!(source = self.name, %error, "lines that say nothing are counted, and passed over");
                }
                Read {
                    lines: count,
                    unparsed: count,
                    ..Read::default()
                }
            }
        };
        let is_planned = !self.lines.description().is_empty();
        let has_new_plan = is_planned && !std::mem::replace(&mut self.is_planned, is_planned);
        if has_new_plan {
            let format = self.lines.description();
            tracing::info!(source = self.name, format, "following a log");
        }
        let has_moved = has_new_plan || before != self.lines.bookmark().day;
        let bookmark = has_moved.then(|| json(self.lines.bookmark()));
        let place = Some(json(place));
        self.sender
            .send(Message::Read(read, Progress { bookmark, place }))
    }
}

/// These are plain values of ours: there is nothing in them that cannot be written.
fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn now() -> LogTime {
    let now = jiff::Timestamp::now().as_nanosecond();
    LogTime(i64::try_from(now).unwrap_or_default())
}

fn thread() -> std::thread::Builder {
    std::thread::Builder::new().name("stuck-follow".into())
}

/// Waits before something is tried again of which no event tells.
fn rest(time: Duration) {
    #[expect(
        clippy::disallowed_methods,
        reason = "a thread of its own, and what it waits for is time"
    )]
    std::thread::sleep(time);
}

/// Begins to follow a source.
///
/// # Errors
/// When what was kept of it does not fit it any more, or there is no thread for it.
pub(super) fn start(source: Source, known: Known, sender: Sender) -> anyhow::Result<()> {
    let feeder = |bookmark| Feeder::resume(&source, bookmark, sender);
    let (bookmark, place) = (known.bookmark.as_deref(), known.place.as_deref());
    match source.kind.clone() {
        SourceKind::File(path) => {
            let follower = file::Follower::open(path, place, feeder(bookmark)?)?;
            thread().spawn(move || follower.run())?;
        }
        SourceKind::Journal(journal) => {
            let follower = journal::Follower::new(journal, place, feeder(bookmark)?)?;
            thread().spawn(move || follower.run())?;
        }
        SourceKind::Loki(loki) => {
            let follower = loki::Follower::new(*loki, place, feeder(bookmark)?)?;
            thread().spawn(move || follower.run())?;
        }
        SourceKind::Files(pattern) => anyhow::bail!("{pattern} is many sources, not one"),
        SourceKind::StandardInput => {
            // What comes this time need not look like what came the last time.
            let feeder = feeder(None)?;
            thread().spawn(move || input::run(feeder))?;
        }
    }
    Ok(())
}
