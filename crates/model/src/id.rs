//! Typed identifiers. Each is validated once, where it enters, and cannot be mixed up afterwards.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a name was refused as a [`ReplId`] or [`HostId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name is empty.
    #[error("a name must not be empty")]
    Empty,
    /// The name has more than [`NAME_LENGTH_MAX`] bytes.
    #[error("a name has at most {NAME_LENGTH_MAX} characters, this one has {0}")]
    TooLong(usize),
    /// The name has a character outside `a-z0-9-`.
    #[error("a name has only a-z, 0-9 and '-', not {0:?}")]
    BadCharacter(char),
    /// The name starts or ends with a hyphen.
    #[error("a name starts and ends with a letter or a digit")]
    BadEdge,
}

/// The longest name, in bytes. A repl is a DNS label (63 bytes) and shares it with a `<port>-` prefix
/// (6 bytes); the rest is room for suffixes in file and cgroup names.
pub const NAME_LENGTH_MAX: usize = 50;

fn check_name(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if let Some(bad) = name
        .chars()
        .find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-'))
    {
        return Err(NameError::BadCharacter(bad));
    }
    if name.len() > NAME_LENGTH_MAX {
        return Err(NameError::TooLong(name.len()));
    }
    if name.starts_with('-') || name.ends_with('-') {
        return Err(NameError::BadEdge);
    }
    Ok(())
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(name: &str) -> Result<Self, NameError> {
                check_name(name)?;
                Ok(Self(name.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(name: String) -> Result<Self, NameError> {
                check_name(&name)?;
                Ok(Self(name))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type! {
    /// The name of a repl: a DNS label of at most [`NAME_LENGTH_MAX`] bytes, for it is also a host name.
    ReplId
}

name_type! {
    /// The name of a host of the fleet, by the same rules as a [`ReplId`].
    HostId
}

/// A revision of the store: rises by one with every committed transaction that writes. Zero means
/// "the key is absent" where a key's create or mod revision is compared.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl Revision {
    /// The create and mod revision of a key that does not exist.
    pub const ABSENT: Revision = Revision(0);
}

/// The store revision at which a repl was claimed: rises with every owner. The fencing token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// One registration of a host: the create revision of its key. Ends for good when the key is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

macro_rules! display_number {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

display_number!(Revision, Epoch, Incarnation);

/// One container for good: a repl at one epoch. No two containers ever share it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContainerId {
    /// Whose container.
    pub repl: ReplId,
    /// Which owner's.
    pub epoch: Epoch,
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.repl, self.epoch)
    }
}

/// Names one caller that waits for an answer. Drawn by the driver, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);
