//! Standard input: what can be read once. Lines that a tracker had taken when it was killed are counted or lost with
//! it; nobody can bring them back, so whoever needs them counted writes them to a file.

use std::io::Read;

use super::super::owner::Message;
use super::{BLOCK_BYTES, Feeder, Gone, now};

/// Reads to the end.
pub(super) fn run(mut feeder: Feeder) {
    // The tracker's end is the only failure that is not told to it.
    let _ = read_all(&mut feeder, &mut std::io::stdin().lock());
}

fn read_all(feeder: &mut Feeder, from: &mut impl Read) -> Result<(), Gone> {
    let mut pending = Vec::new();
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        match from.read(&mut block) {
            Ok(0) => break,
            Ok(count) => {
                pending.extend_from_slice(&block[..count]);
                if let Some(last) = memchr::memrchr(b'\n', &pending) {
                    let rest = pending.split_off(last + 1);
                    let whole = std::mem::replace(&mut pending, rest);
                    feeder.feed(whole, now(), &())?;
                }
                // More may come at once; if it does not, there is nothing else to wait for.
                feeder.sender.send(Message::CaughtUp)?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return feeder.sender.send(Message::Lost(error.to_string())),
        }
    }
    if !pending.is_empty() {
        feeder.feed(pending, now(), &())?;
    }
    feeder.sender.send(Message::Ended)
}
