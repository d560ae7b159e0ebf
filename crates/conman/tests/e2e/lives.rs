//! The lives of repls in real containers: how they end, what they keep, and what they may not take.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::fleet::Fleet;

/// Runs a command in the repl's container; its exit code and output.
async fn exec(fleet: &Fleet, repl: &str, command: &[&str]) -> (i64, String) {
    let path = format!("/v1/repls/{repl}/exec");
    let body = json!({"command": command, "timeout_ms": 20_000});
    let (status, answer) = fleet.api("POST", &path, Some(body)).await;
    assert_eq!(status, 200, "{answer}\n{}", fleet.log());
    let output = answer["stdout"].as_str().unwrap().to_owned();
    (answer["exit_code"].as_i64().unwrap(), output)
}

async fn view(fleet: &Fleet, repl: &str) -> Value {
    let (status, view) = fleet.api("GET", &format!("/v1/repls/{repl}"), None).await;
    assert_eq!(status, 200, "{view}");
    view
}

async fn order(fleet: &Fleet, method: &str, path: &str) -> Value {
    let (status, answer) = fleet.api(method, path, None).await;
    assert!(status < 300, "{method} {path}: {status} {answer}");
    answer
}

fn sleeper() -> Value {
    json!({"image": "host", "command": ["sleep", "1000"]})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repl_without_users_is_destroyed_and_the_next_one_starts_it_again() {
    let Some(fleet) = Fleet::native(&["--hosts", "1"]) else {
        return;
    };
    let mut spec = fleet.server_spec();
    spec["idle_timeout_seconds"] = json!(1);
    fleet.create("web", &spec).await;
    // A session that stays keeps it, far beyond the timeout.
    let socket = fleet.socket("web").await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let first = view(&fleet, "web").await;
    assert_eq!(
        (&first["state"], &first["sessions"]),
        (&json!("running"), &json!(1))
    );
    drop(socket);
    let left = Instant::now();
    fleet.is_free("web").await;
    let idle = left.elapsed();
    assert!(idle >= Duration::from_secs(1), "destroyed after {idle:?}");
    let hello = fleet.hello("web").await;
    assert_eq!(hello.status, 200, "{}", hello.body);
    assert!(view(&fleet, "web").await["epoch"].as_u64() > first["epoch"].as_u64());
    fleet.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repl_is_removed_from_any_state() {
    let Some(fleet) = Fleet::native(&["--hosts", "1"]) else {
        return;
    };
    let stubborn = json!({
        "image": "host",
        "command": ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"],
    });
    let remove = async |repl: &str| {
        order(&fleet, "DELETE", &format!("/v1/repls/{repl}")).await;
        let (status, _) = fleet.api("GET", &format!("/v1/repls/{repl}"), None).await;
        assert_eq!(status, 404);
    };
    for spec in [sleeper(), stubborn] {
        // Free.
        fleet.create("gone", &spec).await;
        remove("gone").await;
        // Running.
        fleet.create("gone", &spec).await;
        order(&fleet, "POST", "/v1/repls/gone/start").await;
        remove("gone").await;
        // Starting: the start finds its repl gone, or just made it.
        fleet.create("gone", &spec).await;
        let starts = fleet.api("POST", "/v1/repls/gone/start", None);
        let ((status, answer), ()) = tokio::join!(starts, remove("gone"));
        assert!(
            status == 200 || answer["error"]["code"].is_string(),
            "{status} {answer}"
        );
        // Being destroyed, by its own leave.
        fleet.create("gone", &spec).await;
        order(&fleet, "POST", "/v1/repls/gone/start").await;
        let destroys = fleet.api("POST", "/v1/repls/gone/destroy?grace=60s", None);
        let began = Instant::now();
        tokio::join!(destroys, remove("gone"));
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "waited for the grace"
        );
    }
    fleet.assert_nothing_half_made().await;
    fleet.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workspace_follows_its_repl() {
    let Some(fleet) = Fleet::native(&["--hosts", "2"]) else {
        return;
    };
    fleet.create("home", &sleeper()).await;
    let write = "pwd; echo kept > notes; echo lost > /var/notes; id -u";
    let (code, output) = exec(&fleet, "home", &["sh", "-c", write]).await;
    assert_eq!((code, output.as_str()), (0, "/home/repl\n0\n"));
    let first = view(&fleet, "home").await["host"].clone();
    let path = format!("/v1/hosts/{}/drain?grace=0s", first.as_str().unwrap());
    order(&fleet, "POST", &path).await;
    let read = "cat notes; ls /var/notes 2>&1 | grep -c 'No such'; echo more >> notes; cat notes";
    let (code, output) = exec(&fleet, "home", &["sh", "-c", read]).await;
    assert_eq!((code, output.as_str()), (0, "kept\n1\nkept\nmore\n"));
    let second = view(&fleet, "home").await["host"].clone();
    assert_ne!(first, second);
    // It outlives even its repl.
    order(&fleet, "DELETE", "/v1/repls/home").await;
    fleet.create("home", &sleeper()).await;
    let (_, output) = exec(&fleet, "home", &["cat", "notes"]).await;
    assert_eq!(output, "kept\nmore\n");
    fleet.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_hold() {
    let Some(fleet) = Fleet::native(&["--hosts", "1"]) else {
        return;
    };
    let mut spec = sleeper();
    spec["limits"] = json!({"memory_bytes": 48 << 20, "pids": 20});
    fleet.create("small", &spec).await;
    // Twice as much as it may have: the kernel ends who takes it, and nobody else.
    let take = "head -c 96m /dev/zero | tail > /dev/null; echo \"ended by $?\"";
    let (code, output) = exec(&fleet, "small", &["sh", "-c", take]).await;
    assert_eq!((code, output.as_str()), (0, "ended by 137\n"));
    let fork = "for i in $(seq 40); do sleep 5 & done 2>&1; wait";
    let (code, output) = exec(&fleet, "small", &["sh", "-c", fork]).await;
    assert_ne!(code, 0, "{output}");
    assert!(output.contains("annot fork"), "{output}");
    let (code, _) = exec(&fleet, "small", &["true"]).await;
    assert_eq!(code, 0, "it goes on within its limits");
    fleet.stop();
}

/// A loop that would take all of a processor gets no more than its tenth of the time that passes, however much that is on
/// a busy machine. The kernel counts, in ticks of 10 ms.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_of_processor_time_holds() {
    let Some(fleet) = Fleet::native(&["--hosts", "1"]) else {
        return;
    };
    let mut spec = sleeper();
    spec["limits"] = json!({"cpu_millis": 100});
    fleet.create("slow", &spec).await;
    // One exec starts it, so that the next one's time is the loop's alone.
    exec(&fleet, "slow", &["true"]).await;
    let spin = r#"end=$(($(date +%s) + 2))
        while [ "$(date +%s)" -lt $end ]; do i=0; while [ $i -lt 999 ]; do i=$((i + 1)); done; done
        cut -d' ' -f14-17 /proc/$$/stat"#;
    let began = Instant::now();
    let (code, output) = exec(&fleet, "slow", &["sh", "-c", spin]).await;
    let passed = began.elapsed();
    assert_eq!(code, 0, "{output}");
    let fields = output.split_whitespace();
    let ticks: u32 = fields.map(|field| field.parse::<u32>().unwrap()).sum();
    let used = Duration::from_millis(10) * ticks;
    assert!(ticks > 0, "{output}");
    // A tenth, and as much again for what the kernel grants at the beginning and counts at the end.
    assert!(used <= passed / 5, "{used:?} of {passed:?}");
    fleet.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_repl_wrote_can_be_read_after_its_end() {
    let Some(fleet) = Fleet::native(&["--hosts", "2"]) else {
        return;
    };
    let says = |what: &str| {
        let script = format!("echo {what}; sleep 0.3; echo {what} failed >&2; exit 3");
        json!({"image": "host", "command": ["sh", "-c", script], "port": 8000})
    };
    let logs = async || {
        let (status, body) = fleet.text("/v1/repls/talks/logs").await;
        assert_eq!(status, 200, "{body}");
        body
    };
    fleet.create("talks", &says("first")).await;
    assert_eq!(logs().await, "", "it has not run yet");
    assert_eq!(fleet.hello("talks").await.status, 502);
    fleet.is_free("talks").await;
    assert_eq!(logs().await, "first\nfirst failed\n");
    // Its next container's output takes the place of that, and another repl of its name has none.
    let (status, _) = fleet
        .api("PUT", "/v1/repls/talks", Some(says("second")))
        .await;
    assert_eq!(status, 200);
    assert_eq!(fleet.hello("talks").await.status, 502);
    fleet.is_free("talks").await;
    assert_eq!(logs().await, "second\nsecond failed\n");
    order(&fleet, "DELETE", "/v1/repls/talks").await;
    fleet.create("talks", &says("third")).await;
    assert_eq!(logs().await, "");
    fleet.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_fleet_leaves_is_gone_after_the_next() {
    let Some(mut fleet) = Fleet::native(&["--hosts", "2"]) else {
        return;
    };
    let spec = fleet.server_spec();
    let repls: Vec<_> = (0..6).map(|number| format!("repl-{number}")).collect();
    for repl in &repls {
        fleet.create(repl, &spec).await;
    }
    fleet.all_answer(&repls).await;
    fleet.kill();
    // The kernel has ended all that lived; what it cannot remove is there, else this would show nothing.
    assert!(!fleet.leftovers().is_empty(), "a killed fleet left nothing");
    let fleet = fleet.again(&["--hosts", "2"]);
    for repl in &repls {
        assert_eq!(view(&fleet, repl).await["state"], "free");
    }
    fleet.assert_nothing_half_made().await;
    fleet.all_answer(&repls).await;
    fleet.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ctrl_c_leaves_nothing() {
    let Some(fleet) = Fleet::native(&["--hosts", "3"]) else {
        return;
    };
    let spec = fleet.server_spec();
    let repls: Vec<_> = (0..12).map(|number| format!("repl-{number}")).collect();
    for repl in &repls {
        fleet.create(repl, &spec).await;
    }
    fleet.all_answer(&repls).await;
    fleet.end(libc::SIGINT);
}
