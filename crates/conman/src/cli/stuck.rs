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

/// Runs the command and gives the exit code.
///
/// # Errors
/// When what was found cannot be written.
pub fn run(args: StuckArgs) -> anyhow::Result<u8> {
    match args.command {
        StuckCommand::Report(args) => {
            report(*args, &mut io::stdout().lock(), &mut io::stderr(), style())
        }
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
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: StuckCommand,
    }

    /// Runs the command on a file with this text: exit code, standard output, standard error, with the
    /// folder's name taken out.
    fn run_on(text: &str, arguments: &[&str]) -> (u8, String, String) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.log");
        std::fs::write(&file, text).unwrap();
        let folder_name = folder.path().display().to_string();
        let arguments = arguments
            .iter()
            .map(|argument| argument.replace('@', &folder_name));
        let line: Vec<String> = ["conman", "report"]
            .map(str::to_owned)
            .into_iter()
            .chain(arguments)
            .collect();
        let StuckCommand::Report(args) = Line::try_parse_from(line).unwrap().command;
        let (mut out, mut errors) = (Vec::new(), Vec::new());
        let style = Style {
            has_colour: false,
            columns: 80,
        };
        let code = report(*args, &mut out, &mut errors, style).unwrap();
        let text = |bytes| {
            String::from_utf8(bytes)
                .unwrap()
                .replace(&folder_name, "DIR")
        };
        (code, text(out), text(errors))
    }

    fn session_log() -> String {
        let mut text = String::new();
        let mut line = |second: u32, repl: &str, outcome: &str, reason: &str| {
            let (hour, minute) = (second / 3_600, second / 60 % 60);
            text.push_str(&format!(
                "{{\"time\":\"2026-01-01T{hour:02}:{minute:02}:{:02}.5Z\",\"repl\":\"{repl}\",\"outcome\":\"{outcome}\",\"reason\":\"{reason}\"}}\n",
                second % 60
            ));
        };
        line(0, "ann", "platform_fail", "owner_draining");
        line(5, "ann", "platform_fail", "owner_gone");
        line(12, "ann", "ok", "none");
        line(20, "bob", "client_abort", "client_gone");
        line(30, "bob", "platform_fail", "owner_gone");
        line(31, "bob", "ok", "none");
        line(60, "cy", "platform_fail", "owner_gone");
        line(200, "cy", "platform_fail", "owner_gone");
        line(5_000, "dan", "platform_fail", "deadline");
        line(5_010, "dan", "platform_fail", "deadline");
        text.push_str("{\"time\":\"2026-01-01T01:2");
        text
    }

    #[test]
    fn the_report_for_people() {
        let (code, out, errors) = run_on(&session_log(), &["@/a.log"]);
        assert_eq!((code, errors.as_str()), (EXIT_OK, ""));
        insta::assert_snapshot!(out, @"
    file      DIR/a.log  11 lines, conman (time=time, entity=repl, outcome=outcome)
    lines     11, 1 unparsed (9.1 %), the first at DIR/a.log:11: the JSON object is cut off
    time      2026-01-01T00:00:00.5Z to 2026-01-01T01:23:30.5Z (1h 23m)
    gap       10m, lateness 30s, all in order
    excluded  1 neutral line

    3 stuck episodes, 2m 42s in all; 1 blip; 4 entities seen
    78 % of 9 attempts failed; 50 % of 4 sessions never got through, 50 % came late

    time stuck
      ── A: below 2m ──
          ≤ 10s          1     33 %  ████████████████████████████████████████
          ≤ 15s          1     33 %  ████████████████████████████████████████
          ≤ 20s          0      0 %
          ≤ 25s          0      0 %
          ≤ 30s          0      0 %
          ≤ 40s          0      0 %
           ≤ 1m          0      0 %
       ≤ 1m 30s          0      0 %
           ≤ 2m          0      0 %
      ── middle: from 2m ──
           ≤ 3m          1     33 %  ████████████████████████████████████████
           ≤ 4m          0      0 %
           ≤ 6m          0      0 %
          ≤ 10m          0      0 %
          ≤ 20m          0      0 %
           ≤ 1h          0      0 %
      ── B: from 1h ──
       ≤ 2h 46m          0      0 %
       > 2h 46m          0      0 %

    class     A 2 (67 %)   middle 1 (33 %)   B 0 (0 %)
    ending    recovered 1 (33 %)   abandoned 1 (33 %)   open 1 (33 %)
    blips     1 (1 recovered, 0 abandoned, 0 open): in no figure above

    stuck for        p50       p90       p95       p99       max
    all              12s    2m 20s    2m 20s    2m 20s    2m 20s
    recovered        12s       12s       12s       12s       12s
    abandoned     2m 20s    2m 20s    2m 20s    2m 20s    2m 20s  until the last failure
    open             10s       10s       10s       10s       10s  so far: not over yet

    the gap     episodes     blips       stuck
    5m                 3         1      2m 42s
    10m                3         1      2m 42s  ← this report
    20m                3         1      2m 42s

    the worst 3
        2m 20s  cy  abandoned, 2 failed attempts
                2026-01-01T00:01:00.5Z to 2026-01-01T00:03:20.5Z  DIR/a.log:7  owner_gone
           12s  ann  recovered, 2 failed attempts
                2026-01-01T00:00:00.5Z to 2026-01-01T00:00:12.5Z  DIR/a.log:1  owner_gone
           10s  dan  open, 2 failed attempts
                2026-01-01T01:23:20.5Z to 2026-01-01T01:23:30.5Z  DIR/a.log:9  deadline
    ");
    }

    #[test]
    fn the_report_as_json_has_every_named_field() {
        let (code, out, _) = run_on(
            &session_log(),
            &["@/a.log", "--json", "--worst", "1", "--buckets", "10,1m"],
        );
        assert_eq!(code, EXIT_OK);
        insta::assert_snapshot!(out, @r#"{"lines":11,"parsed":10,"unparsed":1,"neutral":1,"neutral_unknown_outcome":0,"excluded_before_since":0,"excluded_from_until":0,"attempts":9,"failed_attempts":7,"sessions":4,"failed_sessions":2,"delayed_sessions":2,"entities":4,"entities_exact":true,"first_time":"2026-01-01T00:00:00.5Z","last_time":"2026-01-01T01:23:30.5Z","gap_seconds":600.0,"lateness_seconds":30.0,"late_attempts":0,"latest_by_seconds":0.0,"passes":"streamed","episodes":3,"recovered":1,"abandoned":1,"open":1,"blips":1,"stuck_seconds_total":162.0,"buckets":[{"le":10.0,"count":1,"cumulative":1},{"le":60.0,"count":1,"cumulative":2},{"le":null,"count":1,"cumulative":3}],"classes":{"A":2,"middle":1,"B":0},"percentiles":{"p50":12.0,"p90":140.0,"p95":140.0,"p99":140.0,"max":140.0,"recovered":{"p50":12.0,"p90":12.0,"p95":12.0,"p99":12.0,"max":12.0},"abandoned":{"p50":140.0,"p90":140.0,"p95":140.0,"p99":140.0,"max":140.0},"open":{"p50":10.0,"p90":10.0,"p95":10.0,"p99":10.0,"max":10.0},"censored":1,"exact":true},"gaps":{"half":{"gap_seconds":300.0,"episodes":3,"blips":1,"stuck_seconds_total":162.0},"double":{"gap_seconds":1200.0,"episodes":3,"blips":1,"stuck_seconds_total":162.0}},"worst":[{"entity":"cy","start":"2026-01-01T00:01:00.5Z","last_failure":"2026-01-01T00:03:20.5Z","recovered_at":null,"stuck_seconds":140.0,"attempts":2,"end":"abandoned","class":"middle","reason":"owner_gone","file":"DIR/a.log","line":7}],"inputs":[{"file":"DIR/a.log","format":"conman","chosen":"conman (time=time, entity=repl, outcome=outcome)","lines":11,"unparsed":1}]}"#);
    }

    #[test]
    fn every_episode_as_rows_and_lines_and_a_picture() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let (svg, all) = (path("s.svg"), path("all.ndjson"));
        let (code, out, _) = run_on(
            &session_log(),
            &["@/a.log", "--csv", "--svg", &svg, "--all-episodes", &all],
        );
        assert_eq!(code, EXIT_OK);
        insta::assert_snapshot!(out, @"
    entity,start,last_failure,recovered_at,stuck_seconds,attempts,end,class,reason,file,line
    ann,2026-01-01T00:00:00.5Z,2026-01-01T00:00:05.5Z,2026-01-01T00:00:12.5Z,12,2,recovered,A,owner_gone,DIR/a.log,1
    cy,2026-01-01T00:01:00.5Z,2026-01-01T00:03:20.5Z,,140,2,abandoned,middle,owner_gone,DIR/a.log,7
    dan,2026-01-01T01:23:20.5Z,2026-01-01T01:23:30.5Z,,10,2,open,A,deadline,DIR/a.log,9
    ");
        let lines = std::fs::read_to_string(all).unwrap();
        assert_eq!(lines.lines().count(), 3);
        assert_eq!(out.lines().count(), 4);
        let picture = std::fs::read_to_string(svg).unwrap();
        assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
        assert_eq!(
            picture.matches("<rect").count() + picture.matches("<path").count(),
            1 + 3 + 17 + 1
        );
    }

    #[test]
    fn exit_codes_say_whose_fault_it_is() {
        let (code, out, errors) = run_on("one\ntwo\nthree\nfour\n", &["@/a.log"]);
        assert_eq!((code, out.as_str()), (EXIT_INPUT, ""));
        insta::assert_snapshot!(errors, @"
    error: DIR/a.log: no line is in a format that is known: name one by --format, or describe the lines by --pattern
      one
      two
      three
    ");
        let (code, _, errors) = run_on(&session_log(), &["@/a.log", "--entity", "colour"]);
        assert_eq!(code, EXIT_INPUT);
        insta::assert_snapshot!(errors, @r#"
    error: not one attempt could be parsed
      DIR/a.log:1: no entity: {"time":"2026-01-01T00:00:00.5Z","repl":"ann","outcome":"platform_fail","reason":"owner_draining"}
      DIR/a.log:2: no entity: {"time":"2026-01-01T00:00:05.5Z","repl":"ann","outcome":"platform_fail","reason":"owner_gone"}
      DIR/a.log:3: no entity: {"time":"2026-01-01T00:00:12.5Z","repl":"ann","outcome":"ok","reason":"none"}
    read as conman (time=time, entity=colour, outcome=outcome); --format, --entity, --time and --pattern say otherwise
    "#);
        let (code, _, errors) = run_on("", &["@/a.log"]);
        assert_eq!(code, EXIT_INPUT);
        insta::assert_snapshot!(errors, @"
    error: not one attempt could be parsed
      the input is empty
    ");
        let (code, _, errors) = run_on("", &["@/b.log"]);
        assert_eq!(code, EXIT_INPUT);
        insta::assert_snapshot!(errors, @"error: cannot read DIR/b.log: No such file or directory (os error 2)");
        let (code, _, errors) = run_on("x\n", &["@/a.log", "--since", "yesterday"]);
        assert_eq!(code, EXIT_USAGE);
        insta::assert_snapshot!(errors, @"error: `yesterday` is no time: write it like 2024-01-31T15:04:05Z, 2024-01-31 or 2h (ago)");
        let (code, _, errors) = run_on(&session_log(), &["@/a.log", "--fail", "reason="]);
        assert_eq!(code, EXIT_USAGE);
        insta::assert_snapshot!(errors, @"error: --fail: expected a value at column 8 of `reason=`");
        for wrong in [
            ["--gap", "long"],
            ["--format", "nope"],
            ["--buckets", "2,1"],
            ["--year", "12"],
        ] {
            let line = ["conman", "report", "x", wrong[0], wrong[1]];
            assert_eq!(
                Line::try_parse_from(line).unwrap_err().exit_code(),
                i32::from(EXIT_USAGE)
            );
        }
    }
}
