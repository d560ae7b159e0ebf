//! The keys that have a few values, each with its name.

use model::timing::{FAST, PATIENT, Timing};
use serde::Deserialize;

/// What makes containers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeKind {
    /// Namespaces, overlayfs, cgroups; needs root.
    #[default]
    Native,
    /// Docker's engine; needs root.
    Docker,
    /// Plain processes without any isolation.
    Process,
}

impl RuntimeKind {
    /// As it is written in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            RuntimeKind::Native => "native",
            RuntimeKind::Docker => "docker",
            RuntimeKind::Process => "process",
        }
    }
}

/// The lease timings, by name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// A lost host's repls are free after three and a half seconds.
    #[default]
    Fast,
    /// Lives through half a minute without the store.
    Patient,
}

impl Profile {
    /// As it is written in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Profile::Fast => "fast",
            Profile::Patient => "patient",
        }
    }

    /// The timings themselves.
    pub const fn timing(self) -> Timing {
        match self {
            Profile::Fast => FAST,
            Profile::Patient => PATIENT,
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl LogFormat {
    /// As it is written in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        }
    }
}
