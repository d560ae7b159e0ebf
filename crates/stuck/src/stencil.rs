//! A line cast in a mould: of each byte what it must be, as long as every value is as long as in one line
//! seen before.
//!
//! Most lines of a log have the very shape of their neighbours, down to the byte: a time, an identifier
//! and a status are as long in each. Such a line is compared thirty-two bytes at a time, without a look
//! at where one value ends and the next begins, and every value's place is known beforehand. Where a line
//! begins to differ, what came before is still proven.

/// Bytes looked at together.
const CELL_BYTES: usize = 32;
/// Longer lines are compared value by value.
const LENGTH_MAX: usize = 1 << 10;

type Cell = [u8; CELL_BYTES];

/// What the bytes of one cell must be; each mask is all ones for the bytes that it is about.
#[derive(Debug, Clone, Default)]
struct Mould {
    expected: Cell,
    /// Bytes that must be the expected ones.
    is_fixed: Cell,
    /// Bytes of whole numbers: decimal digits.
    is_digit: Cell,
    /// Bytes inside of strings: no quote, no backslash, no line break.
    is_text: Cell,
}

impl Mould {
    /// A bit for each byte that is not what it must be, the first byte's lowest.
    fn strays(&self, cell: &Cell) -> u32 {
        let is_stray = |at: usize| {
            let byte = cell[at];
            let no_fixed = (byte ^ self.expected[at]) & self.is_fixed[at] != 0;
            let no_digit = !byte.is_ascii_digit() && self.is_digit[at] != 0;
            let no_text = matches!(byte, b'"' | b'\\' | b'\n') && self.is_text[at] != 0;
            no_fixed || no_digit || no_text
        };
        (0..CELL_BYTES).fold(0, |mask, at| mask | u32::from(is_stray(at)) << at)
    }

    /// The same, all bytes at once.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2")]
    fn strays_wide(&self, cell: &Cell) -> u32 {
        use std::arch::x86_64::{
            __m256i, _mm256_and_si256, _mm256_andnot_si256, _mm256_cmpeq_epi8, _mm256_min_epu8,
            _mm256_movemask_epi8, _mm256_or_si256, _mm256_set_epi64x, _mm256_set1_epi8,
            _mm256_setzero_si256, _mm256_sub_epi8, _mm256_xor_si256,
        };
        #[inline]
        #[target_feature(enable = "avx2")]
        fn load(cell: &Cell) -> __m256i {
            let (words, _) = cell.as_chunks();
            let [a, b, c, d] = [0, 1, 2, 3].map(|at: usize| i64::from_le_bytes(words[at]));
            _mm256_set_epi64x(d, c, b, a)
        }
        let bytes = load(cell);
        let is = |byte: u8| _mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(byte as i8));
        let value = _mm256_sub_epi8(bytes, _mm256_set1_epi8(b'0' as i8));
        let is_digit = _mm256_cmpeq_epi8(_mm256_min_epu8(value, _mm256_set1_epi8(9)), value);
        let ends = _mm256_or_si256(_mm256_or_si256(is(b'"'), is(b'\\')), is(b'\n'));
        let differs = _mm256_xor_si256(bytes, load(&self.expected));
        let no_fixed = _mm256_and_si256(differs, load(&self.is_fixed));
        let no_digit = _mm256_andnot_si256(is_digit, load(&self.is_digit));
        let no_text = _mm256_and_si256(ends, load(&self.is_text));
        let strays = _mm256_or_si256(_mm256_or_si256(no_fixed, no_digit), no_text);
        !_mm256_movemask_epi8(_mm256_cmpeq_epi8(strays, _mm256_setzero_si256())) as u32
    }
}

/// What a byte of the line that the stencil is made from stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Text between values.
    Fixed,
    /// The value of a string.
    Text,
    /// A whole number.
    Number,
}

/// The stencil of one line.
#[derive(Debug, Clone, Default)]
pub struct Stencil {
    moulds: Vec<Mould>,
    length: usize,
    /// Where numbers of two digits and more begin: not with a zero.
    leading: Vec<usize>,
}

impl Stencil {
    /// The stencil of a line that consists of these parts, each with its length; `None` if it is too long.
    pub fn new(line: &[u8], parts: impl Iterator<Item = (Part, usize)>) -> Option<Self> {
        if line.len() > LENGTH_MAX {
            return None;
        }
        let mut moulds = vec![Mould::default(); line.len().div_ceil(CELL_BYTES)];
        let (mut from, mut leading) = (0, Vec::new());
        for (part, length) in parts {
            for (at, byte) in line.iter().enumerate().skip(from).take(length) {
                let mould = &mut moulds[at / CELL_BYTES];
                let at = at % CELL_BYTES;
                mould.expected[at] = *byte;
                let mask = match part {
                    Part::Fixed => &mut mould.is_fixed,
                    Part::Text => &mut mould.is_text,
                    Part::Number => &mut mould.is_digit,
                };
                mask[at] = 0xFF;
            }
            if part == Part::Number && length > 1 {
                leading.push(from);
            }
            from += length;
        }
        Some(Self {
            moulds,
            length: from,
            leading,
        })
    }

    /// The length of the line.
    #[inline]
    pub fn length(&self) -> usize {
        self.length
    }

    /// How many bytes at the start of the text are what they must be: all of the stencil's, or those before
    /// the first that is not.
    #[inline]
    pub fn agreed(&self, text: &[u8]) -> usize {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx2")]
            fn wide(stencil: &Stencil, text: &[u8]) -> usize {
                stencil.compared(text, |mould, cell| mould.strays_wide(cell))
            }
            if std::arch::is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has just been asked for what the function needs.
                return unsafe { wide(self, text) };
            }
        }
        self.compared(text, Mould::strays)
    }

    #[inline(always)]
    fn compared(&self, text: &[u8], strays: impl Fn(&Mould, &Cell) -> u32) -> usize {
        let (cells, _) = text.as_chunks::<CELL_BYTES>();
        let whole = cells.len().min(self.moulds.len());
        let mut agreed = self.length.min(whole * CELL_BYTES);
        // From the end, so that the first stray has the last word: where a line begins to differ cannot be
        // foreseen, and is better chosen than branched upon.
        for (at, (cell, mould)) in cells.iter().zip(&self.moulds).enumerate().rev() {
            let strays = strays(mould, cell);
            let first = at * CELL_BYTES + strays.trailing_zeros() as usize;
            agreed = if strays == 0 { agreed } else { first };
        }
        let zero = self.leading.iter().find(|&&at| text.get(at) == Some(&b'0'));
        zero.map_or(agreed, |&at| agreed.min(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The same byte by byte.
    fn agreed(parts: &[(Part, String)], text: &[u8]) -> usize {
        let mut from = 0;
        for (part, value) in parts {
            for (at, expected) in value.bytes().enumerate() {
                let fits = text.get(from).is_some_and(|&byte| match part {
                    Part::Fixed => byte == expected,
                    Part::Text => !matches!(byte, b'"' | b'\\' | b'\n'),
                    Part::Number => {
                        let is_leading = at == 0 && value.len() > 1;
                        byte.is_ascii_digit() && !(is_leading && byte == b'0')
                    }
                });
                if !fits {
                    return from;
                }
                from += 1;
            }
        }
        from
    }

    proptest! {
        #[test]
        fn all_at_once_is_byte_by_byte(
            parts in prop::collection::vec((prop::sample::select(&[Part::Fixed, Part::Text, Part::Number][..]), "[1-9]{1,30}"), 1..8),
            changes in prop::collection::vec((0_usize..240, prop::sample::select(&b"0159a\"\\\n/:\x80\xff"[..])), 0..3),
        ) {
            let line: String = parts.iter().map(|(_, value)| value.as_str()).collect();
            let lengths = parts.iter().map(|(part, value)| (*part, value.len()));
            let stencil = Stencil::new(line.as_bytes(), lengths).unwrap();
            let mut text = line.into_bytes();
            for (at, byte) in changes {
                if let Some(place) = text.get_mut(at) {
                    *place = byte;
                }
            }
            let expected = agreed(&parts, &text);
            // A text that ends in the last cell is compared as far as its whole cells go.
            let whole = text.len() / CELL_BYTES * CELL_BYTES;
            prop_assert_eq!(stencil.agreed(&text), expected.min(whole));
            text.extend_from_slice(&[b'"'; CELL_BYTES]);
            prop_assert_eq!(stencil.agreed(&text), expected);
            prop_assert_eq!(stencil.compared(&text, Mould::strays), expected);
        }
    }
}
