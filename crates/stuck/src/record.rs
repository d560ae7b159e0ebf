//! What a format takes out of one line: a few values, by number, with no copy where none is needed.
//!
//! A query asks for some fields by name; the plan gives each a number, its *slot*. A format fills the
//! slots that it finds in the line with places (in the line, or in a scratch buffer when the text had
//! to be unescaped). A value that was not found stays absent.

/// What sort of value stands in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    Text,
    /// A number as JSON writes it.
    Number,
    /// `true` or `false`.
    Truth,
    /// JSON's `null`: compares as absent.
    Null,
    /// A list: a JSON array, still encoded.
    Array,
    /// A JSON object, still encoded.
    Object,
}

/// One value of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Value<'a> {
    /// Its text: without quotes and unescaped if it is text, as written otherwise.
    pub bytes: &'a [u8],
    /// What sort of value it is.
    pub kind: Kind,
}

impl Value<'_> {
    /// The value as a number, if it is one, also when it stands in quotes.
    pub fn number(&self) -> Option<f64> {
        number(self.bytes)
    }
}

/// Reads a decimal number; short whole ones without the general parser.
pub fn number(bytes: &[u8]) -> Option<f64> {
    if (1..=9).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_digit) {
        let whole = bytes
            .iter()
            .fold(0_u32, |sum, digit| sum * 10 + u32::from(digit - b'0'));
        return Some(f64::from(whole));
    }
    // `inf` and `nan` are words, not numbers, in every log seen.
    if bytes
        .iter()
        .any(|byte| byte.is_ascii_alphabetic() && !matches!(byte, b'e' | b'E'))
    {
        return None;
    }
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    kind: Kind,
    in_scratch: bool,
    start: u32,
    end: u32,
}

/// The slots of one line.
#[derive(Debug, Default, Clone)]
pub struct Record {
    places: Vec<Option<Place>>,
    scratch: Vec<u8>,
}

impl Record {
    /// A record of so many slots.
    pub fn new(slots: usize) -> Self {
        Self {
            places: vec![None; slots],
            scratch: Vec::new(),
        }
    }

    /// Forgets the last line.
    #[inline]
    pub fn clear(&mut self) {
        self.places.fill(None);
        self.scratch.clear();
    }

    /// Fills a slot with `line[start..end]`. Lines are far shorter than 4 GiB: the source sees to that.
    #[inline]
    pub fn put(&mut self, slot: usize, kind: Kind, start: usize, end: usize) {
        self.places[slot] = Some(Place {
            kind,
            in_scratch: false,
            start: start as u32,
            end: end as u32,
        });
    }

    /// Fills a slot with text that is not in the line as such; `write` appends it.
    pub fn put_made(&mut self, slot: usize, kind: Kind, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.scratch.len();
        write(&mut self.scratch);
        let end = self.scratch.len();
        self.places[slot] = Some(Place {
            kind,
            in_scratch: true,
            start: start as u32,
            end: end as u32,
        });
    }

    /// The value of a slot, given the line that it was filled from.
    #[inline(always)]
    pub fn get<'a>(&'a self, slot: usize, line: &'a [u8]) -> Option<Value<'a>> {
        let place = (*self.places.get(slot)?)?;
        let text = if place.in_scratch {
            &self.scratch
        } else {
            line
        };
        let bytes = text.get(place.start as usize..place.end as usize)?;
        Some(Value {
            bytes,
            kind: place.kind,
        })
    }
}

/// Where `part` begins in `whole`, of which it must be a slice.
pub fn offset_in(whole: &[u8], part: &[u8]) -> usize {
    (part.as_ptr() as usize)
        .wrapping_sub(whole.as_ptr() as usize)
        .min(whole.len())
}
