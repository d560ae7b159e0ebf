//! One line per attempt: NDJSON, for `conman stuck report` and whoever else counts.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::Thread;
use std::time::Duration;

use anyhow::Context;
use model::api::Outcome;
use model::id::{Epoch, HostId, ReplId};
use serde::Serialize;
use tokio::sync::oneshot;

/// How an attempt ended.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Attempt {
    /// When it ended, RFC 3339 UTC.
    pub(super) time: String,
    /// Which repl.
    pub(super) repl: ReplId,
    /// Which session: the attempts of one client that tries again are told apart by it.
    pub(super) session: String,
    /// How it ended.
    pub(super) outcome: Outcome,
    /// Why: a refusal's code, or `opened`, `client_gone`.
    pub(super) reason: &'static str,
    /// Which host answered, if one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) host: Option<HostId>,
    /// At which epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) epoch: Option<Epoch>,
    /// From the request to its outcome.
    pub(super) attempt_ms: f64,
}

/// The log. Writing is a thread's: a slow disk holds up nobody.
pub(super) struct SessionLog(Option<Writer>);

/// The thread that writes.
struct Writer {
    sender: mpsc::Sender<Message>,
    thread: Thread,
}

/// How long a line waits for others: a thread that is woken for each of them costs as much as the request itself.
const GATHER: Duration = Duration::from_millis(2);

/// When a log begins anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rotation {
    /// Never: that is for whoever keeps it.
    Others,
    /// When it has more bytes than this, and one older file is kept as `NAME.1`.
    Above(u64),
}

/// What the thread is sent.
enum Message {
    Attempt(Attempt),
    /// Tell when everything before this is written.
    Flush(oneshot::Sender<()>),
}

impl SessionLog {
    /// Opens the log for appending; without a path, nothing is written.
    pub(super) fn open(path: Option<&Path>, rotation: Rotation) -> anyhow::Result<Self> {
        let Some(path) = path else {
            return Ok(Self(None));
        };
        let file =
            append_to(path).with_context(|| format!("open the session log {}", path.display()))?;
        let (sender, messages) = mpsc::channel();
        let path = path.to_owned();
        let writing = std::thread::Builder::new()
            .name("session-log".to_owned())
            .spawn(move || write_all(&path, file, rotation, &messages))
            .context("start the session log's thread")?;
        let thread = writing.thread().clone();
        Ok(Self(Some(Writer { sender, thread })))
    }

    pub(super) fn write(&self, attempt: Attempt) {
        if let Some(Writer { sender, .. }) = &self.0 {
            // The thread ends only with the log, after a disk error that it has told of.
            let _ = sender.send(Message::Attempt(attempt));
        }
    }

    /// Returns when everything so far is in the file.
    pub(super) async fn flush(&self) {
        if let Some(Writer { sender, thread }) = &self.0 {
            let (written, done) = oneshot::channel();
            // As above; and its end drops `written`, which ends the wait.
            let _ = sender.send(Message::Flush(written));
            thread.unpark();
            let _ = done.await;
        }
    }
}

fn append_to(path: &Path) -> io::Result<BufWriter<File>> {
    let file = File::options().create(true).append(true).open(path)?;
    Ok(BufWriter::new(file))
}

fn write_all(
    path: &Path,
    mut file: BufWriter<File>,
    rotation: Rotation,
    messages: &mpsc::Receiver<Message>,
) {
    while let Ok(first) = messages.recv() {
        if matches!(first, Message::Attempt(_)) {
            std::thread::park_timeout(GATHER);
        }
        let (mut lines, mut waiting) = (0_usize, vec![]);
        let mut written = Ok(());
        for message in std::iter::once(first).chain(messages.try_iter()) {
            match message {
                Message::Attempt(attempt) => {
                    lines += 1;
                    written = written.and_then(|()| write_line(&mut file, &attempt));
                }
                Message::Flush(done) => waiting.push(done),
            }
        }
        if let Err(error) = written.and_then(|()| file.flush()) {
            tracing::warn!(%error, lost = lines, "write the session log");
        }
        if let Rotation::Above(bytes_max) = rotation
            && let Err(error) = rotate(path, &mut file, bytes_max)
        {
            tracing::warn!(%error, path = %path.display(), "rotate a log");
        }
        for done in waiting {
            // Whoever asked may have given up.
            let _ = done.send(());
        }
    }
}

/// Begins the log anew, if it is long enough. Who follows it finds the end of what it had in `NAME.1`.
fn rotate(path: &Path, file: &mut BufWriter<File>, bytes_max: u64) -> io::Result<()> {
    if file.get_ref().metadata()?.len() <= bytes_max {
        return Ok(());
    }
    let mut before = path.as_os_str().to_owned();
    before.push(".1");
    std::fs::rename(path, PathBuf::from(before))?;
    *file = append_to(path)?;
    Ok(())
}

fn write_line(file: &mut impl Write, attempt: &Attempt) -> io::Result<()> {
    serde_json::to_writer(&mut *file, attempt)?;
    file.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(number: u32) -> Attempt {
        Attempt {
            time: format!("2026-01-01T00:00:{number:02}Z"),
            repl: "a".parse().unwrap(),
            session: number.to_string(),
            outcome: Outcome::Ok,
            reason: "opened",
            host: None,
            epoch: None,
            attempt_ms: 1.0,
        }
    }

    #[tokio::test]
    async fn a_log_that_rotates_itself_keeps_one_older_file_and_loses_nothing_between_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("probes.ndjson");
        let log = SessionLog::open(Some(&path), Rotation::Above(300)).unwrap();
        for number in 0..20 {
            log.write(attempt(number));
            log.flush().await;
        }
        let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
        let (older, newer) = (read("probes.ndjson.1"), read("probes.ndjson"));
        assert!(older.len() > 300 && newer.len() <= 300 + older.len());
        let both = older + &newer;
        let sessions: Vec<u32> = both
            .lines()
            .map(|line| {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                line["session"].as_str().unwrap().parse().unwrap()
            })
            .collect();
        let first = sessions[0];
        assert_eq!(sessions, (first..20).collect::<Vec<u32>>());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
    }
}
