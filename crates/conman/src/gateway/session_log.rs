//! One line per attempt: NDJSON, for `conman stuck report` and whoever else counts.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::mpsc;

use anyhow::Context;
use model::api::Outcome;
use model::id::{Epoch, HostId, ReplId};
use serde::Serialize;

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
pub(super) struct SessionLog(Option<mpsc::Sender<Attempt>>);

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
        let (sender, attempts) = mpsc::channel();
        std::thread::Builder::new()
            .name("session-log".to_owned())
            .spawn(move || write_all(BufWriter::new(file), &attempts))
            .context("start the session log's thread")?;
        Ok(Self(Some(sender)))
    }

    pub(super) fn write(&self, attempt: Attempt) {
        if let Some(sender) = &self.0 {
            // The thread ends only with the log, after a disk error that it has told of.
            let _ = sender.send(attempt);
        }
    }
}

fn write_all(mut file: BufWriter<File>, attempts: &mpsc::Receiver<Attempt>) {
    while let Ok(first) = attempts.recv() {
        let mut batch = vec![first];
        batch.extend(attempts.try_iter());
        let written: io::Result<()> = batch
            .iter()
            .try_for_each(|attempt| {
                serde_json::to_writer(&mut file, attempt)?;
                file.write_all(b"\n")
            })
            .and_then(|()| file.flush());
        if let Err(error) = written {
            tracing::warn!(%error, lost = batch.len(), "write the session log");
        }
    }
}
