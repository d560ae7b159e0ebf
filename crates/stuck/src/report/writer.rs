//! Writes every episode as it ends: NDJSON for `--all-episodes`, rows for `--csv`.
//!
//! Both go to files that can be emptied again, since a log that turns out to be out of order makes the
//! report begin anew. What is meant for a stream is copied there at the end.

use std::{
    fs::File,
    io::{self, BufWriter, Seek, SeekFrom, Write},
};

use super::json::{EpisodeJson, end_name};
use crate::{stamp::rfc3339, summary::Episode, tracker::EpisodeSink};
use model::stuck::{Class, Ending};

/// The columns of the CSV.
pub const CSV_HEADER: &str =
    "entity,start,last_failure,recovered_at,stuck_seconds,attempts,end,class,reason,file,line";

/// The shape of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One JSON object per line.
    Ndjson,
    /// Rows by RFC 4180, with a header.
    Csv,
}

/// Writes episodes to files.
#[derive(Debug, Default)]
pub struct EpisodeWriter {
    files: Vec<String>,
    outputs: Vec<(Shape, BufWriter<File>)>,
}

impl EpisodeWriter {
    /// A writer of episodes found in these files.
    pub fn new(files: Vec<String>) -> Self {
        Self {
            files,
            outputs: Vec::new(),
        }
    }

    /// Adds a place to write to, which must be a file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&mut self, shape: Shape, file: File) -> io::Result<()> {
        let mut writer = BufWriter::new(file);
        begin(shape, &mut writer)?;
        self.outputs.push((shape, writer));
        Ok(())
    }

    /// Ends writing and gives the files back, at their beginnings.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn finish(self) -> io::Result<Vec<(Shape, File)>> {
        let finish = |(shape, writer): (Shape, BufWriter<File>)| {
            let mut file = writer
                .into_inner()
                .map_err(io::IntoInnerError::into_error)?;
            rewind(&mut file)?;
            Ok((shape, file))
        };
        self.outputs.into_iter().map(finish).collect()
    }
}

fn begin(shape: Shape, writer: &mut impl Write) -> io::Result<()> {
    match shape {
        Shape::Csv => writeln!(writer, "{CSV_HEADER}"),
        Shape::Ndjson => Ok(()),
    }
}

/// Goes to the start of a file; a pipe or a terminal has none, and needs none.
fn rewind(file: &mut File) -> io::Result<()> {
    if file.metadata()?.is_file() {
        file.seek(SeekFrom::Start(0)).map(drop)
    } else {
        Ok(())
    }
}

impl EpisodeSink for EpisodeWriter {
    fn restart(&mut self) -> io::Result<()> {
        for (shape, writer) in &mut self.outputs {
            writer.flush()?;
            let file = writer.get_mut();
            if !file.metadata()?.is_file() {
                let hint = "the log is out of order, so that episodes already written had to be taken back: write them to a file";
                return Err(io::Error::other(hint));
            }
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            begin(*shape, writer)?;
        }
        Ok(())
    }

    fn episode(&mut self, episode: &Episode) -> io::Result<()> {
        for (shape, writer) in &mut self.outputs {
            match shape {
                Shape::Ndjson => {
                    serde_json::to_writer(&mut *writer, &EpisodeJson::new(episode, &self.files))?;
                    writer.write_all(b"\n")?;
                }
                Shape::Csv => csv_row(writer, episode, &self.files)?,
            }
        }
        Ok(())
    }
}

fn csv_row(writer: &mut impl Write, episode: &Episode, files: &[String]) -> io::Result<()> {
    let ended = &episode.ended;
    let recovered_at = match ended.ending {
        Ending::Recovered(at) => rfc3339(at),
        Ending::Abandoned | Ending::Open => String::new(),
    };
    let class = match ended.class() {
        Class::A => "A",
        Class::Middle => "middle",
        Class::B => "B",
    };
    let file = files.get(episode.file).map_or("-", String::as_str);
    writeln!(
        writer,
        "{},{},{},{recovered_at},{},{},{},{class},{},{},{}",
        quoted(&episode.entity),
        rfc3339(ended.run.first_failure),
        rfc3339(ended.run.last_failure),
        ended.stuck().as_secs_f64(),
        ended.run.failures,
        end_name(ended.ending),
        quoted(&episode.reason),
        quoted(file),
        episode.line,
    )
}

/// Quotes a field if it must be; one that a spreadsheet would take for a formula gets an apostrophe.
fn quoted(text: &str) -> String {
    let guarded = if text.starts_with(['=', '+', '-', '@', '\t']) && text != "-" {
        format!("'{text}")
    } else {
        text.to_owned()
    };
    if guarded.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", guarded.replace('"', "\"\""))
    } else {
        guarded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_fields() {
        assert_eq!(quoted("plain"), "plain");
        assert_eq!(quoted("a,\"b\""), "\"a,\"\"b\"\"\"");
        assert_eq!(quoted("=1+1"), "'=1+1");
    }
}
