//! The engine's frames: standard output and error of a program without a terminal, in one stream.
//!
//! Each frame is a head of eight bytes (1 for output or 2 for errors, three zeros, the length in big-endian) and its
//! content.

use tokio::io::{AsyncRead, AsyncReadExt};

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// Standard output.
    Output,
    /// Standard error.
    Errors,
}

/// Reads the next frame; `None` at the end. Not safe to cancel.
pub(super) async fn next_frame(
    from: &mut (impl AsyncRead + Unpin),
    content: &mut Vec<u8>,
) -> std::io::Result<Option<Source>> {
    let mut head = [0; 8];
    match from.read_exact(&mut head).await {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let source = match head[0] {
        2 => Source::Errors,
        _ => Source::Output,
    };
    let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
    content.clear();
    // What is announced is read as it comes: no buffer of a size that somebody else has chosen.
    let read = from.take(length.into()).read_to_end(content).await?;
    Ok((read == length as usize).then_some(source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_are_told_apart_until_the_stream_breaks_off() {
        let bytes = b"\x01\0\0\0\0\0\0\x02hi\x02\0\0\0\0\0\0\x03err\x01\0\0\0\0\0\0\x09cut";
        let mut from = &bytes[..];
        let mut content = Vec::new();
        let first = next_frame(&mut from, &mut content).await.unwrap();
        assert_eq!(
            (first, content.as_slice()),
            (Some(Source::Output), &b"hi"[..])
        );
        let second = next_frame(&mut from, &mut content).await.unwrap();
        assert_eq!(
            (second, content.as_slice()),
            (Some(Source::Errors), &b"err"[..])
        );
        assert_eq!(next_frame(&mut from, &mut content).await.unwrap(), None);
        assert_eq!(next_frame(&mut from, &mut content).await.unwrap(), None);
    }
}
