//! The signs of life of a fleet's conmans: to them, the supervisor is what systemd is to a node of its own.
//!
//! ```text
//! first word ─► listening ──word──► listening
//!                  ├──no word for a patience──► silent ─► killed, started again
//!                  └──"WATCHDOG=trigger"──────► says that it hangs ─┘
//! ```
//!
//! Its containers are the keeper's, and live on if the next one is there before the deadline.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use keeper::manager::Word;
use tokio::net::UnixDatagram;
use tokio::process::Command;

/// How long a conman may give no sign of life. One whose watchdog still looks says sooner that it hangs.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// The longest word that counts. Of a longer one, the beginning is read.
const WORD_BYTES_MAX: usize = 64;

/// Why a conman has to be started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Hangs {
    /// It says nothing any more.
    #[error("gives no sign of life")]
    Silent,
    /// Its watchdog says so.
    #[error("says that it hangs")]
    Says,
}

/// Where one conman's signs arrive.
#[derive(Debug)]
pub(super) struct Signs {
    socket: UnixDatagram,
    path: PathBuf,
    patience: Duration,
}

impl Signs {
    /// Listens at this path, which an earlier process of the same host may have had.
    pub(super) fn listen(path: &Path) -> io::Result<Self> {
        Self::listen_for(path, SILENCE_MAX)
    }

    fn listen_for(path: &Path, patience: Duration) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        Ok(Self {
            socket: UnixDatagram::bind(path)?,
            path: path.to_owned(),
            patience,
        })
    }

    /// Has what this command starts give its signs here.
    pub(super) fn expect_of(&self, command: &mut Command) {
        command.env("NOTIFY_SOCKET", &self.path);
        let patience = self.patience.as_micros().to_string();
        command.env("WATCHDOG_USEC", patience);
    }

    /// Ends when they say that the process hangs, or fail to come. Also of a process that has ended.
    pub(super) async fn fail(self) -> Hangs {
        let mut word = [0; WORD_BYTES_MAX];
        // Until it is ready, whoever waits for that has a patience of its own.
        let mut heard = self.socket.recv(&mut word).await;
        loop {
            match heard {
                Ok(length) if word[..length] == *Word::Hangs.text().as_bytes() => {
                    return Hangs::Says;
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "hear a sign of life"),
            }
            let next = tokio::time::timeout(self.patience, self.socket.recv(&mut word));
            heard = match next.await {
                Ok(heard) => heard,
                Err(_) => return Hangs::Silent,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use keeper::manager::Manager;

    use super::*;

    #[tokio::test]
    async fn silence_counts_from_the_first_word_and_a_word_can_end_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("signs");
        let patience = Duration::from_millis(50);
        let signs = Signs::listen_for(&path, patience).unwrap();
        let early = tokio::time::timeout(patience * 3, signs.socket.readable());
        assert!(early.await.is_err());
        let manager = Manager::at(path.as_os_str(), Some(patience)).unwrap();
        manager.tell(&Word::Ready);
        assert_eq!(signs.fail().await, Hangs::Silent);

        // As a second process of the same host.
        let signs = Signs::listen_for(&path, Duration::from_secs(60)).unwrap();
        let manager = Manager::at(path.as_os_str(), Some(patience)).unwrap();
        for word in [Word::Ready, Word::Alive, Word::Hangs] {
            manager.tell(&word);
        }
        assert_eq!(signs.fail().await, Hangs::Says);
    }
}
