//! What a test may leave behind: nothing. Read from the machine, not asked of the runtime.

use std::path::Path;

use conman::runtime::RuntimeOptions;

use crate::docker_engine::TestEngine;
use crate::world::{Kind, this_machine};

/// The variable that marks every process that a test's containers start.
pub const MARK: &str = "CONMAN_TEST_MARK";

pub fn has_cgroups(kind: Kind) -> bool {
    !matches!(kind, Kind::Fake | Kind::Process | Kind::Docker)
}

fn cgroup_roots() -> Vec<std::path::PathBuf> {
    let mounts = this_machine();
    mounts
        .v2
        .into_iter()
        .chain(mounts.v1.into_values())
        .collect()
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// After every container was cleaned up: no cgroup, no overlay, no record of any.
pub fn assert_clean(kind: Kind, options: &RuntimeOptions) {
    if kind == Kind::Fake {
        return;
    }
    let none: Vec<String> = Vec::new();
    for root in cgroup_roots() {
        let host = root.join(options.fleet()).join(options.host.as_str());
        assert_eq!(names(&host), none, "in {}", host.display());
    }
    let overlays = options.state.join("overlay").join(options.host.as_str());
    assert_eq!(names(&overlays), none);
    let records = options.state.join("run").join(options.host.as_str());
    // Native containers have none in there.
    let left = std::fs::read_dir(&records).map_or(0, Iterator::count);
    assert_eq!(left, 0, "records in {}", records.display());
}

/// After everything has ended: no process, no mount, no cgroup.
pub fn assert_gone(options: &RuntimeOptions, mark: &str) {
    for root in cgroup_roots() {
        let fleet = root.join(options.fleet());
        assert!(!fleet.exists(), "{} is left", fleet.display());
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let state = options.state.parent().unwrap().to_str().unwrap();
    assert!(!mounts.contains(state), "a mount is left:\n{mounts}");
    assert_eq!(marked(mark), Vec::<String>::new());
}

/// The containers of this fleet that the engine knows, in whatever state.
pub fn containers(engine: &TestEngine, options: &RuntimeOptions) -> String {
    let filter = format!("label=conman.fleet={}", options.fleet());
    engine.docker(&["ps", "-aq", "--filter", &filter])
}

/// The processes with this mark, as text.
pub fn marked(mark: &str) -> Vec<String> {
    let wanted = format!("{MARK}={mark}");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let path = entry.unwrap().path();
        let Ok(environment) = std::fs::read(path.join("environ")) else {
            continue;
        };
        if environment
            .split(|byte| *byte == 0)
            .any(|entry| entry == wanted.as_bytes())
        {
            let command = std::fs::read(path.join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            found.push(format!("{} {command}", path.display()));
        }
    }
    found
}
