//! Connections to containers' servers that are idle between two requests.
//!
//! They are kept for a short time only: to a host each is a session, and a repl without users must be seen
//! to have none.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::telemetry::locks::Mutex;
use axum::body::Body;
use hyper::client::conn::http1::SendRequest;
use model::id::{Epoch, HostId, Incarnation, ReplId};
use tokio::time::{Instant, MissedTickBehavior};

/// How long a connection is kept without a request, at least.
const IDLE_MAX: Duration = Duration::from_secs(2);
/// How often it is looked for those that were kept for so long: all at once, for a timer for each request would cost more than
/// what it does.
const TIDY_EVERY: Duration = Duration::from_millis(250);
/// How many are kept for one server.
const KEPT_MAX: usize = 256;

/// Which server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Server {
    pub(super) repl: ReplId,
    pub(super) port: Option<u16>,
}

/// A connection to a server in a container.
pub(super) struct Connection {
    pub(super) sender: SendRequest<Body>,
    pub(super) host: HostId,
    pub(super) incarnation: Incarnation,
    pub(super) epoch: Epoch,
}

struct Idle {
    connection: Connection,
    until: Instant,
}

type Shelves = HashMap<Server, Vec<Idle>>;

/// The idle connections of a gateway.
#[derive(Clone)]
pub(super) struct Pool {
    shelves: Arc<Mutex<Shelves>>,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            shelves: Arc::new(Mutex::new("idle connections", Shelves::default())),
        }
    }
}

impl Pool {
    fn with<T>(&self, act: impl FnOnce(&mut Shelves) -> T) -> T {
        act(&mut self.shelves.lock())
    }

    /// The connection that was used last, of those that are still open.
    pub(super) fn take(&self, server: &Server) -> Option<Connection> {
        self.with(|shelves| {
            let shelf = shelves.get_mut(server)?;
            while let Some(idle) = shelf.pop() {
                if !idle.connection.sender.is_closed() {
                    return Some(idle.connection);
                }
            }
            None
        })
    }

    /// Keeps a connection for the next request, once its answer has been read to the end.
    pub(super) fn keep(&self, server: Server, mut connection: Connection) {
        let pool = self.clone();
        tokio::spawn(async move {
            if connection.sender.ready().await.is_err() {
                return;
            }
            let until = Instant::now() + IDLE_MAX;
            pool.with(|shelves| {
                let shelf = shelves.entry(server).or_default();
                if shelf.len() < KEPT_MAX {
                    shelf.push(Idle { connection, until });
                }
            });
        });
    }

    /// Closes those that nobody has used for long enough. Does not return.
    pub(super) async fn tidy(&self) {
        let mut looks = tokio::time::interval(TIDY_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let now = looks.tick().await;
            self.with(|shelves| {
                shelves.retain(|_, shelf| {
                    shelf.retain(|idle| idle.until > now);
                    !shelf.is_empty()
                });
            });
        }
    }
}
