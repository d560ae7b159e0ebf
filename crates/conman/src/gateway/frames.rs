//! WebSockets of repls' own servers: whatever becomes of the container, its user gets whole frames only, and then a close
//! frame.
//!
//! A frame is passed on when all of it is there. One that is too long for that is passed on as the fragments of its message
//! that RFC 6455 (5.4) allows between any two of its bytes; a control frame may come between fragments. So there
//! is no point at which the container can end and leave its user within a frame.
//!
//! The other direction is not looked at: what a container that ended has not read is lost in any case.

use std::cell::RefCell;
use std::pin::{Pin, pin};
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

/// The longest frame that is waited for; longer ones are passed on in fragments.
const HELD_MAX: usize = 16 << 10;
/// What is read at once.
const READ_BYTES: usize = 16 << 10;
/// How long a user has for closing its side: what it sends until then is read, for a connection that is closed with something
/// unread may lose what was written to it.
const CLOSING_MAX: Duration = Duration::from_secs(1);

const FIN: u8 = 0x80;
const OPCODE: u8 = 0x0f;
const CLOSE: u8 = 0x8;
const FIRST_CONTROL: u8 = 0x8;
const MASKED: u8 = 0x80;
/// A close frame with 1012, Service Restart: the container is gone, and another takes its place.
const SERVICE_RESTART: [u8; 4] = [FIN | CLOSE, 2, 0x03, 0xf4];

/// A frame that is passed on in fragments.
#[derive(Debug)]
struct Long {
    /// Its first byte: FIN, the reserved bits, the opcode.
    first: u8,
    left: u64,
    is_begun: bool,
}

/// Where a container is in what it sends.
#[derive(Debug, Default)]
struct Frames {
    long: Option<Long>,
    /// It has sent a close frame: how the session ends is said.
    is_closed: bool,
    /// Its frames are masked, as a server's must not be: passed on as it comes.
    is_foreign: bool,
}

impl Frames {
    /// Moves what may be passed on from what was read to what is written.
    fn pass(&mut self, read: &mut BytesMut, written: &mut BytesMut) {
        while !self.is_foreign {
            if let Some(long) = &mut self.long {
                if read.is_empty() {
                    return;
                }
                let length = read
                    .len()
                    .min(usize::try_from(long.left).unwrap_or(usize::MAX));
                long.left -= length as u64;
                let fin = if long.left == 0 { long.first & FIN } else { 0 };
                let rest = if long.is_begun { 0 } else { long.first & !FIN };
                long.is_begun = true;
                put_header(written, fin | rest, length);
                written.put(read.split_to(length));
                if long.left == 0 {
                    self.long = None;
                }
                continue;
            }
            let Some((header, payload)) = header(read) else {
                return;
            };
            let (first, is_masked) = (read[0], read[1] & MASKED != 0);
            let is_control = first & OPCODE >= FIRST_CONTROL;
            if is_masked {
                self.is_foreign = true;
            } else if payload > HELD_MAX as u64 && !is_control {
                read.advance(header);
                self.long = Some(Long {
                    first,
                    left: payload,
                    is_begun: false,
                });
            } else if (read.len() - header) as u64 >= payload {
                self.is_closed |= first & OPCODE == CLOSE;
                // Not longer than what is there.
                written.put(read.split_to(header + payload as usize));
            } else {
                return;
            }
        }
        written.put(read.split());
    }

    /// What is to be written when the container has ended.
    fn end(&self) -> &'static [u8] {
        if self.is_closed || self.is_foreign {
            &[]
        } else {
            &SERVICE_RESTART
        }
    }
}

/// How long the header is and how long the payload, if the header is there whole.
fn header(read: &[u8]) -> Option<(usize, u64)> {
    match *read {
        [_, second, a, b, ..] if second & !MASKED == 126 => {
            Some((4, u16::from_be_bytes([a, b]).into()))
        }
        [_, second, a, b, c, d, e, f, g, h, ..] if second & !MASKED == 127 => {
            Some((10, u64::from_be_bytes([a, b, c, d, e, f, g, h])))
        }
        [_, second, ..] if second & !MASKED < 126 => Some((2, (second & !MASKED).into())),
        _ => None,
    }
}

fn put_header(written: &mut BytesMut, first: u8, length: usize) {
    written.put_u8(first);
    match length {
        0..126 => written.put_u8(length as u8),
        126..0x1_0000 => {
            written.put_u8(126);
            written.put_u16(length as u16);
        }
        _ => {
            written.put_u8(127);
            written.put_u64(length as u64);
        }
    }
}

/// Both ways, until both sides have ended, or the container's has, or `is_lost` says that it must have.
pub(super) async fn join<C, S>(client: C, container: S, is_lost: impl Future<Output = ()>)
where
    C: AsyncRead + AsyncWrite,
    S: AsyncRead + AsyncWrite,
{
    let (mut client_reader, mut client_writer) = tokio::io::split(client);
    let (container_reader, mut container_writer) = tokio::io::split(container);
    {
        let down = pass_on(container_reader, &mut client_writer, is_lost);
        let up = async {
            loop {
                let mut sent = BytesMut::new();
                match read_some(&mut client_reader, &mut sent).await {
                    Err(_) => return,
                    Ok(0) => {
                        let _ = container_writer.shutdown().await;
                        break;
                    }
                    Ok(_) => {}
                }
                // That a container takes nothing any more is told by what it sends, or by its end.
                if container_writer.write_all_buf(&mut sent).await.is_err() {
                    break;
                }
            }
            std::future::pending().await
        };
        tokio::select! {
            is_written = down => if is_written.is_err() {
                return;
            },
            // The user's connection broke.
            () = up => return,
        }
    }
    if client_writer.shutdown().await.is_ok() {
        let mut nobody = tokio::io::sink();
        let rest = tokio::io::copy(&mut client_reader, &mut nobody);
        let _ = tokio::time::timeout(CLOSING_MAX, rest).await;
    }
}

thread_local! {
    /// Most sessions say nothing most of the time: while they wait they have no buffer, and those of a thread share this one for the
    /// moment in which there is something to read.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
}

/// Reads what is there, when there is something, behind what was read before; 0 at the end.
async fn read_some(
    reader: &mut (impl AsyncRead + Unpin),
    read: &mut BytesMut,
) -> std::io::Result<usize> {
    std::future::poll_fn(|context| {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            ready!(Pin::new(&mut *reader).poll_read(context, &mut buffer))?;
            read.extend_from_slice(buffer.filled());
            Poll::Ready(Ok(buffer.filled().len()))
        })
    })
    .await
}

/// From the container to the user, until the container's end. An error is the user's.
async fn pass_on(
    mut container: impl AsyncRead + Unpin,
    client: &mut (impl AsyncWrite + Unpin),
    is_lost: impl Future<Output = ()>,
) -> std::io::Result<()> {
    let mut is_lost = pin!(is_lost);
    let (mut frames, mut read) = (Frames::default(), BytesMut::new());
    loop {
        let length = tokio::select! {
            // A connection that broke has ended too.
            length = read_some(&mut container, &mut read) => length.unwrap_or(0),
            () = &mut is_lost => 0,
        };
        if length == 0 {
            return client.write_all(frames.end()).await;
        }
        let mut written = BytesMut::new();
        frames.pass(&mut read, &mut written);
        if read.is_empty() {
            read = BytesMut::new();
        }
        client.write_all_buf(&mut written).await?;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut made = BytesMut::new();
        put_header(&mut made, first, payload.len());
        made.put(payload);
        made.to_vec()
    }

    /// A first byte, and all of what follows it.
    type Whole = (u8, Vec<u8>);

    /// The messages and control frames in a text of whole frames; panics if one is cut.
    fn messages(mut text: &[u8]) -> Vec<Whole> {
        let (mut found, mut open): (Vec<Whole>, Option<Whole>) = (vec![], None);
        while !text.is_empty() {
            let (header, payload) = header(text).expect("a header is cut");
            let end = header + payload as usize;
            assert!(text.len() >= end, "a frame is cut");
            let (first, payload) = (text[0], &text[header..end]);
            if first & OPCODE >= FIRST_CONTROL {
                found.push((first, payload.to_vec()));
            } else {
                let (_, whole) = open.get_or_insert_with(|| (first & !FIN, vec![]));
                whole.extend(payload);
                if first & FIN != 0 {
                    found.extend(open.take());
                }
            }
            text = &text[end..];
        }
        assert_eq!(open, None, "a message is cut");
        found
    }

    fn passed(frames: &mut Frames, read: &mut BytesMut, chunk: &[u8]) -> Vec<u8> {
        let mut written = BytesMut::new();
        read.put(chunk);
        frames.pass(read, &mut written);
        written.to_vec()
    }

    proptest! {
        /// However it comes, what is passed on is whole frames at every moment, and the same messages at the end.
        #[test]
        fn frames_are_passed_on_whole(
            lengths in prop::collection::vec((0_usize..40_000, any::<bool>(), 0_u8..3), 1..8),
            chunk in 1_usize..20_000,
        ) {
            let mut text = vec![];
            for (length, is_first_part, reserved) in lengths {
                let payload: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
                let reserved = reserved << 5;
                if is_first_part {
                    text.extend(frame(reserved | 1, &payload));
                    text.extend(frame(FIN | 0x9, b"ping"));
                    text.extend(frame(FIN, &payload));
                } else {
                    text.extend(frame(FIN | reserved | 2, &payload));
                }
            }
            let (mut frames, mut read, mut all) = (Frames::default(), BytesMut::new(), vec![]);
            for chunk in text.chunks(chunk) {
                let written = passed(&mut frames, &mut read, chunk);
                let mut rest = written.as_slice();
                while !rest.is_empty() {
                    let (header, payload) = header(rest).unwrap();
                    prop_assert!(rest.len() >= header + payload as usize);
                    rest = &rest[header + payload as usize..];
                }
                all.extend(written);
            }
            prop_assert_eq!(frames.end(), SERVICE_RESTART);
            // Order among a message's fragments and the pings between them is kept as well.
            prop_assert_eq!(messages(&all), messages(&text));
        }
    }

    #[test]
    fn who_has_closed_is_not_closed_again() {
        let (mut frames, mut read) = (Frames::default(), BytesMut::new());
        let close = frame(FIN | CLOSE, &1000_u16.to_be_bytes());
        assert_eq!(passed(&mut frames, &mut read, &close), close);
        assert_eq!(frames.end(), [0_u8; 0]);
    }

    #[test]
    fn what_no_server_may_send_is_left_alone() {
        let (mut frames, mut read) = (Frames::default(), BytesMut::new());
        let masked = [FIN | 1, MASKED | 1, 1, 2, 3, 4, 5];
        assert_eq!(passed(&mut frames, &mut read, &masked), masked);
        assert_eq!(passed(&mut frames, &mut read, &[1]), [1]);
        assert_eq!(frames.end(), [0_u8; 0]);
    }
}
