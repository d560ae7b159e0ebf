//! The shape that most lines of a log share, learned from one of them.
//!
//! A program writes its log lines with the same keys in the same order, so that between one line and
//! the next only the values differ. A template is the text between the values, and which values the
//! query wants. A line that fits it is proven to be JSON with nothing left over, for the price of a
//! few comparisons and one search for each string's end, and for fewer still where its values are as long
//! as those of a line before it ([`Stencil`]). A line that does not fit goes to the full scanner, so that
//! templates change the speed and never the answer.

use crate::{
    block::{self, Block},
    json::{Scalar, bare_kind},
    record::{Kind, Record},
    stencil::{Part, Stencil},
};

/// Shapes kept at once: a program has few log statements that matter here.
const TEMPLATES_MAX: usize = 8;
/// Lines learned from before giving up on a log whose lines all differ.
const LEARNED_MAX: u32 = 64;
/// Longer lines are not worth learning.
const LINE_BYTES_MAX: usize = 8 * 1024;
/// How much of a string is looked at here before the search for long ones is called.
const SHORT_BYTES: usize = 64;

/// Lines in a row that the stencil may prove in part alone before it is cast anew, at first: for a log whose
/// values change their lengths all the time, casting would cost more than it saves.
const PATIENCE: u32 = 4;
/// The same at most.
const PATIENCE_MAX: u32 = 1 << 12;

/// A fixed text, laid out for comparing sixteen bytes at once.
#[derive(Debug, Clone)]
struct Fixed {
    head: Block,
    head_mask: u32,
    length: usize,
    whole: Box<[u8]>,
}

impl Fixed {
    fn new(text: &[u8]) -> Self {
        let mut head = [0; 16];
        let head_length = text.len().min(16);
        head[..head_length].copy_from_slice(&text[..head_length]);
        Self {
            head,
            head_mask: (1 << head_length) - 1,
            length: text.len(),
            whole: text.into(),
        }
    }

    #[inline]
    fn begins(&self, text: &[u8]) -> bool {
        match text.first_chunk() {
            Some(block) if self.length <= 16 => {
                block::equal(block, &self.head) & self.head_mask == self.head_mask
            }
            _ => text.starts_with(&self.whole),
        }
    }
}

#[derive(Debug, Clone)]
struct Step {
    /// What stands before the value, its opening quote included.
    before: Fixed,
    is_text: bool,
    slot: Option<usize>,
    /// How long the value was in the last line: mostly it is as long again, and the next steps then need
    /// not wait for where this one ends.
    length: usize,
}

#[derive(Debug, Clone)]
struct Template {
    steps: Vec<Step>,
    after: Fixed,
    stencil: Stencil,
    /// Where the stencil has the steps' values, and what they are.
    places: Vec<(usize, usize, Kind)>,
    /// The same of those that are asked for, with their slots.
    wanted: Vec<(usize, Kind, usize, usize)>,
    /// Lines in a row that the stencil did not prove whole, and how many of them are too many.
    missed: u32,
    patience: u32,
}

impl Template {
    fn new(line: &[u8], scalars: &[Scalar]) -> Option<Self> {
        let mut from = 0;
        let mut steps = Vec::with_capacity(scalars.len());
        for scalar in scalars {
            steps.push(Step {
                before: Fixed::new(line.get(from..scalar.start)?),
                is_text: scalar.is_text,
                slot: scalar.slot,
                length: scalar.end - scalar.start,
            });
            from = scalar.end;
        }
        Some(Self {
            steps,
            after: Fixed::new(line.get(from..)?),
            stencil: Stencil::default(),
            places: Vec::new(),
            wanted: Vec::new(),
            missed: 0,
            patience: PATIENCE,
        })
    }

    /// The length of the line at the start of the text, if it fits.
    #[inline]
    fn fits(&mut self, text: &[u8], record: &mut Record) -> Option<usize> {
        let agreed = self.stencil.agreed(text);
        if agreed == self.stencil.length() && agreed > 0 {
            for &(slot, kind, start, end) in &self.wanted {
                record.put(slot, kind, start, end);
            }
            self.missed = 0;
            return is_line_end(text.get(agreed..)?).then_some(agreed);
        }
        let (mut at, mut proven) = (0, 0);
        for (step, &(start, end, kind)) in self.steps.iter().zip(&self.places) {
            // What ends a value must have been seen as well.
            if end >= agreed {
                break;
            }
            if let Some(slot) = step.slot {
                record.put(slot, kind, start, end);
            }
            (at, proven) = (end, proven + 1);
        }
        for step in &mut self.steps[proven..] {
            let rest = text.get(at..)?;
            if !step.before.begins(rest) {
                return None;
            }
            let start = at + step.before.length;
            let rest = text.get(start..)?;
            let kind = match step.is_text {
                true if is_text_of(rest, step.length) => Kind::Text,
                false if is_number_of(rest, step.length) => Kind::Number,
                true => {
                    step.length = text_length(rest)?;
                    Kind::Text
                }
                false => {
                    let (length, kind) = bare(rest)?;
                    step.length = length;
                    kind
                }
            };
            at = start + step.length;
            if let Some(slot) = step.slot {
                record.put(slot, kind, start, at);
            }
        }
        if !self.after.begins(text.get(at..)?) {
            return None;
        }
        let end = at + self.after.length;
        if !is_line_end(text.get(end..)?) {
            return None;
        }
        self.missed += 1;
        if self.missed >= self.patience {
            self.cast(&text[..end], proven);
        }
        Some(end)
    }

    /// Makes the stencil anew from a line that fits, of which it proved so many values.
    #[cold]
    fn cast(&mut self, line: &[u8], proven: usize) {
        self.missed = 0;
        self.patience = (self.patience * 2).min(PATIENCE_MAX);
        for (step, (start, end, _)) in self.steps.iter_mut().zip(&self.places).take(proven) {
            step.length = end - start;
        }
        self.places.clear();
        self.wanted.clear();
        let (mut at, mut parts) = (0, Vec::new());
        for step in &self.steps {
            let start = at + step.before.length;
            at = start + step.length;
            let value = &line[start..at];
            let (part, kind) = match step.is_text {
                true => (Part::Text, Kind::Text),
                false if value.iter().all(u8::is_ascii_digit) => (Part::Number, Kind::Number),
                // Anything else, such as `null` or `-1.5`, is taken as it stands in this line.
                false => (Part::Fixed, bare_kind(value).unwrap_or(Kind::Null)),
            };
            parts.extend([(Part::Fixed, step.before.length), (part, step.length)]);
            self.places.push((start, at, kind));
            self.wanted
                .extend(step.slot.map(|slot| (slot, kind, start, at)));
        }
        parts.push((Part::Fixed, self.after.length));
        self.stencil = Stencil::new(line, parts.into_iter()).unwrap_or_default();
    }
}

/// Whether the line ends before this text.
#[inline]
fn is_line_end(text: &[u8]) -> bool {
    matches!(text, [] | [b'\n', ..] | [b'\r'] | [b'\r', b'\n', ..])
}

/// The length of a string up to its closing quote; `None` when there is none in this line, or an escape
/// is before it.
#[inline]
fn text_length(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    while at < SHORT_BYTES
        && let Some(block) = text.get(at..).and_then(|rest| rest.first_chunk())
    {
        let ends = block::string_ends(block);
        if ends != 0 {
            let end = at + ends.trailing_zeros() as usize;
            return (text[end] == b'"').then_some(end);
        }
        at += 16;
    }
    let end = at + memchr::memchr3(b'"', b'\\', b'\n', &text[at..])?;
    (text[end] == b'"').then_some(end)
}

/// Whether a string has just this length up to its closing quote, with no escape in it.
#[inline]
fn is_text_of(text: &[u8], length: usize) -> bool {
    if length >= SHORT_BYTES || text.get(length) != Some(&b'"') {
        return false;
    }
    let (mut at, mut ends) = (0, 0);
    while let Some(block) = text.get(at..).and_then(|rest| rest.first_chunk()) {
        ends = block::string_ends(block);
        if ends != 0 || at + 16 > length {
            break;
        }
        at += 16;
    }
    // The first end is the quote that stands at this length.
    length >= at && length - at < 16 && ends & ((2 << (length - at)) - 1) == 1 << (length - at)
}

/// Whether a whole number of just this length is there, and an end behind it.
#[inline]
fn is_number_of(text: &[u8], length: usize) -> bool {
    let Some(block) = text.first_chunk() else {
        return false;
    };
    let is_end = matches!(text.get(length), Some(b',' | b'}' | b']' | b' '));
    let own = (1_u32 << length.min(16)) - 1;
    is_end
        && (1..16).contains(&length)
        && block::digits(block) & own == own
        && (length == 1 || text[0] != b'0')
}

/// The length and kind of a value without quotes, by JSON's grammar.
fn bare(text: &[u8]) -> Option<(usize, Kind)> {
    let length = text
        .iter()
        .position(|byte| matches!(byte, b',' | b'}' | b']' | b' ' | b'\n'))?;
    Some((length, bare_kind(&text[..length])?))
}

/// The templates learned so far, the one that fitted last in front.
#[derive(Debug, Clone, Default)]
pub struct Templates {
    known: Vec<Template>,
    learned: u32,
}

impl Templates {
    /// Fills the record if a known template fits the line at the start of the text, and gives the length
    /// of that line. What follows the line must be nothing or a line break. The record must be clear,
    /// and is so again when nothing fits.
    #[inline]
    pub fn fill(&mut self, text: &[u8], record: &mut Record) -> Option<usize> {
        for index in 0..self.known.len() {
            if let Some(length) = self.known[index].fits(text, record) {
                if index > 0 {
                    self.known.swap(index, 0);
                }
                return Some(length);
            }
            record.clear();
        }
        None
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
            r#"\{"a":("[xy\\n]{0,3}"|[0-9]{1,3}|null|-1.5),"b":\{"c":("[xy]{0,20}"|true)\},"d":\[[12]?\]\}?"#, 1..60)
        ) {
            let paths = ["a".to_owned(), "b.c".to_owned(), "d".to_owned()];
            let mut scanner = JsonScanner::new(&paths);
            let mut templates = Templates::default();
            for line in &lines {
                let line = line.as_bytes();
                let mut direct = Record::new(3);
                let is_json = scanner.scan(line, &mut direct, &mut None).is_ok();
                let mut record = Record::new(3);
                // What stands in the next line must not matter.
                let text = [line, b"\n\",\"b\":1}"].concat();
                if let Some(length) = templates.fill(&text, &mut record) {
                    prop_assert!(is_json);
                    prop_assert_eq!(length, line.len());
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
                        let filled = templates.fill(line, &mut again);
                        prop_assert_eq!(filled, (!has_escape).then_some(line.len()));
                    }
                }
            }
        }

        #[test]
        fn text_length_is_a_search(text in r#"[a-z\x80-\xff]{0,90}["\\\n]?[a"\\]{0,9}"#) {
            let text = text.as_bytes();
            let found = text.iter().position(|byte| matches!(byte, b'"' | b'\\' | b'\n'));
            let expected = found.filter(|&end| text[end] == b'"');
            prop_assert_eq!(text_length(text), expected);
            // Texts at the very end are left to the search.
            let is_near_end = |length: usize| length >= SHORT_BYTES || length / 16 * 16 + 16 > text.len();
            for length in (0..100).filter(|&length| !is_near_end(length)) {
                prop_assert_eq!(is_text_of(text, length), expected == Some(length));
            }
        }

        #[test]
        fn numbers_of_a_length(text in r"-?[0-9]{0,12}[,} .a][0-9]{20}", length in 0_usize..20) {
            let text = text.as_bytes();
            let is_whole = bare(text).is_some_and(|(found, kind)| {
                found == length && kind == Kind::Number && text[..found].iter().all(u8::is_ascii_digit)
            });
            prop_assert_eq!(is_number_of(text, length), is_whole);
        }

        #[test]
        fn a_fixed_text_begins_what_begins_with_it(text in "[ab]{0,40}", prefix in "[ab]{0,20}") {
            let expected = text.as_bytes().starts_with(prefix.as_bytes());
            prop_assert_eq!(Fixed::new(prefix.as_bytes()).begins(text.as_bytes()), expected);
        }
    }
}
