//! Microsoft Azure: Scheduled Events, a document of what is about to happen to the machines of one group.
//!
//! An event names its machines, so this one's own name is asked for first. `Preempt` comes at least 30 s ahead,
//! `Reboot`, `Redeploy` and `Terminate` with minutes. What is acknowledged (`StartRequests`) need not wait for
//! its `NotBefore`: done when the host is empty.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::Method;
use serde::Deserialize;

use super::metadata::{self, PATIENCE, Question};
use super::{Kind, Notice, Seen, Source, SourceError, UNSAID, Urgency, left_until};
use crate::node::Address;

const EVENTS: &str = "/metadata/scheduledevents?api-version=2020-07-01";
const NAME: &str = "/metadata/instance/compute/name?api-version=2021-02-01&format=text";
const METADATA: (&str, &str) = ("metadata", "true");

/// The provider's own advice.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The service is only set up at the first question, which takes this long.
const FIRST_PATIENCE: Duration = Duration::from_secs(120);

/// The longest notice that the service gives.
const NOTICE_MAX: Duration = Duration::from_secs(15 * 60);

pub(super) struct Azure {
    address: Address,
    /// What events call this machine, once known.
    name: Option<String>,
    /// The document that was read last, and what it said.
    read: Option<(u64, Seen)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Document {
    document_incarnation: u64,
    events: Vec<Event>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Event {
    event_id: String,
    event_type: String,
    #[serde(default)]
    resources: Vec<String>,
    /// Empty once it has begun.
    #[serde(default)]
    not_before: String,
}

impl Event {
    fn takes_the_machine(&self) -> bool {
        matches!(
            self.event_type.as_str(),
            "Preempt" | "Terminate" | "Reboot" | "Redeploy"
        )
    }

    fn within(&self) -> Result<Duration, SourceError> {
        if self.not_before.is_empty() {
            return Ok(UNSAID);
        }
        let time = jiff::fmt::rfc2822::parse(&self.not_before)
            .map_err(|error| SourceError::Foreign(format!("NotBefore: {error}")))?;
        Ok(left_until(time.timestamp(), NOTICE_MAX))
    }
}

impl Azure {
    pub(super) fn new(address: Address) -> Self {
        Self {
            address,
            name: None,
            read: None,
        }
    }

    async fn name(&mut self) -> Result<String, SourceError> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let answer = Question::get(NAME, &[METADATA])
            .ask(&self.address, PATIENCE)
            .await?;
        let name = metadata::ok(&answer)?.trim().to_owned();
        self.name = Some(name.clone());
        Ok(name)
    }

    async fn look_now(&mut self) -> Result<Seen, SourceError> {
        let name = self.name().await?;
        let patience = match self.read {
            None => FIRST_PATIENCE,
            Some(_) => PATIENCE,
        };
        let answer = Question::get(EVENTS, &[METADATA])
            .ask(&self.address, patience)
            .await?;
        let document: Document = metadata::json(&answer)?;
        if let Some((incarnation, seen)) = &self.read
            && *incarnation == document.document_incarnation
        {
            return Ok(seen.clone());
        }
        let ours = |event: &&Event| event.takes_the_machine() && event.resources.contains(&name);
        let mut seen = Seen::Nothing;
        let mut soonest = NOTICE_MAX;
        for event in document.events.iter().filter(ours) {
            let within = event.within()?;
            if within <= soonest {
                soonest = within;
                seen = Seen::Notice(Notice {
                    id: event.event_id.clone(),
                    urgency: Urgency::Gone(within),
                });
            }
        }
        self.read = Some((document.document_incarnation, seen.clone()));
        Ok(seen)
    }

    async fn start(&self, event: &str) -> Result<(), SourceError> {
        let body = serde_json::json!({ "StartRequests": [{ "EventId": event }] });
        let headers = [METADATA, ("content-type", "application/json")];
        let question = Question {
            method: Method::POST,
            body: body.to_string(),
            ..Question::get(EVENTS, &headers)
        };
        metadata::ok(&question.ask(&self.address, PATIENCE).await?).map(drop)
    }
}

impl Source for Azure {
    fn kind(&self) -> Kind {
        Kind::Azure
    }

    fn look(&mut self) -> BoxFuture<'_, Result<Seen, SourceError>> {
        self.look_now().boxed()
    }

    fn pace(&self) -> Duration {
        LOOK_EVERY
    }

    fn acknowledge<'a>(&'a mut self, notice: &'a Notice) -> BoxFuture<'a, Result<(), SourceError>> {
        self.start(&notice.id).boxed()
    }
}
