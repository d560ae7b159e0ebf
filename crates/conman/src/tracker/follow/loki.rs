//! Grafana Loki, asked by its HTTP API (`GET /loki/api/v1/query_range`) every second for what is new.
//!
//! ```text
//!                      newest seen
//!   ────────┬──────────────┬────┬──────────► time of entries
//!           │              └5 s─┘ asked again every second: shippers do not send in order
//!           └──2 × lateness─────┘ asked again every ten seconds: late ones
//! ```
//!
//! Loki may take an entry long after a newer one, and has no place to go on from. So some of what was read is asked for
//! again, and what was seen is known by its hash. What comes to Loki later than the lateness is counted as late; what
//! comes later than twice the lateness is not found.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use stuck::entities::hash;
use stuck::stamp::rfc3339;

use super::super::Loki;
use super::super::owner::Message;
use super::{Feeder, LogTime, Stopped, now, rest};

const ASK_EVERY: Duration = Duration::from_secs(1);
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// How far back it is asked when it is not swept: shippers gather for a second or so.
const REACH: Duration = Duration::from_secs(5);
/// Entries in one answer. A Loki gives 5,000 at the most unless told otherwise, and may be told less.
const PAGE: usize = 2_000;
const PATIENCE: Duration = Duration::from_secs(30);
/// An answer is no longer than this: entries have 256 KiB at the most by default.
const ANSWER_BYTES_MAX: u64 = 1 << 30;
/// How long it is left alone after failures, at the most.
const AGAIN_MAX: Duration = Duration::from_secs(30);
/// No more is repeated of what it answers to a question that it does not like.
const REASON_CHARS_MAX: usize = 300;

/// Up to where Loki was read, in nanoseconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    newest: i64,
    /// The hashes of what was seen not long before, by second.
    seen: BTreeMap<i64, BTreeSet<u64>>,
}

impl Place {
    /// Whether this is seen for the first time.
    fn see(&mut self, time: i64, hash: u64) -> bool {
        let is_new = self.seen.entry(second(time)).or_default().insert(hash);
        self.newest = self.newest.max(time);
        is_new
    }

    /// Forgets what will not be asked for again.
    fn forget(&mut self, reach: Duration) {
        let floor = second(before(self.newest, reach));
        self.seen = self.seen.split_off(&floor);
    }
}

fn second(time: i64) -> i64 {
    time.div_euclid(1_000_000_000)
}

fn before(time: i64, span: Duration) -> i64 {
    LogTime(time).minus(span).0
}

/// An answer, as far as it is read here.
#[derive(Debug, Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    data: Data<'a>,
}

#[derive(Debug, Deserialize)]
struct Data<'a> {
    #[serde(rename = "resultType")]
    kind: String,
    #[serde(borrow)]
    result: &'a RawValue,
}

#[derive(Debug, Deserialize)]
struct Stream<'a> {
    #[serde(borrow)]
    stream: &'a RawValue,
    #[serde(borrow)]
    values: Vec<&'a RawValue>,
}

/// The time in nanoseconds, and the line. A third part may follow, which is not about the line.
#[derive(Debug, Deserialize)]
struct Entry<'a>(
    #[serde(borrow)] std::borrow::Cow<'a, str>,
    #[serde(borrow)] &'a RawValue,
    #[serde(default)] Rest,
);

#[derive(Debug, Default, Deserialize)]
struct Rest {}

/// Follows one query.
pub(super) struct Follower {
    loki: Loki,
    agent: ureq::Agent,
    place: Option<Place>,
    feeder: Feeder,
}

impl Follower {
    /// Follows a query, going on at a place.
    pub(super) fn new(loki: Loki, place: Option<&str>, feeder: Feeder) -> anyhow::Result<Self> {
        use ureq::tls::{RootCerts, TlsConfig};
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier);
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .http_status_as_error(false)
            .tls_config(tls.build())
            .build()
            .new_agent();
        Ok(Self {
            loki,
            agent,
            place: place.map(serde_json::from_str).transpose()?,
            feeder,
        })
    }

    /// Follows it until the tracker ends.
    pub(super) fn run(mut self) {
        let mut again = None;
        let mut swept = None;
        loop {
            let is_sweep = swept.is_none_or(|at: Instant| at.elapsed() >= SWEEP_EVERY);
            match self.read(is_sweep) {
                Ok(()) => {
                    again = None;
                    if is_sweep {
                        swept = Some(Instant::now());
                    }
                    if self.feeder.sender.send(Message::CaughtUp).is_err() {
                        return;
                    }
                    rest(ASK_EVERY);
                }
                Err(Stopped::Gone) => return,
                Err(Stopped::Failed(error)) => {
                    // Said once, not at every try.
                    let lost = || Message::Lost(format!("{error:#}"));
                    if again.is_none() && self.feeder.sender.send(lost()).is_err() {
                        return;
                    }
                    let pause = again.map_or(ASK_EVERY, |pause: Duration| pause * 2);
                    again = Some(pause.min(AGAIN_MAX));
                    rest(pause.min(AGAIN_MAX));
                }
            }
        }
    }

    /// How far back entries may still come.
    fn late_reach(&self) -> Duration {
        (self.loki.lateness * 2).max(REACH)
    }

    /// Reads all that is new now.
    fn read(&mut self, is_sweep: bool) -> Result<(), Stopped> {
        let end = now().0;
        let reach = if is_sweep { self.late_reach() } else { REACH };
        let mut start = match &self.place {
            Some(place) => before(place.newest, reach),
            None => before(end, self.loki.since),
        };
        loop {
            let text = self.ask(start, end)?;
            let (count, last) = self.take(&text)?;
            if count < PAGE {
                return Ok(());
            }
            // The next page begins where this one ends, since it may hold only some of its last moment's entries.
            // Where it holds nothing else, that moment has more than a page, which no question can tell apart.
            start = if last > start {
                last
            } else {
                last.saturating_add(1)
            };
        }
    }

    fn ask(&self, start: i64, end: i64) -> anyhow::Result<String> {
        let url = format!(
            "{}/loki/api/v1/query_range",
            self.loki.url.trim_end_matches('/')
        );
        let mut request = self
            .agent
            .get(&url)
            .query("query", &self.loki.query)
            .query("direction", "forward")
            .query("limit", PAGE.to_string())
            .query("start", start.to_string())
            .query("end", end.to_string());
        if let Some(tenant) = &self.loki.tenant {
            request = request.header("X-Scope-OrgID", tenant);
        }
        if let Some(path) = &self.loki.authorization {
            request = request.header("Authorization", authorization(path)?);
        }
        let mut answer = request.call().with_context(|| format!("ask {url}"))?;
        let status = answer.status();
        let body = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX);
        let text = body
            .read_to_string()
            .with_context(|| format!("read {url}"))?;
        if status.is_success() {
            return Ok(text);
        }
        let reason: String = text.trim().chars().take(REASON_CHARS_MAX).collect();
        anyhow::bail!("{url} answered {}: {reason}", status.as_u16())
    }

    /// Takes what is new in an answer. How many entries it had, and the time of the last.
    fn take(&mut self, text: &str) -> Result<(usize, i64), Stopped> {
        let entries = entries(text)?;
        let last = entries.last().map_or(0, |entry| entry.0);
        let mut place = self.place.clone().unwrap_or_default();
        let mut lines = Vec::new();
        for (time, line) in &entries {
            if place.see(*time, hash(line.as_bytes())) {
                lines.extend_from_slice(line.as_bytes());
                lines.push(b'\n');
            }
        }
        if lines.is_empty() {
            return Ok((entries.len(), last));
        }
        place.forget(self.late_reach());
        self.feeder.feed(lines, now(), &place)?;
        self.place = Some(place);
        Ok((entries.len(), last))
    }
}

/// The entries of an answer by time, as the lines that `logcli -o jsonl` prints.
fn entries(text: &str) -> anyhow::Result<Vec<(i64, String)>> {
    let answer: Answer<'_> = serde_json::from_str(text).context("this is no answer of Loki")?;
    let kind = &answer.data.kind;
    anyhow::ensure!(
        kind == "streams",
        "the query asks for a {kind}, not for lines"
    );
    let streams: Vec<Stream<'_>> =
        serde_json::from_str(answer.data.result.get()).context("these are no streams of Loki")?;
    let mut found = Vec::new();
    for Stream { stream, values } in streams {
        let labels = stream.get();
        for value in values {
            let Entry(time, line, _) =
                serde_json::from_str(value.get()).context("this is no entry of Loki")?;
            let time: i64 = time.parse().context("this is no time of Loki")?;
            let stamp = rfc3339(LogTime(time));
            let line = line.get();
            found.push((
                time,
                format!(r#"{{"labels":{labels},"timestamp":"{stamp}","line":{line}}}"#),
            ));
        }
    }
    found.sort();
    Ok(found)
}

/// What the header is to say: read anew each time, since tokens are renewed.
fn authorization(path: &PathBuf) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_lines_in_order_of_time() {
        let text = r#"{"status":"success","data":{"resultType":"streams","result":[
            {"stream":{"app":"a"},"values":[["3","x \"y\""],["1","z"]]},
            {"stream":{"app":"b"},"values":[["2","w",{"structured":"metadata"}]]}],"stats":{}}}"#;
        let lines: Vec<String> = entries(text)
            .unwrap()
            .into_iter()
            .map(|entry| entry.1)
            .collect();
        insta::assert_snapshot!(lines.join("\n"), @r#"
        {"labels":{"app":"a"},"timestamp":"1970-01-01T00:00:00.000000001Z","line":"z"}
        {"labels":{"app":"b"},"timestamp":"1970-01-01T00:00:00.000000002Z","line":"w"}
        {"labels":{"app":"a"},"timestamp":"1970-01-01T00:00:00.000000003Z","line":"x \"y\""}
        "#);
    }

    #[test]
    fn a_metric_is_no_log() {
        let text = r#"{"data":{"resultType":"matrix","result":[]}}"#;
        let error = entries(text).unwrap_err().to_string();
        assert_eq!(error, "the query asks for a matrix, not for lines");
    }

    #[test]
    fn what_was_seen_is_known_for_as_long_as_it_may_be_asked_for() {
        let mut place = Place::default();
        let second = 1_000_000_000;
        assert!(place.see(10 * second, 1));
        assert!(!place.see(10 * second, 1));
        assert!(place.see(10 * second, 2));
        assert!(place.see(40 * second, 3));
        place.forget(Duration::from_secs(30));
        assert!(!place.see(10 * second, 1));
        place.forget(Duration::from_secs(29));
        assert_eq!(place.seen.len(), 1);
    }
}
