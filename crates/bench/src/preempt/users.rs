//! Users: each repl has one with a WebSocket that is opened again whenever it is dropped, and others that come and go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::StreamExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, client_async};

use super::after;
use crate::http;

/// How often somebody new comes to each repl.
const NEW_SESSION_EVERY: Duration = Duration::from_millis(250);
/// The gateway gives up after 15 s; one that is still silent then has failed.
const SESSION_MAX: Duration = Duration::from_secs(17);
/// How long a client that was refused waits before it comes again.
const AGAIN_AFTER: Duration = Duration::from_millis(50);

/// One attempt to reach a repl.
#[derive(Debug, Clone)]
struct Attempt {
    at: Instant,
    took: Duration,
    failure: Option<String>,
}

/// One life of a WebSocket, with the container that it was joined to.
#[derive(Debug, Clone)]
struct Life {
    instance: String,
    first_byte: Instant,
    dropped: Option<Instant>,
}

/// What became of one repl's WebSocket.
#[derive(Debug, Default)]
struct Client {
    lives: Vec<Life>,
    attempts: Vec<Attempt>,
}

/// Everything that all users saw.
pub(super) struct Seen {
    notice: Instant,
    clients: Vec<Client>,
    attempts: Vec<Attempt>,
}

/// The users of all repls, at work.
pub(super) struct Users {
    clients: JoinSet<Client>,
    visitors: JoinSet<Vec<Attempt>>,
    /// How many WebSockets have had a first byte, and how many one of a second container.
    progress: watch::Receiver<(usize, usize)>,
    stop: Arc<watch::Sender<bool>>,
    notice: Option<Instant>,
    repls: usize,
}

impl Users {
    pub(super) fn begin(address: &str, repls: &[String]) -> Self {
        let (sender, progress) = watch::channel((0, 0));
        let (sender, stop) = (Arc::new(sender), Arc::new(watch::Sender::new(false)));
        let mut clients = JoinSet::new();
        let mut visitors = JoinSet::new();
        for (number, repl) in repls.iter().enumerate() {
            let (address, host) = (address.to_owned(), format!("{repl}.localhost"));
            clients.spawn(client(
                address.clone(),
                host.clone(),
                sender.clone(),
                stop.subscribe(),
            ));
            // Spread over the interval, as users are.
            let first = NEW_SESSION_EVERY * number as u32 / repls.len() as u32;
            visitors.spawn(visit(address, host, first, stop.subscribe()));
        }
        Self {
            clients,
            visitors,
            progress,
            stop,
            notice: None,
            repls: repls.len(),
        }
    }

    /// From here on all is counted.
    pub(super) fn notice(&mut self, notice: Instant) {
        self.notice = Some(notice);
    }

    /// Waits until every WebSocket is open.
    pub(super) async fn all_connected(&mut self, most: Duration) -> anyhow::Result<()> {
        let repls = self.repls;
        let connected = self.progress.wait_for(|(connected, _)| *connected == repls);
        let waited = tokio::time::timeout(most, connected).await;
        waited.context("not all users could connect")??;
        Ok(())
    }

    /// Waits until every WebSocket has the first byte of another container.
    pub(super) async fn all_back(&mut self, most: Duration) -> anyhow::Result<()> {
        let repls = self.repls;
        let back = self.progress.wait_for(|(_, moved)| *moved == repls);
        let waited = tokio::time::timeout(most, back).await.map(drop);
        let moved = self.progress.borrow().1;
        ensure!(waited.is_ok(), "only {moved} of {repls} users are back");
        Ok(())
    }

    /// Lets everybody end what has begun, and gathers what they saw.
    pub(super) async fn end(mut self) -> anyhow::Result<Seen> {
        self.stop.send_replace(true);
        let mut seen = Seen {
            notice: self.notice.context("there was no notice")?,
            clients: vec![],
            attempts: vec![],
        };
        while let Some(client) = self.clients.join_next().await {
            seen.clients.push(client?);
        }
        while let Some(attempts) = self.visitors.join_next().await {
            seen.attempts.extend(attempts?);
        }
        let of_clients = seen.clients.iter().flat_map(|one| one.attempts.clone());
        seen.attempts.extend(of_clients.collect::<Vec<_>>());
        Ok(seen)
    }
}

type Socket = WebSocketStream<TcpStream>;

/// Opens a WebSocket, and gives it with the instance that its container calls itself.
async fn open(address: &str, host: &str) -> anyhow::Result<(Socket, String)> {
    let mut request = format!("ws://{host}/").into_client_request()?;
    request
        .headers_mut()
        .insert("host", host.parse().context("a host")?);
    let stream = TcpStream::connect(address).await.context("connect")?;
    let (mut socket, _) = client_async(request, stream).await?;
    let first = socket.next().await.context("closed at once")??;
    let instance = first.into_text().context("read the instance")?;
    Ok((socket, instance.to_string()))
}

async fn client(
    address: String,
    host: String,
    progress: Arc<watch::Sender<(usize, usize)>>,
    mut stop: watch::Receiver<bool>,
) -> Client {
    let mut client = Client::default();
    while !*stop.borrow() {
        let at = Instant::now();
        let opened = tokio::time::timeout(SESSION_MAX, open(&address, &host)).await;
        let opened = opened.unwrap_or_else(|_| Err(anyhow::anyhow!("silent")));
        client.attempts.push(Attempt {
            at,
            took: at.elapsed(),
            failure: opened
                .as_ref()
                .err()
                .map(|error| format!("websocket: {error:#}")),
        });
        let Ok((mut socket, instance)) = opened else {
            tokio::time::sleep(AGAIN_AFTER).await;
            continue;
        };
        let is_first = client.lives.is_empty();
        let had_moved = client.has_moved();
        client.lives.push(Life {
            instance,
            first_byte: Instant::now(),
            dropped: None,
        });
        let moves = client.has_moved() && !had_moved;
        progress.send_modify(|(connected, moved)| {
            *connected += usize::from(is_first);
            *moved += usize::from(moves);
        });
        loop {
            tokio::select! {
                message = socket.next() => if !matches!(message, Some(Ok(_))) {
                    break;
                },
                _ = stop.wait_for(|stop| *stop) => return client,
            }
        }
        if let Some(life) = client.lives.last_mut() {
            life.dropped = Some(Instant::now());
        }
    }
    client
}

impl Client {
    /// The first life in another container than the first one.
    fn moved(&self) -> Option<&Life> {
        let first = self.lives.first()?;
        self.lives
            .iter()
            .find(|life| life.instance != first.instance)
    }

    fn has_moved(&self) -> bool {
        self.moved().is_some()
    }
}

/// Comes again and again, whether or not those who came before have been served.
async fn visit(
    address: String,
    host: String,
    first: Duration,
    mut stop: watch::Receiver<bool>,
) -> Vec<Attempt> {
    let mut sessions = JoinSet::new();
    let mut attempts = vec![];
    let begin = tokio::time::Instant::now() + first;
    let mut ticks = tokio::time::interval_at(begin, NEW_SESSION_EVERY);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                sessions.spawn(session(address.clone(), host.clone()));
            }
            Some(Ok(attempt)) = sessions.join_next() => attempts.push(attempt),
            _ = stop.wait_for(|stop| *stop) => break,
        }
    }
    while let Some(Ok(attempt)) = sessions.join_next().await {
        attempts.push(attempt);
    }
    attempts
}

async fn session(address: String, host: String) -> Attempt {
    let at = Instant::now();
    let asked = http::send(&address, &host, "GET", "/", "");
    let failure = match tokio::time::timeout(SESSION_MAX, asked).await {
        Ok(Ok(answer)) if answer.status == 200 => None,
        Ok(Ok(answer)) => Some(format!("{} {}", answer.status, answer.body.trim())),
        Ok(Err(error)) => Some(format!("{error:#}")),
        Err(_) => Some("silent".to_owned()),
    };
    Attempt {
        at,
        took: at.elapsed(),
        failure,
    }
}

impl Seen {
    /// From the notice to the first byte of another container; infinite for one that never came back.
    pub(super) fn gaps_ms(&self) -> Vec<f64> {
        let gap = |client: &Client| {
            client
                .moved()
                .map_or(f64::INFINITY, |life| after(self.notice, life.first_byte))
        };
        self.clients.iter().map(gap).collect()
    }

    pub(super) fn tried(&self) -> usize {
        self.attempts.len()
    }

    pub(super) fn failed(&self) -> usize {
        let failed = self.attempts.iter().filter(|one| one.failure.is_some());
        failed.count()
    }

    /// The failures by their text, with the repl's own name taken out.
    pub(super) fn failures(&self) -> Vec<(String, usize)> {
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        for text in self.attempts.iter().filter_map(|one| one.failure.as_ref()) {
            let plain = text.split(' ').map(|word| {
                if word.contains("user-") {
                    "<repl>"
                } else {
                    word
                }
            });
            let plain = plain.collect::<Vec<_>>().join(" ");
            *kinds.entry(plain).or_default() += 1;
        }
        let mut kinds: Vec<_> = kinds.into_iter().collect();
        kinds.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        kinds.truncate(10);
        kinds
    }

    /// How long each session waited that came after the notice.
    pub(super) fn waits_after_notice_ms(&self) -> Vec<f64> {
        let late = self.attempts.iter().filter(|one| one.at >= self.notice);
        late.map(|one| crate::ms(one.took)).collect()
    }

    /// When each WebSocket lost its first container and had another, in milliseconds from the notice.
    pub(super) fn moves_ms(&self) -> Vec<(f64, f64)> {
        let times = self.clients.iter().map(|client| {
            let dropped = client.lives.first().and_then(|life| life.dropped);
            let moved = client.moved().map(|life| life.first_byte);
            let at =
                |time: Option<Instant>| time.map_or(f64::INFINITY, |time| after(self.notice, time));
            (at(dropped), at(moved))
        });
        times.collect()
    }

    /// When each session came, how long it took, and whether it was served; in milliseconds from the notice.
    pub(super) fn sessions_ms(&self) -> Vec<(f64, f64, bool)> {
        let sessions = self.attempts.iter().map(|one| {
            let at = after(self.notice, one.at);
            (at, crate::ms(one.took), one.failure.is_none())
        });
        sessions.collect()
    }
}
