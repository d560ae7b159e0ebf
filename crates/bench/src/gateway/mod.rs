//! `make bench-gateway`: conman's gateway as a proxy, beside HAProxy and nginx, in front of the same server in the same container.
//!
//! ```text
//!            ┌── straight ──────────┐
//!   load ────┼── conman's gateway ──┼──► the server, on its container's own loopback
//!            ├── HAProxy ───────────┤
//!            └── nginx ─────────────┘
//! ```
//!
//! The peers run in the container's network namespace, with a listening socket from outside of it, so that they connect to
//! 127.0.0.1 as conman does; they write no log, conman writes its own. *Straight* is a process that only passes on what the kernel
//! gives it: nobody reaches a container's loopback from outside, and `socat`'s kind of copying would be a proxy too. So the way
//! without a proxy is measured from within the namespace.
//!
//! A round measures everything once, in another order than the one before; the figures are medians of the rounds. Requests a second
//! are measured with as many connections as there are, each asking without a pause; latency at a rate that all of them sustain.

mod load;
mod peers;
mod websockets;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, ensure};

use self::load::Latency;
use self::peers::Peer;
use crate::figures::{Figures, percentile};
use crate::fleet::{Fleet, open_files, raise_open_files};
use crate::say;

pub(crate) use self::peers::run_behind;

const REPL: &str = "bench";
const ROUNDS: usize = 3;
const CONNECTIONS: [usize; 2] = [32, 256];
/// So many of what the slowest manages are asked for where latency is measured: of a queue that only grows nobody learns anything.
const RATE_SHARE: f64 = 0.3;
const SOCKETS: usize = 1_000;
/// Each has three open files at conman's gateway: fewer where a process may not have so many.
const IDLE_SOCKETS_MAX: u64 = 10_000;

/// Open files that are not sessions'.
const FILES_ASIDE: u64 = 1_000;

/// Who stands before the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Straight,
    Conman,
    Haproxy,
    Nginx,
}

const WAYS: [Way; 4] = [Way::Straight, Way::Conman, Way::Haproxy, Way::Nginx];

/// What was measured of one way, in each round.
#[derive(Debug, Default)]
struct Measured {
    per_second: [Vec<f64>; 2],
    latency: [Vec<Latency>; 2],
    messages_per_second: Vec<f64>,
    message: Vec<Latency>,
    idle_kib: f64,
}

fn median(values: &[f64]) -> f64 {
    percentile(&mut values.to_vec(), 0.5)
}

fn medians(latencies: &[Latency]) -> Latency {
    let of = |pick: fn(&Latency) -> f64| median(&latencies.iter().map(pick).collect::<Vec<_>>());
    Latency {
        p50_ms: of(|it| it.p50_ms),
        p99_ms: of(|it| it.p99_ms),
    }
}

/// Where each of them is to be reached.
struct Places {
    conman: String,
    haproxy: Peer,
    nginx: Peer,
    /// The first process of the container.
    container: i32,
}

impl Places {
    fn of(&self, way: Way) -> load::Target {
        let (address, inside) = match way {
            Way::Straight => ("127.0.0.1:8000", Some(self.container)),
            Way::Conman => (self.conman.as_str(), None),
            Way::Haproxy => (self.haproxy.address(), None),
            Way::Nginx => (self.nginx.address(), None),
        };
        load::Target {
            address: address.to_owned(),
            inside,
        }
    }
}

pub(crate) async fn run() -> anyhow::Result<()> {
    raise_open_files()?;
    let fleet = Fleet::start(1, &[])?;
    let limits = serde_json::json!({ "pids": 30_000, "memory_bytes": 4_u64 << 30 });
    fleet.create_with(REPL, &["/testserver"], &limits).await?;
    fleet.get(REPL).await?;
    let container = *fleet.pids().await?.first().context("the container")?;
    let work = tempfile::tempdir()?;
    let places = Places {
        conman: fleet.address().to_owned(),
        haproxy: Peer::start("haproxy", container, work.path())?,
        nginx: Peer::start("nginx", container, work.path())?,
        container,
    };
    let mut measured: BTreeMap<Way, Measured> = BTreeMap::new();
    for round in 0..ROUNDS {
        let mut order = WAYS;
        order.rotate_left(round);
        requests(&places, &order, round, &mut measured).await?;
        messages(&places, &order, round, &mut measured).await?;
    }
    idle(&fleet, &places, &mut measured).await?;
    let figures = figures(&measured);
    drop(places);
    fleet.stop()?;
    println!("{}", figures.table());
    figures.write(Path::new("target/figures/bench-gateway.json"))?;
    ensure!(figures.targets_met(), "a target was missed");
    Ok(())
}

async fn requests(
    places: &Places,
    order: &[Way],
    round: usize,
    measured: &mut BTreeMap<Way, Measured>,
) -> anyhow::Result<()> {
    for (which, connections) in CONNECTIONS.into_iter().enumerate() {
        say(&format!(
            "round {} of {ROUNDS}: requests over {connections} connections",
            round + 1
        ));
        let mut slowest = f64::INFINITY;
        for way in order {
            let found = load::per_second(&places.of(*way), connections).await?;
            slowest = slowest.min(found);
            measured.entry(*way).or_default().per_second[which].push(found);
        }
        for way in order {
            let rate = slowest * RATE_SHARE;
            let found = load::latency(&places.of(*way), connections, rate).await?;
            measured.entry(*way).or_default().latency[which].push(found);
        }
    }
    Ok(())
}

async fn messages(
    places: &Places,
    order: &[Way],
    round: usize,
    measured: &mut BTreeMap<Way, Measured>,
) -> anyhow::Result<()> {
    say(&format!(
        "round {} of {ROUNDS}: messages over {SOCKETS} WebSockets",
        round + 1
    ));
    for way in order {
        let found = websockets::measure(&places.of(*way), SOCKETS).await;
        let found = found.with_context(|| format!("WebSockets by way of {way:?}"))?;
        let measured = measured.entry(*way).or_default();
        measured.messages_per_second.push(found.per_second);
        measured.message.push(found.latency);
    }
    Ok(())
}

fn idle_sockets() -> u64 {
    IDLE_SOCKETS_MAX.min(open_files().saturating_sub(FILES_ASIDE) / 3)
}

/// What each proxy's memory grows by, shared out over WebSockets that say nothing.
async fn idle(
    fleet: &Fleet,
    places: &Places,
    measured: &mut BTreeMap<Way, Measured>,
) -> anyhow::Result<()> {
    let count = usize::try_from(idle_sockets())?;
    for way in [Way::Conman, Way::Haproxy, Way::Nginx] {
        say(&format!(
            "memory of {count} idle WebSockets through {way:?}"
        ));
        let memory = || match way {
            Way::Haproxy => places.haproxy.memory_bytes(),
            Way::Nginx => places.nginx.memory_bytes(),
            Way::Conman | Way::Straight => Ok(fleet.product()?.others_bytes),
        };
        let before = memory()?;
        let held = websockets::hold(&places.of(way), count).await?;
        let after = memory()?;
        drop(held);
        let grown = after.saturating_sub(before) as f64;
        measured.entry(way).or_default().idle_kib = grown / count as f64 / 1_024.0;
    }
    Ok(())
}

/// The figures in the order in which they are read: each of ours, the peers' beside it, and what it is to reach.
fn figures(measured: &BTreeMap<Way, Measured>) -> Figures {
    let mut figures = Figures::default();
    let all = |pick: &dyn Fn(&Measured) -> f64| WAYS.map(|way| pick(&measured[&way]));
    for (which, count) in CONNECTIONS.into_iter().enumerate() {
        let rates = all(&|it| median(&it.per_second[which]));
        let title = format!("requests over {count} connections");
        row(
            &mut figures,
            &format!("requests_{count}_per_second"),
            &title,
            "/s",
            rates,
        );
        let key = kept(format!("requests_{count}_over_haproxy"));
        let name = (key, "  conman / HAProxy", "times");
        figures.at_least(name, rates[1] / rates[2], 0.9);
        let p50 = all(&|it| medians(&it.latency[which]).p50_ms);
        let title = format!("latency over {count} connections, p50");
        row(
            &mut figures,
            &format!("latency_{count}_p50_ms"),
            &title,
            "ms",
            p50,
        );
        let p99 = all(&|it| medians(&it.latency[which]).p99_ms);
        let title = format!("latency over {count} connections, p99");
        row(
            &mut figures,
            &format!("latency_{count}_p99_ms"),
            &title,
            "ms",
            p99,
        );
        let key = kept(format!("added_{count}_p99_over_haproxy"));
        let name = (key, "  added to no proxy: conman / HAProxy", "times");
        figures.at_most(name, (p99[1] - p99[0]) / (p99[2] - p99[0]), 1.2);
    }
    let rates = all(&|it| median(&it.messages_per_second));
    let title = format!("messages over {SOCKETS} WebSockets");
    row(&mut figures, "messages_per_second", &title, "/s", rates);
    let p50 = all(&|it| medians(&it.message).p50_ms);
    row(
        &mut figures,
        "message_p50_ms",
        "a message there and back, p50",
        "ms",
        p50,
    );
    let p99 = all(&|it| medians(&it.message).p99_ms);
    row(
        &mut figures,
        "message_p99_ms",
        "a message there and back, p99",
        "ms",
        p99,
    );
    let count = ("idle_websockets", "idle WebSockets held", "sessions");
    figures.plain(count, idle_sockets() as f64);
    let kib = |way| measured[&way].idle_kib;
    let name = (
        "conman_idle_websocket_kib",
        "conman: memory of an idle WebSocket (PSS)",
        "KiB",
    );
    figures.at_most(name, kib(Way::Conman), 24.0);
    let name = ("haproxy_idle_websocket_kib", "  HAProxy", "KiB");
    figures.plain(name, kib(Way::Haproxy));
    let name = ("nginx_idle_websocket_kib", "  nginx", "KiB");
    figures.plain(name, kib(Way::Nginx));
    figures
}

/// Names are for the whole run, which shows them at its end.
fn kept(text: String) -> &'static str {
    text.leak()
}

fn row(
    figures: &mut Figures,
    key: &str,
    title: &str,
    unit: &'static str,
    [straight, conman, haproxy, nginx]: [f64; 4],
) {
    for (who, title, value) in [
        ("conman", format!("conman: {title}"), conman),
        ("haproxy", "  HAProxy".to_owned(), haproxy),
        ("nginx", "  nginx".to_owned(), nginx),
        ("straight", "  without a proxy".to_owned(), straight),
    ] {
        figures.plain((kept(format!("{who}_{key}")), kept(title), unit), value);
    }
}
