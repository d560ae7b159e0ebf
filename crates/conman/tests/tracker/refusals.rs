//! What a user can do wrong, and how it is said.

use crate::harness::{Serving, conman, serve};

fn refused(arguments: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().display().to_string();
    let arguments: Vec<String> = arguments
        .iter()
        .map(|text| text.replace('@', &name))
        .collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = serve(folder.path(), &arguments).output().unwrap();
    let text = String::from_utf8(output.stderr)
        .unwrap()
        .replace(&name, "@");
    format!("{} {text}", output.status.code().unwrap())
}

#[test]
fn wrong_keys_are_named() {
    insta::assert_snapshot!(refused(&[]), @"2 conman: stuck_files: there is nothing to follow: give this key, stuck_journal, stuck_loki or stuck_stdin (set by --stuck-files, CONMAN_STUCK_FILES, or stuck_files in the file)");
    insta::assert_snapshot!(refused(&["--stuck-files", "@/none/a.log"]), @"2 conman: stuck_files: @/none/a.log is no file in a directory that is there (set by --stuck-files, CONMAN_STUCK_FILES, or stuck_files in the file)");
    insta::assert_snapshot!(refused(&["--stuck-files", "@/a,@/a"]), @"2 conman: stuck_files: @/a is given twice (set by --stuck-files, CONMAN_STUCK_FILES, or stuck_files in the file)");
    insta::assert_snapshot!(refused(&["--stuck-files", "@/[a"]), @"2 conman: stuck_files: @/[a is no pattern: invalid range pattern (set by --stuck-files, CONMAN_STUCK_FILES, or stuck_files in the file)");
    insta::assert_snapshot!(refused(&["--stuck-journal", "a.service,a.service"]), @"2 conman: stuck_journal: journal a.service is given twice (set by --stuck-journal, CONMAN_STUCK_JOURNAL, or stuck_journal in the file)");
    insta::assert_snapshot!(refused(&["--stuck-journal=--system"]), @r#"2 conman: stuck_journal: "--system" is neither a unit nor FIELD=VALUE (set by --stuck-journal, CONMAN_STUCK_JOURNAL, or stuck_journal in the file)"#);
    insta::assert_snapshot!(refused(&["--stuck-stdin", "true", "--stuck-journal-directory", "@"]), @"2 conman: stuck_journal_directory: needs stuck_journal, which says what of it to follow (set by --stuck-journal-directory, CONMAN_STUCK_JOURNAL_DIRECTORY, or stuck_journal_directory in the file)");
    insta::assert_snapshot!(refused(&["--stuck-loki", "loki:3100"]), @r#"2 conman: stuck_loki: "loki:3100" is no address, as in https://loki.example:3100 (set by --stuck-loki, CONMAN_STUCK_LOKI, or stuck_loki in the file)"#);
    insta::assert_snapshot!(refused(&["--stuck-loki", "http://loki:3100"]), @r#"2 conman: stuck_loki_query: must say which lines, beginning with a selector as in {app="gateway"} (set by --stuck-loki-query, CONMAN_STUCK_LOKI_QUERY, or stuck_loki_query in the file)"#);
    insta::assert_snapshot!(refused(&["--stuck-loki", "http://loki:3100", "--stuck-loki-query", "sum(rate({a=\"b\"}[1m]))"]), @r#"2 conman: stuck_loki_query: must say which lines, beginning with a selector as in {app="gateway"} (set by --stuck-loki-query, CONMAN_STUCK_LOKI_QUERY, or stuck_loki_query in the file)"#);
    insta::assert_snapshot!(refused(&["--stuck-stdin", "true", "--stuck-loki-tenant", "team"]), @"2 conman: stuck_loki_tenant: needs stuck_loki, its address (set by --stuck-loki-tenant, CONMAN_STUCK_LOKI_TENANT, or stuck_loki_tenant in the file)");
    insta::assert_snapshot!(refused(&["--stuck-journal", "a", "--stuck-since", "ever"]), @"2 conman: stuck_since: `ever` is no duration: write it like 10m, 90s, 1h30m or 250ms (set by --stuck-since, CONMAN_STUCK_SINCE, or stuck_since in the file)");
    insta::assert_snapshot!(refused(&["--stuck-stdin", "true", "--stuck-gap", "soon"]), @"2 conman: stuck_gap: `soon` is no duration: write it like 10m, 90s, 1h30m or 250ms (set by --stuck-gap, CONMAN_STUCK_GAP, or stuck_gap in the file)");
    insta::assert_snapshot!(refused(&["--stuck-stdin", "true", "--stuck-format", "xml"]), @r#"2 conman: stuck_format: "xml" is no format; there are auto, conman, journal, loki, gcloud, docker, tracing, ndjson, jupyterhub, envoy, nginx-error, haproxy, access, logfmt (set by --stuck-format, CONMAN_STUCK_FORMAT, or stuck_format in the file)"#);
    insta::assert_snapshot!(refused(&["--stuck-stdin", "true", "--stuck-fail", "status>>5"]), @"2 conman: stuck_fail: expected a value at column 8 of `status>>5` (set by --stuck-fail, CONMAN_STUCK_FAIL, or stuck_fail in the file)");
    insta::assert_snapshot!(refused(&["--stuck-stdin", "true", "--stuck-tz", "Mars"]), @"2 conman: stuck_tz: `Mars` is no time zone: write UTC, +02:00, Europe/Berlin or local (set by --stuck-tz, CONMAN_STUCK_TZ, or stuck_tz in the file)");
}

#[test]
fn a_database_is_one_tracker_s() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("a.log").display().to_string();
    let _first = Serving::start(folder.path(), &["--stuck-files", &log]);
    let output = serve(folder.path(), &["--stuck-files", &log])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    let text = text.replace(&folder.path().display().to_string(), "@");
    insta::assert_snapshot!(format!("{} {text}", output.status.code().unwrap()), @"4 conman: start the tracker: @/stuck.db is in use by another tracker");
}

#[test]
fn a_database_of_something_else_is_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("stuck.db"), "a poem, not a database").unwrap();
    let log = folder.path().join("a.log").display().to_string();
    let output = serve(folder.path(), &["--stuck-files", &log])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    let text = text.replace(&folder.path().display().to_string(), "@");
    insta::assert_snapshot!(format!("{} {text}", output.status.code().unwrap()), @"4 conman: start the tracker: @/stuck.db: file is not a database");
}

#[test]
fn options_that_do_not_fit_the_log_end_it() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("a.log");
    std::fs::write(&log, crate::harness::line(0, 1, "ok")).unwrap();
    let log = log.display().to_string();
    let output = serve(
        folder.path(),
        &["--stuck-files", &log, "--stuck-pattern", "(?<entity>.+)"],
    )
    .output()
    .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    let text = text.replace(&folder.path().display().to_string(), "@");
    insta::assert_snapshot!(format!("{} {text}", output.status.code().unwrap()), @"1 conman: follow the logs: @/a.log: --pattern needs a group (?<time>…)");
}

#[test]
fn nobody_to_ask_is_unreachable() {
    let output = conman()
        .args(["stuck", "top", "--json", "--url", "http://127.0.0.1:1"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    insta::assert_snapshot!(format!("{} {text}", output.status.code().unwrap()), @r#"3 {"error":{"code":"api_unreachable","message":"http://127.0.0.1:1 cannot be reached: Connection refused (os error 111); is `conman up` running, and CONMAN_URL right?"}}"#);
}
