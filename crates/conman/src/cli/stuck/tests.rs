//! The command as its users meet it: what it prints, and its exit codes.

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
    let StuckCommand::Report(args) = Line::try_parse_from(line).unwrap().command else {
        panic!("not a report");
    };
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
}

/// What clap refuses before there is a report.
#[test]
fn wrong_values_are_usage() {
    let refused = |options: &[&str]| {
        let line = [&["conman", "report", "x"], options].concat();
        let error = Line::try_parse_from(line).unwrap_err();
        assert_eq!(error.exit_code(), i32::from(EXIT_USAGE));
        error
            .to_string()
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    insta::assert_snapshot!(refused(&["--spill-max", "much"]), @"error: invalid value 'much' for '--spill-max <MIB>': invalid digit found in string");
    insta::assert_snapshot!(refused(&["--spill-max", "-1"]), @"error: unexpected argument '-1' found");
    insta::assert_snapshot!(refused(&["--worst", "all"]), @"error: invalid value 'all' for '--worst <N>': invalid digit found in string");
    insta::assert_snapshot!(refused(&["--json", "--csv"]), @"error: the argument '--json' cannot be used with '--csv'");
    insta::assert_snapshot!(refused(&["--pattern", "x", "--format", "ndjson"]), @"error: the argument '--pattern <REGEX>' cannot be used with '--format <NAME>'");
    for wrong in [
        ["--gap", "long"],
        ["--lateness", "never"],
        ["--format", "nope"],
        ["--buckets", "2,1"],
        ["--year", "12"],
        ["--date", "today"],
    ] {
        let text = refused(&wrong);
        let begin = format!("error: invalid value '{}' for '{} ", wrong[1], wrong[0]);
        assert!(text.starts_with(&begin), "{text}");
    }
}

/// The words of a shell's command; the guide's commands have no quotes but single ones.
fn words(command: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (index, part) in command.split('\'').enumerate() {
        if index % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}

/// Each example line of the guide is found by the command that stands below it, and the other commands
/// there are commands.
#[test]
fn the_commands_of_the_guide_find_what_stands_above_them() {
    const GUIDE: &str = include_str!("../../../../../docs/stuck.md");
    let mut found = 0;
    for part in GUIDE.split("```log\n").skip(1) {
        let (line, rest) = part.split_once("\n```").unwrap();
        let commands = rest.lines().map_while(|line| {
            let is_one = line.is_empty() || line.starts_with("    ");
            is_one.then(|| {
                line.split_once("conman stuck report")
                    .map(|(_, options)| options)
            })
        });
        for (index, options) in commands.flatten().enumerate() {
            let options = words(options);
            let parsed = ["conman", "report"]
                .into_iter()
                .chain(options.iter().map(String::as_str));
            let StuckCommand::Report(args) = Line::try_parse_from(parsed).unwrap().command else {
                panic!("not a report");
            };
            if index > 0 {
                continue;
            }
            // The guide's files are not here: the line is put in their place.
            let named: Vec<String> = args
                .files
                .iter()
                .map(|file| file.display().to_string())
                .collect();
            let options = options.iter().filter(|option| !named.contains(option));
            let options: Vec<&str> = options
                .map(String::as_str)
                .chain(["@/a.log", "--json"])
                .collect();
            let (code, out, errors) = run_on(&format!("{line}\n{line}\n"), &options);
            assert_eq!((code, errors.as_str()), (EXIT_OK, ""), "{line}");
            let report: serde_json::Value = serde_json::from_str(&out).unwrap();
            assert_eq!(
                (&report["failed_attempts"], &report["episodes"]),
                (&2.into(), &1.into()),
                "{line}"
            );
            found += 1;
        }
    }
    // Thirteen formats, and the prefix of compose.
    assert_eq!(found, 14);
}

/// Errors that have no other test: their texts, and whose fault they are.
#[test]
fn every_error_says_what_to_do() {
    let log = session_log();
    let fails = |arguments: &[&str]| {
        let (code, out, errors) = run_on(&log, arguments);
        assert_eq!(out, "");
        format!("{code} {errors}")
    };
    insta::assert_snapshot!(fails(&["@/*.gz"]), @"1 error: cannot read DIR/*.gz: no file fits this pattern");
    insta::assert_snapshot!(fails(&["@"]), @"1 error: cannot read DIR: is a directory");
    insta::assert_snapshot!(fails(&["@/a.log", "--tz", "Nowhere"]), @"2 error: `Nowhere` is no time zone: write UTC, +02:00, Europe/Berlin or local");
    insta::assert_snapshot!(fails(&["@/a.log", "--gap", "0"]), @"2 error: --gap must be longer than nothing");
    insta::assert_snapshot!(fails(&["@/a.log", "--all-episodes", "@/no/such"]), @"1 error: DIR/no/such: No such file or directory (os error 2)");
    insta::assert_snapshot!(fails(&["@/a.log", "--pattern", "("]), @"
    2 error: --pattern: regex parse error:
        (
        ^
    error: unclosed group
    ");
    insta::assert_snapshot!(fails(&["@/a.log", "--pattern", "(?<entity>x)"]), @"2 error: --pattern needs a group (?<time>…)");
    insta::assert_snapshot!(fails(&["@/a.log", "--pattern", "(?<time>x)"]), @"2 error: --pattern needs a group (?<entity>…)");
    insta::assert_snapshot!(fails(&["@/a.log", "--entity", "repl~x"]), @"2 error: the expression of --entity needs a group: repl~…(…)…");
    insta::assert_snapshot!(fails(&["@/a.log", "--ok", "(a=1"]), @"2 error: --ok: expected `)` at column 5 of `(a=1`");
    insta::assert_snapshot!(fails(&["@/a.log", "--fail", "a~'('"]), @"
    2 error: --fail: not a regular expression (regex parse error:
        (
        ^
    error: unclosed group) at column 3 of `a~'('`
    ");
    insta::assert_snapshot!(fails(&["@/a.log", "--time", "nope"]).lines().next().unwrap(), @"1 error: not one attempt could be parsed");
    let fails_on = |text: &str, arguments: &[&str]| {
        let (code, _, errors) = run_on(text, arguments);
        format!("{code} {errors}")
    };
    insta::assert_snapshot!(fails_on("{\"a\":1,\"b\":2}\n", &["@/a.log"]), @r#"
    1 error: DIR/a.log: cannot tell which field holds the time: name it by --time (fields seen: a, b)
      {"a":1,"b":2}
    "#);
    insta::assert_snapshot!(fails_on("{\"time\":\"2024-01-01T00:00:00Z\",\"repl\":\"x\"}\n", &["@/a.log"]), @r#"
    1 error: DIR/a.log: cannot tell which field holds the outcome: name it by --fail EXPR, --ok EXPR (fields seen: repl, time)
      {"time":"2024-01-01T00:00:00Z","repl":"x"}
    "#);
    let (code, _, errors) = run_on("\u{FD}7zXZ", &["@/a.log"]);
    assert_eq!(code, EXIT_INPUT);
    assert!(
        errors.contains("no line is in a format that is known"),
        "{errors}"
    );
}

/// What is packed in a way that is not read says how to unpack it.
#[test]
fn other_packings_say_how_to_unpack() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.xz");
    std::fs::write(&file, b"\xFD7zXZ\0\0").unwrap();
    let (code, _, errors) = run_on("", &[&file.display().to_string()]);
    assert_eq!(code, EXIT_INPUT);
    let errors = errors.replace(&folder.path().display().to_string(), "TMP");
    insta::assert_snapshot!(errors, @"error: cannot read TMP/a.xz: is packed by xz: unpack it first, as in `xz -dc FILE | conman stuck report -`");
}

/// With a limit in time, entities are those of the attempts that are left.
#[test]
fn since_and_until_leave_out_and_say_so() {
    let limits = [
        "--since",
        "2026-01-01T00:00:30Z",
        "--until",
        "2026-01-01T01:00:00Z",
    ];
    let (code, out, _) = run_on(
        &session_log(),
        &[&["@/a.log", "--json"], &limits[..]].concat(),
    );
    assert_eq!(code, EXIT_OK);
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    let counts = [
        "excluded_before_since",
        "excluded_from_until",
        "attempts",
        "entities",
        "blips",
        "episodes",
    ];
    assert_eq!(
        counts.map(|name| report[name].as_u64()),
        [3, 2, 4, 2, 1, 1].map(Some)
    );
}
