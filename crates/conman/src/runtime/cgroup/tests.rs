//! On a make-believe v2 tree of plain files, and on this machine's own where it may be written.

use super::*;
use model::id::Epoch;

fn id(epoch: u64) -> ContainerId {
    ContainerId {
        repl: "r".parse().unwrap(),
        epoch: Epoch(epoch),
    }
}

fn host() -> HostId {
    "h1".parse().unwrap()
}

/// A directory like the root of a v2 tree, with directories down to the host's as the kernel would
/// fill them.
fn fake_v2(controllers: &str) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("cgroup.controllers"), controllers).unwrap();
    for level in ["", "conman-t", "conman-t/h1"] {
        let directory = root.path().join(level);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("cgroup.subtree_control"), "").unwrap();
    }
    root
}

fn prepared(root: &tempfile::TempDir) -> Cgroups {
    let mounts = Mounts {
        v2: Some(root.path().to_owned()),
        v1: Default::default(),
    };
    Cgroups::prepare(mounts, "conman-t", &host()).unwrap()
}

fn text(root: &tempfile::TempDir, path: &str) -> String {
    std::fs::read_to_string(root.path().join(path)).unwrap()
}

#[test]
fn pure_v2_passes_its_controllers_down_and_limits() {
    let root = fake_v2("cpuset cpu io memory pids\n");
    let cgroups = prepared(&root);
    assert_eq!(cgroups.unlimited(), []);
    for level in ["", "conman-t/", "conman-t/h1/"] {
        let control = text(&root, &format!("{level}cgroup.subtree_control"));
        assert_eq!(control, "+memory +cpu +pids");
    }
    let limits = Limits {
        memory_bytes: 64 << 20,
        cpu_millis: Some(1_500),
        pids: 77,
    };
    let placement = cgroups.create(&id(3), &limits).unwrap();
    let directory = root.path().join("conman-t/h1/r@3");
    assert_eq!(placement.v2.as_deref(), Some(directory.as_path()));
    assert_eq!(placement.v1, Vec::<PathBuf>::new());
    assert_eq!(text(&root, "conman-t/h1/r@3/memory.max"), "67108864");
    assert_eq!(text(&root, "conman-t/h1/r@3/memory.swap.max"), "0");
    assert_eq!(text(&root, "conman-t/h1/r@3/memory.oom.group"), "0");
    assert_eq!(text(&root, "conman-t/h1/r@3/cpu.max"), "150000 100000");
    assert_eq!(text(&root, "conman-t/h1/r@3/pids.max"), "77");
    assert_eq!(cgroups.list().unwrap(), BTreeSet::from([id(3)]));
    // Again is fine.
    assert_eq!(cgroups.create(&id(3), &limits).unwrap(), placement);
}

#[test]
fn a_missing_controller_is_said() {
    let root = fake_v2("cpu pids");
    let cgroups = prepared(&root);
    assert_eq!(cgroups.unlimited(), [Controller::Memory]);
    cgroups.create(&id(1), &Limits::default()).unwrap();
    assert!(!root.path().join("conman-t/h1/r@1/memory.max").exists());
}

#[test]
fn emptiness_is_what_the_kernel_says() {
    let root = fake_v2("");
    let cgroups = prepared(&root);
    assert!(
        cgroups.is_empty(&id(1)).unwrap(),
        "one that does not exist is empty"
    );
    cgroups.create(&id(1), &Limits::default()).unwrap();
    let events = root.path().join("conman-t/h1/r@1/cgroup.events");
    std::fs::write(&events, "populated 1\nfrozen 0\n").unwrap();
    assert!(!cgroups.is_empty(&id(1)).unwrap());
    std::fs::write(&events, "populated 0\nfrozen 0\n").unwrap();
    assert!(cgroups.is_empty(&id(1)).unwrap());
    cgroups.kill(&id(1)).unwrap();
    assert_eq!(text(&root, "conman-t/h1/r@1/cgroup.kill"), "1");
}

#[test]
fn a_tree_that_cannot_be_written_is_an_error_with_its_path() {
    let root = tempfile::tempdir().unwrap();
    let mounts = Mounts {
        v2: Some(root.path().join("none")),
        v1: Default::default(),
    };
    let error = Cgroups::prepare(mounts, "conman-t", &host()).unwrap_err();
    assert!(error.to_string().contains("none"), "{error}");
}

/// A real child, waited for when it goes.
struct Child(std::process::Child);

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs on whatever this machine has: pure v2, hybrid or v1. Without root there is nothing to test.
async fn on_this_machine(mounts: Mounts, fleet: &str) {
    let Ok(cgroups) = Cgroups::prepare(mounts.clone(), fleet, &host()) else {
        assert!(
            !rustix::process::geteuid().is_root(),
            "root may make cgroups"
        );
        return;
    };
    let limits = Limits {
        memory_bytes: 64 << 20,
        cpu_millis: Some(500),
        pids: 20,
    };
    let placement = cgroups.create(&id(1), &limits).unwrap();
    let directories: Vec<_> = placement.v2.iter().chain(&placement.v1).cloned().collect();
    assert!(!directories.is_empty());
    if !cgroups.unlimited().contains(&Controller::Pids) {
        let limit = directories
            .iter()
            .find_map(|directory| std::fs::read_to_string(directory.join("pids.max")).ok());
        assert_eq!(limit.as_deref(), Some("20\n"));
    }
    let child = std::process::Command::new("sleep")
        .arg("1000")
        .spawn()
        .unwrap();
    let mut child = Child(child);
    // A process in a child of the container's cgroup counts as much as one in it.
    for directory in &directories {
        let below = directory.join("below");
        make(&below).unwrap();
        write(&below.join("cgroup.procs"), &child.0.id().to_string()).unwrap();
    }
    assert!(!cgroups.is_empty(&id(1)).unwrap());
    assert_eq!(
        cgroups.processes(&id(1)).unwrap(),
        BTreeSet::from([child.0.id()])
    );
    assert!(cgroups.remove(&id(1)).is_err(), "one in use stays");
    if cgroups.has_kill() {
        cgroups.kill(&id(1)).unwrap();
    } else {
        child.0.kill().unwrap();
    }
    let gone = id(1);
    let waited = tokio::time::timeout(Duration::from_secs(5), cgroups.emptied(&gone));
    waited.await.unwrap().unwrap();
    child.0.wait().unwrap();
    cgroups.remove(&id(1)).unwrap();
    cgroups.remove(&id(1)).unwrap();
    cgroups.remove_host().unwrap();
    cgroups.remove_host().unwrap();
    for directory in directories {
        let fleet = directory.parent().and_then(Path::parent).unwrap();
        assert!(!fleet.exists(), "{} is left", fleet.display());
    }
}

fn this_machine() -> Mounts {
    Mounts::parse(&std::fs::read_to_string("/proc/self/mountinfo").unwrap())
}

#[tokio::test]
async fn this_machines_trees() {
    on_this_machine(
        this_machine(),
        &format!("conman-test-{}", std::process::id()),
    )
    .await;
}

#[tokio::test]
async fn this_machines_v1_alone() {
    let mounts = Mounts {
        v2: None,
        ..this_machine()
    };
    if !mounts.v1.is_empty() {
        on_this_machine(mounts, &format!("conman-test1-{}", std::process::id())).await;
    }
}

#[test]
fn a_container_may_walk_to_its_cgroup_whatever_the_umask() {
    use std::os::unix::fs::PermissionsExt;
    let root = fake_v2("cpu memory pids");
    // A process of its own under nextest; under others, for as long as this takes.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let made = prepared(&root).create(&id(1), &Limits::default());
    rustix::process::umask(before);
    let directory = made.unwrap().v2.unwrap();
    for path in directory.ancestors().take(3) {
        let mode = std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755, "{}", path.display());
    }
}
