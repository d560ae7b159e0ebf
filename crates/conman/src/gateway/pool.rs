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
use tokio::time::Instant;

/// How long a connection is kept without a request.
const IDLE_MAX: Duration = Duration::from_secs(2);
/// How many are kept for one server.
const KEPT_MAX: usize = 64;

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
    number: u64,
}

#[derive(Default)]
struct Shelves {
    idle: HashMap<Server, Vec<Idle>>,
    next_number: u64,
}

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
            let shelf = shelves.idle.get_mut(server)?;
            let mut found = None;
            while let Some(idle) = shelf.pop() {
                if !idle.connection.sender.is_closed() {
                    found = Some(idle.connection);
                    break;
                }
            }
            if shelf.is_empty() {
                shelves.idle.remove(server);
            }
            found
        })
    }

    /// Keeps a connection for the next request, once its answer has been read to the end.
    pub(super) fn keep(&self, server: Server, mut connection: Connection) {
        let pool = self.clone();
        tokio::spawn(async move {
            if connection.sender.ready().await.is_err() {
                return;
            }
            let kept_until = Instant::now() + IDLE_MAX;
            let number = pool.with(|shelves| {
                let number = shelves.next_number;
                shelves.next_number += 1;
                let shelf = shelves.idle.entry(server.clone()).or_default();
                if shelf.len() < KEPT_MAX {
                    shelf.push(Idle { connection, number });
                }
                number
            });
            tokio::time::sleep_until(kept_until).await;
            pool.with(|shelves| {
                if let Some(shelf) = shelves.idle.get_mut(&server) {
                    shelf.retain(|idle| idle.number != number);
                    if shelf.is_empty() {
                        shelves.idle.remove(&server);
                    }
                }
            });
        });
    }
}
