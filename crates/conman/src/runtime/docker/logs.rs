//! A container's output, from the engine into two files used in turn, as [`model::wire::keeper::LogPlan`] has it.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use futures_util::TryStreamExt;
use http::Method;
use http_body_util::BodyExt;
use model::wire::keeper::LOG_BYTES_MAX;
use tokio_util::io::StreamReader;

use super::stream::next_frame;
use crate::docker::engine::{Engine, EngineError};

/// Writes all of a container's output, from its first byte, until it has ended. What an earlier conman has written is
/// written again: the engine keeps as much as the files do.
pub(super) async fn follow(
    engine: &Engine,
    name: &str,
    files: [PathBuf; 2],
) -> Result<(), EngineError> {
    let broken = |error: io::Error| EngineError::Broken(error.to_string());
    let path = format!("/containers/{name}/logs?follow=1&stdout=1&stderr=1");
    let response = engine.send(Method::GET, &path, None).await?;
    let stream = response.into_body().into_data_stream();
    let mut from = StreamReader::new(stream.map_err(io::Error::other));
    let mut log = Log::new(files).map_err(broken)?;
    let mut content = Vec::new();
    while let Some(_source) = next_frame(&mut from, &mut content).await.map_err(broken)? {
        // The disk may be full: then output is lost, and the program goes on.
        let _ = log.write(&content);
    }
    Ok(())
}

struct Log {
    files: [File; 2],
    growing: usize,
    written: u64,
}

impl Log {
    fn new(paths: [PathBuf; 2]) -> io::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let [first, second] = paths;
        Ok(Self {
            files: [options.open(first)?, options.open(second)?],
            growing: 0,
            written: 0,
        })
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = usize::try_from(LOG_BYTES_MAX - self.written).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.files[self.growing].write_all(now)?;
            self.written += now.len() as u64;
            bytes = later;
            if self.written == LOG_BYTES_MAX {
                self.growing = 1 - self.growing;
                let next = &mut self.files[self.growing];
                next.set_len(0)?;
                io::Seek::rewind(next)?;
                self.written = 0;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_files_are_used_in_turn() {
        let directory = tempfile::tempdir().unwrap();
        let paths = ["0", "1"].map(|name| directory.path().join(name));
        let mut log = Log::new(paths.clone()).unwrap();
        let lengths = || paths.clone().map(|path| path.metadata().unwrap().len());
        log.write(&vec![b'a'; LOG_BYTES_MAX as usize - 1]).unwrap();
        assert_eq!(lengths(), [LOG_BYTES_MAX - 1, 0]);
        log.write(b"bcd").unwrap();
        assert_eq!(lengths(), [LOG_BYTES_MAX, 2]);
        log.write(&vec![b'e'; LOG_BYTES_MAX as usize]).unwrap();
        assert_eq!(lengths(), [2, LOG_BYTES_MAX]);
        assert_eq!(std::fs::read(&paths[0]).unwrap(), b"ee");
    }
}
