//! The thread that owns a tracker's state.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::Context;
use stuck::live::{Event, Live, Read};

use super::database::{Database, Progress};
use super::follow::{self, Sender};
use super::view::View;
use super::{Config, metrics};
use crate::telemetry::locks::Mutex;

/// How far the followers may run ahead of the database.
const AHEAD_MAX: usize = 16;
/// How many messages one transaction takes at the most.
const TOGETHER_MAX: usize = 256;
/// How often somebody who looks is shown something new, at the most.
const VIEW_EVERY: Duration = Duration::from_millis(200);
/// How often it is looked whether a source has fallen silent.
const TICK: Duration = Duration::from_secs(1);

/// What a follower says.
#[derive(Debug)]
pub(super) enum Message {
    /// Lines, and how far the source is read with them.
    Read(Read, Progress),
    /// There is no more for now.
    CaughtUp,
    /// It cannot be read.
    Lost(String),
    /// There will be no more.
    Ended,
    /// The options do not fit the lines: nothing will ever be read.
    Wrong(String),
}

/// A tracker that runs.
#[derive(Debug, Clone)]
pub struct Tracker {
    view: Arc<Mutex<Arc<View>>>,
}

impl Tracker {
    /// Opens the database and begins to follow the sources. `failed` is told why, if the tracker has to end.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub fn start(
        config: Config,
        failed: impl FnOnce(anyhow::Error) + Send + 'static,
    ) -> anyhow::Result<Self> {
        let mut database = Database::open(&config.database)?;
        let names: Vec<_> = config
            .sources
            .iter()
            .map(|source| (source.name.clone(), source.audience))
            .collect();
        let (kept, known) = database.load(&names)?;
        let numbers: Vec<usize> = config
            .sources
            .iter()
            .filter_map(|source| {
                kept.sources
                    .iter()
                    .position(|(name, ..)| *name == source.name)
            })
            .collect();
        let mut live = Live::resume(config.rules, kept);
        let began = Instant::now();
        for number in 0..known.len() {
            if !numbers.contains(&number) {
                // Nobody follows it any more.
                live.step(Event::Ended(number), began.elapsed());
            }
        }
        let view = Arc::new(Mutex::new(
            "view of the tracker",
            Arc::new(View::of(&live, &numbers)),
        ));
        let (sender, messages) = sync_channel(AHEAD_MAX);
        for (source, &number) in config.sources.into_iter().zip(&numbers) {
            let sender = Sender::new(number, sender.clone());
            let name = source.name.clone();
            follow::start(source, known[number].clone(), sender)
                .with_context(|| format!("follow {name}"))?;
        }
        let state = State {
            database,
            live,
            numbers,
            began,
            view: view.clone(),
            is_view_old: false,
            shown_at: began,
        };
        std::thread::Builder::new()
            .name("stuck-tracker".into())
            .spawn(move || {
                if let Err(error) = state.run(&messages, sender) {
                    failed(error);
                }
            })
            .context("start the tracker's thread")?;
        Ok(Self { view })
    }

    /// What is known now.
    pub fn view(&self) -> Arc<View> {
        self.view.lock().clone()
    }

    /// Its metrics, for a registry.
    pub fn collector(&self) -> Box<dyn prometheus_client::collector::Collector> {
        Box::new(metrics::Metrics(self.clone()))
    }
}

struct State {
    database: Database,
    live: Live,
    /// The sources that are followed.
    numbers: Vec<usize>,
    began: Instant,
    view: Arc<Mutex<Arc<View>>>,
    is_view_old: bool,
    shown_at: Instant,
}

impl State {
    /// Runs for as long as the process does; followers come and go, `_open` keeps the way to here.
    fn run(
        mut self,
        messages: &Receiver<(usize, Message)>,
        _open: SyncSender<(usize, Message)>,
    ) -> anyhow::Result<()> {
        loop {
            let patience = if self.is_view_old { VIEW_EVERY } else { TICK };
            match messages.recv_timeout(patience) {
                Ok(first) => {
                    let rest = messages.try_iter().take(TOGETHER_MAX);
                    let together: Vec<_> = std::iter::once(first).chain(rest).collect();
                    self.take(together)?;
                }
                Err(RecvTimeoutError::Timeout) => self.step(Event::Tick),
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            if self.is_view_old && self.shown_at.elapsed() >= VIEW_EVERY {
                self.step(Event::Tick);
                self.show();
            }
        }
    }

    fn step(&mut self, event: Event) {
        self.live.step(event, self.began.elapsed());
        self.is_view_old = true;
    }

    fn take(&mut self, messages: Vec<(usize, Message)>) -> anyhow::Result<()> {
        let mut progress: Vec<(usize, Progress)> = Vec::new();
        for (number, message) in messages {
            match message {
                Message::Read(read, place) => {
                    self.step(Event::Read(number, read));
                    progress.push((number, place));
                }
                Message::CaughtUp => self.step(Event::CaughtUp(number)),
                Message::Lost(reason) => {
                    tracing::warn!(
                        source = self.name(number),
                        reason,
                        "a log cannot be followed"
                    );
                    self.step(Event::Lost(number));
                }
                Message::Ended => {
                    tracing::info!(source = self.name(number), "a log has ended");
                    self.step(Event::Ended(number));
                }
                Message::Wrong(problem) => anyhow::bail!("{}: {problem}", self.name(number)),
            }
        }
        self.database.store(&mut self.live, &progress)?;
        Ok(())
    }

    fn name(&self, number: usize) -> String {
        let mut sources = self.live.sources();
        sources
            .nth(number)
            .map_or(String::new(), |source| source.name)
    }

    fn show(&mut self) {
        let view = Arc::new(View::of(&self.live, &self.numbers));
        *self.view.lock() = view;
        (self.is_view_old, self.shown_at) = (false, Instant::now());
    }
}
