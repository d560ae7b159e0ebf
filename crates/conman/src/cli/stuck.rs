//! `conman stuck report`: who is stuck, for how long, from logs that anybody wrote.
//!
//! All the work is the `stuck` crate's; here are the options, the progress bar, and what goes where.

use std::{
    fs::File,
    io::{self, IsTerminal, Write},
    path::PathBuf,
    time::Duration,
};

use anyhow::Context;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use model::stuck::LogTime;
use stuck::{
    format::{FORMATS, Format},
    query::{Query, parse_buckets, parse_duration, parse_time, parse_zone},
    report::{
        json, svg,
        terminal::{self, Style},
        writer::{EpisodeWriter, Shape},
    },
    run::{Report, ReportError, open_inputs},
};

use super::exit::Exit;
use super::{top, tracker};
use crate::config::Surroundings;

/// Everything went well.
const EXIT_OK: u8 = 0;
/// An input cannot be read, or not one line of it can be parsed.
const EXIT_INPUT: u8 = 1;
/// The options are wrong.
const EXIT_USAGE: u8 = 2;

/// Who is stuck, for how long
#[derive(Debug, Args)]
pub struct StuckArgs {
    #[command(subcommand)]
    command: StuckCommand,
}

#[derive(Debug, Subcommand)]
enum StuckCommand {
    /// Find stuck episodes in logs: runs of failed attempts on one entity with no success between
    Report(Box<ReportArgs>),
    /// Follow logs without end, and show on a page of metrics who is stuck
    Serve(Box<tracker::ServeArgs>),
    /// Show who is stuck now, the longest first
    Top(top::TopArgs),
}

/// The options of `conman stuck report`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct ReportArgs {
    /// Log files, plain, gzip or zstd; patterns like 'app-*.log'; - or none is standard input
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The format: auto, or one of the names below
    #[arg(long, value_name = "NAME", default_value = "auto", value_parser = format_named)]
    format: FormatChoice,
    /// The field that names the entity; `FIELD~REGEX` takes the part in the first group
    #[arg(long, value_name = "FIELD")]
    entity: Option<String>,
    /// The field that holds the time
    #[arg(long, value_name = "FIELD")]
    time: Option<String>,
    /// Attempts that reached the entity, as in 'status<500'
    #[arg(long, value_name = "EXPR")]
    ok: Option<String>,
    /// Attempts that failed, as in 'status>=500 and not path~"^/health"'
    #[arg(long, value_name = "EXPR")]
    fail: Option<String>,
    /// Attempts that prove neither, as in 'status=499'
    #[arg(long, value_name = "EXPR")]
    neutral: Option<String>,
    /// Lines of any other format: groups `(?<time>…)`, `(?<entity>…)` and `(?<outcome>…)` or `(?<status>…)`
    #[arg(long, value_name = "REGEX", conflicts_with = "format")]
    pattern: Option<String>,
    /// An episode is over when nobody tries again for longer than this
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_duration)]
    gap: Duration,
    /// Lines this late are put in their place in one pass; later ones need a second
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    lateness: Duration,
    /// Leave out what is before: a time, or how long ago
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Leave out what is not before: a time, or how long ago
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Upper bounds of the buckets, between commas
    #[arg(long, value_name = "TIMES", value_parser = bucket_bounds)]
    buckets: Option<Bounds>,
    /// How many of the worst episodes to list
    #[arg(long, value_name = "N", default_value_t = 10)]
    worst: usize,
    /// Print the report as one JSON object
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print every episode as a row
    #[arg(long)]
    csv: bool,
    /// Draw the report into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Write every episode into this file, one JSON object per line
    #[arg(long, value_name = "FILE")]
    all_episodes: Option<PathBuf>,
    /// The year of each file's first line, for stamps without one [default: by the file's own date]
    #[arg(long, value_name = "YEAR", value_parser = clap::value_parser!(i16).range(1678..=2261))]
    year: Option<i16>,
    /// The date of each file's first line, for stamps with a time alone [default: the file's own date]
    #[arg(long, value_name = "DATE")]
    date: Option<jiff::civil::Date>,
    /// The zone of stamps without one: UTC, +02:00, Europe/Berlin, local
    #[arg(long, value_name = "ZONE", default_value = "UTC")]
    tz: String,
    /// Threads that read and parse [default: one per core]
    #[arg(long, value_name = "N", hide = true)]
    threads: Option<usize>,
    /// Disk that sorting standard input may take, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 16 << 10, hide_short_help = true)]
    spill_max: u64,
}

const AFTER_HELP: &str = "\
Formats: conman, ndjson, tracing, gcloud, loki, journal, docker, logfmt, nginx-error, access, haproxy,
envoy, jupyterhub. auto recognises them, also behind the prefix of `docker compose logs`.

Expressions compare fields (= != < <= > >= ~ !~, in (a, b)), joined by and, or, not and parentheses.
--neutral goes first, then --fail, then --ok. With one of --fail and --ok alone, the rest is the other.

Exit codes: 0 for a report, 1 for an input that cannot be read or parsed, 2 for wrong options.

Examples:
  conman stuck report session.log
  kubectl logs gateway | conman stuck report --entity workspace --fail 'status>=500'
  conman stuck report 'access.log*' --entity 'path~^/user/([^/]+)' --svg stuck.svg";

/// A format, or none for `auto`.
#[derive(Debug, Clone, Copy)]
struct FormatChoice(Option<Format>);

fn format_named(name: &str) -> Result<FormatChoice, String> {
    if name == "auto" {
        return Ok(FormatChoice(None));
    }
    Format::named(name)
        .map(|format| FormatChoice(Some(format)))
        .ok_or_else(|| {
            let names: Vec<&str> = FORMATS.iter().map(|(_, name, _)| *name).collect();
            format!(
                "no format of this name; there are auto, {}",
                names.join(", ")
            )
        })
}

/// Bounds of buckets; a type of its own, or clap would take it for a list of values.
#[derive(Debug, Clone)]
struct Bounds(Vec<Duration>);

fn bucket_bounds(text: &str) -> Result<Bounds, String> {
    parse_buckets(text).map(Bounds)
}

impl StuckArgs {
    /// Whether errors are to be JSON.
    pub(super) fn is_json(&self) -> bool {
        matches!(&self.command, StuckCommand::Top(args) if args.is_json())
    }
}

/// Runs the command.
///
/// # Errors
/// When what was found cannot be written, or there is no tracker to run or to ask.
pub fn run(args: StuckArgs, surroundings: &Surroundings) -> anyhow::Result<Exit> {
    match args.command {
        StuckCommand::Report(args) => {
            let code = report(*args, &mut io::stdout().lock(), &mut io::stderr(), style())?;
            // Its own small list of codes is a part of ours.
            Ok(match code {
                EXIT_OK => Exit::Done,
                EXIT_USAGE => Exit::Usage,
                _ => Exit::Failed,
            })
        }
        StuckCommand::Serve(args) => tracker::serve(*args, surroundings),
        StuckCommand::Top(args) => super::client_runtime()?.block_on(top::top(args)),
    }
}

fn report(
    args: ReportArgs,
    out: &mut dyn Write,
    errors: &mut dyn Write,
    style: Style,
) -> anyhow::Result<u8> {
    let query = match query_of(&args) {
        Ok(query) => query,
        Err(problem) => {
            writeln!(errors, "error: {problem}")?;
            return Ok(EXIT_USAGE);
        }
    };
    match find(&args, &query) {
        Ok(Found { report, csv }) => {
            if let Some(path) = &args.svg {
                let name = path.display();
                std::fs::write(path, svg::report(&report))
                    .with_context(|| format!("write {name}"))?;
            }
            print(&args, &report, csv, out, style)?;
            Ok(EXIT_OK)
        }
        Err(error) => {
            // What went wrong goes where people look even when the report goes into a pipe.
            write!(errors, "{}", explained(&error))?;
            Ok(if matches!(error, ReportError::Usage(_)) {
                EXIT_USAGE
            } else {
                EXIT_INPUT
            })
        }
    }
}

fn query_of(args: &ReportArgs) -> Result<Query, String> {
    let now_ns = jiff::Timestamp::now().as_nanosecond();
    let now = LogTime(i64::try_from(now_ns).unwrap_or_default());
    let zone = parse_zone(&args.tz)?;
    let time = |text: &Option<String>| {
        text.as_deref()
            .map(|text| parse_time(text, now, &zone))
            .transpose()
    };
    if args.gap.is_zero() {
        return Err("--gap must be longer than nothing".to_owned());
    }
    let defaults = Query::default();
    Ok(Query {
        format: args.format.0,
        entity: args.entity.clone(),
        time: args.time.clone(),
        ok: args.ok.clone(),
        fail: args.fail.clone(),
        neutral: args.neutral.clone(),
        pattern: args.pattern.clone(),
        gap: args.gap,
        lateness: args.lateness,
        since: time(&args.since)?,
        until: time(&args.until)?,
        buckets: args
            .buckets
            .clone()
            .map_or(defaults.buckets, |bounds| bounds.0),
        year: args.year,
        date: args.date,
        worst: args.worst,
        threads: args.threads.unwrap_or(defaults.threads),
        now,
        spill_bytes_max: args.spill_max.saturating_mul(1 << 20),
        zone,
    })
}

struct Found {
    report: Report,
    csv: Option<File>,
}

fn find(args: &ReportArgs, query: &Query) -> Result<Found, ReportError> {
    let inputs = open_inputs(&args.files)?;
    let names = inputs.iter().map(|input| input.name.clone()).collect();
    let mut writer = EpisodeWriter::new(names);
    if let Some(path) = &args.all_episodes {
        let file = File::create(path).map_err(|error| {
            ReportError::Io(io::Error::new(
                error.kind(),
                format!("{}: {error}", path.display()),
            ))
        })?;
        writer.add(Shape::Ndjson, file)?;
    }
    if args.csv {
        writer.add(Shape::Csv, tempfile::tempfile()?)?;
    }
    let bar = progress_bar(inputs.iter().map(|input| input.stored_bytes).sum());
    let result = stuck::run::run(query, &inputs, &mut writer, &|bytes| bar.inc(bytes));
    bar.finish_and_clear();
    let report = result?;
    let files = writer.finish()?;
    let csv = files
        .into_iter()
        .find(|(shape, _)| *shape == Shape::Csv)
        .map(|(_, file)| file);
    Ok(Found { report, csv })
}

/// A bar on stderr, if that is a terminal.
fn progress_bar(bytes: u64) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = if bytes > 0 {
        let template = "{bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
        (ProgressBar::new(bytes), template)
    } else {
        (
            ProgressBar::no_length(),
            "{spinner} {bytes}, {bytes_per_sec}",
        )
    };
    bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
    bar.with_style(
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
    )
}

fn print(
    args: &ReportArgs,
    report: &Report,
    csv: Option<File>,
    out: &mut dyn Write,
    style: Style,
) -> anyhow::Result<()> {
    let written = if args.json {
        writeln!(out, "{}", json::report(report)?)
    } else if let Some(mut csv) = csv {
        io::copy(&mut csv, out).map(drop)
    } else {
        out.write_all(terminal::report(report, style).as_bytes())
    };
    match written.and_then(|()| out.flush()) {
        // Whoever read has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("write the report"),
    }
}

fn style() -> Style {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        return Style {
            has_colour: false,
            columns: 100,
        };
    }
    let columns =
        rustix::termios::tcgetwinsize(&stdout).map_or(100, |size| usize::from(size.ws_col));
    let has_colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    Style {
        has_colour,
        columns,
    }
}

/// An error with the lines that it is about.
fn explained(error: &ReportError) -> String {
    let mut text = format!("error: {error}\n");
    match error {
        ReportError::Plan { first_lines, .. } => {
            for line in first_lines {
                text.push_str(&format!("  {line}\n"));
            }
        }
        ReportError::NothingParsed {
            shown,
            descriptions,
        } => {
            for (name, line) in shown {
                text.push_str(&format!(
                    "  {name}:{}: {}: {}\n",
                    line.line, line.why, line.text
                ));
            }
            for description in descriptions.iter().take(1) {
                text.push_str(&format!("read as {description}; --format, --entity, --time and --pattern say otherwise\n"));
            }
            if shown.is_empty() {
                text.push_str("  the input is empty\n");
            }
        }
        _ => {}
    }
    text
}

#[cfg(test)]
mod tests;
