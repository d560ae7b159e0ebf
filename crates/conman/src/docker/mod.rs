//! Docker's containers, from beside the engine: what the engine says, and what the kernel says.
//!
//! ```text
//! engine   the Engine API over its Unix socket       what there is, how it is to be restarted, what is cleaned up
//! process  a container's PID 1, held by its pidfd     whose it is, its end
//! shim     whose containers are in the trees          when the engine does not say
//! tree     the cgroup trees                           what is alive when the engine does not answer; what is left
//! ```
//!
//! The engine is asked and told, never trusted with a death: it holds a container's lock through the clean-up of
//! its network. `conman reap` and the docker runtime are built on these three.

pub mod engine;
pub mod process;
pub mod shim;
pub mod tree;

use std::fmt;
use std::str::FromStr;

/// How many characters a container's id has.
const ID_LENGTH: usize = 64;

/// The engine's id of a container: 64 hexadecimal digits, which also name its cgroup.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DockerId(String);

/// A text that is no container's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the id of a container")]
pub struct BadId(String);

impl DockerId {
    /// All of it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As `docker ps` shows it.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl FromStr for DockerId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() == ID_LENGTH && text.bytes().all(is_hex) {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadId(text.to_owned()))
        }
    }
}

impl fmt::Display for DockerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
