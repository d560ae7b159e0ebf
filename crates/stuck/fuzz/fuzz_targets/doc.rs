//! JSON documents: no panic, and how the bytes come in blocks does not matter.
#![no_main]

use std::io::{Cursor, Read};

use libfuzzer_sys::fuzz_target;
use stuck::{
    doc::{DocKind, DocReader},
    source::Chunk,
};

struct Slowly(Cursor<Vec<u8>>, usize);

impl Read for Slowly {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = buffer.len().min(self.1);
        self.0.read(&mut buffer[..length])
    }
}

fuzz_target!(|bytes: &[u8]| {
    let _ = DocKind::of(bytes);
    for kind in [DocKind::Objects, DocKind::Loki] {
        let lines = |block: usize| {
            let mut reader =
                DocReader::new(kind, Box::new(Slowly(Cursor::new(bytes.to_vec()), block)));
            let mut chunk = Chunk::default();
            while reader
                .fill(&mut chunk, usize::MAX)
                .expect("memory can be read")
            {}
            (chunk.bytes, chunk.numbers)
        };
        let whole = lines(usize::MAX);
        assert_eq!(
            whole.0.iter().filter(|byte| **byte == b'\n').count(),
            whole.1.len()
        );
        assert_eq!(whole, lines(1 + bytes.len() % 7));
    }
});
