//! A container that runs, as conman holds it: the handle of its PID 1, the way to its init, its end.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use model::wire::keeper::WireExit;
use tokio::io::Interest;
use tokio::sync::watch;

use crate::runtime::{Exit, Running, ready};

/// How long a proven death waits for the keeper to say how the program ended.
const EXIT_WORD_MAX: Duration = Duration::from_millis(500);

/// One container that runs or dies.
pub(in crate::runtime) struct Member {
    pub(in crate::runtime) running: Running,
    /// Of its PID 1.
    pub(in crate::runtime) pidfd: Arc<OwnedFd>,
    /// To its init; one way. None where it has no init of ours: others have started it.
    pub(in crate::runtime) control: Option<OwnedFd>,
    /// Whether conman has killed it.
    pub(in crate::runtime) was_killed: AtomicBool,
    /// How its program ended, as soon as the keeper has said it, or can no more.
    pub(in crate::runtime) exit: watch::Sender<Option<Exit>>,
    /// The pid of the keeper that holds it.
    pub(in crate::runtime) keeper: u32,
}

impl Member {
    /// The first word counts: a keeper's `Unknown` never replaces what it said before.
    pub(in crate::runtime) fn exited(&self, exit: Exit) {
        self.exit.send_if_modified(|known| {
            let news = known.is_none();
            if news {
                *known = Some(exit);
            }
            news
        });
    }

    /// How its program ended, as the keeper says it: for one that is dead, at once or never.
    pub(in crate::runtime) async fn said(&self) -> Exit {
        self.said_or_silent().await.unwrap_or(Exit::Unknown)
    }

    /// How its program ended, if the keeper says so or is lost in a moment.
    pub(in crate::runtime) async fn said_or_silent(&self) -> Option<Exit> {
        let mut exit = self.exit.subscribe();
        let said = tokio::time::timeout(EXIT_WORD_MAX, exit.wait_for(Option::is_some)).await;
        match said {
            Ok(Ok(exit)) => *exit,
            _ => None,
        }
    }

    /// Ends when PID 1 is dead.
    pub(in crate::runtime) async fn dead(&self) -> std::io::Result<()> {
        let watched = ready::watch(self.pidfd.clone(), Interest::READABLE)?;
        watched.readable().await?.retain_ready();
        Ok(())
    }

    /// SIGKILL to PID 1, without the keeper. One that is dead already is no error.
    pub(in crate::runtime) fn kill(&self) -> std::io::Result<()> {
        let sent = rustix::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL);
        match sent {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            other => Ok(other?),
        }
    }
}

pub(super) fn exit_of(exit: WireExit) -> Exit {
    match exit {
        WireExit::Code { code } => Exit::Code(code),
        WireExit::Signal { signal } => Exit::Signal(signal),
    }
}
