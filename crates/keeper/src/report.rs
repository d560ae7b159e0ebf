//! What a container's init tells the keeper, on the socket between the two.
//!
//! ```text
//! keeper                      init
//!   │ Go                       │   ids mapped, cgroups joined: go on
//!   │ ◄── Started | Failed     │   the program runs, or why not (then the init ends)
//!   │ ◄── Exited               │   the program has ended, and so does the init
//! ```
//!
//! Each side sees the other's end as end of file. The keeper's end of this socket is also how an init
//! learns that the keeper died before the death signal was armed.

use model::wire::keeper::{KeeperRefusal, WireExit};
use serde::{Deserialize, Serialize};

/// From the init.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromInit {
    /// The program's `execve` succeeded.
    Started,
    /// A step before that failed.
    Failed(KeeperRefusal),
    /// The program ended so.
    Exited(WireExit),
}

/// From the keeper, once.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Go;
