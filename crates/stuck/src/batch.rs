//! Turns a chunk of lines into a batch of events: the part of the work that all threads share.

use std::{ops::Deref, sync::Arc};

use model::stuck::LogTime;

use crate::{
    entities,
    format::{
        reader::{LineError, LineReader},
        words::Verdict,
    },
    plan::Plan,
    record::{Kind, Value},
    sorter::place,
    source::{Chunk, LINE_BYTES_MAX},
    stamp::{Stamp, StampReader},
    tracker::Failure,
};

/// Lines kept to show why they could not be read.
pub const SHOWN_MAX: usize = 3;
/// Reasons longer than this are cut: they are for people to read.
const REASON_BYTES_MAX: usize = 160;
const OF_DAY: u32 = 1 << 31;

/// One attempt; its failure is owned or borrowed.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<F> {
    /// Its time.
    pub time: LogTime,
    /// The entity's hash.
    pub hash: u64,
    /// Its line, from 0 and counted from the first of the chunk.
    pub line: u64,
    /// Who failed and why, if it failed.
    pub failure: Option<F>,
}

/// The attempts of a chunk, column by column: each part of the work then reads what it needs alone.
#[derive(Debug, Default)]
pub struct Attempts {
    /// Their times, or the times of day alone.
    pub times: Vec<i64>,
    /// Their entities' hashes.
    pub hashes: Vec<u64>,
    /// The failed ones, by their index.
    pub failures: Vec<(u32, Failure)>,
    /// The line of each, from 0 and counted from the first of the chunk, and a mark for a time of day.
    lines: Vec<u32>,
    has_of_day: bool,
}

impl Attempts {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.times.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.times.is_empty()
    }

    /// The line of one, counted as in the chunk.
    pub fn line(&self, index: usize) -> u64 {
        u64::from(self.lines[index] & !OF_DAY)
    }

    /// Adds one, of a line after those before.
    #[inline]
    pub fn push(&mut self, stamp: Stamp, hash: u64, line: u32, failure: Option<Failure>) {
        if let Some(failure) = failure {
            self.failures.push((self.times.len() as u32, failure));
        }
        let (time, mark) = match stamp {
            Stamp::At(time) => (time.0, 0),
            Stamp::OfDay(of_day) => (of_day, OF_DAY),
        };
        self.has_of_day |= mark != 0;
        self.times.push(time);
        self.hashes.push(hash);
        self.lines.push(line | mark);
    }

    /// Completes the stamps that have the time of day alone, in order.
    pub fn complete(&mut self, mut completed: impl FnMut(i64) -> LogTime) {
        if !std::mem::take(&mut self.has_of_day) {
            return;
        }
        for (time, line) in self.times.iter_mut().zip(&mut self.lines) {
            if *line & OF_DAY != 0 {
                *time = completed(*time).0;
                *line &= !OF_DAY;
            }
        }
    }

    /// Takes out those that `is_out` picks by time and line, and gives them away in order.
    pub fn take_out(
        &mut self,
        mut is_out: impl FnMut(LogTime, u64) -> bool,
        mut taken: impl FnMut(Attempt<Failure>),
    ) {
        let mut failures = std::mem::take(&mut self.failures).into_iter().peekable();
        let mut kept = 0;
        for index in 0..self.len() {
            let failure = failures.next_if(|(at, _)| *at as usize == index);
            let failure = failure.map(|(_, failure)| failure);
            let (time, hash, line) = (self.times[index], self.hashes[index], self.line(index));
            if is_out(LogTime(time), line) {
                taken(Attempt {
                    time: LogTime(time),
                    hash,
                    line,
                    failure,
                });
                continue;
            }
            if let Some(failure) = failure {
                self.failures.push((kept as u32, failure));
            }
            (self.times[kept], self.hashes[kept]) = (time, hash);
            self.lines[kept] = self.lines[index];
            kept += 1;
        }
        self.times.truncate(kept);
        self.hashes.truncate(kept);
        self.lines.truncate(kept);
    }

    /// All, in the order of lines.
    pub fn iter(&self) -> impl Iterator<Item = Attempt<&Failure>> {
        let mut failures = self.failures.iter().peekable();
        (0..self.len()).map(move |index| {
            let failure = failures.next_if(|(at, _)| *at as usize == index);
            Attempt {
                time: LogTime(self.times[index]),
                hash: self.hashes[index],
                line: self.line(index),
                failure: failure.map(|(_, failure)| failure),
            }
        })
    }

    fn clear(&mut self) {
        self.times.clear();
        self.hashes.clear();
        self.failures.clear();
        self.lines.clear();
        self.has_of_day = false;
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
    pub attempts: Attempts,
    /// How many lines of the input came before; whoever takes batches in order knows.
    pub lines_before: u64,
    /// The lines' own numbers, where they do not simply follow each other.
    pub numbers: Vec<u64>,
    /// How much of the input it took.
    pub bytes_read: u64,
}

impl Batch {
    /// A line's own number, of one that is counted from the first of the chunk.
    pub fn number(&self, line: u64) -> u64 {
        match self.numbers.get(line as usize) {
            Some(number) => *number,
            None => self.lines_before + line + 1,
        }
    }

    /// The place in the input of a line that is counted from the first of the chunk.
    pub fn place(&self, line: u64) -> u64 {
        place(self.input, self.number(line))
    }

    fn reset(&mut self, chunk: &mut Chunk) {
        (self.index, self.input, self.bytes_read) = (chunk.index, chunk.input, chunk.bytes_read);
        (self.lines, self.neutral, self.unknown) = (0, 0, 0);
        (self.unparsed, self.incomplete) = (0, 0);
        self.shown.clear();
        self.attempts.clear();
        self.lines_before = 0;
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
pub struct Parser<P> {
    plans: P,
    readers: Vec<Option<(LineReader, StampReader)>>,
    /// In a second pass, whom it is about.
    only: Option<Arc<EverFailed>>,
}

impl<P: Deref<Target = [Plan]>> Parser<P> {
    /// A parser of inputs with these plans.
    pub fn new(plans: P, only: Option<Arc<EverFailed>>) -> Self {
        Self {
            readers: plans.iter().map(|_| None).collect(),
            plans,
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
            let rest = &bytes[from..];
            let known = reader.read_known(rest);
            let line = match known {
                Some(length) => &rest[..length],
                None => {
                    let length = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
                    &rest[..length]
                }
            };
            from += line.len();
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            // Of a line that is known the template has left the carriage return, if there is one.
            from += usize::from(known.is_some() && bytes.get(from) == Some(&b'\r')) + 1;
            let only = self.only.as_deref();
            let result = match known {
                Some(_) if line.len() <= LINE_BYTES_MAX => Ok(()),
                Some(_) => Err(LineError::TooLong),
                None => read_fields(reader, line),
            };
            let result = result.and_then(|()| take_line(plan, reader, stamps, line, batch, only));
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

/// Reads a line of no known shape.
fn read_fields(reader: &mut LineReader, line: &[u8]) -> Result<(), LineError> {
    if line.len() > LINE_BYTES_MAX {
        return Err(LineError::TooLong);
    }
    reader.read(line).map_err(|error| {
        if line.trim_ascii().is_empty() {
            LineError::Empty
        } else {
            error
        }
    })
}

/// Takes an attempt out of the line that was read last.
#[inline]
fn take_line(
    plan: &Plan,
    reader: &LineReader,
    stamps: &mut StampReader,
    line: &[u8],
    batch: &mut Batch,
    only: Option<&EverFailed>,
) -> Result<(), LineError> {
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
    let stamp = stamps.read(time.bytes).ok_or(LineError::BadTime)?;
    let hash = entities::hash(entity);
    // Days are counted line by line, so that no stamp without a date may be left out.
    let is_dated = matches!(stamp, Stamp::At(_));
    if is_dated && only.is_some_and(|only| !only.may_hold(hash)) {
        return Ok(());
    }
    let failure = (verdict == Verdict::Failed).then(|| {
        let reason = plan.reason.and_then(get);
        let reason = reason.filter(|value| value.kind != Kind::Null);
        let reason = reason.map_or(String::new(), |value| {
            shortened(value.bytes, REASON_BYTES_MAX)
        });
        Failure {
            entity: String::from_utf8_lossy(entity).into(),
            reason: reason.into(),
        }
    });
    let line = batch.lines as u32;
    batch.attempts.push(stamp, hash, line, failure);
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
