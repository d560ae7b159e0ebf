//! How a container was started: what a conman that adopts it must know and the keeper does not keep.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What commands and dials need of a container's start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::runtime) struct Record {
    /// The environment of its program and of every command run in it.
    pub(in crate::runtime) env: BTreeMap<String, String>,
    /// The working directory, as the container sees it.
    pub(in crate::runtime) cwd: PathBuf,
    /// The port of its spec and the one that its program was really given, where they differ.
    pub(in crate::runtime) port: Option<PortMap>,
}

/// A port under another number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::runtime) struct PortMap {
    /// As users name it.
    pub(in crate::runtime) asked: u16,
    /// As the program has it.
    pub(in crate::runtime) given: u16,
}

impl Record {
    pub(in crate::runtime) fn read(path: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    }

    /// Written without fsync: it must outlive this process, not the machine.
    pub(in crate::runtime) fn write(&self, path: &Path) -> io::Result<()> {
        use std::os::unix::fs::OpenOptionsExt;
        let mut options = std::fs::OpenOptions::new();
        // Only ours: the environment may hold secrets.
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(path)?;
        io::Write::write_all(&mut file, &serde_json::to_vec(self)?)
    }
}
