//! The thread that owns a tracker's state.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::Context;
use stuck::live::{Event, Live, Read};

use super::database::{Database, Progress};
use super::follow::{self, Found, Sender};
use super::view::View;
use super::{Config, SourceKind, metrics};
use crate::telemetry::locks::Mutex;

/// How far the followers may run ahead of the database.
const AHEAD_MAX: usize = 16;
/// How many messages one transaction takes at the most.
const TOGETHER_MAX: usize = 256;
/// How often somebody who looks is shown something new, at the most.
const VIEW_EVERY: Duration = Duration::from_millis(200);
/// How often it is looked whether a source has fallen silent.
const TICK: Duration = Duration::from_secs(1);

/// What comes to the owner.
#[derive(Debug)]
pub(super) enum Said {
    /// By the follower of the source with this number.
    Of(usize, Message),
    /// There is a file that nobody follows yet.
    Found(Found),
}

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
        let tracker = Self::idle();
        tracker.begin(config, failed)?;
        Ok(tracker)
    }

    /// One that knows nothing, and follows nothing before it begins.
    pub fn idle() -> Self {
        let view = Mutex::new("view of the tracker", Arc::new(View::empty()));
        Self {
            view: Arc::new(view),
        }
    }

    /// [`Tracker::start`], of one that is idle.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub fn begin(
        &self,
        config: Config,
        failed: impl FnOnce(anyhow::Error) + Send + 'static,
    ) -> anyhow::Result<()> {
        let mut database = Database::open(&config.database)?;
        let (patterns, sources): (Vec<_>, Vec<_>) = config
            .sources
            .into_iter()
            .partition(|source| matches!(source.kind, SourceKind::Files(_)));
        let names: Vec<_> = sources
            .iter()
            .map(|source| (source.name.clone(), source.audience))
            .collect();
        let (kept, known) = database.load(&names)?;
        let numbers: Vec<usize> = sources
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
        let view = self.view.clone();
        *view.lock() = Arc::new(View::of(&live, &numbers));
        let (sender, messages) = sync_channel(AHEAD_MAX);
        for (source, &number) in sources.into_iter().zip(&numbers) {
            let sender = Sender::new(number, sender.clone());
            let name = source.name.clone();
            follow::start(source, known[number].clone(), sender)
                .with_context(|| format!("follow {name}"))?;
        }
        for source in patterns {
            let name = source.name.clone();
            follow::find(source, sender.clone()).with_context(|| format!("follow {name}"))?;
        }
        let state = State {
            database,
            live,
            numbers,
            found: BTreeSet::new(),
            sender,
            began,
            view: view.clone(),
            is_view_old: false,
            shown_at: began,
        };
        std::thread::Builder::new()
            .name("stuck-tracker".into())
            .spawn(move || {
                if let Err(error) = state.run(&messages) {
                    failed(error);
                }
            })
            .context("start the tracker's thread")?;
        Ok(())
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
    /// Of these, the files that a pattern matched.
    found: BTreeSet<usize>,
    /// For the followers of files that are found later.
    sender: SyncSender<Said>,
    began: Instant,
    view: Arc<Mutex<Arc<View>>>,
    is_view_old: bool,
    shown_at: Instant,
}

impl State {
    /// Runs for as long as the process does; followers come and go.
    fn run(mut self, messages: &Receiver<Said>) -> anyhow::Result<()> {
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

    fn take(&mut self, messages: Vec<Said>) -> anyhow::Result<()> {
        let mut progress: Vec<(usize, Progress)> = Vec::new();
        for said in messages {
            let (number, message) = match said {
                Said::Of(number, message) => (number, message),
                Said::Found(found) => {
                    // What it goes on from may be among these messages.
                    self.database.store(&mut self.live, &progress)?;
                    progress.clear();
                    self.follow(found)?;
                    continue;
                }
            };
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
                    if self.found.remove(&number) {
                        // Whoever names its files by the day would see more and more of them.
                        self.numbers.retain(|followed| *followed != number);
                    }
                }
                Message::Wrong(problem) => anyhow::bail!("{}: {problem}", self.name(number)),
            }
        }
        self.database.store(&mut self.live, &progress)?;
        Ok(())
    }

    fn follow(&mut self, found: Found) -> anyhow::Result<()> {
        let (name, audience) = (found.name(), found.audience());
        let followed = self.live.sources().position(|source| source.name == name);
        if followed.is_some_and(|number| self.numbers.contains(&number)) {
            // Another pattern has it too, or it was named: read twice it would count twice.
            return Ok(());
        }
        let known = self.database.join(&name, audience)?;
        let number = self.live.join(&name, audience);
        self.is_view_old = true;
        let sender = Sender::new(number, self.sender.clone());
        match found.start(&known, sender) {
            Ok(()) => {
                self.found.insert(number);
                self.numbers.push(number);
            }
            Err(error) => {
                tracing::warn!(
                    source = name,
                    error = format!("{error:#}"),
                    "a log cannot be followed"
                );
                self.step(Event::Ended(number));
            }
        }
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
