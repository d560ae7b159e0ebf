//! Turns a chunk of lines into a batch of events: the part of the work that all threads share.

use std::sync::Arc;

use crate::{
    entities,
    format::{
        reader::{LineError, LineReader},
        words::Verdict,
    },
    plan::Plan,
    record::{Kind, Value},
    source::{Chunk, LINE_BYTES_MAX},
    stamp::{Stamp, StampReader},
    tracker::Failure,
};

/// Lines kept to show why they could not be read.
pub const SHOWN_MAX: usize = 3;
/// Reasons longer than this are cut: they are for people to read.
const REASON_BYTES_MAX: usize = 160;
const OF_DAY: u32 = 1 << 31;

/// One attempt, as small as can be.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    /// Its time, or the time of day alone.
    pub time: i64,
    /// The entity's hash.
    pub hash: u64,
    line_and_mark: u32,
    failure: u32,
}

impl Attempt {
    /// The line, from 0, counted from the first of the chunk.
    pub fn line(&self) -> u64 {
        u64::from(self.line_and_mark & !OF_DAY)
    }

    /// Whether its stamp has the time of day alone.
    pub fn is_of_day(&self) -> bool {
        self.line_and_mark & OF_DAY != 0
    }

    /// The index of its failure, if it failed.
    #[inline]
    pub fn failure(&self) -> Option<usize> {
        (self.failure as usize).checked_sub(1)
    }
}

/// A line that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unparsed {
    /// Its number: in a batch from 0 and counted from the first of the chunk, in a report as it is.
    pub line: u64,
    /// Why.
    pub why: LineError,
    /// How it begins.
    pub text: String,
}

/// What a chunk of lines came to.
#[derive(Debug, Default)]
pub struct Batch {
    /// The chunk's number.
    pub index: u64,
    /// The input, by its place.
    pub input: usize,
    /// How many lines there were.
    pub lines: u64,
    /// Lines that prove nothing.
    pub neutral: u64,
    /// Of these, lines whose outcome is a word that is not known.
    pub unknown: u64,
    /// Lines that could not be read.
    pub unparsed: u64,
    /// Of these, attempts that lack a time or an entity.
    pub incomplete: u64,
    /// The first of them.
    pub shown: Vec<Unparsed>,
    /// The attempts in order.
    pub attempts: Vec<Attempt>,
    /// Who failed and why, in order.
    pub failures: Vec<Option<Failure>>,
    /// The lines' own numbers, where they do not simply follow each other.
    pub numbers: Vec<u64>,
    /// How much of the input it took.
    pub bytes_read: u64,
}

impl Batch {
    fn reset(&mut self, chunk: &mut Chunk) {
        (self.index, self.input, self.bytes_read) = (chunk.index, chunk.input, chunk.bytes_read);
        (self.lines, self.neutral, self.unknown) = (0, 0, 0);
        (self.unparsed, self.incomplete) = (0, 0);
        self.shown.clear();
        self.attempts.clear();
        self.failures.clear();
        self.numbers.clear();
        std::mem::swap(&mut self.numbers, &mut chunk.numbers);
    }
}

/// A fixed set of bits by hash: says for sure that an entity never failed, and no more.
#[derive(Debug)]
pub struct EverFailed(Vec<u64>);

impl Default for EverFailed {
    /// Four million bytes: a million failing entities leave three in a hundred others in.
    fn default() -> Self {
        Self(vec![0; 1 << 19])
    }
}

impl EverFailed {
    /// Adds one.
    #[inline]
    pub fn add(&mut self, hash: u64) {
        let bit = hash >> (64 - 25);
        self.0[(bit >> 6) as usize] |= 1 << (bit & 63);
    }

    /// Whether it may have been added.
    #[inline]
    pub fn may_hold(&self, hash: u64) -> bool {
        let bit = hash >> (64 - 25);
        self.0[(bit >> 6) as usize] >> (bit & 63) & 1 == 1
    }
}

/// Reads chunks of the inputs of one report; each thread has its own.
#[derive(Debug)]
pub struct Parser<'a> {
    plans: &'a [Plan],
    readers: Vec<Option<(LineReader, StampReader)>>,
    /// In a second pass, whom it is about.
    only: Option<Arc<EverFailed>>,
}

impl<'a> Parser<'a> {
    /// A parser of inputs with these plans.
    pub fn new(plans: &'a [Plan], only: Option<Arc<EverFailed>>) -> Self {
        Self {
            plans,
            readers: plans.iter().map(|_| None).collect(),
            only,
        }
    }

    /// Reads all lines of a chunk.
    pub fn parse(&mut self, chunk: &mut Chunk, batch: &mut Batch) {
        batch.reset(chunk);
        let plan = &self.plans[chunk.input];
        let (reader, stamps) = self.readers[chunk.input].get_or_insert_with(|| {
            (
                LineReader::new(&plan.layout, &plan.names),
                StampReader::new(plan.stamps.clone()),
            )
        });
        let bytes = &chunk.bytes[chunk.start..chunk.end];
        let mut from = 0;
        while from < bytes.len() {
            let length = memchr::memchr(b'\n', &bytes[from..]).unwrap_or(bytes.len() - from);
            let line = &bytes[from..from + length];
            from += length + 1;
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let result = read_line(plan, reader, stamps, line, batch, self.only.as_deref());
            if let Err(why) = result {
                batch.unparsed += 1;
                let is_incomplete = matches!(
                    why,
                    LineError::NoTime | LineError::BadTime | LineError::NoEntity
                );
                batch.incomplete += u64::from(is_incomplete);
                if batch.shown.len() < SHOWN_MAX {
                    let text = shortened(line, 120);
                    batch.shown.push(Unparsed {
                        line: batch.lines,
                        why,
                        text,
                    });
                }
            }
            batch.lines += 1;
        }
    }
}

#[inline]
fn read_line(
    plan: &Plan,
    reader: &mut LineReader,
    stamps: &mut StampReader,
    line: &[u8],
    batch: &mut Batch,
    only: Option<&EverFailed>,
) -> Result<(), LineError> {
    if line.len() > LINE_BYTES_MAX {
        return Err(LineError::TooLong);
    }
    if let Err(error) = reader.read(line) {
        return Err(if line.trim_ascii().is_empty() {
            LineError::Empty
        } else {
            error
        });
    }
    let get = |slot| reader.get(slot, line);
    let verdict = plan.classifier.verdict(&get);
    if let Verdict::Neutral | Verdict::Unknown = verdict {
        batch.neutral += 1;
        batch.unknown += u64::from(verdict == Verdict::Unknown);
        return Ok(());
    }
    let entity = get(plan.entity)
        .and_then(|value| name_of(value, plan))
        .ok_or(LineError::NoEntity)?;
    let time = if plan.is_time_of_envelope {
        reader.get_outer(plan.time, line)
    } else {
        get(plan.time)
    };
    let time = time.filter(|value| matches!(value.kind, Kind::Text | Kind::Number));
    let time = time
        .filter(|value| !value.bytes.is_empty())
        .ok_or(LineError::NoTime)?;
    let (time, mark) = match stamps.read(time.bytes).ok_or(LineError::BadTime)? {
        Stamp::At(time) => (time.0, 0),
        Stamp::OfDay(time) => (time, OF_DAY),
    };
    let hash = entities::hash(entity);
    // Days are counted line by line, so that no stamp without a date may be left out.
    if mark == 0 && only.is_some_and(|only| !only.may_hold(hash)) {
        return Ok(());
    }
    let mut failure = 0;
    if verdict == Verdict::Failed {
        let reason = plan
            .reason
            .and_then(get)
            .filter(|value| value.kind != Kind::Null);
        let reason = reason.map_or(String::new(), |value| {
            shortened(value.bytes, REASON_BYTES_MAX)
        });
        let entity = String::from_utf8_lossy(entity).into();
        batch.failures.push(Some(Failure {
            entity,
            reason: reason.into(),
        }));
        failure = batch.failures.len() as u32;
    }
    let line_and_mark = batch.lines as u32 | mark;
    batch.attempts.push(Attempt {
        time,
        hash,
        line_and_mark,
        failure,
    });
    Ok(())
}

/// The part of a field that names the entity.
#[inline]
fn name_of<'v>(value: Value<'v>, plan: &Plan) -> Option<&'v [u8]> {
    if !matches!(value.kind, Kind::Text | Kind::Number | Kind::Truth) {
        return None;
    }
    let name = match &plan.entity_part {
        Some(part) => part.captures(value.bytes)?.get(1)?.as_bytes(),
        None => value.bytes,
    };
    (!name.is_empty()).then_some(name)
}

/// The beginning of a text, fit to be shown: in one line, without control characters.
fn shortened(text: &[u8], bytes_max: usize) -> String {
    let is_plain = |byte: &u8| (b' '..=b'~').contains(byte);
    if text.len() <= bytes_max
        && text.iter().all(is_plain)
        && let Ok(text) = std::str::from_utf8(text)
    {
        return text.to_owned();
    }
    let cut = &text[..text.len().min(bytes_max)];
    let mut shown: String = String::from_utf8_lossy(cut)
        .chars()
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .collect();
    if cut.len() < text.len() {
        while shown.ends_with(char::REPLACEMENT_CHARACTER) {
            shown.pop();
        }
        shown.push('…');
    }
    shown
}
