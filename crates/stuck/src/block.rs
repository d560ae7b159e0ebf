//! Questions about sixteen bytes at once, each answered by a mask with a bit for each byte, the first
//! byte's lowest.
//!
//! Fields of log lines are short: a search made for long texts costs more to call than it saves there.

/// Sixteen bytes.
pub type Block = [u8; 16];

/// The bytes that equal those of another block.
#[inline]
pub fn equal(block: &Block, other: &Block) -> u32 {
    imp::equal(block, other)
}

/// The bytes at which a plain run of a JSON string in a log ends: a quote, a backslash, a line break.
#[inline]
pub fn string_ends(block: &Block) -> u32 {
    imp::string_ends(block)
}

/// The bytes that are decimal digits.
#[inline]
pub fn digits(block: &Block) -> u32 {
    imp::digits(block)
}

#[cfg(target_arch = "x86_64")]
mod imp {
    use std::arch::x86_64::{
        __m128i, _mm_cmpeq_epi8, _mm_min_epu8, _mm_movemask_epi8, _mm_or_si128, _mm_set_epi64x,
        _mm_set1_epi8, _mm_sub_epi8,
    };

    use super::Block;

    #[inline]
    #[target_feature(enable = "sse2")]
    fn load(block: &Block) -> __m128i {
        let whole = u128::from_le_bytes(*block);
        _mm_set_epi64x((whole >> 64) as i64, whole as i64)
    }

    #[inline]
    pub(super) fn equal(block: &Block, other: &Block) -> u32 {
        #[inline]
        #[target_feature(enable = "sse2")]
        fn masked(block: &Block, other: &Block) -> u32 {
            _mm_movemask_epi8(_mm_cmpeq_epi8(load(block), load(other))) as u32
        }
        // SAFETY: every processor of this architecture has SSE2.
        unsafe { masked(block, other) }
    }

    #[inline]
    pub(super) fn string_ends(block: &Block) -> u32 {
        #[inline]
        #[target_feature(enable = "sse2")]
        fn masked(block: &Block) -> u32 {
            let bytes = load(block);
            let is = |byte: u8| _mm_cmpeq_epi8(bytes, _mm_set1_epi8(byte as i8));
            let ends = _mm_or_si128(_mm_or_si128(is(b'"'), is(b'\\')), is(b'\n'));
            _mm_movemask_epi8(ends) as u32
        }
        // SAFETY: every processor of this architecture has SSE2.
        unsafe { masked(block) }
    }

    #[inline]
    pub(super) fn digits(block: &Block) -> u32 {
        #[inline]
        #[target_feature(enable = "sse2")]
        fn masked(block: &Block) -> u32 {
            let value = _mm_sub_epi8(load(block), _mm_set1_epi8(b'0' as i8));
            let is_small = _mm_cmpeq_epi8(_mm_min_epu8(value, _mm_set1_epi8(9)), value);
            _mm_movemask_epi8(is_small) as u32
        }
        // SAFETY: every processor of this architecture has SSE2.
        unsafe { masked(block) }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod imp {
    pub(super) use super::plain::*;
}

/// The same byte by byte, for other architectures and as the reference in tests.
#[cfg(any(test, not(target_arch = "x86_64")))]
mod plain {
    use super::Block;

    fn mask(block: &Block, is: impl Fn(usize, u8) -> bool) -> u32 {
        let bytes = block.iter().enumerate();
        bytes.fold(0, |mask, (at, byte)| mask | u32::from(is(at, *byte)) << at)
    }

    pub(super) fn equal(block: &Block, other: &Block) -> u32 {
        mask(block, |at, byte| byte == other[at])
    }

    pub(super) fn string_ends(block: &Block) -> u32 {
        mask(block, |_, byte| matches!(byte, b'"' | b'\\' | b'\n'))
    }

    pub(super) fn digits(block: &Block) -> u32 {
        mask(block, |_, byte| byte.is_ascii_digit())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sixteen_at_once_are_sixteen_times_one(
            // Bytes at the edges of what is asked for come often.
            block in prop::array::uniform16(prop_oneof![any::<u8>(), prop::sample::select(&b"/0189:\"\\\n!#[]\t\x0B"[..])]),
            other in prop::array::uniform16(prop_oneof![any::<u8>(), Just(b'"')]),
        ) {
            prop_assert_eq!(equal(&block, &other), plain::equal(&block, &other));
            prop_assert_eq!(string_ends(&block), plain::string_ends(&block));
            prop_assert_eq!(digits(&block), plain::digits(&block));
        }
    }
}
