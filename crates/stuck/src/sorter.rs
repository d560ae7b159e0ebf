//! Puts events in order in bounded memory: sorted runs in an unlinked temporary file, then merged.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
};

/// One event as it is sorted and spilled: 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Item {
    /// Its time, in nanoseconds.
    pub time: i64,
    /// Its place in the input: file in the upper 24 bits, line in the rest.
    pub place: u64,
    /// The entity's hash.
    pub hash: u64,
    /// 0 if it was reached, or else the number of the reason, from 1.
    pub tag: u64,
}

const ITEM_BYTES: usize = 32;
const LINE_BITS: u32 = 40;

/// Joins a file's place and a line.
pub fn place(file: usize, line: u64) -> u64 {
    (file as u64) << LINE_BITS | (line & ((1 << LINE_BITS) - 1))
}

/// The file's place and the line of a place.
pub fn file_and_line(place: u64) -> (usize, u64) {
    (
        (place >> LINE_BITS) as usize,
        place & ((1 << LINE_BITS) - 1),
    )
}

impl Item {
    fn to_bytes(self) -> [u8; ITEM_BYTES] {
        let mut bytes = [0; ITEM_BYTES];
        let words = [self.time as u64, self.place, self.hash, self.tag];
        for (part, word) in bytes.chunks_exact_mut(8).zip(words) {
            part.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8; ITEM_BYTES]) -> Self {
        let mut words = [0; 4];
        for (word, part) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            let mut eight = [0; 8];
            eight.copy_from_slice(part);
            *word = u64::from_le_bytes(eight);
        }
        Self {
            time: words[0] as i64,
            place: words[1],
            hash: words[2],
            tag: words[3],
        }
    }
}

/// Takes items in any order and gives them back sorted by time, then place.
#[derive(Debug)]
pub struct Sorter {
    buffer: Vec<Item>,
    buffer_max: usize,
    spill: Option<File>,
    /// The end of each run in the spill, in items.
    run_ends: Vec<u64>,
    spill_items_max: u64,
    is_over: bool,
}

impl Sorter {
    /// A sorter that holds so many items in memory, and spills so many bytes at most.
    pub fn new(buffer_max: usize, spill_bytes_max: u64) -> Self {
        Self {
            buffer: Vec::new(),
            buffer_max,
            spill: None,
            run_ends: Vec::new(),
            spill_items_max: spill_bytes_max / ITEM_BYTES as u64,
            is_over: false,
        }
    }

    /// Takes one item.
    ///
    /// # Errors
    /// When the temporary file cannot be written.
    #[inline]
    pub fn push(&mut self, item: Item) -> io::Result<()> {
        self.buffer.push(item);
        if self.buffer.len() >= self.buffer_max {
            self.flush()
        } else {
            Ok(())
        }
    }

    /// Whether more came than may be spilled, so that the order cannot be had.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.is_over {
            self.buffer.clear();
            return Ok(());
        }
        let spilled = self.run_ends.last().copied().unwrap_or(0) + self.buffer.len() as u64;
        if spilled > self.spill_items_max {
            // What was spilled is of no use any more: give the disk back.
            (self.is_over, self.spill, self.run_ends) = (true, None, Vec::new());
            self.buffer = Vec::new();
            return Ok(());
        }
        if !self.buffer.is_sorted() {
            self.buffer.sort_unstable();
        }
        let spill = match &mut self.spill {
            Some(spill) => spill,
            None => self.spill.insert(unlinked_file()?),
        };
        let mut bytes = Vec::with_capacity(64 * 1024);
        for part in self.buffer.chunks(2 * 1024) {
            bytes.clear();
            part.iter()
                .for_each(|item| bytes.extend_from_slice(&item.to_bytes()));
            spill.write_all(&bytes)?;
        }
        self.run_ends.push(spilled);
        self.buffer.clear();
        Ok(())
    }

    /// Gives everything in order to `each`.
    ///
    /// # Errors
    /// When the temporary file cannot be read, or `each` fails.
    pub fn drain(mut self, mut each: impl FnMut(Item) -> io::Result<()>) -> io::Result<()> {
        if self.spill.is_none() {
            self.buffer.sort_unstable();
            return self.buffer.into_iter().try_for_each(each);
        }
        if !self.buffer.is_empty() {
            self.flush()?;
        }
        self.buffer = Vec::new();
        let Some(spill) = &mut self.spill else {
            return Ok(());
        };
        spill.seek(SeekFrom::Start(0))?;
        // All runs together get 16 MiB of buffers.
        let buffer_bytes = ((16 << 20) / self.run_ends.len()).clamp(4 * 1024, 256 * 1024);
        let mut runs = Vec::with_capacity(self.run_ends.len());
        let mut heap = std::collections::BinaryHeap::new();
        let mut start = 0;
        for &end in &self.run_ends {
            let range = Range {
                file: spill,
                at: start * 32,
                end: end * 32,
            };
            let mut run = BufReader::with_capacity(buffer_bytes, range);
            if let Some(item) = next_item(&mut run)? {
                heap.push(std::cmp::Reverse((item, runs.len())));
            }
            runs.push(run);
            start = end;
        }
        while let Some(mut top) = heap.peek_mut() {
            let std::cmp::Reverse((item, run)) = *top;
            each(item)?;
            match next_item(&mut runs[run])? {
                Some(item) => *top = std::cmp::Reverse((item, run)),
                None => drop(std::collections::binary_heap::PeekMut::pop(top)),
            }
        }
        Ok(())
    }
}

/// A part of a file, read without a position of its own in the file.
struct Range<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Range<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = (self.end - self.at).min(buffer.len() as u64) as usize;
        let count = self.file.read_at(&mut buffer[..wanted], self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

fn next_item(run: &mut impl Read) -> io::Result<Option<Item>> {
    let mut bytes = [0; ITEM_BYTES];
    match run.read_exact(&mut bytes) {
        Ok(()) => Ok(Some(Item::from_bytes(&bytes))),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// A file that no crash can leave behind.
fn unlinked_file() -> io::Result<File> {
    tempfile::tempfile()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sorts_whatever_fits_in_memory_or_not(times in prop::collection::vec(-50_i64..50, 0..200), buffer_max in 1_usize..250) {
            let items: Vec<Item> = times.iter().enumerate().map(|(index, &time)| Item {
                time, place: place(3, index as u64), hash: index as u64, tag: 0,
            }).collect();
            let mut sorter = Sorter::new(buffer_max, u64::MAX);
            for &item in &items {
                sorter.push(item).unwrap();
            }
            let mut sorted = Vec::new();
            sorter.drain(|item| { sorted.push(item); Ok(()) }).unwrap();
            let mut expected = items;
            expected.sort();
            prop_assert_eq!(sorted, expected);
        }
    }

    #[test]
    fn spills_no_more_than_it_may() {
        let mut sorter = Sorter::new(10, 32 * 25);
        for time in 0..40 {
            sorter
                .push(Item {
                    time,
                    place: 0,
                    hash: 0,
                    tag: 0,
                })
                .unwrap();
        }
        assert!(sorter.is_over());
    }
}
