//! Amazon EC2: the instance metadata service, version 2, which wants a session token with every question.
//!
//! `spot/instance-action` is 404 until, about two minutes ahead, it says what will be done and when.
//! `events/recommendations/rebalance` is 404 until the machine is at a higher risk: that is advice.

use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::metadata::{self, PATIENCE, Question};
use super::{Kind, Notice, Seen, Source, SourceError, Urgency, left_until};
use crate::node::Address;

/// For how long a token is asked for: the longest that there is.
const TOKEN_TTL_S: u64 = 21_600;

/// The provider's own advice.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The longest notice that the service gives.
const NOTICE_MAX: Duration = Duration::from_secs(120);

pub(super) struct Amazon {
    address: Address,
    token: Option<Token>,
}

struct Token {
    text: String,
    since: Instant,
}

#[derive(Deserialize)]
struct InstanceAction {
    action: String,
    /// RFC 3339.
    time: String,
}

#[derive(Deserialize)]
struct Rebalance {
    #[serde(rename = "noticeTime")]
    notice_time: String,
}

impl Amazon {
    pub(super) fn new(address: Address) -> Self {
        Self {
            address,
            token: None,
        }
    }

    async fn token(&mut self) -> Result<String, SourceError> {
        let half_of_its_time = Duration::from_secs(TOKEN_TTL_S / 2);
        if let Some(token) = &self.token
            && token.since.elapsed() < half_of_its_time
        {
            return Ok(token.text.clone());
        }
        let ttl = TOKEN_TTL_S.to_string();
        let headers = [("x-aws-ec2-metadata-token-ttl-seconds", ttl.as_str())];
        let question = Question {
            method: Method::PUT,
            ..Question::get("/latest/api/token", &headers)
        };
        let answer = question.ask(&self.address, PATIENCE).await?;
        let text = metadata::ok(&answer)?.to_owned();
        self.token = Some(Token {
            text: text.clone(),
            since: Instant::now(),
        });
        Ok(text)
    }

    /// What is at a path; `None` where there is nothing.
    async fn read<T: DeserializeOwned>(&mut self, path: &str) -> Result<Option<T>, SourceError> {
        let path = format!("/latest/meta-data/{path}");
        for fresh in [false, true] {
            let token = self.token().await?;
            let headers = [("x-aws-ec2-metadata-token", token.as_str())];
            let question = Question::get(&path, &headers);
            let answer = question.ask(&self.address, PATIENCE).await?;
            match answer.status() {
                StatusCode::NOT_FOUND => return Ok(None),
                // The token has run out, or the machine has been stopped meanwhile: once more, with a new one.
                StatusCode::UNAUTHORIZED if !fresh => self.token = None,
                _ => return metadata::json(&answer).map(Some),
            }
        }
        Err(SourceError::Refused(StatusCode::UNAUTHORIZED))
    }

    async fn look_now(&mut self) -> Result<Seen, SourceError> {
        if let Some(found) = self.read::<InstanceAction>("spot/instance-action").await? {
            // Whether it is stopped, hibernated or terminated: its containers are gone.
            let time = found
                .time
                .parse()
                .map_err(|error| SourceError::Foreign(format!("time: {error}")))?;
            return Ok(Seen::Notice(Notice {
                id: format!("{} {}", found.action, found.time),
                urgency: Urgency::Gone(left_until(time, NOTICE_MAX)),
            }));
        }
        let rebalance: Option<Rebalance> = self.read("events/recommendations/rebalance").await?;
        Ok(rebalance.map_or(Seen::Nothing, |found| {
            Seen::Notice(Notice {
                id: format!("rebalance {}", found.notice_time),
                urgency: Urgency::Advice,
            })
        }))
    }
}

impl Source for Amazon {
    fn kind(&self) -> Kind {
        Kind::Amazon
    }

    fn look(&mut self) -> BoxFuture<'_, Result<Seen, SourceError>> {
        self.look_now().boxed()
    }

    fn pace(&self) -> Duration {
        LOOK_EVERY
    }
}
