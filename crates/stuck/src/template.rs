//! The shape that most lines of a log share, learned from one of them.
//!
//! A program writes its log lines with the same keys in the same order, so that between one line and
//! the next only the values differ. A template is the text between the values, and which values the
//! query wants. A line that fits it is proven to be JSON with nothing left over, for the price of a
//! few comparisons and one search for each string's end. A line that does not fit goes to the full
//! scanner, so that templates change the speed and never the answer.

use crate::{
    json::{Scalar, bare_kind},
    record::{Kind, Record},
};

/// Shapes kept at once: a program has few log statements that matter here.
const TEMPLATES_MAX: usize = 8;
/// Lines learned from before giving up on a log whose lines all differ.
const LEARNED_MAX: u32 = 64;
/// Longer lines are not worth learning.
const LINE_BYTES_MAX: usize = 8 * 1024;

#[derive(Debug, Clone)]
struct Step {
    /// What stands before the value, its opening quote included.
    before: Box<[u8]>,
    is_text: bool,
    slot: Option<usize>,
}

#[derive(Debug, Clone)]
struct Template {
    steps: Vec<Step>,
    after: Box<[u8]>,
}

impl Template {
    fn new(line: &[u8], scalars: &[Scalar]) -> Option<Self> {
        let mut from = 0;
        let mut steps = Vec::with_capacity(scalars.len());
        for scalar in scalars {
            steps.push(Step {
                before: line.get(from..scalar.start)?.into(),
                is_text: scalar.is_text,
                slot: scalar.slot,
            });
            from = scalar.end;
        }
        Some(Self {
            steps,
            after: line.get(from..)?.into(),
        })
    }

    #[inline]
    fn fits(&self, line: &[u8], record: &mut Record) -> bool {
        let mut at = 0;
        for step in &self.steps {
            let Some(rest) = line.get(at..) else {
                return false;
            };
            if !starts_with(rest, &step.before) {
                return false;
            }
            let start = at + step.before.len();
            let rest = &rest[step.before.len()..];
            let (length, kind) = if step.is_text {
                match text_length(rest) {
                    Some(length) => (length, Kind::Text),
                    None => return false,
                }
            } else {
                match bare(rest) {
                    Some(found) => found,
                    None => return false,
                }
            };
            at = start + length;
            if let Some(slot) = step.slot {
                record.put(slot, kind, start, at);
            }
        }
        line.get(at..) == Some(&*self.after)
    }
}

/// `slice::starts_with`, with the comparison of a few bytes kept out of a library call.
#[inline]
fn starts_with(text: &[u8], prefix: &[u8]) -> bool {
    let length = prefix.len();
    if text.len() < length {
        return false;
    }
    let (text, prefix) = (&text[..length], prefix);
    if let (Some(a), Some(b), Some(c), Some(d)) = (
        text.first_chunk::<8>(),
        prefix.first_chunk::<8>(),
        text.last_chunk::<8>(),
        prefix.last_chunk::<8>(),
    ) && length <= 16
    {
        return u64::from_le_bytes(*a) == u64::from_le_bytes(*b)
            && u64::from_le_bytes(*c) == u64::from_le_bytes(*d);
    }
    if let (Some(a), Some(b), Some(c), Some(d)) = (
        text.first_chunk::<4>(),
        prefix.first_chunk::<4>(),
        text.last_chunk::<4>(),
        prefix.last_chunk::<4>(),
    ) && length <= 8
    {
        return u32::from_le_bytes(*a) == u32::from_le_bytes(*b)
            && u32::from_le_bytes(*c) == u32::from_le_bytes(*d);
    }
    text == prefix
}

/// The length of a string up to its closing quote; `None` when there is none or an escape is before it.
///
/// Most strings are short: the first bytes are looked at here, eight at a time, before the search that
/// is made for long ones is called.
#[inline]
fn text_length(text: &[u8]) -> Option<usize> {
    for (index, word) in text.chunks_exact(8).take(4).enumerate() {
        let mut eight = [0; 8];
        eight.copy_from_slice(word);
        let hits = bytes_equal(u64::from_le_bytes(eight), b'"')
            | bytes_equal(u64::from_le_bytes(eight), b'\\');
        if hits != 0 {
            let end = index * 8 + (hits.trailing_zeros() / 8) as usize;
            return (text[end] == b'"').then_some(end);
        }
    }
    let skipped = text.len().min(32) & !7;
    let end = skipped + memchr::memchr2(b'"', b'\\', &text[skipped..])?;
    (text[end] == b'"').then_some(end)
}

/// A bit in each byte of the word that equals `byte`; bits above the lowest may be wrong.
#[inline]
fn bytes_equal(word: u64, byte: u8) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let zeroed = word ^ (ONES * u64::from(byte));
    zeroed.wrapping_sub(ONES) & !zeroed & (ONES << 7)
}

/// The length and kind of a value without quotes, by JSON's grammar.
#[inline]
fn bare(text: &[u8]) -> Option<(usize, Kind)> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let is_end = matches!(text.get(digits), Some(b',' | b'}' | b']' | b' '));
    if is_end && (digits == 1 || (digits > 1 && text[0] != b'0')) {
        return Some((digits, Kind::Number));
    }
    let length = text
        .iter()
        .position(|byte| matches!(byte, b',' | b'}' | b']' | b' '))?;
    Some((length, bare_kind(&text[..length])?))
}

/// The templates learned so far, the one that fitted last in front.
#[derive(Debug, Clone, Default)]
pub struct Templates {
    known: Vec<Template>,
    learned: u32,
}

impl Templates {
    /// Fills the record if a known template fits the whole line. The record must be clear, and is left
    /// in no known state when nothing fits.
    #[inline]
    pub fn fill(&mut self, line: &[u8], record: &mut Record) -> bool {
        for index in 0..self.known.len() {
            if self.known[index].fits(line, record) {
                if index > 0 {
                    self.known.swap(index, 0);
                }
                return true;
            }
            record.clear();
        }
        false
    }

    /// Whether another line is worth tracing.
    pub fn wants(&self, line: &[u8]) -> bool {
        self.learned < LEARNED_MAX && line.len() <= LINE_BYTES_MAX
    }

    /// Learns the shape of a line that no template fitted.
    pub fn learn(&mut self, line: &[u8], scalars: &[Scalar]) {
        self.learned += 1;
        let Some(template) = Template::new(line, scalars) else {
            return;
        };
        if self.known.len() == TEMPLATES_MAX {
            self.known.pop();
        }
        self.known.push(template);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::JsonScanner;
    use proptest::prelude::*;

    proptest! {
        /// Whatever is learned from one line, another line gives the same values through templates as
        /// through the scanner, and is refused by both alike.
        #[test]
        fn templates_never_change_the_answer(lines in prop::collection::vec(
            r#"\{"a":("[xy\\n]{0,3}"|[0-9]{1,3}|null|-1.5),"b":\{"c":("[xy]{0,20}"|true)\},"d":\[[12]?\]\}?"#, 1..20)
        ) {
            let paths = ["a".to_owned(), "b.c".to_owned(), "d".to_owned()];
            let mut scanner = JsonScanner::new(&paths);
            let mut templates = Templates::default();
            for line in &lines {
                let line = line.as_bytes();
                let mut direct = Record::new(3);
                let is_json = scanner.scan(line, &mut direct, &mut None).is_ok();
                let mut record = Record::new(3);
                if templates.fill(line, &mut record) {
                    prop_assert!(is_json);
                    for slot in 0..3 {
                        prop_assert_eq!(record.get(slot, line), direct.get(slot, line));
                    }
                } else {
                    let mut trace = Some(Vec::new());
                    if scanner.scan(line, &mut Record::new(3), &mut trace).is_ok()
                        && let Some(scalars) = trace
                    {
                        templates.learn(line, &scalars);
                        let mut again = Record::new(3);
                        let has_escape = line.contains(&b'\\');
                        prop_assert_eq!(templates.fill(line, &mut again), !has_escape);
                    }
                }
            }
        }

        #[test]
        fn text_length_is_a_search(text in r#"[a-z\x80-\xff]{0,40}["\\]?[a"\\]{0,9}"#) {
            let text = text.as_bytes();
            let found = text.iter().position(|byte| matches!(byte, b'"' | b'\\'));
            prop_assert_eq!(text_length(text), found.filter(|&end| text[end] == b'"'));
        }

        #[test]
        fn starts_with_is_starts_with(text in "[ab]{0,40}", prefix in "[ab]{0,20}") {
            let expected = text.as_bytes().starts_with(prefix.as_bytes());
            prop_assert_eq!(starts_with(text.as_bytes(), prefix.as_bytes()), expected);
        }
    }
}
