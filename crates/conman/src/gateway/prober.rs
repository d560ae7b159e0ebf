//! The prober: opens a synthetic repl of each host once a second through this gateway, as a user would, so that the
//! time for which nobody gets through is measured and not assumed.
//!
//! ```text
//!   the watch on /h/ ──► model::probe::Roster ──► a task per host: once a second, GET / ──► Reach ──► metrics
//!                                   └──► brought home, removed
//! ```
//!
//! A probe's request enters where a user's does once the connection stands, and is told to a log and to metrics of its
//! own: nothing of it is in the users' figures.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use model::api::Side;
use model::id::{HostId, ReplId};
use model::keys;
use model::probe::{self, Attempted, EVERY, Effect, Reach, Roster};
use model::spec::{Image, Limits, Spec, Visibility};
use model::timing::OVERRUN_STUCK_AFTER;
use model::wire::node::StopRequest;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::door::{Guest, Standing};
use super::{Gateway, api, front};
use crate::clock;
use crate::node::Stream;

/// How long a store that did not answer is left alone.
const RETRY: Duration = Duration::from_secs(1);
/// The most that is read of an answer.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Where probes listen.
const PORT: u16 = 8000;

/// Answers every request, in whatever a machine's own tools have: Debian's kind has the first always.
const PROGRAM: &str = r#"
command -v perl >/dev/null && exec perl -e 'use Socket; $SIG{PIPE} = "IGNORE";
socket(S, PF_INET, SOCK_STREAM, 0) or die; setsockopt(S, SOL_SOCKET, SO_REUSEADDR, 1);
bind(S, sockaddr_in($ENV{PORT}, INADDR_LOOPBACK)) or die; listen(S, 64) or die;
while (1) { accept(C, S) or next; setsockopt(C, SOL_SOCKET, SO_RCVTIMEO, pack("l!l!", 2, 0)); sysread(C, $_, 65536);
syswrite(C, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 6\r\n\r\nprobe\n"); close(C) }'
exec python3 -c 'import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("content-length", "6"); self.end_headers(); self.wfile.write(b"probe\n")
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()'
"#;

fn spec() -> Spec {
    Spec {
        image: Image::Host,
        command: ["sh", "-c", PROGRAM].map(str::to_owned).to_vec(),
        env: Default::default(),
        port: Some(PORT),
        limits: Limits {
            memory_bytes: 64 << 20,
            pids: 16,
            ..Limits::default()
        },
        idle_timeout_seconds: None,
        visibility: Visibility::default(),
    }
}

/// Begins, if this gateway is to probe; ends when what comes back is dropped.
pub(super) fn start(
    gateway: &Arc<Gateway>,
    stop: &CancellationToken,
) -> Option<AbortOnDropHandle<()>> {
    let options = gateway.config.prober.as_ref()?;
    let driver = Driver {
        roster: Roster::new(options.name.clone(), options.hosts_max),
        prober: Prober {
            router: api::router(gateway.clone()),
            gateway: gateway.clone(),
            stop: stop.clone(),
        },
        tasks: HashMap::new(),
    };
    Some(AbortOnDropHandle::new(tokio::spawn(driver.run())))
}

struct Driver {
    roster: Roster,
    prober: Prober,
    tasks: HashMap<HostId, AbortOnDropHandle<()>>,
}

impl Driver {
    async fn run(mut self) {
        let mut changes = self.prober.gateway.fleet.watch();
        let stored = self.prober.stored().await;
        let hosts = changes.borrow_and_update().clone();
        let effects = self.roster.hosts(&hosts, stored, clock::boottime());
        self.carry_out(effects);
        loop {
            let effects = tokio::select! {
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let hosts = changes.borrow_and_update().clone();
                    self.roster.hosts(&hosts, [], clock::boottime())
                }
                () = clock::until(self.roster.wakeup()) => self.roster.tick(clock::boottime()),
                () = self.prober.stop.cancelled() => return,
            };
            self.carry_out(effects);
        }
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            let prober = self.prober.clone();
            match effect {
                Effect::Begin(host) => {
                    let task = tokio::spawn(prober.probe(host.clone()));
                    self.tasks.insert(host, AbortOnDropHandle::new(task));
                }
                Effect::End(host) => {
                    self.tasks.remove(&host);
                }
                Effect::BringHome(host) => {
                    tokio::spawn(async move { prober.bring_home(&host).await });
                }
                Effect::Remove(repl) => {
                    tokio::spawn(async move {
                        if let Err(error) = prober.gateway.forget(&repl).await {
                            // Whoever starts next finds it again.
                            tracing::debug!(%repl, error = %error.0, "remove a probe");
                        }
                    });
                }
            }
        }
    }
}

#[derive(Clone)]
struct Prober {
    gateway: Arc<Gateway>,
    router: Router,
    stop: CancellationToken,
}

impl Prober {
    /// The probes that the store has.
    async fn stored(&self) -> Vec<ReplId> {
        let prefix = format!("{}{}", keys::SPECS, probe::PREFIX);
        loop {
            match self.gateway.store.range(&prefix).await {
                Ok(range) => {
                    let names = range.items.into_iter().filter_map(|item| {
                        let name = item.key.strip_prefix(keys::SPECS)?;
                        name.parse().ok()
                    });
                    return names.collect();
                }
                // A store that is away says so itself, once.
                Err(error) => tracing::debug!(%error, "look for probes"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Opens a host's probe once a second, until it is told to end.
    async fn probe(self, host: HostId) {
        let repl = probe::repl_of(&host);
        let mut is_known = false;
        let mut has_warned = false;
        let mut reach = Reach::default();
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if !is_known {
                match self.gateway.keep_spec(&repl, &spec()).await {
                    // One of another version runs on as it is.
                    Ok(_) => is_known = true,
                    Err(error) if error.0.code.side() == Side::Client => is_known = true,
                    Err(error) => {
                        tracing::debug!(%repl, error = %error.0, "make a probe");
                        continue;
                    }
                }
            }
            let began = clock::boottime();
            let (attempted, why) = self.attempt(&repl).await;
            if let Some(stuck) = reach.step(attempted, began, clock::boottime()) {
                self.gateway.metrics.reached(stuck);
            }
            if attempted == Attempted::Unusable {
                is_known = false;
                if !std::mem::replace(&mut has_warned, true) {
                    tracing::warn!(%repl, why, "a probe's own program does not work: probe_hosts = 0 turns probes off");
                }
            }
        }
    }

    /// One attempt, as a user's browser would make it.
    async fn attempt(&self, repl: &ReplId) -> (Attempted, String) {
        // Beyond that the gateway itself hangs.
        let patience = self.gateway.config.park + OVERRUN_STUCK_AFTER;
        match tokio::time::timeout(patience, self.get(repl)).await {
            Ok(Ok(answered)) => answered,
            Ok(Err(error)) => (Attempted::Failed, format!("{error:#}")),
            Err(_) => (Attempted::Failed, "no answer".to_owned()),
        }
    }

    async fn get(&self, repl: &ReplId) -> anyhow::Result<(Attempted, String)> {
        let (ours, theirs) = UnixStream::pair()?;
        // Nobody waits for the end of a probe.
        let unanswered = TaskTracker::new();
        let _serving = AbortOnDropHandle::new(tokio::spawn(front::serve_stream(
            self.gateway.clone(),
            self.router.clone(),
            Stream::Unix(theirs),
            Guest {
                address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
                is_secure: false,
                standing: Standing::Ourselves,
            },
            (unanswered.token(), unanswered),
            self.stop.clone(),
        )));
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(ours)).await?;
        let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
        let name = format!("{repl}.{}", self.gateway.config.domain);
        let request = Request::get("/")
            .header(header::HOST, name)
            .header(header::CONNECTION, "close")
            .body(Full::<Bytes>::default())?;
        let (parts, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
        Ok(read_answer(parts.status, &body))
    }

    /// Ends the host's probe where it is elsewhere: the next attempt starts it at home.
    async fn bring_home(&self, host: &HostId) {
        let repl = probe::repl_of(host);
        let (owner, elsewhere) = match self.gateway.live_owner(&repl).await {
            Ok(Some((owner, at))) if at.id != *host => (owner, at),
            Ok(_) => return,
            // It stays where it is until its host says something again.
            Err(error) => return tracing::debug!(%repl, error = %error.0, "look for a probe"),
        };
        let ask = StopRequest {
            repl: repl.clone(),
            epoch: owner.epoch,
            grace_ms: 0,
        };
        let stopped = self
            .gateway
            .ask::<Value>(&elsewhere, "/node/v1/stop", Some(&ask));
        if let Err(error) = stopped.await {
            tracing::debug!(%repl, ?error, "bring a probe home");
        }
    }
}

/// What an answer says of the platform.
fn read_answer(status: StatusCode, body: &[u8]) -> (Attempted, String) {
    if status.is_success() {
        return (Attempted::Reached, String::new());
    }
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let said = body["error"]["message"].as_str();
    let why = said.map_or_else(|| status.to_string(), str::to_owned);
    let is_platform = body["error"]["side"] == "platform";
    let attempted = match is_platform {
        true => Attempted::Failed,
        false => Attempted::Unusable,
    };
    (attempted, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_platform_s_own_refusal_is_a_failure() {
        let read = |status: u16, body: &str| {
            read_answer(StatusCode::from_u16(status).unwrap(), body.as_bytes())
        };
        assert_eq!(read(200, "probe\n").0, Attempted::Reached);
        let refused = r#"{"error":{"code":"park_timeout","message":"too late","side":"platform"}}"#;
        let failed = (Attempted::Failed, "too late".to_owned());
        assert_eq!(read(504, refused), failed);
        let missing = r#"{"error":{"code":"command_not_found","message":"no sh","side":"user"}}"#;
        let unusable = (Attempted::Unusable, "no sh".to_owned());
        assert_eq!(read(422, missing), unusable);
        let other = (Attempted::Unusable, "500 Internal Server Error".to_owned());
        assert_eq!(read(500, "oops"), other);
    }

    #[test]
    fn the_spec_is_one_that_a_user_could_ask_for() {
        spec().validate().unwrap();
    }
}
