//! The prober on a real fleet: every host has a probe of its own, and what happens to a host is measured by it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::fleet::Fleet;

const PATIENCE: Duration = Duration::from_secs(60);

fn probe_of(host: &str) -> String {
    format!("conman-probe-{host}")
}

async fn view(fleet: &Fleet, repl: &str) -> Value {
    fleet.api("GET", &format!("/v1/repls/{repl}"), None).await.1
}

/// Asks again until the probe runs where it should: nothing tells of another process's state.
async fn runs_where(fleet: &Fleet, host: &str, is_right: impl Fn(&str) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let view = view(fleet, &probe_of(host)).await;
        if view["state"] == "running" && view["host"].as_str().is_some_and(&is_right) {
            return;
        }
        assert!(Instant::now() < deadline, "{view}\n{}", fleet.log());
        tokio::task::yield_now().await;
    }
}

/// The sum of a metric's samples whose labels have all of these.
async fn metric(fleet: &Fleet, name: &str, labels: &[&str]) -> f64 {
    let (_, page) = fleet.text("/metrics").await;
    page.lines()
        .filter(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|label| line.contains(label))
        })
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum()
}

/// Asks again until the metric has come so far, and gives it.
async fn until_at_least(fleet: &Fleet, least: f64, name: &str, labels: &[&str]) -> f64 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let value = metric(fleet, name, labels).await;
        if value >= least {
            return value;
        }
        assert!(Instant::now() < deadline, "{value}\n{}", fleet.log());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_host_is_probed_at_home_and_its_loss_is_measured_apart_from_users() {
    let Some(fleet) = Fleet::native(&["--hosts", "3", "--probe-hosts", "64"]) else {
        return;
    };
    for host in ["host-1", "host-2", "host-3"] {
        runs_where(&fleet, host, |at| at == host).await;
    }
    let attempts = "conman_probe_attempts_total";
    until_at_least(&fleet, 6.0, attempts, &["outcome=\"ok\""]).await;

    // A conman that hangs: its probe is started elsewhere, and how long that took is known.
    let row = fleet.hosts().await.remove("host-2").unwrap();
    let hung = row["conman_pid"].as_i64().unwrap();
    fleet.signal(hung, libc::SIGSTOP);
    runs_where(&fleet, "host-2", |at| at != "host-2").await;
    // The host's deadline is three seconds after its last renewal, of which there are two in a second.
    let longest = until_at_least(&fleet, 2.0, "conman_probe_longest_seconds", &[]).await;
    eprintln!("a hung conman: its probe was out of reach for {longest} s");
    let bucket = "conman_probe_stuck_seconds_bucket";
    let above = metric(&fleet, bucket, &["le=\"+Inf\""]).await
        - metric(&fleet, bucket, &["le=\"2.0\""]).await;
    assert!(above >= 1.0, "{above}");

    // Back again, it has its probe back, too.
    fleet.signal(hung, libc::SIGCONT);
    runs_where(&fleet, "host-2", |at| at == "host-2").await;

    // None of it was a user's.
    assert_eq!(metric(&fleet, "conman_sessions_total", &[]).await, 0.0);
    assert_eq!(
        metric(&fleet, "conman_session_open_seconds_count", &[]).await,
        0.0
    );
    let (_, listed) = fleet.api("GET", "/v1/repls", None).await;
    assert_eq!(listed, json!({"repls": []}));
    let (_, stuck) = fleet.api("GET", "/v1/stuck", None).await;
    assert_eq!(stuck["sources"][0]["lines"], 0);
    assert_eq!(stuck["sources"][1]["audience"], "probe");
    assert!(
        stuck["sources"][1]["lines"].as_u64() >= Some(6),
        "{stuck:#}"
    );

    // And its name is nobody else's.
    let (status, refused) = fleet
        .api(
            "PUT",
            "/v1/repls/conman-probe-mine",
            Some(fleet.server_spec()),
        )
        .await;
    assert_eq!((status, &refused["error"]["code"]), (400, &json!("bad_id")));
    fleet.stop();
}
