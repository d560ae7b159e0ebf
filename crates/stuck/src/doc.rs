//! JSON documents that are not one object per line, turned into lines.
//!
//! An array of objects (as `gcloud logging read --format=json` prints it) or objects printed over many
//! lines give one line per object. An answer of Loki's API gives one line per entry, of the shape that
//! `logcli -o jsonl` prints: `{"labels":{…},"timestamp":"…","line":"…"}`. Of each made line the number of
//! the line on which it began in the document is kept.
//!
//! The document is gone through once and never held: what is held is one object.

use std::io::{self, Read};

use crate::{json, source::Chunk};

/// What sort of document it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DocKind {
    /// Objects in one array, or one after the other.
    Objects,
    /// Loki's streams.
    Loki,
}

impl DocKind {
    /// Recognises a document by its first bytes; `None` when its lines stand for themselves.
    pub fn of(head: &[u8]) -> Option<Self> {
        let text = head.trim_ascii_start();
        let loki = || {
            let start = &text[..text.len().min(64 * 1024)];
            let has = |needle: &[u8]| memchr::memmem::find(start, needle).is_some();
            has(b"\"stream\"")
                && has(b"\"values\"")
                && (has(b"\"resultType\"") || has(b"\"streams\""))
        };
        match text.first()? {
            b'[' => {
                let next = text[1..].trim_ascii_start();
                matches!(next.first(), Some(b'{' | b']')).then_some(Self::Objects)
            }
            b'{' => {
                let end = memchr::memchr(b'\n', text).unwrap_or(text.len());
                let first_line = text[..end].trim_ascii();
                let is_single = text[end..].trim_ascii().is_empty();
                if loki() && (is_single || first_line == b"{") {
                    Some(Self::Loki)
                } else {
                    (first_line == b"{").then_some(Self::Objects)
                }
            }
            _ => None,
        }
    }
}

/// Objects longer than this are given up as one broken line.
const OBJECT_BYTES_MAX: usize = 16 << 20;

/// Reads a document and makes lines of it.
pub struct DocReader {
    kind: DocKind,
    from: Box<dyn Read + Send>,
    line: u64,
    depth: usize,
    in_string: bool,
    is_escaped: bool,
    /// The last string outside of anything captured, and the last that stood before a colon.
    text: Vec<u8>,
    key: Vec<u8>,
    capture: Option<Capture>,
    captured: Vec<u8>,
    labels: Vec<u8>,
    /// The depth inside Loki's `values` array.
    values_depth: Option<usize>,
    block: Vec<u8>,
}

struct Capture {
    what: What,
    depth: usize,
    line: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Object,
    Labels,
    Entry,
}

impl DocReader {
    /// A reader of a document of this kind.
    pub fn new(kind: DocKind, from: Box<dyn Read + Send>) -> Self {
        Self {
            kind,
            from,
            line: 1,
            depth: 0,
            in_string: false,
            is_escaped: false,
            text: Vec::new(),
            key: Vec::new(),
            capture: None,
            captured: Vec::new(),
            labels: b"{}".to_vec(),
            values_depth: None,
            block: vec![0; 64 * 1024],
        }
    }

    /// Adds lines to a chunk until it holds `bytes_wanted`; false at the end of the document.
    ///
    /// # Errors
    /// When the document cannot be read.
    pub fn fill(&mut self, chunk: &mut Chunk, bytes_wanted: usize) -> io::Result<bool> {
        while chunk.bytes.len() < bytes_wanted {
            let count = match self.from.read(&mut self.block) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if count == 0 {
                if let Some(capture) = self.capture.take() {
                    // The document is cut off inside an object: a line that cannot be parsed.
                    self.emit(&capture, chunk);
                }
                return Ok(false);
            }
            let block = std::mem::take(&mut self.block);
            self.take(&block[..count], chunk);
            self.block = block;
        }
        Ok(true)
    }

    fn take(&mut self, mut bytes: &[u8], chunk: &mut Chunk) {
        while let Some(&byte) = bytes.first() {
            if self.in_string {
                bytes = self.take_string(bytes);
                continue;
            }
            bytes = &bytes[1..];
            if self.capture.is_some() {
                let kept = if byte == b'\n' || byte == b'\r' {
                    b' '
                } else {
                    byte
                };
                self.captured.push(kept);
            }
            match byte {
                b'\n' => self.line += 1,
                b'"' => {
                    self.in_string = true;
                    self.text.clear();
                }
                b':' => std::mem::swap(&mut self.key, &mut self.text),
                b'{' | b'[' => self.open(byte),
                b'}' | b']' => self.close(chunk),
                _ => {}
            }
        }
    }

    fn take_string<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let length = if self.is_escaped {
            self.is_escaped = false;
            1
        } else {
            let found = memchr::memchr3(b'"', b'\\', b'\n', bytes);
            let length = found.map_or(bytes.len(), |found| found + 1);
            match found.map(|found| bytes[found]) {
                Some(b'"') => self.in_string = false,
                Some(b'\\') => self.is_escaped = true,
                Some(_) => self.line += 1,
                None => {}
            }
            length
        };
        let (part, rest) = bytes.split_at(length);
        if self.capture.is_some() {
            // A raw line break inside a string is no JSON; a space keeps the line in one piece.
            let start = self.captured.len();
            self.captured.extend_from_slice(part);
            if let Some(last) = self.captured[start..]
                .last_mut()
                .filter(|last| **last == b'\n')
            {
                *last = b' ';
            }
        } else if self.text.len() < 64 {
            let text = if self.in_string {
                part
            } else {
                &part[..part.len() - 1]
            };
            self.text.extend_from_slice(text);
        }
        rest
    }

    fn open(&mut self, byte: u8) {
        self.depth += 1;
        if self.capture.is_some() {
            return;
        }
        let what = match self.kind {
            DocKind::Objects => (byte == b'{').then_some(What::Object),
            DocKind::Loki if byte == b'{' && self.key == b"stream" => Some(What::Labels),
            DocKind::Loki if byte == b'[' && self.values_depth == Some(self.depth - 1) => {
                Some(What::Entry)
            }
            DocKind::Loki => {
                if byte == b'[' && self.key == b"values" {
                    self.values_depth = Some(self.depth);
                }
                None
            }
        };
        if let Some(what) = what {
            self.capture = Some(Capture {
                what,
                depth: self.depth,
                line: self.line,
            });
            self.captured.clear();
            self.captured.push(byte);
        }
    }

    fn close(&mut self, chunk: &mut Chunk) {
        if let Some(capture) = self.capture.take_if(|capture| capture.depth == self.depth) {
            self.emit(&capture, chunk);
        }
        if self.values_depth == Some(self.depth) {
            self.values_depth = None;
        }
        self.depth = self.depth.saturating_sub(1);
        self.key.clear();
    }

    fn emit(&mut self, capture: &Capture, chunk: &mut Chunk) {
        match capture.what {
            What::Labels => std::mem::swap(&mut self.labels, &mut self.captured),
            What::Object => {
                self.captured.truncate(OBJECT_BYTES_MAX + 1);
                chunk.add_line(&self.captured, capture.line);
            }
            What::Entry => {
                let mut line = Vec::with_capacity(self.captured.len() + self.labels.len() + 64);
                match json::first_two_texts(&self.captured) {
                    Some((time, text)) => {
                        line.extend_from_slice(b"{\"labels\":");
                        line.extend_from_slice(&self.labels);
                        line.extend_from_slice(b",\"timestamp\":\"");
                        line.extend_from_slice(time);
                        line.extend_from_slice(b"\",\"line\":\"");
                        line.extend_from_slice(text);
                        line.extend_from_slice(b"\"}");
                    }
                    None => line.extend_from_slice(&self.captured),
                }
                line.truncate(OBJECT_BYTES_MAX + 1);
                chunk.add_line(&line, capture.line);
            }
        }
        self.captured.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(document: &str, block: usize) -> Vec<(u64, String)> {
        struct Slow(Vec<u8>, usize);
        impl Read for Slow {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let count = self.0.len().min(self.1).min(buffer.len());
                buffer[..count].copy_from_slice(&self.0[..count]);
                self.0.drain(..count);
                Ok(count)
            }
        }
        let kind = DocKind::of(document.as_bytes()).unwrap();
        let mut reader = DocReader::new(kind, Box::new(Slow(document.as_bytes().to_vec(), block)));
        let mut chunk = Chunk::default();
        while reader.fill(&mut chunk, usize::MAX).unwrap() {}
        let text = String::from_utf8(chunk.bytes.clone()).unwrap();
        chunk
            .numbers
            .iter()
            .copied()
            .zip(text.lines().map(str::to_owned))
            .collect()
    }

    #[test]
    fn an_array_over_many_lines() {
        let document = "[\n  {\n    \"a\": \"x]\\\"}\"\n  },\n  {\"b\": [1, {}]}\n]\n";
        for block in 1..20 {
            assert_eq!(
                lines(document, block),
                [
                    (2, r#"{     "a": "x]\"}"   }"#.to_owned()),
                    (5, r#"{"b": [1, {}]}"#.to_owned())
                ]
            );
        }
        assert_eq!(lines("[]", 1), []);
        assert_eq!(
            lines("{\n\"a\":1}\n{\n\"b\":2", 3),
            [(1, r#"{ "a":1}"#.to_owned()), (3, r#"{ "b":2"#.to_owned())]
        );
    }

    #[test]
    fn an_answer_of_loki() {
        let document = r#"{"status":"success","data":{"resultType":"streams","result":[
{"stream":{"app":"x","values":"no"},"values":[["17","a \"b\""],["16","c"]]},
{"stream":{"app":"y"},"values":[["15","d",{"k":"v"}]]}],"stats":{"values":1}}}"#;
        // A first line that is not closed makes no document for the sniffer, so join the lines.
        let document = document.replace('\n', "");
        for block in 1..9 {
            let found = lines(&document, block);
            assert_eq!(found.len(), 3);
            assert_eq!(
                found[0].1,
                r#"{"labels":{"app":"x","values":"no"},"timestamp":"17","line":"a \"b\""}"#
            );
            assert_eq!(
                found[2].1,
                r#"{"labels":{"app":"y"},"timestamp":"15","line":"d"}"#
            );
        }
    }

    #[test]
    fn lines_that_stand_for_themselves_are_no_document() {
        assert_eq!(DocKind::of(b"{\"a\":1}\n{\"a\":2}\n"), None);
        assert_eq!(DocKind::of(b"[2024-01-01T00:00:00Z] \"GET /\""), None);
        assert_eq!(DocKind::of(b"[I 2024-01-01 JupyterHub]"), None);
        assert_eq!(DocKind::of(b""), None);
        assert_eq!(DocKind::of(b"  [\n {\"a\":1}]"), Some(DocKind::Objects));
    }

    proptest! {
        #[test]
        fn never_panics_and_blocks_do_not_matter(text in r#"[\[\]{}",:\\ \nabsv]{0,60}"#, block in 1_usize..9) {
            for kind in [DocKind::Objects, DocKind::Loki] {
                let read = |block: usize| {
                    let parts: Vec<Vec<u8>> = text.as_bytes().chunks(block).map(<[u8]>::to_vec).collect();
                    let mut reader = DocReader::new(kind, Box::new(io::empty()));
                    let mut chunk = Chunk::default();
                    for part in parts {
                        reader.take(&part, &mut chunk);
                    }
                    (chunk.bytes, chunk.numbers)
                };
                prop_assert_eq!(read(block), read(1000));
            }
        }
    }
}
