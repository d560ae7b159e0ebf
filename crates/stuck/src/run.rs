//! Runs a report: opens the inputs, makes their plans, and drives chunks through all threads.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use model::stuck::LogTime;

use crate::{
    batch::{Batch, EverFailed, Parser, Unparsed},
    engine::{Counts, Engine, FirstPass},
    plan::{Plan, PlanError},
    query::Query,
    source::{Chunk, Input, Packing, Source, SourceError},
    summary::Summary,
    tracker::EpisodeSink,
};

/// Lines looked at to recognise a format.
const SAMPLE_LINES: usize = 400;
/// How far threads may run ahead of the batch that is to be taken next.
const AHEAD_MAX: u64 = 8;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// An option is wrong: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// An input cannot be read.
    #[error("cannot read {0}")]
    Input(#[from] SourceError),
    /// An input cannot be understood.
    #[error("{name}: {source}")]
    Plan {
        /// The input.
        name: String,
        /// Why not.
        source: PlanError,
        /// Its first lines.
        first_lines: Vec<String>,
    },
    /// Not one line could be parsed.
    #[error("not one attempt could be parsed")]
    NothingParsed {
        /// The first lines that could not: input, line, why, how it begins.
        shown: Vec<(String, Unparsed)>,
        /// How the inputs were read.
        descriptions: Vec<String>,
    },
    /// Standard input is not in order and more than may be spilled.
    #[error(
        "standard input is not in the order of time, and sorting it needs more than the {0} bytes that may be spilled: give it as a file, which is read twice, or raise --spill-max"
    )]
    TooMuch(u64),
    /// What was found cannot be written, or the temporary file failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// How an input was read.
#[derive(Debug, Clone)]
pub struct InputReport {
    /// How the user called it.
    pub name: String,
    /// How it is packed.
    pub packing: Packing,
    /// What was chosen for it.
    pub description: String,
    /// The name of its format alone.
    pub format: String,
    /// All lines.
    pub lines: u64,
    /// Lines that could not be read.
    pub unparsed: u64,
}

/// How the answer was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passes {
    /// In one pass, as the log streamed by.
    Streamed,
    /// In two passes, since the files are not in order.
    Twice,
    /// In one pass and a sort, since standard input is not in order.
    Sorted,
}

/// The answer.
#[derive(Debug)]
pub struct Report {
    /// The inputs.
    pub inputs: Vec<InputReport>,
    /// Counts.
    pub counts: Counts,
    /// Different entities.
    pub entities: u64,
    /// Whether that is their exact number.
    pub is_entities_exact: bool,
    /// The episodes.
    pub summary: Summary,
    /// The gap.
    pub gap: Duration,
    /// The lateness.
    pub lateness: Duration,
    /// Attempts before this were left out.
    pub since: Option<LogTime>,
    /// Attempts from this on were left out.
    pub until: Option<LogTime>,
    /// How the answer was found.
    pub passes: Passes,
}

/// Attempts put together to what their users wanted: a run of failures and the success that ended it are
/// one session, and so is any other success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sessions {
    /// All.
    pub all: u64,
    /// Those that never got through: abandoned or open.
    pub failed: u64,
    /// Those that got through after one failure or more.
    pub delayed: u64,
}

impl Report {
    /// The sessions behind the attempts.
    pub fn sessions(&self) -> Sessions {
        let (endings, blips) = (self.summary.endings, self.summary.blip_endings);
        let failed = endings[1] + endings[2] + blips[1] + blips[2];
        let all = self.counts.attempts - self.counts.failed + failed;
        Sessions {
            all,
            failed,
            delayed: endings[0] + blips[0],
        }
    }
}

/// Opens files; names with `*`, `?` or `[` that no file bears are patterns. A file that is named twice
/// is read once. No name at all, or `-`, is standard input.
///
/// # Errors
/// When one cannot be opened, or a pattern fits nothing.
pub fn open_inputs(names: &[PathBuf]) -> Result<Vec<Input>, ReportError> {
    let standard_input = || {
        let name = "-".to_owned();
        Input::of_reader(name.clone(), Box::new(io::stdin())).map_err(|source| SourceError {
            name: "standard input".to_owned(),
            source,
        })
    };
    if names.is_empty() {
        return Ok(vec![standard_input()?]);
    }
    let mut paths: Vec<PathBuf> = Vec::new();
    for name in names {
        let text = name.to_string_lossy();
        let is_pattern = text.contains(['*', '?', '[']) && !name.exists();
        if !is_pattern {
            paths.push(name.clone());
            continue;
        }
        let found =
            glob::glob(&text).map_err(|error| ReportError::Usage(format!("{text}: {error}")))?;
        let before = paths.len();
        paths.extend(found.filter_map(Result::ok).filter(|path| path.is_file()));
        if paths.len() == before {
            let source = io::Error::new(io::ErrorKind::NotFound, "no file fits this pattern");
            return Err(SourceError {
                name: text.into_owned(),
                source,
            }
            .into());
        }
    }
    let mut seen = std::collections::HashSet::new();
    let mut inputs = Vec::with_capacity(paths.len());
    for path in paths {
        if path.as_os_str() == "-" {
            inputs.push(standard_input()?);
            continue;
        }
        let is_file = path.is_file();
        if is_file
            && let Ok(real) = path.canonicalize()
            && !seen.insert(real)
        {
            continue;
        }
        let name = path.display().to_string();
        inputs.push(Input::open(path).map_err(|source| SourceError { name, source })?);
    }
    Ok(inputs)
}

/// Makes the plans of all inputs.
///
/// # Errors
/// When one cannot be understood.
pub fn make_plans(query: &Query, inputs: &[Input]) -> Result<Vec<Plan>, ReportError> {
    let mut plans: Vec<Option<Plan>> = Vec::with_capacity(inputs.len());
    for input in inputs {
        let lines = input.first_lines(SAMPLE_LINES);
        if lines.is_empty() {
            plans.push(None);
            continue;
        }
        match Plan::new(query, &lines, input.modified.unwrap_or(query.now)) {
            Ok(plan) => plans.push(Some(plan)),
            Err(PlanError::Usage(problem)) => return Err(ReportError::Usage(problem)),
            Err(error @ PlanError::Expr { .. }) => {
                return Err(ReportError::Usage(error.to_string()));
            }
            Err(source) => {
                let shown = lines.iter().take(3);
                let first_lines =
                    shown.map(|line| String::from_utf8_lossy(line).chars().take(160).collect());
                return Err(ReportError::Plan {
                    name: input.name.clone(),
                    source,
                    first_lines: first_lines.collect(),
                });
            }
        }
    }
    // A file with nothing in it yet, as rotation leaves them, is read like its neighbours.
    let Some(any) = plans.iter().flatten().next().cloned() else {
        return Err(ReportError::NothingParsed {
            shown: Vec::new(),
            descriptions: Vec::new(),
        });
    };
    Ok(plans
        .into_iter()
        .map(|plan| plan.unwrap_or_else(|| any.clone()))
        .collect())
}

/// Runs a report over inputs that were opened. `progress` is told of bytes as they are read, by any
/// thread.
///
/// # Errors
/// As [`ReportError`] says.
pub fn run(
    query: &Query,
    inputs: &[Input],
    sink: &mut (dyn EpisodeSink + Send),
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Report, ReportError> {
    let plans = make_plans(query, inputs)?;
    // Rotated files come in any order; read by their first stamps they often need no second pass.
    let mut order: Vec<usize> = (0..inputs.len()).collect();
    order.sort_by_key(|&index| plans[index].first_time);
    let is_replayable = inputs.iter().all(Input::is_replayable);

    let mut engine = Engine::new(query, &plans, is_replayable, sink);
    drive(query, inputs, &order, &plans, None, &mut engine, progress)?;
    let first_pass = engine.finish()?;
    let (counts, entities) = (engine.counts, engine.entities);
    // Attempts that all lack a field mean that the wrong field was named, whatever neutral lines there are.
    let is_misread = counts.attempts == 0 && counts.incomplete > 0;
    if counts.lines == counts.unparsed || is_misread && counts.excluded == [0, 0] {
        let shown = counts.shown.into_iter();
        return Err(ReportError::NothingParsed {
            shown: shown
                .map(|(input, line)| (inputs[input].name.clone(), line))
                .collect(),
            descriptions: plans.into_iter().map(|plan| plan.description).collect(),
        });
    }
    let (summary, passes) = match first_pass {
        FirstPass::Answered(summary) => (*summary, Passes::Streamed),
        FirstPass::Sorted(summary) => (*summary, Passes::Sorted),
        FirstPass::TooMuch => return Err(ReportError::TooMuch(query.spill_bytes_max)),
        FirstPass::ReadAgain(ever_failed) => {
            let mut engine = Engine::again(query, &plans, sink);
            drive(
                query,
                inputs,
                &order,
                &plans,
                Some(ever_failed),
                &mut engine,
                progress,
            )?;
            (
                engine.finish_again(counts.last.unwrap_or_default())?,
                Passes::Twice,
            )
        }
    };
    let described = inputs.iter().zip(plans).zip(&counts.inputs);
    let inputs = described.map(|((input, plan), counts)| InputReport {
        name: input.name.clone(),
        packing: input.packing,
        format: plan.layout.name(),
        description: plan.description,
        lines: counts.lines,
        unparsed: counts.unparsed,
    });
    Ok(Report {
        inputs: inputs.collect(),
        entities: entities.count(),
        is_entities_exact: entities.is_exact(),
        counts,
        summary,
        gap: query.gap,
        lateness: query.lateness,
        since: query.since,
        until: query.until,
        passes,
    })
}

/// Batches that wait for their turn.
#[derive(Default)]
struct Turns {
    next: u64,
    ready: BTreeMap<u64, Batch>,
    /// Whether some thread is taking batches in their turn.
    is_taking: bool,
    spare: Vec<Batch>,
    failed: Option<ReportError>,
}

struct Floor<'a, 'b> {
    turns: Mutex<Turns>,
    moved: Condvar,
    engine: Mutex<&'a mut Engine<'b>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One pass over all inputs.
fn drive(
    query: &Query,
    inputs: &[Input],
    order: &[usize],
    plans: &[Plan],
    only: Option<Arc<EverFailed>>,
    engine: &mut Engine<'_>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(), ReportError> {
    let source = Source::new(inputs, order);
    let floor = Floor {
        turns: Mutex::new(Turns::default()),
        moved: Condvar::new(),
        engine: Mutex::new(engine),
    };
    std::thread::scope(|scope| {
        let work = || {
            let _guard = PanicGuard(&floor);
            let mut parser = Parser::new(plans, only.clone());
            let mut chunk = Chunk::default();
            loop {
                match source.next(&mut chunk) {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(error) => return floor.fail(error.into()),
                }
                let Some(mut batch) = floor.spare() else {
                    return;
                };
                parser.parse(&mut chunk, &mut batch);
                progress(batch.bytes_read);
                if !floor.put(batch) {
                    return;
                }
            }
        };
        for _ in 1..query.threads.max(1) {
            scope.spawn(work);
        }
        work();
    });
    match lock(&floor.turns).failed.take() {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// A thread that panics must not leave the others waiting for its batch.
struct PanicGuard<'f, 'a, 'b>(&'f Floor<'a, 'b>);

impl Drop for PanicGuard<'_, '_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0
                .fail(ReportError::Io(io::Error::other("a thread panicked")));
        }
    }
}

impl Floor<'_, '_> {
    fn fail(&self, error: ReportError) {
        let mut turns = lock(&self.turns);
        turns.failed.get_or_insert(error);
        self.moved.notify_all();
    }

    fn spare(&self) -> Option<Batch> {
        let mut turns = lock(&self.turns);
        turns
            .failed
            .is_none()
            .then(|| turns.spare.pop().unwrap_or_default())
    }

    /// Puts a batch down, and takes all whose turn it is unless another thread does. False when the
    /// pass has failed.
    fn put(&self, batch: Batch) -> bool {
        let mut turns = lock(&self.turns);
        while batch.index > turns.next + AHEAD_MAX && turns.failed.is_none() {
            turns = self
                .moved
                .wait(turns)
                .unwrap_or_else(PoisonError::into_inner);
        }
        turns.ready.insert(batch.index, batch);
        if turns.is_taking {
            return turns.failed.is_none();
        }
        turns.is_taking = true;
        let mut spare = Vec::new();
        while turns.failed.is_none() {
            let next = turns.next;
            let Some(batch) = turns.ready.remove(&next) else {
                break;
            };
            drop(turns);
            let result = lock(&self.engine).take(batch, &mut spare);
            turns = lock(&self.turns);
            turns.next += 1;
            turns.spare.append(&mut spare);
            if let Err(error) = result {
                turns.failed.get_or_insert(error.into());
            }
            self.moved.notify_all();
        }
        turns.is_taking = false;
        turns.failed.is_none()
    }
}
