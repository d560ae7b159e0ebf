//! Chooses the fields of a log that nobody described, from the names and values of its first lines.

use crate::{
    format::{
        Format, Layout, compose_prefix, is_stamp, logfmt,
        reader::{text_fields, wrapped_text},
        words::Verdict,
    },
    json,
};

const TIMES: &[&str] = &[
    "time",
    "timestamp",
    "ts",
    "@timestamp",
    "t",
    "datetime",
    "date",
    "eventtime",
    "starttime",
    "when",
    "at",
    "asctime",
    "createdat",
    "receivetimestamp",
    "timelocal",
    "timeiso8601",
    "realtimetimestamp",
];

const ENTITIES: &[&str] = &[
    "repl",
    "replid",
    "replname",
    "replslug",
    "entity",
    "entityid",
    "sandbox",
    "sandboxid",
    "workspace",
    "workspaceid",
    "notebook",
    "notebookid",
    "room",
    "roomid",
    "document",
    "documentid",
    "docid",
    "container",
    "containerid",
    "containername",
    "pod",
    "podname",
    "backend",
    "upstream",
    "upstreamhost",
    "authority",
    "user",
    "userid",
    "username",
    "account",
    "accountid",
    "tenant",
    "tenantid",
    "client",
    "clientid",
    "device",
    "deviceid",
    "customer",
    "customerid",
    "key",
    "name",
    "host",
    "hostname",
    "server",
    "service",
    "remoteaddr",
    "clientip",
    "remoteip",
    "ip",
    "session",
    "sessionid",
    "id",
];

const OUTCOMES: &[&str] = &[
    "outcome",
    "result",
    "status",
    "statuscode",
    "httpstatus",
    "responsecode",
    "responsestatus",
    "code",
    "success",
    "ok",
    "state",
    "event",
];

const LEVELS: &[&str] = &[
    "level",
    "severity",
    "levelname",
    "lvl",
    "loglevel",
    "priority",
];

const REASONS: &[&str] = &[
    "reason",
    "error",
    "err",
    "cause",
    "statusdetails",
    "message",
    "msg",
    "detail",
    "exception",
    "responseflags",
    "status",
    "outcome",
];

/// The fields of the first lines of a file: names with some of their values.
#[derive(Debug, Default)]
pub struct Sample {
    lines: usize,
    fields: Vec<Field>,
}

#[derive(Debug)]
struct Field {
    path: String,
    /// The last part of the path, in lower case and without `_`, `-` and `:`.
    plain: String,
    values: Vec<Vec<u8>>,
    is_of_envelope: bool,
}

impl Sample {
    /// Collects the fields of lines.
    pub fn new(lines: &[&[u8]], layout: &Layout) -> Self {
        let mut sample = Self::default();
        for line in lines {
            let proper = match compose_prefix(line) {
                Some((name, rest)) if layout.has_compose_prefix => {
                    sample.add("container", name, true);
                    rest
                }
                _ => line,
            };
            sample.lines += 1;
            sample.add_line(layout.format, proper, false);
            let Some(field) = layout.format.wrapped_field() else {
                continue;
            };
            let mut scanner = json::JsonScanner::new(&[field.to_owned()]);
            let mut record = crate::record::Record::new(1);
            let mut made = Vec::new();
            if scanner.scan(proper, &mut record, &mut None).is_ok()
                && let Some(value) = record.get(0, proper)
                && let Some(inner) = layout.inner
            {
                let text = wrapped_text(value, &mut made);
                let text = compose_prefix(text).map_or(text, |(_, rest)| rest);
                sample
                    .fields
                    .iter_mut()
                    .for_each(|field| field.is_of_envelope = true);
                sample.add_line(inner, text, true);
            }
        }
        sample
    }

    fn add_line(&mut self, format: Format, line: &[u8], is_inner: bool) {
        if format.is_json() {
            if let Ok(value) = serde_json::from_slice::<serde_json::Value>(line) {
                self.add_json(&mut String::new(), &value, is_inner);
            }
        } else if format == Format::Logfmt {
            let _ = logfmt::pairs(line, |key, value, _| {
                self.add(&String::from_utf8_lossy(key), value, is_inner);
            });
        } else if let Some(fields) = text_fields(format, line) {
            for (name, value) in fields {
                self.add(name, &value, is_inner);
            }
        }
    }

    fn add_json(&mut self, path: &mut String, value: &serde_json::Value, is_inner: bool) {
        use serde_json::Value as Json;
        match value {
            Json::Object(map) => {
                for (key, value) in map {
                    let length = path.len();
                    if length > 0 {
                        path.push('.');
                    }
                    path.push_str(key);
                    self.add_json(path, value, is_inner);
                    path.truncate(length);
                }
            }
            Json::String(text) => self.add(path, text.as_bytes(), is_inner),
            Json::Number(_) | Json::Bool(_) => {
                self.add(path, value.to_string().as_bytes(), is_inner);
            }
            Json::Array(_) | Json::Null => {}
        }
    }

    fn add(&mut self, path: &str, value: &[u8], is_inner: bool) {
        if let Some(field) = self.fields.iter_mut().find(|field| field.path == path) {
            field.is_of_envelope &= !is_inner;
            field.values.push(value.to_vec());
            return;
        }
        let leaf = path.rsplit('.').next().unwrap_or(path);
        let plain = leaf.to_lowercase().replace(['_', '-', ':'], "");
        let values = vec![value.to_vec()];
        self.fields.push(Field {
            path: path.to_owned(),
            plain,
            values,
            is_of_envelope: false,
        });
    }

    /// Names of all fields, for telling the user what there is.
    pub fn names(&self) -> Vec<&str> {
        self.fields
            .iter()
            .map(|field| field.path.as_str())
            .collect()
    }

    /// Whether a field of this path is there at all.
    pub fn has(&self, path: &str) -> bool {
        self.fields.iter().any(|field| field.path == path)
    }

    /// The first of these paths that is there.
    pub fn first_of(&self, paths: &[&str]) -> Option<String> {
        paths
            .iter()
            .find(|path| self.has(path))
            .map(|&path| path.to_owned())
    }

    /// The field whose name stands first in the list and whose values fit, those of the line itself
    /// before those of its envelope, higher ones before nested ones. A field that only one line in
    /// twenty has is taken only when no other is there.
    fn best(&self, list: &[&str], fits: impl Fn(&[u8]) -> bool) -> Option<String> {
        self.best_of(list, |_, value| fits(value))
    }

    fn best_of(&self, list: &[&str], fits: impl Fn(&str, &[u8]) -> bool) -> Option<String> {
        let rank = |field: &Field| {
            let index = list.iter().position(|name| *name == field.plain)?;
            let fits = |value: &&Vec<u8>| fits(&field.path, value);
            let fitting = field.values.iter().filter(fits).count();
            if fitting * 2 <= field.values.len() {
                return None;
            }
            let is_rare = field.values.len() * 20 < self.lines;
            Some((
                is_rare,
                field.is_of_envelope,
                index,
                field.path.matches('.').count(),
            ))
        };
        let ranked = self
            .fields
            .iter()
            .filter_map(|field| Some((rank(field)?, &field.path)));
        ranked
            .min_by_key(|(rank, _)| *rank)
            .map(|(_, path)| path.clone())
    }

    /// The field that holds the time.
    pub fn time(&self) -> Option<String> {
        self.best(TIMES, is_stamp).or_else(|| {
            let stamped = self.fields.iter().find(|field| {
                (field.plain.contains("time") || field.plain.contains("date"))
                    && field.values.iter().all(|value| is_stamp(value))
            });
            stamped.map(|field| field.path.clone())
        })
    }

    /// The field that names the entity. A journal's own fields about the machine (`_HOSTNAME`, …) name it
    /// in every line, whoever it is about.
    pub fn entity(&self) -> Option<String> {
        self.best_of(ENTITIES, |path, value| {
            !path.starts_with('_') && !value.is_empty()
        })
    }

    /// The field that holds the outcome in words or as a status.
    pub fn outcome(&self) -> Option<String> {
        self.best(OUTCOMES, |value| Verdict::of(value) != Verdict::Unknown)
    }

    /// The field that holds the log level.
    pub fn level(&self) -> Option<String> {
        self.best(LEVELS, |value| Verdict::of_level(value) != Verdict::Unknown)
    }

    /// The field that says why an attempt failed.
    pub fn reason(&self) -> Option<String> {
        self.best(REASONS, |value| !value.is_empty())
    }

    /// Envoy's fields, where a JSON log has them under its names.
    pub fn envoy_flags(&self) -> Option<(String, String)> {
        let path = |plain: &str| {
            let field = self.fields.iter().find(|field| field.plain == plain)?;
            Some(field.path.clone())
        };
        Some((path("responseflags")?, path("responsecode")?))
    }
}
