//! The journal of systemd, read by `journalctl`, whose files' form is its own affair.
//!
//! ```text
//!   journalctl --after-cursor        journalctl --follow --after-cursor
//!   all that there is   ──end──►     each entry as it comes   ──ends──► once more, from the last cursor
//! ```
//!
//! Two programs, since one that follows does not say when it has come to the end of what there was. The place is
//! the cursor of the last entry; when that has been vacuumed away, `journalctl` goes on with the one after it.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::super::Journal;
use super::super::owner::Message;
use super::{BLOCK_BYTES, Feeder, Stopped, now, rest};

/// How long after it has failed `journalctl` is started again.
const AGAIN: Duration = Duration::from_secs(1);
/// No more is repeated of what it says of a failure.
const SAID_MAX: u64 = 4096;

/// Up to where the journal was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    cursor: String,
}

/// The one field of an entry that is read here.
#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(rename = "__CURSOR")]
    cursor: String,
}

/// Follows one part of a journal.
pub(super) struct Follower {
    journal: Journal,
    place: Option<Place>,
    feeder: Feeder,
}

/// A program that is ended with what reads it.
struct Reading(Child);

impl Drop for Reading {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Follower {
    /// Follows a part of a journal, going on at a place.
    pub(super) fn new(
        journal: Journal,
        place: Option<&str>,
        feeder: Feeder,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            journal,
            place: place.map(serde_json::from_str).transpose()?,
            feeder,
        })
    }

    /// Follows it until the tracker ends.
    pub(super) fn run(mut self) {
        let mut is_lost = false;
        loop {
            let Err(stopped) = self.read_all(&mut is_lost);
            let Stopped::Failed(error) = stopped else {
                return;
            };
            // Said once, not every second.
            if !std::mem::replace(&mut is_lost, true) {
                let lost = Message::Lost(format!("{error:#}"));
                if self.feeder.sender.send(lost).is_err() {
                    return;
                }
            }
            rest(AGAIN);
        }
    }

    fn read_all(&mut self, is_lost: &mut bool) -> Result<std::convert::Infallible, Stopped> {
        self.read(false)?;
        *is_lost = false;
        self.feeder.sender.send(Message::CaughtUp)?;
        self.read(true)?;
        Err(anyhow::anyhow!("journalctl has ended").into())
    }

    fn command(&self, is_following: bool) -> Command {
        let mut command = Command::new("journalctl");
        command.args(["--output=json", "--no-pager", "--quiet", "--all"]);
        if is_following {
            command.args(["--follow", "--no-tail"]);
        }
        if let Some(directory) = &self.journal.directory {
            command.arg("--directory").arg(directory);
        }
        match &self.place {
            Some(place) => command.arg(format!("--after-cursor={}", place.cursor)),
            None => {
                let since = now().0 / 1_000_000_000 - self.journal.since.as_secs().cast_signed();
                command.arg(format!("--since=@{since}"))
            }
        };
        if self.journal.of.contains('=') {
            command.arg(&self.journal.of)
        } else {
            command.arg(format!("--unit={}", self.journal.of))
        };
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Reads what one `journalctl` prints, to its end.
    fn read(&mut self, is_following: bool) -> Result<(), Stopped> {
        let started = self.command(is_following).spawn();
        let mut reading = Reading(started.context("start journalctl")?);
        let mut output = reading
            .0
            .stdout
            .take()
            .context("journalctl has no output")?;
        let mut pending = Vec::new();
        let mut block = vec![0; BLOCK_BYTES];
        loop {
            let count = match output.read(&mut block) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Stopped::Failed(error.into())),
            };
            pending.extend_from_slice(&block[..count]);
            let Some(last) = memchr::memrchr(b'\n', &pending) else {
                continue;
            };
            let rest = pending.split_off(last + 1);
            let whole = std::mem::replace(&mut pending, rest);
            self.take(whole)?;
            if is_following {
                // More may come at once; if it does not, there is nothing else to wait for.
                self.feeder.sender.send(Message::CaughtUp)?;
            }
        }
        let mut said = String::new();
        if let Some(errors) = reading.0.stderr.take() {
            // What it did not say in letters is not repeated.
            let _ = errors.take(SAID_MAX).read_to_string(&mut said);
        }
        let status = reading.0.wait().context("wait for journalctl")?;
        if status.success() {
            return Ok(());
        }
        Err(anyhow::anyhow!("journalctl: {status}: {}", said.trim()).into())
    }

    /// Takes whole entries.
    fn take(&mut self, entries: Vec<u8>) -> Result<(), Stopped> {
        let last = entries.trim_ascii_end();
        let begin = memchr::memrchr(b'\n', last).map_or(0, |at| at + 1);
        let Entry { cursor } =
            serde_json::from_slice(&last[begin..]).context("journalctl printed no entry")?;
        let place = Place { cursor };
        self.feeder.feed(entries, now(), &place)?;
        self.place = Some(place);
        Ok(())
    }
}
