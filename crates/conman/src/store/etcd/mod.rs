//! The store of a fleet: etcd, 3.4 or newer.
//!
//! ```text
//! range, get ──┐                ┌─► copy to the preferred endpoint
//!              ├─► race (pure) ─┤        │ late, or not done
//! txn ─────────┘                └─► copy to the next ─► … (see `race` for which requests)
//! watch ───────► watcher: one connection at a time, resumed from the revision after the last
//! ```
//!
//! *Nothing but a committed transaction is believed.* Leases and locks of etcd are not used: old releases revoke live
//! leases and renew dead ones. Reads are linearizable, and still hints.
//!
//! - Every request goes first to the endpoint that is preferred; one that is slow or fails is not any more, for
//!   all requests. So the next renewal goes elsewhere, though a renewal itself is never sent twice.
//! - A failure says whether the request may have been carried out ([`StoreError::Ambiguous`]) or certainly was not
//!   ([`StoreError::Unavailable`]). What is not known to be harmless is ambiguous.

mod endpoint;
mod race;
mod translate;
mod watch;
mod wire;

#[cfg(test)]
pub(super) mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{BoxStream, FuturesUnordered, StreamExt};
use model::id::Revision;
use model::timing::{STORE_HEDGE_AFTER, STORE_REQUEST_MAX};
use tokio::time::Instant;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

pub use self::endpoint::Credentials;
use self::endpoint::Endpoint;
use self::race::{Answer, Event, Failure, Next, Race};
use self::translate::{Foreign, Keys};
use self::watch::Watcher;
use super::{Change, KeyValue, Range, Store, StoreError, Txn, TxnOutcome};

/// How many keys are read at once. More are read in pages, all at the revision of the first.
const PAGE_KEYS_MAX: usize = 1_000;

/// How often a range is begun anew because the history was cut under its pages.
const RANGE_TRIES_MAX: usize = 3;

/// Where etcd is, and who conman is to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The members' client URLs, at least one.
    pub endpoints: Vec<String>,
    /// What all keys of this fleet begin with.
    pub prefix: String,
    /// The user, where etcd asks for one.
    pub credentials: Option<Credentials>,
    /// What `https` endpoints are trusted by, and trust.
    pub tls: Option<Tls>,
}

/// Certificates, in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Tls {
    /// Who signs the members' certificates.
    pub ca: Vec<u8>,
    /// Our own certificate and its key, where etcd asks for them.
    pub identity: Option<Shown>,
}

/// A certificate to show, and its key.
#[derive(Clone, PartialEq, Eq)]
pub struct Shown {
    /// The certificate, and those between it and its CA.
    pub certificate: Vec<u8>,
    /// Its key.
    pub key: Vec<u8>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

struct Shared {
    endpoints: Vec<Arc<Endpoint>>,
    /// The place in `endpoints` of the one that requests go to first.
    preferred: AtomicUsize,
    keys: Keys,
}

impl Shared {
    fn preferred(&self) -> (usize, Arc<Endpoint>) {
        let index = self.preferred.load(Ordering::Relaxed);
        (index, Arc::clone(&self.endpoints[index]))
    }

    /// The next one is preferred from now on, unless another is already.
    fn demote(&self, index: usize) {
        let next = (index + 1) % self.endpoints.len();
        // Somebody else has seen it too.
        let _ = self
            .preferred
            .compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Sends a request, and its copies if there are to be any.
    async fn race<A: Send>(
        &self,
        is_repeatable: bool,
        call: impl Fn(Arc<Endpoint>) -> BoxFuture<'static, Result<Answer<A>, Failure>> + Send,
    ) -> Result<A, Failure> {
        let count = self.endpoints.len();
        let (first, _) = self.preferred();
        let mut race = Race::new(is_repeatable, count);
        let mut copies = FuturesUnordered::new();
        let send = |index: usize| {
            let copy = call(Arc::clone(&self.endpoints[index]));
            copy.map(move |outcome| (index, outcome))
        };
        let mut newest = first;
        copies.push(send(newest));
        let expiry = Instant::now() + STORE_REQUEST_MAX;
        let mut late = Some(Instant::now() + STORE_HEDGE_AFTER);
        loop {
            let event = tokio::select! {
                Some((index, outcome)) = copies.next() => match outcome {
                    Ok(answer) => Event::Answered(answer),
                    Err(failure) => {
                        self.demote(index);
                        Event::Failed(failure)
                    }
                },
                () = tokio::time::sleep_until(late.unwrap_or(expiry)), if late.is_some() => {
                    late = None;
                    self.demote(newest);
                    Event::Late
                }
                () = tokio::time::sleep_until(expiry) => Event::Expired,
            };
            match race.step(event) {
                Next::Send => {
                    newest = (newest + 1) % count;
                    copies.push(send(newest));
                    late = Some(Instant::now() + STORE_HEDGE_AFTER);
                }
                Next::Wait => {}
                Next::Done(outcome) => return outcome,
            }
        }
    }

    async fn page(&self, request: wire::RangeRequest) -> Result<wire::RangeResponse, Failure> {
        let call = |endpoint: Arc<Endpoint>| {
            let request = request.clone();
            async move { endpoint.range(request).await.map(Answer::Final) }.boxed()
        };
        self.race(true, call).await
    }

    async fn range(&self, prefix: &str) -> Result<Range, StoreError> {
        let mut tries = 1;
        loop {
            match self.try_range(prefix).await {
                Err(Failure::Hopeless(why))
                    if why.contains("has been compacted") && tries < RANGE_TRIES_MAX =>
                {
                    tries += 1;
                }
                Err(failure) => return Err(unread(failure)),
                Ok(range) => return Ok(range),
            }
        }
    }

    async fn try_range(&self, prefix: &str) -> Result<Range, Failure> {
        let (key, range_end) = self.keys.range(prefix);
        let mut request = wire::RangeRequest {
            key,
            range_end,
            limit: PAGE_KEYS_MAX as i64,
            revision: 0,
        };
        let mut items = Vec::new();
        loop {
            let page = self.page(request.clone()).await?;
            let revision = translate::header(page.header.as_ref()).map_err(foreign)?;
            if request.revision == 0 {
                request.revision = translate::number(revision);
            }
            for kv in &page.kvs {
                items.push(self.keys.item(kv).map_err(foreign)?);
            }
            match page.kvs.last() {
                Some(last) if page.more => request.key = [&last.key[..], b"\0"].concat().into(),
                _ => break,
            }
        }
        let revision = translate::revision(request.revision);
        Ok(Range { revision, items })
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        let request = wire::RangeRequest {
            key: self.keys.outer(key),
            ..wire::RangeRequest::default()
        };
        let page = self.page(request).await.map_err(unread)?;
        let item = page.kvs.first().map(|kv| self.keys.item(kv)).transpose();
        item.map_err(|error| unread(foreign(error)))
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        super::check_txn(&txn)?;
        let request = self.keys.txn(&txn);
        let call = |endpoint: Arc<Endpoint>| {
            let request = request.clone();
            async move {
                let answer = endpoint.txn(request).await?;
                Ok(if answer.succeeded {
                    Answer::Final(answer)
                } else {
                    Answer::Rejection(answer)
                })
            }
            .boxed()
        };
        let answer = self.race(race::is_repeatable(&txn), call).await;
        let answer = answer.map_err(|failure| match failure {
            Failure::NotDone(why) => StoreError::Unavailable(why),
            Failure::Lost(why) => StoreError::Ambiguous(why),
            Failure::Hopeless(why) => StoreError::Fatal(why),
        })?;
        let outcome = self.keys.outcome(&answer);
        outcome.map_err(|Foreign(why)| StoreError::Fatal(why))
    }
}

fn foreign(Foreign(why): Foreign) -> Failure {
    Failure::Hopeless(why)
}

/// A read changes nothing, whatever became of it.
fn unread(failure: Failure) -> StoreError {
    match failure {
        Failure::NotDone(why) | Failure::Lost(why) => StoreError::Unavailable(why),
        Failure::Hopeless(why) => StoreError::Fatal(why),
    }
}

/// A handle on an etcd. `clone` shares the connections.
#[derive(Clone)]
pub struct Etcd {
    shared: Arc<Shared>,
}

impl Etcd {
    /// Connects when the first request is made: an etcd that is away comes back. Must be called within tokio.
    ///
    /// # Errors
    /// [`StoreError::Fatal`] when an endpoint is no URL, or a certificate none.
    pub fn open(options: Options) -> Result<Self, StoreError> {
        let credentials = options.credentials.map(Arc::new);
        let endpoints = options.endpoints.iter().map(|uri| {
            let tls = options.tls.as_ref().map(client_tls);
            Endpoint::new(uri, tls, credentials.clone()).map(Arc::new)
        });
        let endpoints: Vec<_> = endpoints
            .collect::<Result<_, _>>()
            .map_err(StoreError::Fatal)?;
        if endpoints.is_empty() {
            return Err(StoreError::Fatal("no endpoints are given".to_owned()));
        }
        // Not all of a fleet's processes lean on the first.
        let preferred = std::process::id() as usize % endpoints.len();
        Ok(Self {
            shared: Arc::new(Shared {
                endpoints,
                preferred: AtomicUsize::new(preferred),
                keys: Keys::below(options.prefix),
            }),
        })
    }
}

fn client_tls(tls: &Tls) -> ClientTlsConfig {
    let config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&tls.ca));
    match &tls.identity {
        Some(Shown { certificate, key }) => config.identity(Identity::from_pem(certificate, key)),
        None => config,
    }
}

impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Etcd")
            .field("keys", &self.shared.keys)
            .finish_non_exhaustive()
    }
}

impl Store for Etcd {
    fn range(&self, prefix: &str) -> BoxFuture<'_, Result<Range, StoreError>> {
        let prefix = prefix.to_owned();
        Box::pin(async move { self.shared.range(&prefix).await })
    }

    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<KeyValue>, StoreError>> {
        let key = key.to_owned();
        Box::pin(async move { self.shared.get(&key).await })
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, StoreError>> {
        Box::pin(self.shared.txn(txn))
    }

    fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> BoxStream<'static, Result<Vec<Change>, StoreError>> {
        Watcher::new(Arc::clone(&self.shared), prefix, from)
            .stream()
            .boxed()
    }
}
