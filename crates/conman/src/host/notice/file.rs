//! A file: when it appears, the machine is about to be gone. For providers without a module of their own, whose
//! agents can write a file. What is in it may say when: a duration as in `90s`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rustix::fs::inotify;

use super::{Kind, Notice, Seen, Source, SourceError, UNSAID, Urgency};
use crate::fd;

pub(super) struct File {
    path: PathBuf,
    /// Whether it was there when it was looked at last.
    was_there: bool,
    appearances: u32,
}

impl File {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            was_there: false,
            appearances: 0,
        }
    }

    async fn look_now(&mut self) -> Result<Seen, SourceError> {
        let unreachable = |error: std::io::Error| {
            SourceError::Unreachable(format!("{}: {error}", self.path.display()))
        };
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        // Watched before it is looked at: what appears between the two is seen by one of them.
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let watch = || -> std::io::Result<_> {
            let fd = inotify::init(flags)?;
            let events = inotify::WatchFlags::CREATE
                | inotify::WatchFlags::MOVED_TO
                | inotify::WatchFlags::CLOSE_WRITE
                | inotify::WatchFlags::DELETE
                | inotify::WatchFlags::MOVED_FROM
                | inotify::WatchFlags::DELETE_SELF
                | inotify::WatchFlags::MOVE_SELF;
            inotify::add_watch(&fd, directory, events)?;
            fd::watch(fd)
        };
        let news = watch().map_err(unreachable)?;
        match std::fs::read_to_string(&self.path) {
            Ok(text) if !self.was_there => {
                self.was_there = true;
                self.appearances += 1;
                let within = stuck::query::parse_duration(&text);
                return Ok(Seen::Notice(Notice {
                    id: format!("appearance {}", self.appearances),
                    urgency: Urgency::Gone(within.map_or(UNSAID, |within| within.min(LONGEST))),
                }));
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => self.was_there = false,
            Err(error) => return Err(unreachable(error)),
        }
        // What came does not matter: the file is looked at again.
        let _ = news.readable().await.map_err(unreachable)?;
        Ok(Seen::Nothing)
    }
}

/// A notice of days is none.
const LONGEST: Duration = Duration::from_secs(3_600);

impl Source for File {
    fn kind(&self) -> Kind {
        Kind::File
    }

    fn look(&mut self) -> BoxFuture<'_, Result<Seen, SourceError>> {
        self.look_now().boxed()
    }

    fn pace(&self) -> Duration {
        // Bounds a directory in which much happens.
        Duration::from_millis(50)
    }
}
