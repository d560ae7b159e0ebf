//! Google Cloud: two keys of the metadata server, each of which can be waited for.
//!
//! `instance/preempted` becomes `TRUE` about 30 s before a preempted machine is gone; `instance/maintenance-event`
//! becomes `TERMINATE_ON_HOST_MAINTENANCE` a minute before one that is not to be migrated is. With
//! `wait_for_change` the server answers when the value is no longer the one with `last_etag`, or after
//! `timeout_sec` with the same. An answer without `Metadata-Flavor: Google` is from somebody else.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::metadata::{self, PATIENCE, Question};
use super::{Kind, Notice, Seen, Source, SourceError, Urgency};
use crate::node::Address;

/// How long the server holds a question without news.
const WAIT_S: u64 = 60;

const FLAVOR: (&str, &str) = ("metadata-flavor", "Google");

pub(super) struct Google {
    address: Address,
    preempted: Key,
    maintenance: Key,
}

struct Key {
    name: &'static str,
    /// Of the value that was read last; `None` before the first, which is not waited for.
    etag: Option<String>,
}

impl Key {
    async fn read(&mut self, address: &Address) -> Result<String, SourceError> {
        let name = self.name;
        let mut path = format!("/computeMetadata/v1/instance/{name}");
        let mut patience = PATIENCE;
        if let Some(etag) = &self.etag {
            path += &format!("?wait_for_change=true&timeout_sec={WAIT_S}&last_etag={etag}");
            patience += Duration::from_secs(WAIT_S);
        }
        let answer = Question::get(&path, &[FLAVOR])
            .ask(address, patience)
            .await?;
        let value = metadata::ok(&answer)?.trim().to_owned();
        let header = |name: &str| answer.headers().get(name)?.to_str().ok();
        if header(FLAVOR.0) != Some(FLAVOR.1) {
            return Err(SourceError::Foreign(
                "the answer is not a metadata server's".to_owned(),
            ));
        }
        let etag = header("etag").filter(|etag| {
            // It goes into a query as it is.
            etag.bytes().all(|byte| byte.is_ascii_alphanumeric())
        });
        let etag = etag.ok_or_else(|| SourceError::Foreign("no etag to wait with".to_owned()))?;
        self.etag = Some(etag.to_owned());
        Ok(value)
    }
}

impl Google {
    pub(super) fn new(address: Address) -> Self {
        let key = |name| Key { name, etag: None };
        Self {
            address,
            preempted: key("preempted"),
            maintenance: key("maintenance-event"),
        }
    }

    async fn look_now(&mut self) -> Result<Seen, SourceError> {
        tokio::select! {
            // The first look at one does not keep the other from its own.
            value = self.preempted.read(&self.address) => match value?.as_str() {
                "TRUE" => Ok(gone("preempted", Duration::from_secs(30))),
                "FALSE" => Ok(Seen::Nothing),
                other => Err(SourceError::Foreign(format!("preempted: {other:?}"))),
            },
            value = self.maintenance.read(&self.address) => match value?.as_str() {
                "TERMINATE_ON_HOST_MAINTENANCE" => Ok(gone("maintenance", Duration::from_secs(60))),
                // A migration is nothing to containers.
                _ => Ok(Seen::Nothing),
            },
        }
    }
}

fn gone(id: &str, within: Duration) -> Seen {
    Seen::Notice(Notice {
        id: id.to_owned(),
        urgency: Urgency::Gone(within),
    })
}

impl Source for Google {
    fn kind(&self) -> Kind {
        Kind::Google
    }

    fn look(&mut self) -> BoxFuture<'_, Result<Seen, SourceError>> {
        self.look_now().boxed()
    }

    fn pace(&self) -> Duration {
        // The server itself waits. This only bounds one that does not.
        Duration::from_millis(50)
    }
}
