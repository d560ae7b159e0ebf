//! The formats by name, and how each is recognised from its first lines.
//!
//! A line is read in layers: `docker compose` puts `name | ` in front; a JSON envelope (journald,
//! Loki, Docker) may hold the program's own line as text, which is of any other format. A
//! [`Layout`] says which layers a file has, a [`reader::LineReader`] takes the fields out of its lines.

pub mod logfmt;
pub mod reader;
pub mod text;
pub mod words;

use regex::bytes::Regex;

use crate::{json::JsonScanner, record::Record, stamp::StampReader};

/// A named format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// conman's own session log.
    Conman,
    /// Any JSON object per line.
    Ndjson,
    /// The Rust `tracing` crate's JSON.
    Tracing,
    /// Google Cloud's LogEntry.
    Gcloud,
    /// Lines as `logcli -o jsonl` prints them, and as Loki's API answers are turned into.
    Loki,
    /// `journalctl -o json`.
    Journal,
    /// Docker's json-file driver.
    Docker,
    /// `key=value` pairs.
    Logfmt,
    /// nginx's error log.
    NginxError,
    /// nginx's and Apache's access logs.
    Access,
    /// HAProxy's HTTP and TCP logs.
    Haproxy,
    /// Envoy's and Istio's access logs.
    Envoy,
    /// JupyterHub and its proxy.
    Jupyterhub,
    /// A regular expression of the user's.
    Pattern,
}

/// Every format that can be asked for by name, with what it is, in the order in which a line is tried.
pub const FORMATS: &[(Format, &str, &str)] = &[
    (Format::Conman, "conman", "conman's session log"),
    (Format::Journal, "journal", "journalctl -o json"),
    (Format::Loki, "loki", "Loki's API or logcli -o jsonl"),
    (
        Format::Gcloud,
        "gcloud",
        "Google Cloud LogEntry, an array or one per line",
    ),
    (Format::Docker, "docker", "Docker's json-file"),
    (Format::Tracing, "tracing", "Rust tracing JSON"),
    (Format::Ndjson, "ndjson", "one JSON object per line"),
    (
        Format::Jupyterhub,
        "jupyterhub",
        "JupyterHub and its ConfigProxy",
    ),
    (Format::Envoy, "envoy", "Envoy or Istio access log"),
    (Format::NginxError, "nginx-error", "nginx error log"),
    (Format::Haproxy, "haproxy", "HAProxy HTTP or TCP log"),
    (Format::Access, "access", "nginx or Apache access log"),
    (Format::Logfmt, "logfmt", "key=value pairs"),
];

impl Format {
    /// The format of this name; some have a second one.
    pub fn named(name: &str) -> Option<Self> {
        let name = match name {
            "json" | "jsonl" => "ndjson",
            "logcli" => "loki",
            "nginx" | "nginx-access" | "apache" => "access",
            "journald" | "journalctl" => "journal",
            "jupyter" => "jupyterhub",
            "session" => "conman",
            name => name,
        };
        FORMATS
            .iter()
            .find(|(_, known, _)| *known == name)
            .map(|(format, _, _)| *format)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        let entry = FORMATS.iter().find(|(format, _, _)| *format == self);
        entry.map_or("pattern", |(_, name, _)| *name)
    }

    /// Whether its lines are JSON objects.
    pub fn is_json(self) -> bool {
        matches!(
            self,
            Self::Conman
                | Self::Ndjson
                | Self::Tracing
                | Self::Gcloud
                | Self::Loki
                | Self::Journal
                | Self::Docker
        )
    }

    /// The field that holds the program's own line, in formats that wrap one.
    pub fn wrapped_field(self) -> Option<&'static str> {
        match self {
            Self::Loki => Some("line"),
            Self::Journal => Some("MESSAGE"),
            Self::Docker => Some("log"),
            _ => None,
        }
    }

    /// The format of one line, if it is of any.
    pub fn of_line(line: &[u8]) -> Option<Self> {
        let trimmed = line.trim_ascii();
        if trimmed.first() == Some(&b'{') {
            return Self::of_object(trimmed);
        }
        let text = [
            Self::Jupyterhub,
            Self::Envoy,
            Self::NginxError,
            Self::Haproxy,
            Self::Access,
            Self::Logfmt,
        ];
        text.into_iter().find(|format| match format {
            Self::Logfmt => is_logfmt(trimmed),
            format => reader::text_fields(*format, trimmed).is_some(),
        })
    }

    fn of_object(line: &[u8]) -> Option<Self> {
        const KEYS: &[&str] = &[
            "time",
            "repl",
            "outcome",
            "__REALTIME_TIMESTAMP",
            "labels",
            "line",
            "timestamp",
            "insertId",
            "logName",
            "jsonPayload",
            "httpRequest",
            "textPayload",
            "log",
            "stream",
            "level",
            "fields",
            "target",
        ];
        let paths: Vec<String> = KEYS.iter().map(|&key| key.to_owned()).collect();
        let mut record = Record::new(KEYS.len());
        JsonScanner::new(&paths)
            .scan(line, &mut record, &mut None)
            .ok()?;
        let has = |name: &str| {
            let slot = KEYS.iter().position(|key| *key == name);
            slot.is_some_and(|slot| record.get(slot, line).is_some())
        };
        let all = |names: &[&str]| names.iter().all(|name| has(name));
        Some(if has("__REALTIME_TIMESTAMP") {
            Self::Journal
        } else if all(&["time", "repl", "outcome"]) {
            Self::Conman
        } else if all(&["labels", "line", "timestamp"]) {
            Self::Loki
        } else if has("timestamp")
            && [
                "insertId",
                "logName",
                "jsonPayload",
                "httpRequest",
                "textPayload",
            ]
            .iter()
            .any(|name| has(name))
        {
            Self::Gcloud
        } else if all(&["log", "stream", "time"]) {
            Self::Docker
        } else if all(&["timestamp", "level", "fields"]) {
            Self::Tracing
        } else {
            Self::Ndjson
        })
    }
}

/// logfmt has no mark of its own: two pairs or more, the first of them at the start of the line.
fn is_logfmt(line: &[u8]) -> bool {
    let mut count = 0;
    let mut first = None;
    let is_read = logfmt::pairs(line, |key, _, _| {
        count += 1;
        first.get_or_insert_with(|| crate::record::offset_in(line, key));
    });
    is_read.is_some() && count >= 2 && first == Some(0)
}

/// `docker compose logs` puts the container's name and a bar in front of each line: the name, the rest.
pub fn compose_prefix(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let bar = memchr::memchr(b'|', &line[..line.len().min(80)])?;
    let name = line[..bar].trim_ascii_end();
    let is_name = !name.is_empty()
        && bar > name.len()
        && name
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-/".contains(byte));
    let rest = &line[bar + 1..];
    is_name.then(|| (name, rest.strip_prefix(b" ").unwrap_or(rest)))
}

/// The layers of a file's lines.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Whether `name | ` stands in front.
    pub has_compose_prefix: bool,
    /// The format of the line.
    pub format: Format,
    /// The format of the line inside the line.
    pub inner: Option<Format>,
    /// The expression of [`Format::Pattern`].
    pub pattern: Option<Regex>,
}

impl Layout {
    /// How a person would call it: `compose > ndjson`, `journal > logfmt`.
    pub fn name(&self) -> String {
        let mut name = String::new();
        if self.has_compose_prefix {
            name.push_str("compose > ");
        }
        name.push_str(self.format.name());
        if let Some(inner) = self.inner {
            name.push_str(" > ");
            name.push_str(inner.name());
        }
        name
    }

    /// Recognises the layout from the first lines. `asked` is what the user named, `None` for `auto`;
    /// the outcome is `None` when no line is of any format.
    pub fn recognise(sample: &[&[u8]], asked: Option<Format>) -> Option<Self> {
        let prefixed = sample
            .iter()
            .filter(|line| compose_prefix(line).is_some())
            .count();
        let has_compose_prefix = prefixed * 2 > sample.len();
        let lines: Vec<&[u8]> = if has_compose_prefix {
            sample
                .iter()
                .filter_map(|line| compose_prefix(line))
                .map(|(_, rest)| rest)
                .collect()
        } else {
            sample.to_vec()
        };
        let format = match asked {
            Some(format) => format,
            None => most_frequent(lines.iter().filter_map(|line| Format::of_line(line)))?,
        };
        let inner = format.wrapped_field().and_then(|field| {
            let mut scanner = JsonScanner::new(&[field.to_owned()]);
            let mut record = Record::new(1);
            most_frequent(lines.iter().filter_map(|line| {
                record.clear();
                scanner.scan(line, &mut record, &mut None).ok()?;
                let mut text = Vec::new();
                let text = reader::wrapped_text(record.get(0, line)?, &mut text);
                let text = compose_prefix(text).map_or(text, |(_, rest)| rest);
                Format::of_line(text)
            }))
        });
        Some(Self {
            has_compose_prefix,
            format,
            inner,
            pattern: None,
        })
    }

    /// The layout of lines that a pattern of the user's reads.
    pub fn of_pattern(pattern: Regex) -> Self {
        Self {
            has_compose_prefix: false,
            format: Format::Pattern,
            inner: None,
            pattern: Some(pattern),
        }
    }
}

fn most_frequent(formats: impl Iterator<Item = Format>) -> Option<Format> {
    let mut counts: Vec<(Format, usize)> = Vec::new();
    for format in formats {
        match counts.iter_mut().find(|(known, _)| *known == format) {
            Some((_, count)) => *count += 1,
            None => counts.push((format, 1)),
        }
    }
    // Of equals the one seen first.
    let most = counts.iter().map(|(_, count)| *count).max()?;
    counts
        .into_iter()
        .find(|(_, count)| *count == most)
        .map(|(format, _)| format)
}

/// Whether a text is a stamp, for choosing among fields.
pub fn is_stamp(text: &[u8]) -> bool {
    StampReader::new(crate::stamp::StampRules::default())
        .read(text)
        .is_some()
}
