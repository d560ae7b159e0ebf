//! The inputs: plain, gzip and zstd files, documents and standard input, given out in chunks of lines.
//!
//! A plain file is cut at fixed places, so that every thread reads its own parts with one copy, from the
//! page cache to its buffer: a chunk owns the lines that begin in it, and reads on until the last of them
//! ends. Anything else is one stream after the other; whoever asks next decodes the next chunk while the
//! others parse theirs. Chunks are numbered in the order of the input.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt},
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use model::stuck::LogTime;

use crate::doc::{DocKind, DocReader};

/// Fits the second cache of a core, with room beside it.
const CHUNK_BYTES: usize = 1 << 18;
/// How far a chunk reads beyond its end at first, for the rest of its last line.
const OVERLAP_BYTES: usize = 4 << 10;
/// Longer lines are not read as lines.
pub const LINE_BYTES_MAX: usize = 16 << 20;
/// How much of an input is looked at to recognise it.
const HEAD_BYTES: usize = 256 << 10;

/// Some whole lines of one input.
#[derive(Debug, Default)]
pub struct Chunk {
    /// Its number, from 0, over all inputs.
    pub index: u64,
    /// The input, by its place among all.
    pub input: usize,
    /// The lines, each with its line break but perhaps the last, from `start` on.
    pub bytes: Vec<u8>,
    /// Where the first line begins.
    pub start: usize,
    /// Where the last line ends.
    pub end: usize,
    /// The lines' own numbers, where they do not simply follow each other.
    pub numbers: Vec<u64>,
    /// How much of the input was taken, as stored: for showing progress.
    pub bytes_read: u64,
}

impl Chunk {
    /// Adds a made line with the number that it is to be known by.
    pub fn add_line(&mut self, line: &[u8], number: u64) {
        self.bytes.extend_from_slice(line);
        self.bytes.push(b'\n');
        self.numbers.push(number);
    }

    fn reset(&mut self, index: u64, input: usize) {
        // The bytes stay, since to read over them spares clearing; but one huge line must not keep its
        // memory for ever.
        if self.bytes.len() > 4 * CHUNK_BYTES {
            self.bytes = Vec::new();
        }
        self.numbers.clear();
        (
            self.index,
            self.input,
            self.start,
            self.end,
            self.bytes_read,
        ) = (index, input, 0, 0, 0);
    }
}

/// How an input is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// As it is.
    Plain,
    /// By gzip.
    Gzip,
    /// By zstd.
    Zstd,
}

/// One input, opened and looked at.
#[derive(Debug)]
pub struct Input {
    /// How the user called it; `-` is standard input.
    pub name: String,
    /// How it is stored.
    pub packing: Packing,
    /// Whether it is a document instead of lines.
    pub doc: Option<DocKind>,
    /// Its first bytes, unpacked and cut into lines.
    pub head: Vec<u8>,
    /// When it was last written.
    pub modified: Option<LogTime>,
    /// Its size as stored; 0 if nobody knows.
    pub stored_bytes: u64,
    path: Option<PathBuf>,
    /// What was read from an input that can be read only once.
    once: Mutex<Option<Box<dyn ReadSend>>>,
}

/// A reader that any thread may use.
trait ReadSend: Read + Send {}
impl<T: Read + Send> ReadSend for T {}

impl std::fmt::Debug for dyn ReadSend {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a reader")
    }
}

impl Input {
    /// Opens a file and looks at its beginning.
    ///
    /// # Errors
    /// When it cannot be read, or is packed in a way that is not known here.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        let name = path.display().to_string();
        let file = File::open(&path)?;
        let meta = file.metadata()?;
        if meta.is_dir() {
            return Err(io::Error::new(
                io::ErrorKind::IsADirectory,
                "is a directory",
            ));
        }
        let kind = meta.file_type();
        if kind.is_fifo() || kind.is_char_device() || kind.is_socket() {
            return Self::of_reader(name, Box::new(file));
        }
        let modified_ns = meta.mtime().checked_mul(1_000_000_000);
        let mut magic = [0; 8];
        let count = read_full_at(&file, &mut magic, 0)?;
        let packing = packing_of(&magic[..count])?;
        let mut input = Self {
            name,
            packing,
            doc: None,
            head: Vec::new(),
            modified: modified_ns.map(|mtime| LogTime(mtime + meta.mtime_nsec())),
            stored_bytes: meta.len(),
            path: Some(path),
            once: Mutex::new(None),
        };
        input.look()?;
        Ok(input)
    }

    /// Standard input, or anything else that can be read only once.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of_reader(name: String, mut from: Box<dyn Read + Send>) -> io::Result<Self> {
        let mut magic = vec![0; 8];
        let count = read_full(&mut from, &mut magic)?;
        magic.truncate(count);
        let packing = packing_of(&magic)?;
        let mut plain = unpacked(packing, Box::new(io::Cursor::new(magic).chain(from)))?;
        let mut head = vec![0; HEAD_BYTES];
        let count = read_full(&mut plain, &mut head)?;
        head.truncate(count);
        let doc = DocKind::of(&head);
        let whole = io::Cursor::new(head.clone()).chain(plain);
        let mut input = Self {
            name,
            packing,
            doc,
            head,
            modified: None,
            stored_bytes: 0,
            path: None,
            once: Mutex::new(Some(Box::new(whole))),
        };
        input.cut_head(count == HEAD_BYTES)?;
        Ok(input)
    }

    /// Whether a second pass can read it again.
    pub fn is_replayable(&self) -> bool {
        self.path.is_some()
    }

    fn look(&mut self) -> io::Result<()> {
        let mut plain = self.reader()?;
        let mut head = vec![0; HEAD_BYTES];
        let count = read_full(&mut plain, &mut head)?;
        head.truncate(count);
        self.doc = DocKind::of(&head);
        self.head = head;
        self.cut_head(count == HEAD_BYTES)
    }

    /// Makes lines of a document's head, and drops a line that the head cuts in half.
    fn cut_head(&mut self, is_longer: bool) -> io::Result<()> {
        if let Some(kind) = self.doc {
            let mut chunk = Chunk::default();
            let head = io::Cursor::new(std::mem::take(&mut self.head));
            let mut reader = DocReader::new(kind, Box::new(head));
            while reader.fill(&mut chunk, usize::MAX)? {}
            self.head = chunk.bytes;
        }
        if is_longer && let Some(last) = memchr::memrchr(b'\n', self.head.trim_ascii_end()) {
            self.head.truncate(last + 1);
        }
        Ok(())
    }

    /// The first lines, for recognising the format.
    pub fn first_lines(&self, count_max: usize) -> Vec<&[u8]> {
        let head = self
            .head
            .strip_prefix(b"\xEF\xBB\xBF")
            .unwrap_or(&self.head);
        let lines = head
            .split(|byte| *byte == b'\n')
            .map(|line| line.trim_ascii_end());
        lines
            .filter(|line| !line.is_empty())
            .take(count_max)
            .collect()
    }

    fn reader(&self) -> io::Result<Box<dyn Read + Send>> {
        match &self.path {
            Some(path) => unpacked(self.packing, Box::new(File::open(path)?)),
            None => {
                let mut once = self.once.lock().unwrap_or_else(PoisonError::into_inner);
                match once.take() {
                    Some(reader) => Ok(Box::new(reader)),
                    None => Err(io::Error::other("standard input can be read only once")),
                }
            }
        }
    }
}

fn packing_of(magic: &[u8]) -> io::Result<Packing> {
    let unknown = |name: &str, tool: &str| {
        let hint = format!(
            "is packed by {name}: unpack it first, as in `{tool} -dc FILE | conman stuck report -`"
        );
        Err(io::Error::new(io::ErrorKind::Unsupported, hint))
    };
    match magic {
        [0x1F, 0x8B, ..] => Ok(Packing::Gzip),
        [0x28, 0xB5, 0x2F, 0xFD, ..] | [0x50..=0x5F, 0x2A, 0x4D, 0x18, ..] => Ok(Packing::Zstd),
        [0xFD, b'7', b'z', b'X', b'Z', ..] => unknown("xz", "xz"),
        [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, ..] => unknown("bzip2", "bzip2"),
        [0x04, 0x22, 0x4D, 0x18, ..] => unknown("lz4", "lz4"),
        _ => Ok(Packing::Plain),
    }
}

fn unpacked(packing: Packing, from: Box<dyn Read + Send>) -> io::Result<Box<dyn Read + Send>> {
    let buffered = |from| io::BufReader::with_capacity(256 << 10, from);
    Ok(match packing {
        Packing::Plain => from,
        // Rotation may append one gzip member to another.
        Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(buffered(from))),
        Packing::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(buffered(from))?),
    })
}

/// All inputs, given out in chunks.
#[derive(Debug)]
pub struct Source<'a> {
    inputs: &'a [Input],
    order: &'a [usize],
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// How many inputs were begun, in the order of reading.
    begun: usize,
    next_index: u64,
    open: Option<Open>,
}

enum Open {
    Plain {
        file: std::sync::Arc<File>,
        at: u64,
        length: u64,
    },
    Lines {
        reader: Box<dyn Read + Send>,
        rest: Vec<u8>,
        is_skipping: bool,
        is_first: bool,
    },
    Doc(DocReader),
}

impl std::fmt::Debug for Open {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Plain { .. } => "Plain",
            Self::Lines { .. } => "Lines",
            Self::Doc(_) => "Doc",
        })
    }
}

/// What went wrong with which input.
#[derive(Debug, thiserror::Error)]
#[error("{name}: {source}")]
pub struct SourceError {
    /// The input.
    pub name: String,
    /// What went wrong.
    pub source: io::Error,
}

impl<'a> Source<'a> {
    /// The inputs, to be read in this order.
    pub fn new(inputs: &'a [Input], order: &'a [usize]) -> Self {
        Self {
            inputs,
            order,
            state: Mutex::new(State::default()),
        }
    }

    /// Fills a chunk with the next lines; false when there are no more. Any thread may ask.
    ///
    /// # Errors
    /// When an input cannot be read.
    pub fn next(&self, chunk: &mut Chunk) -> Result<bool, SourceError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let State {
                begun,
                next_index,
                open: slot,
            } = &mut *state;
            let Some(open) = slot else {
                let Some(&input) = self.order.get(*begun) else {
                    return Ok(false);
                };
                *slot = Some(self.begin(&self.inputs[input])?);
                *begun += 1;
                continue;
            };
            let input = self.order[*begun - 1];
            let fail = |source| SourceError {
                name: self.inputs[input].name.clone(),
                source,
            };
            // The number is taken below only if the chunk is given out.
            chunk.reset(*next_index, input);
            match open {
                Open::Plain { file, at, length } => {
                    if at >= length {
                        *slot = None;
                        continue;
                    }
                    let (file, from, length) = (file.clone(), *at, *length);
                    let to = (from + CHUNK_BYTES as u64).min(length);
                    *at = to;
                    *next_index += 1;
                    // The others may ask for their chunks while this one is read.
                    drop(state);
                    read_chunk(&file, chunk, from, to, length).map_err(fail)?;
                    return Ok(true);
                }
                Open::Lines {
                    reader,
                    rest,
                    is_skipping,
                    is_first,
                } => {
                    chunk.bytes.clear();
                    let is_more = fill_lines(reader, rest, is_skipping, chunk).map_err(fail)?;
                    if std::mem::take(is_first) && chunk.bytes.starts_with(b"\xEF\xBB\xBF") {
                        chunk.start = 3;
                    }
                    if !is_more {
                        *slot = None;
                    }
                }
                Open::Doc(reader) => {
                    chunk.bytes.clear();
                    let is_more = reader.fill(chunk, CHUNK_BYTES).map_err(fail)?;
                    chunk.end = chunk.bytes.len();
                    if !is_more {
                        *slot = None;
                    }
                }
            }
            if chunk.end > chunk.start {
                chunk.bytes_read = (chunk.end - chunk.start) as u64;
                *next_index += 1;
                return Ok(true);
            }
        }
    }

    fn begin(&self, input: &Input) -> Result<Open, SourceError> {
        let fail = |source| SourceError {
            name: input.name.clone(),
            source,
        };
        if let (Some(path), Packing::Plain, None) = (&input.path, input.packing, input.doc) {
            let file = File::open(path).map_err(fail)?;
            // A log that grows meanwhile is read as far as it was when it was opened.
            let length = file.metadata().map_err(fail)?.len();
            return Ok(Open::Plain {
                file: file.into(),
                at: 0,
                length,
            });
        }
        let reader = input.reader().map_err(fail)?;
        Ok(match input.doc {
            Some(kind) => Open::Doc(DocReader::new(kind, reader)),
            None => Open::Lines {
                reader,
                rest: Vec::new(),
                is_skipping: false,
                is_first: true,
            },
        })
    }
}

/// Reads the lines of a plain file that begin in `from..to`.
fn read_chunk(file: &File, chunk: &mut Chunk, from: u64, to: u64, length: u64) -> io::Result<()> {
    // The byte before tells whether a line begins right here.
    let base = from.saturating_sub(1);
    let own = (to - base) as usize;
    let mut wanted = own + OVERLAP_BYTES;
    let mut filled = 0;
    loop {
        let have = filled;
        let wanted_in_file = wanted.min((length - base) as usize);
        if chunk.bytes.len() < wanted_in_file {
            chunk.bytes.resize(wanted_in_file, 0);
        }
        filled += read_full_at(
            file,
            &mut chunk.bytes[have..wanted_in_file],
            base + have as u64,
        )?;
        let bytes = &chunk.bytes[..filled];
        let is_end = filled < wanted || base + filled as u64 >= length;
        if have == 0 {
            chunk.start = if from == 0 {
                if bytes.starts_with(b"\xEF\xBB\xBF") {
                    3
                } else {
                    0
                }
            } else {
                memchr::memchr(b'\n', &bytes[..own.min(filled)]).map_or(own, |found| found + 1)
            };
            if from > 0 && chunk.start >= own {
                // No line begins here: the one before goes through.
                (chunk.start, chunk.end) = (0, 0);
                break;
            }
        }
        let search_from = own.saturating_sub(1).max(have).min(filled);
        if let Some(found) = memchr::memchr(b'\n', &bytes[search_from..]) {
            chunk.end = search_from + found + 1;
        } else if is_end || filled > own + LINE_BYTES_MAX {
            // The end of the file, or a line that is longer than any: what is there shows that.
            chunk.end = filled;
        } else {
            wanted = filled * 2;
            continue;
        }
        break;
    }
    chunk.bytes_read = to - from;
    Ok(())
}

/// Reads a stream on until the chunk is full, and keeps the half line at its end for the next.
fn fill_lines(
    reader: &mut impl Read,
    rest: &mut Vec<u8>,
    is_skipping: &mut bool,
    chunk: &mut Chunk,
) -> io::Result<bool> {
    chunk.bytes.append(rest);
    loop {
        let have = chunk.bytes.len();
        chunk
            .bytes
            .resize(have.max(CHUNK_BYTES / 2) + CHUNK_BYTES / 2, 0);
        let count = read_full(reader, &mut chunk.bytes[have..])?;
        chunk.bytes.truncate(have + count);
        let is_end = count == 0 || chunk.bytes.len() < have.max(CHUNK_BYTES / 2) + CHUNK_BYTES / 2;
        let mut search_from = have;
        if *is_skipping {
            // The rest of a line that was given up.
            let end = memchr::memchr(b'\n', &chunk.bytes);
            *is_skipping = end.is_none() && !is_end;
            chunk
                .bytes
                .drain(..end.map_or(chunk.bytes.len(), |end| end + 1));
            search_from = 0;
        }
        if is_end {
            chunk.end = chunk.bytes.len();
            return Ok(false);
        }
        if let Some(last) = memchr::memrchr(b'\n', &chunk.bytes[search_from..]) {
            let end = search_from + last + 1;
            rest.extend_from_slice(&chunk.bytes[end..]);
            chunk.bytes.truncate(end);
            chunk.end = end;
            return Ok(true);
        }
        if chunk.bytes.len() > LINE_BYTES_MAX {
            *is_skipping = true;
            chunk.end = chunk.bytes.len();
            return Ok(true);
        }
    }
}

fn read_full(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut have = 0;
    while have < buffer.len() {
        match reader.read(&mut buffer[have..]) {
            Ok(0) => break,
            Ok(count) => have += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(have)
}

/// Reads as much as there is, up to the buffer's length.
///
/// # Errors
/// When the file cannot be read.
pub fn read_full_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut have = 0;
    while have < buffer.len() {
        match file.read_at(&mut buffer[have..], at + have as u64) {
            Ok(0) => break,
            Ok(count) => have += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(have)
}
