//! Counts distinct entities by their 64-bit hashes, in bounded memory.
//!
//! Up to a million the count is exact; beyond that it is a HyperLogLog estimate (standard error 0.8 %),
//! so that a log of any length fits in memory.

/// Entities counted one by one before estimating.
const EXACT_MAX: usize = 1 << 20;
const REGISTER_BITS: u32 = 14;

/// The hash by which an entity is known: equal texts have equal hashes, and of a million different ones
/// the chance that any two share one is below one in ten million.
#[inline]
pub fn hash(text: &[u8]) -> u64 {
    const K0: u64 = 0xA076_1D64_78BD_642F;
    const K1: u64 = 0xE703_7ED1_A0B4_28DB;
    #[inline]
    fn fold(a: u64, b: u64) -> u64 {
        let wide = u128::from(a) * u128::from(b);
        (wide as u64) ^ ((wide >> 64) as u64)
    }
    let mut state = K0 ^ text.len() as u64;
    let mut chunks = text.chunks_exact(16);
    for chunk in &mut chunks {
        let mut words = [0_u64; 2];
        for (word, bytes) in words.iter_mut().zip(chunk.chunks_exact(8)) {
            let mut eight = [0; 8];
            eight.copy_from_slice(bytes);
            *word = u64::from_le_bytes(eight);
        }
        state = fold(words[0] ^ K1, words[1] ^ state);
    }
    let rest = chunks.remainder();
    let (low, high) = match (rest.first_chunk::<8>(), rest.last_chunk::<8>()) {
        (Some(first), Some(last)) => (u64::from_le_bytes(*first), u64::from_le_bytes(*last)),
        _ => match (rest.first_chunk::<4>(), rest.last_chunk::<4>()) {
            (Some(first), Some(last)) => (
                u64::from(u32::from_le_bytes(*first)),
                u64::from(u32::from_le_bytes(*last)),
            ),
            _ => (
                rest.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
                rest.len() as u64,
            ),
        },
    };
    fold(fold(low ^ K1, high ^ state), K0 ^ text.len() as u64)
}

/// Places looked at together: half a line of a core's cache.
const GROUP: usize = 4;

/// A set of hashes that knows its size.
#[derive(Debug, Clone)]
pub struct Entities {
    /// Open addressing; 0 is an empty place, so the hash 0 is taken as 1. Each hash is in the group that it
    /// belongs to, or, if that is full, behind it.
    table: Vec<u64>,
    count: usize,
    registers: Vec<u8>,
}

impl Default for Entities {
    fn default() -> Self {
        Self {
            table: vec![0; 1 << 12],
            count: 0,
            registers: Vec::new(),
        }
    }
}

impl Entities {
    /// Adds one.
    #[inline]
    pub fn add(&mut self, hash: u64) {
        if !self.registers.is_empty() {
            self.estimate(hash);
            return;
        }
        let hash = hash.max(1);
        let mask = self.table.len() - 1;
        let mut at = group_start(hash, mask);
        let (groups, _) = self.table.as_chunks::<GROUP>();
        // Without a branch between the looks: which of them finds it cannot be foreseen.
        if (groups[at / GROUP].iter()).fold(false, |found, known| found | (*known == hash)) {
            return;
        }
        loop {
            match self.table[at] {
                0 => break,
                known if known == hash => return,
                _ => at = (at + 1) & mask,
            }
        }
        self.table[at] = hash;
        self.count += 1;
        if self.count * 2 > self.table.len() {
            self.grow();
        }
    }

    /// Adds many. The table does not fit a core's caches, so that each look into it would wait for memory:
    /// those to come are asked for some time ahead.
    pub fn add_all(&mut self, hashes: &[u64]) {
        const AHEAD: usize = 24;
        for (index, hash) in hashes.iter().enumerate() {
            // There is no table any more where the number is estimated.
            if let Some(ahead) = hashes.get(index + AHEAD)
                && let Some(mask) = self.table.len().checked_sub(1)
            {
                prefetch(&self.table[group_start(*ahead, mask)]);
            }
            self.add(*hash);
        }
    }

    #[cold]
    fn grow(&mut self) {
        let known = std::mem::take(&mut self.table);
        if self.count > EXACT_MAX {
            self.registers = vec![0; 1 << REGISTER_BITS];
            known
                .into_iter()
                .filter(|hash| *hash != 0)
                .for_each(|hash| self.estimate(hash));
            return;
        }
        let size = known.len() * 2;
        self.table = vec![0; size];
        for hash in known.into_iter().filter(|hash| *hash != 0) {
            let mut at = group_start(hash, size - 1);
            while self.table[at] != 0 {
                at = (at + 1) & (size - 1);
            }
            self.table[at] = hash;
        }
    }

    fn estimate(&mut self, hash: u64) {
        let register = &mut self.registers[(hash >> (64 - REGISTER_BITS)) as usize];
        let rank = (hash << REGISTER_BITS | 1 << (REGISTER_BITS - 1)).leading_zeros() as u8 + 1;
        *register = (*register).max(rank);
    }

    /// How many different ones were added.
    pub fn count(&self) -> u64 {
        if self.registers.is_empty() {
            return self.count as u64;
        }
        let size = self.registers.len() as f64;
        let sum: f64 = self
            .registers
            .iter()
            .map(|rank| (-f64::from(*rank)).exp2())
            .sum();
        // Above a million the corrections for small counts never apply.
        (0.7213 / (1.0 + 1.079 / size) * size * size / sum) as u64
    }

    /// Whether the count is exact.
    pub fn is_exact(&self) -> bool {
        self.registers.is_empty()
    }
}

/// Asks the processor to bring a value near.
#[inline]
fn prefetch(value: &u64) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint about a place that a reference shows to be there; nothing is read.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

/// Where the group of a hash begins, in a table with this mask.
#[inline]
fn group_start(hash: u64, mask: usize) -> usize {
    hash as usize & mask & !(GROUP - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_exactly_then_estimates() {
        let mut entities = Entities::default();
        let name = |index: u32| hash(format!("repl-{}", index % 300_000).as_bytes());
        (0..250_000).for_each(|index| entities.add(name(index)));
        entities.add_all(&(200_000..500_001).map(name).collect::<Vec<_>>());
        assert_eq!((entities.count(), entities.is_exact()), (300_000, true));
        let many = (0..3_000_000_u32).map(|index| hash(format!("repl-{index}").as_bytes()));
        entities.add_all(&many.collect::<Vec<_>>());
        assert!(!entities.is_exact());
        let error = (entities.count() as f64 - 3_000_000.0).abs() / 3_000_000.0;
        assert!(error < 0.03, "{error}");
    }

    #[test]
    fn hashes_differ_in_every_length() {
        let mut seen = std::collections::HashSet::new();
        for length in 0..100 {
            for last in [0_u8, 1, 2, 255] {
                let mut text = vec![7_u8; length];
                text.push(last);
                assert!(seen.insert(hash(&text)), "{length} {last}");
            }
        }
        assert_ne!(hash(b"\0"), hash(b"\0\0"));
    }
}
