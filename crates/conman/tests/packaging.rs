//! What is packaged fits together: the units, their configuration, and the time that a machine's notice leaves.

#![allow(missing_docs, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use conman::config::{CommonKeys, File, Keeper, KeeperKeys, Node, NodeKeys, Surroundings};
use conman::node::Address;
use model::timing::{PREEMPTION_NOTICE, STOP_MAX};

fn packaged(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../packaging")
        .join(name)
}

/// The values of a unit's key, in their order.
fn values(unit: &str, key: &str) -> Vec<String> {
    let text = std::fs::read_to_string(packaged(&format!("systemd/{unit}"))).unwrap();
    let assigned = text.lines().filter_map(|line| line.split_once('='));
    assigned
        .filter(|(name, _)| *name == key)
        .map(|(_, value)| value.to_owned())
        .collect()
}

fn seconds(unit: &str, key: &str) -> Duration {
    let [value] = &values(unit, key)[..] else {
        panic!("{unit} has not one {key}");
    };
    Duration::from_secs(value.strip_suffix('s').unwrap().parse().unwrap())
}

#[test]
fn one_file_serves_conman_and_its_keeper() {
    let file = File::read(&packaged("conman.toml")).unwrap();
    let surroundings = Surroundings::default();
    let node = Node::resolve(
        NodeKeys::default(),
        CommonKeys::default(),
        &file,
        &surroundings,
    )
    .unwrap();
    let keeper = Keeper::resolve(KeeperKeys::default(), &file, &surroundings).unwrap();
    let host = node.host.unwrap();
    assert_eq!(host.keeper_socket, keeper.socket);
    assert_eq!(host.name, keeper.host);
    assert!(node.listen.unwrap().ip().is_loopback());
    // What the units make for them.
    assert_eq!(node.common.state, Path::new("/var/lib/conman"));
    assert_eq!(values("conman.service", "StateDirectory"), ["conman"]);
    let Address::Unix(address) = host.address else {
        panic!("another machine could reach it");
    };
    for path in [address, keeper.socket] {
        assert_eq!(path.parent(), Some(Path::new("/run/conman")));
    }
    for unit in ["conman.service", "conman-keeper.service"] {
        assert_eq!(values(unit, "RuntimeDirectory"), ["conman"]);
        assert_eq!(values(unit, "RuntimeDirectoryPreserve"), ["yes"]);
    }
    assert_eq!(
        node.common.cgroup.as_deref(),
        Some(Path::new("/system.slice/conman-keeper.service"))
    );
    assert_eq!(values("conman-keeper.service", "Delegate"), ["yes"]);
}

#[test]
fn all_stops_fit_into_the_notice() {
    let conman = seconds("conman.service", "TimeoutStopSec");
    let keeper = seconds("conman-keeper.service", "TimeoutStopSec");
    assert!(conman > STOP_MAX, "systemd would cut a drain short");
    assert!(
        conman + keeper < PREEMPTION_NOTICE,
        "one stops after the other"
    );
    assert!(seconds("conman-reap.service", "TimeoutStopSec") < PREEMPTION_NOTICE);
}

#[test]
fn a_drain_comes_before_the_stop_of_what_it_needs() {
    // What starts before a unit stops after it.
    let needed = [
        ("conman.service", "conman-keeper.service"),
        ("conman.service", "docker.service"),
        ("conman.service", "containerd.service"),
        ("conman.service", "network.target"),
        ("conman-reap.service", "docker.service"),
        ("conman-reap.service", "containerd.service"),
    ];
    for (unit, other) in needed {
        let [after] = &values(unit, "After")[..] else {
            panic!("{unit} has not one After");
        };
        assert!(
            after.split_whitespace().any(|name| name == other),
            "{unit} is not after {other}"
        );
    }
}
