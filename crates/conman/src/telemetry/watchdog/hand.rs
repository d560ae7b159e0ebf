//! The thread that does what the eye decides, and may wait for it.

use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use super::Watched;
use super::decider::Hopeless;
use crate::telemetry::operations::{Entry, Report};

/// How often the log gets everything at the most; what is new meanwhile gets a line.
const DUMP_EVERY: Duration = Duration::from_secs(10);

/// What the eye wants done after one look.
pub(super) struct Batch {
    pub(super) deeds: Vec<Deed>,
    /// Its drop says that all is done; no word is ever sent.
    pub(super) done: Sender<()>,
}

/// One thing that it wants done.
pub(super) enum Deed {
    /// Tell the operation to end.
    Cancel(Arc<Entry>),
    /// Give up the repl that it is on.
    Fence { role: usize, entry: Arc<Entry> },
    /// Write down what there is.
    Tell,
    /// Write down why the process is given up.
    GiveUp { why: Hopeless, is_restarted: bool },
}

pub(super) fn start(watched: Arc<Vec<Watched>>) -> std::io::Result<Sender<Batch>> {
    let (eye, batches) = mpsc::channel();
    let work = move || {
        let mut hand = Hand {
            watched,
            dumped: None,
        };
        for Batch { deeds, done } in batches {
            hand.act(&deeds);
            drop(done);
        }
    };
    std::thread::Builder::new()
        .name("watchdog-hand".into())
        .spawn(work)?;
    Ok(eye)
}

struct Hand {
    watched: Arc<Vec<Watched>>,
    dumped: Option<Instant>,
}

impl Hand {
    /// Reads first, for what is told to end is gone; and writes last, for nobody may read the log.
    fn act(&mut self, deeds: &[Deed]) {
        let is_told = deeds.iter().any(|deed| matches!(deed, Deed::Tell));
        let dump = is_told.then(|| self.dump()).flatten();
        let lines: Vec<Line> = deeds.iter().filter_map(|deed| self.perform(deed)).collect();
        for line in lines {
            line.write();
        }
        if let Some(dump) = dump {
            tracing::warn!(%dump, "what hangs, and who holds what");
        }
    }

    fn perform(&self, deed: &Deed) -> Option<Line> {
        match deed {
            Deed::Cancel(entry) => {
                let line = Line::of(entry, What::Cancelled);
                entry.cancel();
                Some(line)
            }
            Deed::Fence { role, entry } => {
                let fence = self.watched.get(*role)?.fence.as_ref()?;
                fence(entry.kind(), entry.subject());
                Some(Line::of(entry, What::Fenced))
            }
            Deed::Tell => None,
            Deed::GiveUp { why, is_restarted } => Some(Line::End {
                why: why.as_str(),
                is_restarted: *is_restarted,
            }),
        }
    }

    /// Everything that explains what hangs, unless that was written a moment ago.
    fn dump(&mut self) -> Option<String> {
        let now = Instant::now();
        let is_early = |before: Instant| now.duration_since(before) < DUMP_EVERY;
        if self.dumped.is_some_and(is_early) {
            return None;
        }
        self.dumped = Some(now);
        let reports: Vec<Report> = self.watched.iter().map(Watched::report).collect();
        Some(in_words(&reports))
    }
}

/// A line for the log.
enum Line {
    Operation {
        name: String,
        stage: &'static str,
        age: Duration,
        what: What,
    },
    End {
        why: &'static str,
        is_restarted: bool,
    },
}

enum What {
    Cancelled,
    Fenced,
}

impl Line {
    fn of(entry: &Entry, what: What) -> Self {
        Line::Operation {
            name: entry.name(),
            stage: entry.stage().as_str(),
            age: entry.age(),
            what,
        }
    }

    fn write(self) {
        match self {
            Line::Operation {
                name: operation,
                stage,
                age,
                what,
            } => {
                let age_ms = age.as_millis();
                match what {
                    What::Cancelled => {
                        tracing::warn!(operation, stage, age_ms, "stuck: told to end");
                    }
                    What::Fenced => {
                        tracing::error!(operation, stage, age_ms, "stuck: its repl is given up");
                    }
                }
            }
            Line::End {
                why,
                is_restarted: true,
            } => tracing::error!(why, "this process is given up, to be started again"),
            Line::End {
                why,
                is_restarted: false,
            } => tracing::error!(why, "this process hangs, and nobody would start it again"),
        }
    }
}

/// Everything that explains what hangs, for people.
fn in_words(reports: &[Report]) -> String {
    let mut texts: Vec<String> = vec![];
    for report in reports {
        texts.extend(report.operations_in_words());
    }
    // These are the process', and the same for each of its roles; one without anything stuck tells no threads.
    let fullest = reports.iter().max_by_key(|report| report.threads.len());
    texts.extend(fullest.iter().flat_map(|report| report.process_in_words()));
    let line = |text: String| format!("\n{text}");
    texts.into_iter().map(line).collect()
}
