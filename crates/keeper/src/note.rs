//! The keeper's few lines to stderr: one JSON object each.

use rustix::event::{PollFd, PollFlags, Timespec};
use serde_json::{Value, json};

/// How much a line matters.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Level {
    /// For the record.
    Info,
    /// Something is not as it should be.
    Warn,
}

/// Writes a line, or loses it: a reader that does not read must not hold the keeper. Times are left to the reader;
/// `boot_ns` orders the lines.
pub(crate) fn note(level: Level, event: &str, details: Value) {
    let stderr = rustix::stdio::stderr();
    let mut poll = [PollFd::new(&stderr, PollFlags::OUT)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    match rustix::event::poll(&mut poll, Some(&now)) {
        Ok(ready) if ready > 0 => {}
        _ => return,
    }
    let level = match level {
        Level::Info => "info",
        Level::Warn => "warn",
    };
    let mut line = json!({
        "level": level,
        "target": "keeper",
        "boot_ns": crate::clock::boot_now().0,
        "event": event,
    });
    if let (Value::Object(line), Value::Object(details)) = (&mut line, details) {
        line.extend(details);
    }
    let mut text = line.to_string();
    text.push('\n');
    // A writable pipe takes this much at once.
    let bytes = text.as_bytes();
    let _ = rustix::io::write(stderr, &bytes[..bytes.len().min(4_096)]);
}
