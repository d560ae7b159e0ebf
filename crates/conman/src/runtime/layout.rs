//! Where everything of a fleet lies below its state directory.
//!
//! ```text
//! <state>/images/host-<fingerprint>/          the skeleton of the image `host`
//! <state>/overlay/<host>/<repl>@<epoch>/      upper and work of one native container, and its record:
//!                                             how it was started, for a conman that comes later
//! <state>/run/<host>/<repl>@<epoch>.json      the record of any other
//! <state>/logs/<repl>/<epoch>.{0,1}           its output
//! <workspaces>/<repl>/                        the user's files: never removed here
//! ```

use std::path::{Path, PathBuf};

use model::id::{ContainerId, HostId, ReplId};

/// What a runtime on real processes needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeOptions {
    /// The host that it runs for.
    pub host: HostId,
    /// The state directory, absolute. Its hash keeps two fleets on one machine apart.
    pub state: PathBuf,
    /// The directory of the workspaces, absolute; shared by all hosts.
    pub workspaces: PathBuf,
    /// Where the keeper listens.
    pub keeper_socket: PathBuf,
    /// Where every container leaves a witness of its life (a lock per repl and one record), for tests
    /// and drills.
    pub witness: Option<PathBuf>,
    /// The cgroup that this fleet's are made in, where it is not the root of each tree.
    pub cgroup: Option<PathBuf>,
}

impl RuntimeOptions {
    /// The fleet's name on this machine, `conman-<hash of the state directory>`: what its cgroups and
    /// marks have in common, and no other fleet's.
    pub fn fleet(&self) -> String {
        format!("conman-{}", instance(&self.state))
    }
}

/// The paths of one host.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) host: HostId,
    pub(super) state: PathBuf,
    pub(super) workspaces: PathBuf,
}

impl Layout {
    pub(super) fn new(options: &RuntimeOptions) -> Self {
        Self {
            host: options.host.clone(),
            state: options.state.clone(),
            workspaces: options.workspaces.clone(),
        }
    }

    pub(super) fn overlays(&self) -> PathBuf {
        self.state.join("overlay").join(self.host.as_str())
    }

    pub(super) fn overlay(&self, id: &ContainerId) -> PathBuf {
        self.overlays().join(id.to_string())
    }

    pub(super) fn records(&self) -> PathBuf {
        self.state.join("run").join(self.host.as_str())
    }

    pub(super) fn record(&self, id: &ContainerId) -> PathBuf {
        self.records().join(format!("{id}.json"))
    }

    pub(super) fn logs(&self, repl: &ReplId) -> PathBuf {
        self.state.join("logs").join(repl.as_str())
    }

    pub(super) fn log_files(&self, id: &ContainerId) -> [PathBuf; 2] {
        let directory = self.logs(&id.repl);
        [0, 1].map(|part| directory.join(format!("{}.{part}", id.epoch)))
    }

    pub(super) fn workspace(&self, id: &ContainerId) -> PathBuf {
        self.workspaces.join(id.repl.as_str())
    }
}

/// A container's id from its text, as it names files and cgroups.
pub(crate) fn parse_id(text: &str) -> Option<ContainerId> {
    let (repl, epoch) = text.split_once('@')?;
    Some(ContainerId {
        repl: repl.parse().ok()?,
        epoch: model::id::Epoch(epoch.parse().ok()?),
    })
}

/// The short name of a fleet on this machine: a hash of where its state is, the same for every process.
fn instance(state: &Path) -> String {
    // FNV-1a: stable between builds, which std's hasher does not promise.
    let path = state.canonicalize().unwrap_or_else(|_| state.to_owned());
    let hash = path
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
    format!("{:010x}", hash >> 24)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_its_text() {
        let id = parse_id("my-repl@17").unwrap();
        assert_eq!(id.to_string(), "my-repl@17");
        for bad in ["", "x", "@1", "x@", "x@y", "X@1", "../x@1"] {
            assert_eq!(parse_id(bad), None, "{bad}");
        }
    }

    #[test]
    fn two_states_are_two_instances() {
        let one = instance(Path::new("/nowhere/one"));
        assert_eq!(one.len(), 10);
        assert_eq!(one, instance(Path::new("/nowhere/one")));
        assert_ne!(one, instance(Path::new("/nowhere/two")));
    }
}
