//! One line per attempt: NDJSON, for `conman stuck report` and whoever else counts.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::mpsc;

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
pub(super) struct SessionLog(Option<mpsc::Sender<Message>>);

/// What the thread is sent.
enum Message {
    Attempt(Attempt),
    /// Tell when everything before this is written.
    Flush(oneshot::Sender<()>),
}

impl SessionLog {
    /// Opens the log for appending; without a path, nothing is written.
    pub(super) fn open(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else {
            return Ok(Self(None));
        };
        let file = File::options()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| format!("open the session log {}", path.display()))?;
        let (sender, messages) = mpsc::channel();
        std::thread::Builder::new()
            .name("session-log".to_owned())
            .spawn(move || write_all(BufWriter::new(file), &messages))
            .context("start the session log's thread")?;
        Ok(Self(Some(sender)))
    }

    pub(super) fn write(&self, attempt: Attempt) {
        if let Some(sender) = &self.0 {
            // The thread ends only with the log, after a disk error that it has told of.
            let _ = sender.send(Message::Attempt(attempt));
        }
    }

    /// Returns when everything so far is in the file.
    pub(super) async fn flush(&self) {
        if let Some(sender) = &self.0 {
            let (written, done) = oneshot::channel();
            // As above; and its end drops `written`, which ends the wait.
            let _ = sender.send(Message::Flush(written));
            let _ = done.await;
        }
    }
}

fn write_all(mut file: BufWriter<File>, messages: &mpsc::Receiver<Message>) {
    while let Ok(first) = messages.recv() {
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
        for done in waiting {
            // Whoever asked may have given up.
            let _ = done.send(());
        }
    }
}

fn write_line(file: &mut impl Write, attempt: &Attempt) -> io::Result<()> {
    serde_json::to_writer(&mut *file, attempt)?;
    file.write_all(b"\n")
}
