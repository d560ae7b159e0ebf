//! Every format of `docs/stuck.md` by its example line, with no option but those of its command there.

#![allow(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

use std::{io::Write, path::Path};

use stuck::{query::Query, run, tracker::NoSink};

const GUIDE: &str = include_str!("../../../docs/stuck.md");

fn examples() -> Vec<&'static str> {
    GUIDE
        .split("```log\n")
        .skip(1)
        .filter_map(|part| part.split("\n```").next())
        .collect()
}

fn report_of(path: &Path, query: &Query) -> Result<run::Report, run::ReportError> {
    let inputs = run::open_inputs(&[path.to_owned()])?;
    run::run(query, &inputs, &mut NoSink, &|_| {})
}

fn report_of_text(text: &str, query: &Query) -> Result<run::Report, run::ReportError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    report_of(file.path(), query)
}

#[test]
fn every_example_of_the_guide_is_a_failed_attempt_of_its_format() {
    let query = Query {
        date: Some("2026-01-01".parse().unwrap()),
        ..Query::default()
    };
    let mut table = String::new();
    for line in examples() {
        let report = report_of_text(&format!("{line}\n"), &query).unwrap();
        assert_eq!(report.counts.failed, 1, "{line}");
        assert_eq!(report.summary.totals.blips, 1, "{line}");
        let first = report.counts.first.map(stuck::stamp::rfc3339).unwrap();
        table.push_str(&format!("{first}  {}\n", report.inputs[0].description));
    }
    insta::assert_snapshot!(table, @"
    2026-01-01T00:00:00.014878Z  conman (time=time, entity=repl, outcome=outcome)
    2026-01-01T00:00:00.25Z  ndjson (time=ts, entity=workspace, outcome=status)
    2026-01-01T00:00:00.014878Z  tracing (time=timestamp, entity=fields.repl, fail=level is an error)
    2026-01-01T00:00:00.014878Z  gcloud (time=timestamp, entity=httpRequest.requestUrl~^[a-z]+://([^/:?]+), outcome=httpRequest.status and statusDetails)
    2026-01-01T00:00:00.014878Z  loki > logfmt (time=timestamp, entity=repl, outcome=outcome)
    2026-01-01T00:00:00.014878Z  journal > logfmt (time=__REALTIME_TIMESTAMP, entity=repl, outcome=outcome)
    2026-01-01T00:00:00.014878123Z  docker > ndjson (time=time, entity=repl, outcome=outcome)
    2026-01-01T00:00:00.014Z  logfmt (time=time, entity=repl, outcome=outcome)
    2026-01-01T00:00:00Z  nginx-error (time=time, entity=upstream, outcome=outcome)
    2026-01-01T00:00:00Z  access (time=time, entity=client, outcome=status)
    2026-01-01T00:00:00.014Z  haproxy (time=time, entity=backend, outcome=outcome)
    2026-01-01T00:00:00.014Z  envoy (time=time, entity=authority, outcome=outcome)
    2026-01-01T00:00:00.014Z  jupyterhub (time=time, entity=path~/user/([^/?]+), outcome=outcome)
    2026-01-01T00:00:00.014Z  compose > conman (time=time, entity=repl, outcome=outcome)
    ");
}

/// The entity that stands in the episode of two such lines.
#[test]
fn every_example_names_its_entity() {
    let query = Query {
        date: Some("2026-01-01".parse().unwrap()),
        ..Query::default()
    };
    let mut names = Vec::new();
    for line in examples() {
        let report = report_of_text(&format!("{line}\n{line}"), &query).unwrap();
        let worst = report.summary.worst();
        names.push(format!("{} ({})", worst[0].entity, worst[0].reason));
    }
    insta::assert_snapshot!(names.join("\n"), @"
    repl-173000 (owner_draining)
    ws-17 (no route)
    repl-17 (unable to proxy)
    ws-17.example.com (failed_to_connect_to_backend)
    repl-17 (platform_fail)
    repl-17 (owner_gone)
    repl-17 (platform_fail)
    repl-17 (no route)
    10.0.0.17:8080 (connect() failed (111: Connection refused) while connecting to upstream)
    10.0.0.9 (502)
    ws-17 (SC--)
    ws-17.example.com (UF,URX)
    ann (503 GET /user/ann/api/kernels connect ECONNREFUSED 10.0.0.17:8888)
    repl-17 ()
    ");
}

#[test]
fn other_shapes_of_the_same() {
    let failed = |text: &str, query: &Query| {
        let report = report_of_text(text, query).unwrap_or_else(|error| panic!("{error}: {text}"));
        (
            report.counts.failed,
            report.counts.attempts,
            report.inputs[0].format.clone(),
        )
    };
    let plain = Query::default();
    let cases = [
        // HAProxy in TCP mode, without a syslog header.
        (
            "10.0.0.9:1 [01/Jan/2026:00:00:00.014] web ws/srv1 1/-1/0 0 SC 1/1/0/0/3 0/0",
            (1, 1, "haproxy"),
        ),
        // HAProxy with a syslog header of RFC 5424 and no accept date is none of its formats; with one it is.
        (
            "<134>1 2026-01-01T00:00:00Z lb haproxy 77 - - haproxy[77]: 10.0.0.9:1 [01/Jan/2026:00:00:00.014] web ws/<NOSRV> 0/-1/-1/-1/0 503 212 - - SC-- 1/1/0/0/3 0/0 \"GET / HTTP/1.1\"",
            (1, 1, "haproxy"),
        ),
        (
            "Jan  1 00:00:00 lb haproxy[77]: Proxy web started.\nJan  1 00:00:00 lb haproxy[77]: 10.0.0.9:1 [01/Jan/2026:00:00:00.014] web ws/a 0/0/-1/-1/2 503 2 - - sC-- 1/1/0/0/3 0/0 \"GET / HTTP/1.1\"",
            (1, 1, "haproxy"),
        ),
        // Istio has more quoted fields.
        (
            "[2026-01-01T00:00:00.014Z] \"GET / HTTP/2\" 200 - via_upstream - \"-\" 0 5 9 8 \"-\" \"curl\" \"id\" \"ws.example.com\" \"10.0.0.1:80\" outbound|80||ws 10.0.0.2:1 10.0.0.3:2 10.0.0.4:3 - default",
            (0, 1, "envoy"),
        ),
        (
            "ws.example.com:443 10.0.0.9 - ann [01/Jan/2026:00:00:00 +0000] \"GET / HTTP/1.1\" 504 1",
            (1, 1, "access"),
        ),
        (
            "[W 2026-01-01 00:00:00.014 JupyterHub log:192] 503 GET /user/ann/lab (@10.0.0.9) 1.2ms",
            (1, 1, "jupyterhub"),
        ),
        // Its proxy before release 4, and levels in colour.
        (
            "2026-01-01 00:00:00.014 - error: [ConfigProxy] 503 GET /user/ann/api/terminals?_=1",
            (1, 1, "jupyterhub"),
        ),
        (
            "2026-01-01 00:00:00.014 [ConfigProxy] \x1b[31merror\x1b[39m: 503 GET /user/ann/ connect ECONNREFUSED",
            (1, 1, "jupyterhub"),
        ),
        (
            "\x1b[32m[W 2026-01-01 00:00:00.014 JupyterHub log:100]\x1b(B\x1b[m 503 GET /user/ann/lab (@::1) 1.2ms",
            (1, 1, "jupyterhub"),
        ),
        // Envoy's JSON as its documentation has it.
        (
            "{\"start_time\":\"2026-01-01T00:00:00Z\",\":authority\":\"ws\",\"response_code\":503,\"response_flags\":\"UH\"}",
            (1, 1, "ndjson"),
        ),
        (
            "{\"start_time\":\"2026-01-01T00:00:00Z\",\"authority\":\"ws\",\"response_code\":0,\"response_flags\":\"UH\"}",
            (1, 1, "ndjson"),
        ),
        (
            "{\"time\":\"2026-01-01T00:00:00Z\",\"id\":\"x\",\"ok\":false}",
            (1, 1, "ndjson"),
        ),
        (
            "{\"__REALTIME_TIMESTAMP\":\"1767225600014878\",\"MESSAGE\":[114,101,112,108,61,97,32,111,117,116,99,111,109,101,61,102,97,105,108]}",
            (1, 1, "journal > logfmt"),
        ),
        (
            "web_1 | ts=2026-01-01T00:00:00Z user=ann status=502\r\nweb_1 | ts=2026-01-01T00:00:00Z user=ann status=200\r\n",
            (1, 2, "compose > logfmt"),
        ),
        (
            "[{\"timestamp\":\"2026-01-01T00:00:01Z\",\"insertId\":\"2\",\"jsonPayload\":{\"replId\":\"a\",\"status\":503}},\n{\"timestamp\":\"2026-01-01T00:00:00Z\",\"insertId\":\"1\",\"jsonPayload\":{\"replId\":\"a\",\"status\":200}}]",
            (1, 2, "gcloud"),
        ),
        (
            "{\"status\":\"success\",\"data\":{\"resultType\":\"streams\",\"result\":[{\"stream\":{\"repl\":\"a\"},\"values\":[[\"1767225600014878123\",\"status=503 took=3\"],[\"1767225600014878122\",\"status=200 took=3\"]]}]}}",
            (1, 2, "loki > logfmt"),
        ),
        // A byte order mark, and bytes that are no UTF-8.
        (
            "\u{FEFF}{\"time\":\"2026-01-01T00:00:00Z\",\"repl\":\"a\",\"outcome\":\"platform_fail\"}\n",
            (1, 1, "conman"),
        ),
    ];
    for (text, (failures, attempts, format)) in cases {
        assert_eq!(
            failed(text, &plain),
            (failures, attempts, format.to_owned()),
            "{text}"
        );
    }
    let pattern = Query {
        pattern: Some(r"^(?<time>\S+) (?<entity>\w+) took (?<ms>\d+)".to_owned()),
        fail: Some("ms>1000".to_owned()),
        ..Query::default()
    };
    let text = "2026-01-01T00:00:00Z a took 2000 ms\nother\n2026-01-01T00:00:01Z a took 20 ms\n";
    assert_eq!(failed(text, &pattern), (1, 2, "pattern".to_owned()));
}

/// Every line of a journal has the machine's name, which says nothing.
#[test]
fn a_journal_of_plain_messages_is_told_apart_by_unit() {
    let line = r#"{"__REALTIME_TIMESTAMP":"1767225600014878","_HOSTNAME":"m1","_MACHINE_ID":"7","_SYSTEMD_UNIT":"gw.service","PRIORITY":"3","MESSAGE":"no route to it"}"#;
    let report = report_of_text(&format!("{line}\n{line}\n"), &Query::default()).unwrap();
    let worst = report.summary.worst();
    assert_eq!(
        (worst[0].entity.as_str(), worst[0].reason.as_str()),
        ("gw.service", "no route to it")
    );
}

/// What ingress-nginx and Traefik add to an access log says more than the client's address.
#[test]
fn an_access_log_that_names_its_service() {
    let front = "10.0.0.9 - - [01/Jan/2026:00:00:00 +0000] \"GET / HTTP/1.1\" 502 1 \"-\" \"curl\"";
    let entity = |rest: &str| {
        let line = format!("{front}{rest}\n");
        let report = report_of_text(&line.repeat(2), &Query::default()).unwrap();
        report.summary.worst()[0].entity.clone()
    };
    assert_eq!(
        entity(" 89 0.001 [default-web-80] [] 10.0.0.5:80 59 0.000 502 5"),
        "default-web-80"
    );
    assert_eq!(
        entity(" 500 \"web@docker\" \"http://10.0.0.5:80\" 0ms"),
        "web@docker"
    );
    assert_eq!(entity(" \"-\""), "10.0.0.9");
    assert_eq!(entity(""), "10.0.0.9");
}

#[test]
fn stamps_without_a_date_count_their_days() {
    let line = |time: &str, code: u16| {
        format!("{time} [ConfigProxy] error: {code} GET /user/ann/x connect\n")
    };
    let text = line("23:59:50.000", 503)
        + &line("00:00:10.000", 503)
        + &line("23:59:59.000", 503)
        + &line("00:00:20.000", 200);
    let query = Query {
        date: Some("2026-01-01".parse().unwrap()),
        ..Query::default()
    };
    let report = report_of_text(&text, &query).unwrap();
    let worst = &report.summary.worst()[0];
    assert_eq!(worst.ended.stuck().as_secs(), 30);
    assert_eq!(
        stuck::stamp::rfc3339(worst.ended.run.first_failure),
        "2026-01-01T23:59:50Z"
    );
}

#[test]
fn what_cannot_be_read_says_why() {
    let fails = |text: &str, query: &Query| match report_of_text(text, query) {
        Ok(_) => panic!("read: {text}"),
        Err(error) => error
            .to_string()
            .replace(&std::env::temp_dir().display().to_string(), "TMP"),
    };
    let plain = Query::default();
    insta::assert_snapshot!(fails("", &plain), @"not one attempt could be parsed");
    let entity = |entity: &str| Query {
        entity: Some(entity.to_owned()),
        ..Query::default()
    };
    let one = "{\"time\":\"2026-01-01T00:00:00Z\",\"repl\":\"a\",\"outcome\":\"ok\"}\n";
    insta::assert_snapshot!(fails(one, &entity("nope")), @"not one attempt could be parsed");
    insta::assert_snapshot!(fails(one, &entity("repl~(")).lines().last().unwrap(), @"error: unclosed group");
    insta::assert_snapshot!(fails(one, &entity("repl~x")), @"the expression of --entity needs a group: repl~…(…)…");
    let fail = Query {
        fail: Some("outcome==".to_owned()),
        ..Query::default()
    };
    insta::assert_snapshot!(fails(one, &fail), @"--fail: expected a value at column 10 of `outcome==`");
    let pattern = Query {
        pattern: Some("(?<time>x)".to_owned()),
        ..Query::default()
    };
    insta::assert_snapshot!(fails(one, &pattern), @"--pattern needs a group (?<entity>…)");
    let text = fails("some words\nwithout form\n", &plain);
    insta::assert_snapshot!(text.split_once(": ").unwrap().1, @"no line is in a format that is known: name one by --format, or describe the lines by --pattern");
    let text = fails("{\"colour\":\"red\"}\n", &plain);
    insta::assert_snapshot!(text.split_once(": ").unwrap().1, @"cannot tell which field holds the time: name it by --time (fields seen: colour)");
    let text = fails("\u{FD}7zXZ", &plain);
    assert!(!text.is_empty());
    let missing = report_of(Path::new("/nowhere/at-all.log"), &plain)
        .unwrap_err()
        .to_string();
    insta::assert_snapshot!(missing, @"cannot read /nowhere/at-all.log: No such file or directory (os error 2)");
    let missing = report_of(Path::new("/nowhere/*.log"), &plain)
        .unwrap_err()
        .to_string();
    insta::assert_snapshot!(missing, @"cannot read /nowhere/*.log: no file fits this pattern");
}
