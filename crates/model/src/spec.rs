//! What a user asks for: the spec of a repl, and the limits that a spec must keep.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The spec of a repl, as it is stored under `/s/<repl>` and given to `PUT /v1/repls/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Where the root file system comes from.
    #[serde(default)]
    pub image: Image,
    /// The program and its arguments. Looked up in the container's `PATH`.
    pub command: Vec<String>,
    /// Environment variables, on top of `PATH`, `HOME`, `TERM`, `PORT`, `REPL`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// The port that sessions go to; `None` for a repl that serves nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Limits of the whole container.
    #[serde(default)]
    pub limits: Limits,
    /// Destroy the container when it had no session for so long; `None` keeps it until it ends itself.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        rename = "idle_timeout_seconds"
    )]
    pub idle_timeout_seconds: Option<u64>,
    /// Who may open sessions, where gateways ask for tokens.
    #[serde(default, skip_serializing_if = "Visibility::is_private")]
    pub visibility: Visibility,
}

/// Who may open sessions to a repl.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Visibility {
    /// Whoever shows a token for it.
    #[default]
    Private,
    /// Everybody.
    Public,
}

impl Visibility {
    // Serde gives a reference.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    fn is_private(&self) -> bool {
        *self == Visibility::Private
    }
}

/// Limits of one container. The defaults fit 200 containers on a common machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Memory, in bytes, the page cache of its files included.
    pub memory_bytes: u64,
    /// CPU time per time, in thousandths of one CPU; `None` for no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u32>,
    /// Processes and threads.
    pub pids: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 512 * 1024 * 1024,
            cpu_millis: None,
            pids: 512,
        }
    }
}

/// Where a container's root file system comes from. In text: `host`, `dir:/absolute/path` or `docker:reference`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Image {
    /// The machine's own tools, read-only, with a private `/etc`.
    #[default]
    Host,
    /// A directory that holds a root file system.
    Directory(String),
    /// An image of Docker's, as `docker pull` names it.
    Docker(String),
}

impl TryFrom<String> for Image {
    type Error = SpecError;

    fn try_from(text: String) -> Result<Self, SpecError> {
        if text == "host" {
            return Ok(Image::Host);
        }
        if let Some(reference) = text.strip_prefix("docker:") {
            return match is_reference(reference) {
                true => Ok(Image::Docker(reference.to_owned())),
                false => Err(SpecError::Image(text)),
            };
        }
        match text.strip_prefix("dir:") {
            Some(path) if path.starts_with('/') && !path.split('/').any(|part| part == "..") => {
                Ok(Image::Directory(path.to_owned()))
            }
            _ => Err(SpecError::Image(text)),
        }
    }
}

impl From<Image> for String {
    fn from(image: Image) -> String {
        match image {
            Image::Host => "host".to_owned(),
            Image::Directory(path) => format!("dir:{path}"),
            Image::Docker(reference) => format!("docker:{reference}"),
        }
    }
}

/// Whether a text has nothing in it that an image's reference cannot have. The engine knows the rest.
pub fn is_reference(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@".contains(&byte);
    text.bytes().all(allowed)
        && text
            .as_bytes()
            .first()
            .is_some_and(u8::is_ascii_alphanumeric)
}

/// Why a spec was refused. The text names the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Neither `host`, `dir:` with an absolute path, nor `docker:` with a reference.
    #[error("image: {0:?} is neither \"host\", \"dir:/absolute/path\" nor \"docker:reference\"")]
    Image(String),
    /// No program to run.
    #[error("command: must name a program")]
    CommandEmpty,
    /// The kernel passes no NUL byte in an argument or a variable.
    #[error("{0}: must not contain a NUL byte")]
    Nul(&'static str),
    /// More arguments or variables than the kernel would take.
    #[error("{field}: has {bytes} bytes, at most {SPEC_TEXT_BYTES_MAX} are allowed")]
    TooLarge {
        /// Which field.
        field: &'static str,
        /// How large it is.
        bytes: usize,
    },
    /// A variable's name is empty or has a `=`.
    #[error("env: {0:?} is not a variable's name")]
    EnvName(String),
    /// Port zero cannot be listened on.
    #[error("port: must be 1 to 65535")]
    Port,
    /// A limit outside what works.
    #[error("limits.{field}: {value} is outside {min} to {max}")]
    Limit {
        /// Which limit.
        field: &'static str,
        /// What was asked.
        value: u64,
        /// The least that works.
        min: u64,
        /// The most.
        max: u64,
    },
    /// A repl that is destroyed at once could never be reached.
    #[error("idle_timeout_seconds: must be at least 1")]
    IdleTimeout,
}

/// The most bytes of the command, and of the environment: a quarter of Linux's least ARG_MAX.
pub const SPEC_TEXT_BYTES_MAX: usize = 32 * 1024;

const MEMORY_BYTES_MIN: u64 = 4 * 1024 * 1024;
const MEMORY_BYTES_MAX: u64 = 1 << 44;

impl Spec {
    /// Checks everything that serde does not.
    ///
    /// # Errors
    /// The first field that cannot work, named.
    pub fn validate(&self) -> Result<(), SpecError> {
        if self.command.first().is_none_or(String::is_empty) {
            return Err(SpecError::CommandEmpty);
        }
        check_text("command", self.command.iter())?;
        check_text(
            "env",
            self.env.iter().flat_map(|(name, value)| [name, value]),
        )?;
        if let Some(name) = self
            .env
            .keys()
            .find(|name| name.is_empty() || name.contains('='))
        {
            return Err(SpecError::EnvName(name.clone()));
        }
        if self.port == Some(0) {
            return Err(SpecError::Port);
        }
        check_limit(
            "memory_bytes",
            self.limits.memory_bytes,
            MEMORY_BYTES_MIN,
            MEMORY_BYTES_MAX,
        )?;
        // Two: our init and the user's program.
        check_limit("pids", self.limits.pids.into(), 2, 4_194_304)?;
        if let Some(cpu_millis) = self.limits.cpu_millis {
            check_limit("cpu_millis", cpu_millis.into(), 10, 1_024_000)?;
        }
        if self.idle_timeout_seconds == Some(0) {
            return Err(SpecError::IdleTimeout);
        }
        Ok(())
    }

    /// How long the container may be without a session.
    pub fn idle_timeout(&self) -> Option<Duration> {
        self.idle_timeout_seconds.map(Duration::from_secs)
    }
}

fn check_text<'a>(
    field: &'static str,
    parts: impl Iterator<Item = &'a String>,
) -> Result<(), SpecError> {
    let mut bytes = 0;
    for part in parts {
        if part.contains('\0') {
            return Err(SpecError::Nul(field));
        }
        bytes += part.len() + 1;
    }
    if bytes > SPEC_TEXT_BYTES_MAX {
        return Err(SpecError::TooLarge { field, bytes });
    }
    Ok(())
}

fn check_limit(field: &'static str, value: u64, min: u64, max: u64) -> Result<(), SpecError> {
    if (min..=max).contains(&value) {
        Ok(())
    } else {
        Err(SpecError::Limit {
            field,
            value,
            min,
            max,
        })
    }
}
