//! How one file is read: its layout, the fields in it that answer the query, and the rules for what its
//! stamps leave out. Made once from the first lines, then shared by all threads.

use model::stuck::LogTime;
use regex::bytes::Regex;

use crate::{
    classify::{Base, Classifier},
    expr::{Expr, ExprError, Names},
    format::{Format, Layout},
    guess::Sample,
    query::Query,
    stamp::{Stamp, StampReader, StampRules, yearless_day},
};

/// Why no plan can be made for a file.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The options contradict each other or the log: the user's to mend.
    #[error("{0}")]
    Usage(String),
    /// An expression is none.
    #[error("{option}: {source}")]
    Expr {
        /// The option.
        option: &'static str,
        /// What is wrong with it.
        source: ExprError,
    },
    /// No line is of any known format.
    #[error(
        "no line is in a format that is known: name one by --format, or describe the lines by --pattern"
    )]
    Unrecognised,
    /// The format is known, but not which of its fields to use.
    #[error("cannot tell which field holds {what}: name it by {option} (fields seen: {seen})")]
    Undescribed {
        /// What is missing.
        what: &'static str,
        /// The option that says it.
        option: &'static str,
        /// The fields in the first lines.
        seen: String,
    },
}

/// How one file is read.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The layers of its lines.
    pub layout: Layout,
    /// The fields by slot.
    pub names: Vec<String>,
    /// The slot of the time.
    pub time: usize,
    /// Whether the time is that of the envelope, which its writer stamped, even if the line has one.
    pub is_time_of_envelope: bool,
    /// The slot of the entity.
    pub entity: usize,
    /// The part of the entity's field that names it, by its first group.
    pub entity_part: Option<Regex>,
    /// The slot of the reason.
    pub reason: Option<usize>,
    /// What lines prove.
    pub classifier: Classifier,
    /// What completes stamps.
    pub stamps: StampRules,
    /// The start of the first line's day, for stamps with the time of day alone.
    pub first_midnight: LogTime,
    /// The time of the first line that has one, for putting files in order.
    pub first_time: Option<LogTime>,
    /// What was chosen, for people.
    pub description: String,
}

/// Expressions for Google Cloud's load balancers, whose `statusDetails` say who ended the request.
const GCLOUD_NEUTRAL: &str =
    r#"jsonPayload.statusDetails~"^client_" or httpRequest.status in (0, 499)"#;
const GCLOUD_FAIL: &str = concat!(
    r#"jsonPayload.statusDetails~"^(failed_to|backend_|no_healthy|internal_error|ssl_)" or "#,
    r#"(httpRequest.status in (502, 503, 504) and jsonPayload.statusDetails!="response_sent_by_backend")"#
);
const GCLOUD_OK: &str = "httpRequest.status>=100";

impl Plan {
    /// Makes the plan of a file from its first lines. `modified` is when it was last written, or now.
    ///
    /// # Errors
    /// When no format fits, or not enough is known of it.
    pub fn new(query: &Query, lines: &[&[u8]], modified: LogTime) -> Result<Self, PlanError> {
        let layout = match &query.pattern {
            Some(pattern) => Layout::of_pattern(pattern_of(pattern)?),
            None => Layout::recognise(lines, query.format).ok_or(PlanError::Unrecognised)?,
        };
        let sample = Sample::new(lines, &layout);
        let mut names = Names::default();
        let undescribed = |what, option| PlanError::Undescribed {
            what,
            option,
            seen: match (&layout.pattern, sample.names()) {
                (Some(regex), _) => regex
                    .capture_names()
                    .flatten()
                    .collect::<Vec<_>>()
                    .join(", "),
                (None, seen) if seen.is_empty() => "none".to_owned(),
                (None, seen) => seen.join(", "),
            },
        };

        let (time_name, is_time_of_envelope) = match &query.time {
            Some(name) => (name.clone(), false),
            None => {
                let own =
                    own_time(&layout, &sample).ok_or_else(|| undescribed("the time", "--time"))?;
                (own, layout.inner.is_some())
            }
        };
        let entity_name = match &query.entity {
            Some(name) => name.clone(),
            None => {
                own_entity(&layout, &sample).ok_or_else(|| undescribed("the entity", "--entity"))?
            }
        };
        let (entity_name, entity_part) = split_part(&entity_name)?;
        let base = own_outcome(&layout, &sample, &mut names);
        let is_described = query.ok.is_some() || query.fail.is_some();
        if matches!(base, Base::Nothing) && !is_described {
            return Err(undescribed("the outcome", "--fail EXPR, --ok EXPR"));
        }
        let outcome = describe_outcome(&base, query, &names);
        let classifier = Classifier::new(base, query, &mut names)
            .map_err(|(option, source)| PlanError::Expr { option, source })?;
        let reason_name = own_reason(&layout, &sample);
        if let Some(field) = layout.format.wrapped_field() {
            names.slot(field);
        }
        let (time, entity) = (names.slot(&time_name), names.slot(&entity_name));
        let reason = reason_name.map(|name| names.slot(&name));
        let part = entity_part
            .as_ref()
            .map_or(String::new(), |part| format!("~{part}"));
        let description = format!(
            "{} (time={time_name}, entity={entity_name}{part}, {outcome})",
            layout.name()
        );

        let modified_date = date_of(modified, query);
        let first_stamp = first_value(&layout, lines, &time_name);
        let first_day = first_stamp
            .as_deref()
            .and_then(yearless_day)
            .unwrap_or((1, 1));
        let year = query.year.unwrap_or_else(|| {
            // The latest year that does not put the first line after the file's last change.
            let last = (modified_date.month(), modified_date.day());
            modified_date.year() - i16::from(first_day > last)
        });
        let stamps = StampRules {
            zone: query.zone.clone(),
            first_day: (year, first_day.0, first_day.1),
        };
        let first_date = query.date.unwrap_or(modified_date);
        let zoned = query
            .zone
            .to_ambiguous_zoned(first_date.to_datetime(jiff::civil::Time::midnight()));
        let first_midnight = zoned
            .compatible()
            .map_or(0, |zoned| zoned.timestamp().as_nanosecond());
        let first_midnight = i64::try_from(first_midnight).unwrap_or_default();
        let first_time = first_stamp.as_deref().and_then(|text| {
            match StampReader::new(stamps.clone()).read(text)? {
                Stamp::At(time) => Some(time),
                Stamp::OfDay(of_day) => Some(LogTime(first_midnight + of_day)),
            }
        });
        Ok(Self {
            names: names.list().to_vec(),
            layout,
            time,
            is_time_of_envelope,
            entity,
            entity_part,
            reason,
            classifier,
            stamps,
            first_midnight: LogTime(first_midnight),
            first_time,
            description,
        })
    }
}

/// The date of a time in the zone of stamps without one.
fn date_of(time: LogTime, query: &Query) -> jiff::civil::Date {
    let time = jiff::Timestamp::from_nanosecond(i128::from(time.0)).unwrap_or_default();
    query.zone.to_datetime(time).date()
}

fn pattern_of(text: &str) -> Result<Regex, PlanError> {
    let regex =
        Regex::new(text).map_err(|error| PlanError::Usage(format!("--pattern: {error}")))?;
    let has = |name| regex.capture_names().flatten().any(|known| known == name);
    match () {
        () if !has("time") => Err(PlanError::Usage(
            "--pattern needs a group (?<time>…)".to_owned(),
        )),
        () if !has("entity") => Err(PlanError::Usage(
            "--pattern needs a group (?<entity>…)".to_owned(),
        )),
        () => Ok(regex),
    }
}

/// `path~^/user/([^/]+)`: a field, and the part of it that counts.
fn split_part(text: &str) -> Result<(String, Option<Regex>), PlanError> {
    let Some((name, part)) = text.split_once('~') else {
        return Ok((text.to_owned(), None));
    };
    let regex = Regex::new(part)
        .map_err(|error| PlanError::Usage(format!("the expression of --entity: {error}")))?;
    if regex.captures_len() < 2 {
        let hint = format!("the expression of --entity needs a group: {name}~…(…)…");
        return Err(PlanError::Usage(hint));
    }
    Ok((name.to_owned(), Some(regex)))
}

fn own_time(layout: &Layout, sample: &Sample) -> Option<String> {
    let fixed = match layout.format {
        Format::Journal => "__REALTIME_TIMESTAMP",
        Format::Gcloud | Format::Tracing | Format::Loki => "timestamp",
        Format::Ndjson | Format::Logfmt => return sample.time(),
        _ => "time",
    };
    Some(fixed.to_owned())
}

fn own_entity(layout: &Layout, sample: &Sample) -> Option<String> {
    let fixed = match layout.inner.unwrap_or(layout.format) {
        Format::Conman => "repl",
        Format::NginxError => return sample.first_of(&["upstream", "host"]),
        Format::Access => return sample.first_of(&["upstream", "host", "client"]),
        Format::Haproxy => "backend",
        Format::Envoy => return sample.first_of(&["authority", "upstream"]),
        Format::Jupyterhub => "path~/user/([^/?]+)",
        Format::Pattern => "entity",
        Format::Gcloud => {
            let guessed = sample.entity();
            let is_own = guessed
                .as_ref()
                .is_some_and(|path| path.starts_with("jsonPayload."));
            if !is_own && sample.has("httpRequest.requestUrl") {
                "httpRequest.requestUrl~^[a-z]+://([^/:?]+)"
            } else {
                return guessed;
            }
        }
        _ => {
            return sample.entity().or_else(|| {
                sample.first_of(&[
                    "CONTAINER_NAME",
                    "_SYSTEMD_UNIT",
                    "SYSLOG_IDENTIFIER",
                    "span.name",
                    "container",
                ])
            });
        }
    };
    Some(fixed.to_owned())
}

fn own_outcome(layout: &Layout, sample: &Sample, names: &mut Names) -> Base {
    match layout.inner.unwrap_or(layout.format) {
        Format::Access => Base::Words(names.slot("status")),
        Format::Conman
        | Format::NginxError
        | Format::Haproxy
        | Format::Envoy
        | Format::Jupyterhub => Base::Words(names.slot("outcome")),
        Format::Pattern => {
            let has = |name| {
                let regex = layout.pattern.as_ref();
                regex
                    .is_some_and(|regex| regex.capture_names().flatten().any(|known| known == name))
            };
            match () {
                () if has("outcome") => Base::Words(names.slot("outcome")),
                () if has("status") => Base::Words(names.slot("status")),
                () if has("level") => Base::Level(names.slot("level")),
                () => Base::Nothing,
            }
        }
        Format::Gcloud
            if sample.has("httpRequest.status") || sample.has("jsonPayload.statusDetails") =>
        {
            let mut read = |text| Expr::parse(text, names);
            match (read(GCLOUD_NEUTRAL), read(GCLOUD_FAIL), read(GCLOUD_OK)) {
                (Ok(neutral), Ok(fail), Ok(ok)) => Base::Exprs { neutral, fail, ok },
                _ => Base::Nothing,
            }
        }
        _ => {
            if let Some((flags, code)) = sample.envoy_flags() {
                Base::Envoy(names.slot(&flags), names.slot(&code))
            } else if let Some(outcome) = sample.outcome() {
                Base::Words(names.slot(&outcome))
            } else if let Some(level) = sample.level() {
                Base::Level(names.slot(&level))
            } else {
                Base::Nothing
            }
        }
    }
}

fn own_reason(layout: &Layout, sample: &Sample) -> Option<String> {
    let fixed = match layout.inner.unwrap_or(layout.format) {
        Format::Conman => "reason",
        Format::NginxError | Format::Jupyterhub => "message",
        Format::Access => "status",
        Format::Haproxy => "termination",
        Format::Envoy => "flags",
        Format::Pattern => {
            let names = layout.pattern.as_ref()?;
            let known = ["reason", "message", "status", "outcome"];
            let known = known
                .iter()
                .find(|known| names.capture_names().flatten().any(|name| name == **known));
            return known.map(|&name| name.to_owned());
        }
        _ => return sample.reason(),
    };
    Some(fixed.to_owned())
}

fn describe_outcome(base: &Base, query: &Query, names: &Names) -> String {
    let name = |slot: &usize| names.list()[*slot].as_str();
    let own = match base {
        Base::Words(slot) => format!("outcome={}", name(slot)),
        Base::Level(slot) => format!("fail={} is an error", name(slot)),
        Base::Envoy(flags, code) => format!("outcome={} and {}", name(flags), name(code)),
        Base::Exprs { .. } => "outcome=httpRequest.status and statusDetails".to_owned(),
        Base::Nothing => String::new(),
    };
    let options = [
        ("neutral", &query.neutral),
        ("fail", &query.fail),
        ("ok", &query.ok),
    ];
    let given: Vec<String> = options
        .iter()
        .filter_map(|(name, text)| text.as_ref().map(|text| format!("{name}: {text}")))
        .collect();
    if given.is_empty() {
        own
    } else {
        given.join(", ")
    }
}

/// The first value of a field in the sample.
fn first_value(layout: &Layout, lines: &[&[u8]], name: &str) -> Option<Vec<u8>> {
    let mut names = vec![name.to_owned()];
    names.extend(layout.format.wrapped_field().map(str::to_owned));
    let mut reader = crate::format::reader::LineReader::new(layout, &names);
    lines.iter().find_map(|line| {
        reader.read(line).ok()?;
        Some(reader.get(0, line)?.bytes.to_vec())
    })
}
