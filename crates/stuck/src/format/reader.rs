//! Takes the fields of a query out of one line after another.

use super::{
    Format, Layout, compose_prefix, logfmt,
    text::{self, Put},
    words::Verdict,
};
use crate::{
    json::{self, JsonError, JsonScanner},
    record::{Kind, Record, Value, offset_in},
    template::Templates,
};

/// Why a line could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// Nothing but white space.
    #[error("an empty line")]
    Empty,
    /// Not JSON.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// Not of the file's text format.
    #[error("not a line of the format {}", .0.name())]
    Format(Format),
    /// Longer than what is read as one line.
    #[error("a line longer than 16 MiB")]
    TooLong,
    /// An attempt without a time.
    #[error("no time")]
    NoTime,
    /// A time in no known form.
    #[error("a time that is in none of the known forms")]
    BadTime,
    /// An attempt that does not say on what.
    #[error("no entity")]
    NoEntity,
}

/// One layer's way from a line to its fields.
#[derive(Debug, Clone)]
enum Layer {
    Json {
        scanner: Box<JsonScanner>,
        templates: Templates,
    },
    Logfmt {
        names: Vec<String>,
    },
    Text {
        format: Format,
        slots: Vec<Option<usize>>,
    },
    Pattern {
        regex: regex::bytes::Regex,
        places: regex::bytes::CaptureLocations,
        groups: Vec<(usize, usize)>,
    },
}

impl Layer {
    fn new(format: Format, layout: &Layout, names: &[String]) -> Self {
        match format {
            Format::Logfmt => Self::Logfmt {
                names: names.to_vec(),
            },
            Format::Pattern => {
                // A layout of this format always has its expression; an empty one finds no group.
                let regex = layout.pattern.clone().unwrap_or_else(empty_regex);
                let groups = names.iter().enumerate().filter_map(|(slot, name)| {
                    let group = regex
                        .capture_names()
                        .position(|known| known == Some(name))?;
                    Some((group, slot))
                });
                let groups = groups.collect();
                Self::Pattern {
                    places: regex.capture_locations(),
                    regex,
                    groups,
                }
            }
            format if format.is_json() => Self::Json {
                scanner: Box::new(JsonScanner::new(names)),
                templates: Templates::default(),
            },
            format => {
                let slots = text_names(format)
                    .iter()
                    .map(|known| names.iter().position(|name| name == known))
                    .collect();
                Self::Text { format, slots }
            }
        }
    }

    #[inline]
    fn read(&mut self, line: &[u8], record: &mut Record) -> Result<(), LineError> {
        match self {
            Self::Json { scanner, templates } => {
                match templates.fill(line, record) {
                    Some(length) if length == line.len() => return Ok(()),
                    _ => record.clear(),
                }
                let mut trace = templates.wants(line).then(Vec::new);
                scanner.scan(line, record, &mut trace)?;
                if let Some(scalars) = trace {
                    templates.learn(line, &scalars);
                }
                Ok(())
            }
            Self::Logfmt { names } => {
                let mut fill = |key: &[u8], value: &[u8], is_escaped| {
                    let Some(slot) = names.iter().position(|name| name.as_bytes() == key) else {
                        return;
                    };
                    if is_escaped {
                        record.put_made(slot, Kind::Text, |out| json::unescape(value, out));
                    } else {
                        let start = offset_in(line, value);
                        record.put(slot, Kind::Text, start, start + value.len());
                    }
                };
                logfmt::pairs(line, &mut fill).ok_or(LineError::Format(Format::Logfmt))
            }
            Self::Text { format, slots } => {
                let mut fields = Fields {
                    line,
                    slots,
                    record,
                };
                parse_text(*format, line, &mut fields).ok_or(LineError::Format(*format))
            }
            Self::Pattern {
                regex,
                places,
                groups,
            } => {
                if regex.captures_read(places, line).is_none() {
                    return Err(LineError::Format(Format::Pattern));
                }
                for (group, slot) in groups {
                    if let Some((start, end)) = places.get(*group) {
                        record.put(*slot, Kind::Text, start, end);
                    }
                }
                Ok(())
            }
        }
    }
}

#[expect(clippy::unwrap_used, reason = "the empty expression compiles")]
fn empty_regex() -> regex::bytes::Regex {
    regex::bytes::Regex::new("").unwrap()
}

/// Puts a text format's fields into the slots of those that were asked for.
struct Fields<'a, 'b> {
    line: &'a [u8],
    slots: &'b [Option<usize>],
    record: &'b mut Record,
}

impl<'a> Put<'a> for Fields<'a, '_> {
    #[inline]
    fn put(&mut self, field: usize, text: &'a [u8]) {
        if let Some(slot) = self.slots[field]
            && text != b"-"
        {
            let start = offset_in(self.line, text);
            self.record.put(slot, Kind::Text, start, start + text.len());
        }
    }

    fn outcome(&mut self, field: usize, verdict: Verdict) {
        if let Some(slot) = self.slots[field] {
            self.record.put_made(slot, Kind::Text, |out| {
                out.extend_from_slice(verdict.word())
            });
        }
    }
}

fn parse_text<'a>(format: Format, line: &'a [u8], out: &mut impl Put<'a>) -> Option<()> {
    match format {
        Format::Access => text::access(line, out),
        Format::NginxError => text::nginx_error(line, out),
        Format::Envoy => text::envoy(line, out),
        Format::Haproxy => text::haproxy(line, out),
        Format::Jupyterhub => text::jupyterhub(line, out),
        _ => None,
    }
}

/// The names of a text format's fields, none for the formats that name theirs in each line.
pub fn text_names(format: Format) -> &'static [&'static str] {
    match format {
        Format::Access => text::ACCESS,
        Format::NginxError => text::NGINX_ERROR,
        Format::Envoy => text::ENVOY,
        Format::Haproxy => text::HAPROXY,
        Format::Jupyterhub => text::JUPYTERHUB,
        _ => &[],
    }
}

/// All fields of a line of a text format, for recognising it and for choosing among its fields.
pub fn text_fields(format: Format, line: &[u8]) -> Option<Vec<(&'static str, Vec<u8>)>> {
    struct All(Format, Vec<(&'static str, Vec<u8>)>);
    impl<'a> Put<'a> for All {
        fn put(&mut self, field: usize, text: &'a [u8]) {
            self.1.push((text_names(self.0)[field], text.to_vec()));
        }
        fn outcome(&mut self, field: usize, verdict: Verdict) {
            self.1
                .push((text_names(self.0)[field], verdict.word().to_vec()));
        }
    }
    let mut all = All(format, Vec::new());
    parse_text(format, line, &mut all)?;
    Some(all.1)
}

/// The text of a field that wraps a line: itself, or made of the byte array that journald writes for
/// a message that is not UTF-8.
pub fn wrapped_text<'a>(value: Value<'a>, made: &'a mut Vec<u8>) -> &'a [u8] {
    if value.kind != Kind::Array {
        return value.bytes.trim_ascii_end();
    }
    made.clear();
    made.extend(
        json::elements(value.bytes)
            .filter_map(|element| std::str::from_utf8(&element).ok()?.parse::<u8>().ok()),
    );
    made.trim_ascii_end()
}

/// Reads lines of one layout.
#[derive(Debug, Clone)]
pub struct LineReader {
    has_compose_prefix: bool,
    outer: Layer,
    record: Record,
    inner: Option<Inner>,
    container_slot: Option<usize>,
    /// Where the line proper began in the last line.
    skipped: usize,
    container_length: usize,
}

#[derive(Debug, Clone)]
struct Inner {
    layer: Layer,
    record: Record,
    wrapped_slot: usize,
    bytes: Vec<u8>,
    line: Vec<u8>,
    is_read: bool,
}

impl LineReader {
    /// A reader that fills slot `n` with the field `names[n]`. For a layout that wraps a line, the
    /// field that wraps it must be among the names.
    pub fn new(layout: &Layout, names: &[String]) -> Self {
        let wrapped_slot = layout
            .format
            .wrapped_field()
            .and_then(|field| names.iter().position(|name| name == field));
        let inner = layout
            .inner
            .zip(wrapped_slot)
            .map(|(format, wrapped_slot)| Inner {
                layer: Layer::new(format, layout, names),
                record: Record::new(names.len()),
                wrapped_slot,
                bytes: Vec::new(),
                line: Vec::new(),
                is_read: false,
            });
        Self {
            has_compose_prefix: layout.has_compose_prefix,
            outer: Layer::new(layout.format, layout, names),
            record: Record::new(names.len()),
            inner,
            container_slot: names.iter().position(|name| name == "container"),
            skipped: 0,
            container_length: 0,
        }
    }

    /// Reads one line; its fields are then to be had from [`LineReader::get`].
    ///
    /// # Errors
    /// When the line is not of the layout.
    #[inline]
    pub fn read(&mut self, line: &[u8]) -> Result<(), LineError> {
        self.record.clear();
        let mut proper = line;
        if self.has_compose_prefix {
            (self.skipped, self.container_length) = (0, 0);
            if let Some((name, rest)) = compose_prefix(line) {
                self.container_length = name.len();
                proper = rest;
                self.skipped = line.len() - rest.len();
            }
        }
        self.outer.read(proper, &mut self.record)?;
        self.read_inner(proper);
        Ok(())
    }

    /// Reads the line that the text begins with, if it has a shape that lines before it had, and gives
    /// its length: such a line shows by itself where it ends.
    #[inline]
    pub fn read_known(&mut self, text: &[u8]) -> Option<usize> {
        let Layer::Json { templates, .. } = &mut self.outer else {
            return None;
        };
        if self.has_compose_prefix {
            return None;
        }
        self.record.clear();
        let length = templates.fill(text, &mut self.record)?;
        self.read_inner(&text[..length]);
        Some(length)
    }

    /// Reads the line inside the line, if there is one.
    #[inline]
    fn read_inner(&mut self, line: &[u8]) {
        let Some(inner) = &mut self.inner else {
            return;
        };
        inner.record.clear();
        inner.is_read = false;
        if let Some(value) = self.record.get(inner.wrapped_slot, line) {
            let text = wrapped_text(value, &mut inner.bytes);
            let text = compose_prefix(text).map_or(text, |(_, rest)| rest);
            inner.line.clear();
            inner.line.extend_from_slice(text);
            // A message of another kind among the wrapped lines has only the envelope's fields.
            inner.is_read = inner.layer.read(&inner.line, &mut inner.record).is_ok();
        }
    }

    /// A field of the last line read, which must be given again. What the line inside says goes
    /// before what its envelope says.
    #[inline(always)]
    pub fn get<'a>(&'a self, slot: usize, line: &'a [u8]) -> Option<Value<'a>> {
        if let Some(inner) = &self.inner
            && inner.is_read
            && let Some(value) = inner.record.get(slot, &inner.line)
        {
            return Some(value);
        }
        if let Some(value) = self.record.get(slot, &line[self.skipped..]) {
            return Some(value);
        }
        if self.container_slot == Some(slot) && self.container_length > 0 {
            return Some(Value {
                bytes: &line[..self.container_length],
                kind: Kind::Text,
            });
        }
        None
    }

    /// A field of the envelope alone.
    pub fn get_outer<'a>(&'a self, slot: usize, line: &'a [u8]) -> Option<Value<'a>> {
        self.record.get(slot, &line[self.skipped..])
    }
}
