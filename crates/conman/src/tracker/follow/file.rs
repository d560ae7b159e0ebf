//! A file that grows, and is rotated or truncated now and then.
//!
//! ```text
//!            more lines                        end of file
//!   Reading ────────────► send them   Reading ────────────► is the path another file by now?
//!      ▲                                          │ no: wait for the directory to change
//!      └──── the next file, from its start ◄──────┘ yes, and it has something: read this one out
//! ```
//!
//! A line counts when its line break is there: half a line is read again with its other half. Rotation by renaming
//! is followed through every file in between, also when it happened while nobody was reading: the place names the
//! file by its number, and by its first bytes, since numbers are used again. A file that is shorter than what was
//! read of it, or begins otherwise, was truncated and is read from its start.

use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use model::stuck::LogTime;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::fs::inotify;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use stuck::entities::hash;
use stuck::source::{LINE_BYTES_MAX, read_full_at};

use super::super::owner::Message;
use super::{BLOCK_BYTES, Feeder, Gone, rest};

/// How much of a file's beginning tells it from another one.
const HEAD_BYTES: u64 = 256;
/// Where directories do not say that they change (on some networks), it is looked this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What comes within so long is read together: each reading costs a transaction, and a busy gateway writes
/// hundreds of lines a second.
const GATHER: Duration = Duration::from_millis(100);

/// Up to where a file was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    device: u64,
    inode: u64,
    offset: u64,
    /// The hash of the first bytes, of so many.
    head: (u64, u64),
}

struct Open {
    file: File,
    place: Place,
}

impl Open {
    fn start(file: File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let place = Place {
            device: metadata.dev(),
            inode: metadata.ino(),
            ..Place::default()
        };
        Ok(Self { file, place })
    }

    /// Whether this is the file that the place is in.
    fn is_of(file: &File, place: &Place) -> io::Result<bool> {
        let metadata = file.metadata()?;
        let is_same = (metadata.dev(), metadata.ino()) == (place.device, place.inode);
        Ok(is_same && metadata.len() >= place.offset && head(file, place.head.1)? == place.head.0)
    }

    /// Whether what was read of it is no longer there.
    fn was_truncated(&self) -> io::Result<bool> {
        Ok(!Self::is_of(&self.file, &self.place)?)
    }
}

/// The hash of the first bytes of a file.
fn head(file: &File, length: u64) -> io::Result<u64> {
    if length == 0 {
        return Ok(0);
    }
    let mut bytes = vec![0; length as usize];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => Ok(hash(&bytes)),
        // It has become shorter than that.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
        Err(error) => Err(error),
    }
}

/// Why a follower looks again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Woken {
    /// The log was written, or rotated.
    ByTheLog,
    /// Nothing was heard of it.
    ByTime,
}

/// Follows one path.
pub(super) struct Follower {
    path: PathBuf,
    directory: PathBuf,
    name: OsString,
    /// What the directory says; none where there are too many to ask.
    changes: Option<OwnedFd>,
    feeder: Feeder,
    open: Option<Open>,
    /// Where an earlier process stopped, until the file is found.
    place: Option<Place>,
    /// Whether there is no more to come once the file is removed.
    ends_when_removed: bool,
}

impl Follower {
    /// Follows a path, going on at a place. The file need not be there yet, but its directory must.
    pub(super) fn open(path: PathBuf, place: Option<&str>, feeder: Feeder) -> anyhow::Result<Self> {
        let name = path.file_name().map(OsString::from);
        let name = name.ok_or_else(|| anyhow::anyhow!("{} names no file", path.display()))?;
        let directory = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new(".")).to_owned();
        let changes = watch(&directory)
            .map_err(|error| anyhow::anyhow!("watch {}: {error}", directory.display()))?;
        Ok(Self {
            path,
            directory,
            name,
            changes,
            feeder,
            open: None,
            place: place.map(serde_json::from_str).transpose()?,
            ends_when_removed: false,
        })
    }

    /// The same, but it ends with its file.
    pub(super) fn ending_when_removed(self) -> Self {
        Self {
            ends_when_removed: true,
            ..self
        }
    }

    /// Follows it until the tracker ends.
    pub(super) fn run(mut self) {
        let mut is_lost = false;
        loop {
            let message = match self.read() {
                Ok(Ok(())) => Message::CaughtUp,
                Ok(Err(Gone)) => return,
                Err(error) => Message::Lost(format!("{}: {error}", self.path.display())),
            };
            // Said once, not every second.
            let is_said = is_lost && matches!(message, Message::Lost(_));
            is_lost = matches!(message, Message::Lost(_));
            if !is_said && self.feeder.sender.send(message).is_err() {
                return;
            }
            if self.ends_when_removed && self.was_removed() {
                // It is over either way.
                let _ = self.feeder.sender.send(Message::Ended);
                return;
            }
            if self.wait(LOOK_EVERY) == Woken::ByTheLog {
                rest(GATHER);
            }
        }
    }

    /// Whether the file has no name any more, nor has another one its path.
    fn was_removed(&self) -> bool {
        let is_nameless = self.open.as_ref().is_none_or(|open| {
            let metadata = open.file.metadata();
            metadata.is_ok_and(|metadata| metadata.nlink() == 0)
        });
        is_nameless && matches!(opened(&self.path), Ok(None))
    }

    /// Returns when the log has changed, or after so long.
    fn wait(&self, patience: Duration) -> Woken {
        let until = Instant::now() + patience;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Woken::ByTime;
            }
            let left = Timespec {
                tv_sec: left.as_secs().cast_signed(),
                tv_nsec: left.subsec_nanos().into(),
            };
            let asked = self.changes.as_ref();
            let mut ready: Vec<_> = asked
                .map(|changes| PollFd::new(changes, PollFlags::IN))
                .into_iter()
                .collect();
            // Whatever else ends it early, a signal say, it is asked again.
            let _ = poll(&mut ready, Some(&left));
            if self.has_changed() {
                return Woken::ByTheLog;
            }
        }
    }

    /// Takes what the directory has to say. Others write in it too, the tracker's own database among them: who woke
    /// for that, and wrote for having woken, would never rest.
    fn has_changed(&self) -> bool {
        let Some(changes) = &self.changes else {
            return false;
        };
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(changes, &mut buffer);
        let mut is_about_the_log = false;
        // It ends with an error, that there is no more.
        while let Ok(event) = events.next() {
            // One without a name is about the directory, or says that some were lost. What was rotated away begins
            // with the name.
            is_about_the_log |= event
                .file_name()
                .is_none_or(|name| name.to_bytes().starts_with(self.name.as_encoded_bytes()));
        }
        is_about_the_log
    }

    /// Reads all that there is now.
    fn read(&mut self) -> io::Result<Result<(), Gone>> {
        loop {
            if self.open.is_none() {
                let Some(found) = self.find()? else {
                    return Ok(Ok(()));
                };
                self.open = Some(found);
            }
            if let Err(gone) = self.read_out(false)? {
                return Ok(Err(gone));
            }
            let Some(next) = self.next()? else {
                return Ok(Ok(()));
            };
            // Whoever writes has gone on to the next file, so that this one is complete, also its last line.
            if let Err(gone) = self.read_out(true)? {
                return Ok(Err(gone));
            }
            tracing::info!(path = %self.path.display(), "the log was rotated");
            self.open = Some(Open::start(next)?);
        }
    }

    /// The file to begin with: the one that was being read, wherever it is by now, or the one at the path.
    fn find(&mut self) -> io::Result<Option<Open>> {
        if let Some(place) = self.place.take() {
            for (path, _) in self.siblings()?.into_iter().chain([(self.path.clone(), 0)]) {
                let Some(file) = opened(&path)? else {
                    continue;
                };
                if Open::is_of(&file, &place)? {
                    return Ok(Some(Open { file, place }));
                }
            }
            let (path, offset) = (self.path.display(), place.offset);
            tracing::warn!(
                %path, offset,
                "the file that was being read is gone: what it had after this many bytes is not counted"
            );
        }
        let Some(file) = opened(&self.path)? else {
            return Ok(None);
        };
        refuse_packed(&file)?;
        Open::start(file).map(Some)
    }

    /// Files that were rotated away from this path, `NAME.1` or `NAME-20260101`, those changed last coming last.
    fn siblings(&self) -> io::Result<Vec<(PathBuf, i128)>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            let entry = entry?;
            let (name, own) = (entry.file_name(), self.name.as_encoded_bytes());
            let rest = name.as_encoded_bytes().strip_prefix(own);
            if rest.is_some_and(is_rotated)
                && let Ok(metadata) = entry.metadata()
            {
                found.push((entry.path(), changed(&metadata)));
            }
        }
        found.sort_by_key(|(_, changed)| *changed);
        Ok(found)
    }

    /// The file that comes after the open one, once something is written in it.
    fn next(&self) -> io::Result<Option<File>> {
        let Some(open) = &self.open else {
            return Ok(None);
        };
        let at_path = opened(&self.path)?;
        let mut is_other = false;
        if let Some(file) = &at_path {
            let metadata = file.metadata()?;
            is_other = (metadata.dev(), metadata.ino()) != (open.place.device, open.place.inode)
                && metadata.len() > 0;
        }
        if !is_other {
            return Ok(None);
        }
        // The path may have been rotated more than once since.
        let own = changed(&open.file.metadata()?);
        for (path, changed) in self.siblings()? {
            let Some(file) = opened(&path)? else {
                continue;
            };
            let is_own = file.metadata()?.ino() == open.place.inode;
            if !is_own && changed > own {
                return Ok(Some(file));
            }
        }
        Ok(at_path)
    }

    /// Reads the open file to its end; with `is_complete` also a last line that has no break.
    fn read_out(&mut self, is_complete: bool) -> io::Result<Result<(), Gone>> {
        let Some(open) = &mut self.open else {
            return Ok(Ok(()));
        };
        if open.was_truncated()? {
            tracing::info!(path = %self.path.display(), "the log was truncated");
            open.place = Place {
                offset: 0,
                head: (0, 0),
                ..open.place
            };
        }
        let mut size = BLOCK_BYTES;
        loop {
            let mut bytes = vec![0; size];
            let count = read_full_at(&open.file, &mut bytes, open.place.offset)?;
            bytes.truncate(count);
            let is_end = count < size;
            let last = memchr::memrchr(b'\n', &bytes).map(|last| last + 1);
            let whole = match last {
                Some(_) if is_complete && is_end => count,
                Some(last) => last,
                None if is_complete && is_end => count,
                None if count > LINE_BYTES_MAX => count,
                None if is_end => 0,
                None => {
                    size *= 2;
                    continue;
                }
            };
            bytes.truncate(whole);
            if whole == 0 {
                return Ok(Ok(()));
            }
            let place = &mut open.place;
            place.offset += whole as u64;
            if place.head.1 < HEAD_BYTES {
                let length = place.offset.min(HEAD_BYTES);
                place.head = (head(&open.file, length)?, length);
            }
            let modified = LogTime(i64::try_from(changed(&open.file.metadata()?)).unwrap_or(0));
            if let Err(gone) = self.feeder.feed(bytes, modified, place) {
                return Ok(Err(gone));
            }
            size = BLOCK_BYTES;
        }
    }
}

/// Whether a name that goes on so after a log's own is that of a file which was rotated away from it.
pub(super) fn is_rotated(rest: &[u8]) -> bool {
    matches!(rest, [b'.' | b'-', digits @ ..]
        if !digits.is_empty() && digits.iter().all(|byte| byte.is_ascii_digit() || *byte == b'-'))
}

/// What a directory says of its changes; none when no more of them can be asked.
fn watch(directory: &Path) -> rustix::io::Result<Option<OwnedFd>> {
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let changes = match inotify::init(flags) {
        // A user may have 128 of these. Who is not told looks.
        Err(Errno::MFILE) => return Ok(None),
        made => made?,
    };
    match inotify::add_watch(&changes, directory, CHANGES) {
        Err(Errno::NOSPC) => Ok(None),
        watched => watched.map(|_| Some(changes)),
    }
}

/// Everything that can mean more lines, or another file.
const CHANGES: inotify::WatchFlags = inotify::WatchFlags::MODIFY
    .union(inotify::WatchFlags::CREATE)
    .union(inotify::WatchFlags::MOVED_TO)
    .union(inotify::WatchFlags::MOVED_FROM)
    .union(inotify::WatchFlags::CLOSE_WRITE);

/// When a file was last written, in nanoseconds.
fn changed(metadata: &Metadata) -> i128 {
    i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec())
}

/// Opens a file, if it is there.
fn opened(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn refuse_packed(file: &File) -> io::Result<()> {
    let mut magic = [0; 4];
    let count = read_full_at(file, &mut magic, 0)?;
    if matches!(&magic[..count], [0x1F, 0x8B, ..] | [0x28, 0xB5, 0x2F, 0xFD]) {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "is packed, and does not grow: `conman stuck report` reads it",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::mpsc::sync_channel;

    use stuck::live::Audience;

    use super::super::{Sender, Source, SourceKind};
    use super::*;

    fn follower(path: &Path) -> Follower {
        let source = Source {
            name: "the log".to_owned(),
            audience: Audience::User,
            kind: SourceKind::File(path.to_owned()),
            query: std::sync::Arc::default(),
        };
        let (channel, _) = sync_channel(1);
        let feeder = Feeder::resume(&source, None, Sender::new(0, channel)).unwrap();
        Follower::open(path.to_owned(), None, feeder).unwrap()
    }

    #[test]
    fn only_the_log_wakes_its_follower() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sessions.ndjson");
        let follower = follower(&path);
        for other in ["stuck.db", "stuck.db-wal", "session"] {
            std::fs::write(directory.path().join(other), "something").unwrap();
        }
        assert!(!follower.has_changed());
        assert_eq!(follower.wait(Duration::from_millis(1)), Woken::ByTime);

        let mut log = File::create(&path).unwrap();
        assert_eq!(follower.wait(Duration::from_secs(60)), Woken::ByTheLog);
        assert!(!follower.has_changed(), "it is said once");
        writeln!(log, "a line").unwrap();
        assert!(follower.has_changed());
        std::fs::rename(&path, directory.path().join("sessions.ndjson.1")).unwrap();
        assert!(follower.has_changed());
    }
}
