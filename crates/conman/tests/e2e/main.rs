//! The whole product on this machine: the real binary, the native runtime, real servers; hosts drained,
//! stopped and killed under it.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod bad_input;
mod fleet;
mod lives;
mod probes;
mod shell;

use std::collections::BTreeMap;
use std::time::Duration;

use fleet::Fleet;
use serde_json::Value;

const REPLS: usize = 20;

fn names() -> Vec<String> {
    (0..REPLS).map(|number| format!("repl-{number}")).collect()
}

async fn create_all(fleet: &Fleet, repls: &[String]) {
    let spec = fleet.server_spec();
    for repl in repls {
        fleet.create(repl, &spec).await;
        let path = format!("/v1/repls/{repl}");
        let (status, _) = fleet.api("PUT", &path, Some(spec.clone())).await;
        assert_eq!(status, 200, "create by name is idempotent");
    }
}

/// Which host each repl is on.
async fn owners(fleet: &Fleet) -> BTreeMap<String, String> {
    let (_, answer) = fleet.api("GET", "/v1/repls", None).await;
    let repls = answer["repls"].as_array().or_else(|| answer.as_array());
    repls
        .unwrap()
        .iter()
        .filter_map(|repl| {
            let name = repl["id"].as_str()?.to_owned();
            Some((name, repl["host"].as_str()?.to_owned()))
        })
        .collect()
}

/// A host that carries something.
async fn busiest(fleet: &Fleet) -> (String, Value) {
    let mut counts = BTreeMap::new();
    for host in owners(fleet).await.into_values() {
        *counts.entry(host).or_insert(0) += 1;
    }
    let host = counts
        .into_iter()
        .max_by_key(|(_, count)| *count)
        .unwrap()
        .0;
    let row = fleet.hosts().await.remove(&host).unwrap();
    (host, row)
}

/// Every repl answers, over HTTP and WebSocket, from exactly one container each.
async fn check(fleet: &Fleet, repls: &[String], after: &str) {
    let slowest = fleet.all_answer(repls).await;
    eprintln!("{after}: all answered, the slowest after {slowest:?}");
    for repl in repls {
        let instance = fleet.echo(repl).await;
        let hello = fleet.hello(repl).await;
        assert!(
            hello.body.contains(&instance),
            "{repl}: {hello:?} is not {instance}"
        );
    }
    let servers = fleet.servers();
    for repl in repls {
        assert_eq!(
            servers.get(repl),
            Some(&1),
            "{after}: {repl} in {servers:?}"
        );
    }
    assert_eq!(fleet.overlaps(), Vec::<String>::new(), "{after}");
}

async fn all_hosts_are_back(fleet: &Fleet) {
    fleet
        .hosts_until(|hosts| {
            hosts.len() == 3
                && hosts.values().all(|host| {
                    host["incarnation"].is_u64()
                        && host["keeper_pid"].is_u64()
                        && host["lease_margin_ms"].as_u64() > Some(0)
                })
        })
        .await;
}

/// A crashed conman: its containers live on, and are adopted by the next one. On a machine so busy that the next
/// one is not there before the deadline they must not: then it is tried again.
async fn a_crashed_conman_adopts(fleet: &Fleet, repls: &[String]) {
    for _ in 0..4 {
        let (host, row) = busiest(fleet).await;
        let mut instances = BTreeMap::new();
        let owners = owners(fleet).await.into_iter();
        for (repl, _) in owners.filter(|(_, owner)| *owner == host) {
            let body = fleet.hello(&repl).await.body;
            instances.insert(repl, body);
        }
        let before = row["conman_pid"].as_i64().unwrap();
        fleet.signal(before, libc::SIGKILL);
        fleet
            .hosts_until(|hosts| {
                hosts.get(&host).is_some_and(|row| {
                    row["conman_pid"].as_i64().is_some_and(|pid| pid != before)
                        && row["incarnation"].is_u64()
                })
            })
            .await;
        check(fleet, repls, "after a crashed conman").await;
        let after = fleet.hosts().await.remove(&host);
        if after.is_some_and(|after| after["incarnation"] == row["incarnation"]) {
            for (repl, instance) in &instances {
                let body = fleet.hello(repl).await.body;
                assert_eq!(body, *instance, "{repl} was restarted");
            }
            return;
        }
    }
    panic!("no conman was back before its deadline\n{}", fleet.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_survives_what_happens_to_its_hosts() {
    let Some(fleet) = Fleet::native(&["--hosts", "3"]) else {
        return;
    };
    let repls = names();
    create_all(&fleet, &repls).await;
    check(&fleet, &repls, "first").await;

    // A drain: everything moves, nothing is refused.
    let (host, _) = busiest(&fleet).await;
    let (status, report) = fleet
        .api("POST", &format!("/v1/hosts/{host}/drain?grace=0s"), None)
        .await;
    assert_eq!(status, 200, "{report}");
    check(&fleet, &repls, "after a drain").await;
    assert!(!owners(&fleet).await.values().any(|owner| *owner == host));
    let (status, _) = fleet
        .api("POST", &format!("/v1/hosts/{host}/undrain"), None)
        .await;
    assert_eq!(status, 200);

    a_crashed_conman_adopts(&fleet, &repls).await;

    // A conman that hangs: past the deadline the kernel kills its containers, and others take over.
    let (host, hung) = loop {
        let (host, row) = busiest(&fleet).await;
        let hung = row["conman_pid"].as_i64().unwrap();
        fleet.signal(hung, libc::SIGSTOP);
        let slowest = fleet.all_answer(&repls).await;
        eprintln!("a hung conman: the last repl answered after {slowest:?}");
        let is_another = |hosts: &BTreeMap<String, Value>| {
            let pid = hosts.get(&host).and_then(|row| row["conman_pid"].as_i64());
            pid.is_some_and(|pid| pid != hung)
        };
        fleet
            .hosts_until(|hosts| {
                !hosts.contains_key(&host)
                    || hosts[&host]["incarnation"].is_null()
                    || is_another(hosts)
            })
            .await;
        // One that was stopped first in the store's line is killed by who waits behind it, and started again: that is no hang.
        if !is_another(&fleet.hosts().await) {
            break (host, hung);
        }
    };
    check(&fleet, &repls, "with a hung conman").await;
    assert!(!owners(&fleet).await.values().any(|owner| *owner == host));
    fleet.signal(hung, libc::SIGCONT);
    all_hosts_are_back(&fleet).await;

    // A keeper that is killed takes its containers along at once, and conman frees them.
    let (host, row) = busiest(&fleet).await;
    let killed = row["keeper_pid"].as_i64().unwrap();
    fleet.signal(killed, libc::SIGKILL);
    let slowest = fleet.all_answer(&repls).await;
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
    // A container may have answered in its last moment: count only once conman knows of the loss.
    fleet
        .hosts_until(|hosts| {
            hosts.get(&host).is_some_and(|row| {
                let keeper = row["keeper_pid"].as_i64();
                keeper.is_some_and(|pid| pid != killed)
            })
        })
        .await;
    check(&fleet, &repls, "after a killed keeper").await;
    all_hosts_are_back(&fleet).await;

    // A host whose processes both die at once.
    let (_, row) = busiest(&fleet).await;
    fleet.signal(row["keeper_pid"].as_i64().unwrap(), libc::SIGKILL);
    fleet.signal(row["conman_pid"].as_i64().unwrap(), libc::SIGKILL);
    check(&fleet, &repls, "after a lost host").await;

    fleet.stop();
}
