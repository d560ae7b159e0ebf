//! The walls and the sizes: what Cargo cannot hold between modules of one crate.
//!
//! Roles never import each other; they meet in the store and in the wire types. And a file stays small
//! enough to be read in one sitting.

#![allow(missing_docs, clippy::unwrap_used)]

use std::path::{Path, PathBuf};

/// A longer file asks to be split.
const LINES_MAX: usize = 600;

/// Those that have a reason to be longer.
const REASONED: &[(&str, &str)] = &[
    (
        "model/src/wire/keeper.rs",
        "one protocol, read as one page: most of it is prose",
    ),
    (
        "conman/src/gateway/api.rs",
        "one handler per path, and each path's document",
    ),
];

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            found.push(path);
        }
    }
}

fn all_below(directory: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let mut found = Vec::new();
    sources(&root, &mut found);
    assert!(!found.is_empty(), "{directory} has no sources");
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        (path.display().to_string(), text)
    };
    found.into_iter().map(read).collect()
}

/// The lines of code, with their numbers: comments may say whatever they like.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate();
    lines.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// Whether a line names something below `crate::module`, alone or in a braced list of imports.
fn names(line: &str, module: &str) -> bool {
    let path = format!("crate::{module}");
    line.match_indices(&path).any(|(at, _)| {
        let next = line[at + path.len()..].chars().next();
        !next.is_some_and(|next| next.is_alphanumeric() || next == '_')
    })
}

fn assert_apart(from: &str, forbidden: &[&str]) {
    let mut crossings = Vec::new();
    for (path, text) in all_below(&format!("src/{from}")) {
        for (number, line) in code(&text) {
            assert!(
                !line.contains("use crate::{"),
                "{path}:{}: import one module per line: this test reads lines",
                number + 1
            );
            for module in forbidden {
                if names(line, module) {
                    crossings.push(format!("{path}:{}: {}", number + 1, line.trim()));
                }
            }
        }
    }
    assert!(
        crossings.is_empty(),
        "{from} must not use {forbidden:?}:\n{}",
        crossings.join("\n")
    );
}

#[test]
fn a_gateway_knows_no_host_and_no_runtime() {
    assert_apart("gateway", &["host", "runtime", "tracker", "cli"]);
}

#[test]
fn a_host_knows_no_gateway() {
    assert_apart("host", &["gateway", "tracker", "cli"]);
}

#[test]
fn a_host_knows_its_runtime_by_the_trait_alone() {
    assert_apart(
        "host",
        &[
            "runtime::native",
            "runtime::process",
            "runtime::fake",
            "runtime::kept",
        ],
    );
}

#[test]
fn a_tracker_knows_logs_and_no_other_role() {
    assert_apart("tracker", &["gateway", "host", "runtime", "store", "cli"]);
}

#[test]
fn what_the_roles_stand_on_knows_no_role() {
    for below in ["store", "runtime", "telemetry"] {
        assert_apart(below, &["gateway", "host", "cli"]);
    }
}

/// Stand-ins for tests, which nobody has to look into at night; and the locks themselves.
const NAMELESS_LOCKS: &[&str] = &[
    "store/memory.rs",
    "runtime/fake/mod.rs",
    "/tests",
    "src/telemetry/",
];

#[test]
fn every_lock_has_a_name() {
    let mut nameless = Vec::new();
    for (path, text) in all_below("src") {
        if NAMELESS_LOCKS.iter().any(|name| path.contains(name)) {
            continue;
        }
        for (number, line) in code(&text) {
            let imports =
                line.starts_with("use std::sync::") || line.starts_with("use tokio::sync::");
            let of_list = imports && (line.contains("Mutex") || line.contains("RwLock"));
            if of_list || line.contains("::sync::RwLock") || line.contains("::sync::Mutex") {
                nameless.push(format!("{path}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    assert!(
        nameless.is_empty(),
        "use telemetry::locks, so that the watchdog sees them:\n{}",
        nameless.join("\n")
    );
}

#[test]
fn no_file_is_too_long_without_a_reason() {
    let mut long = Vec::new();
    // All crates of the workspace.
    for (path, text) in all_below("..") {
        let lines = text.lines().count();
        let reasoned = REASONED.iter().any(|(name, _)| path.ends_with(name));
        if lines > LINES_MAX && !reasoned {
            long.push(format!("{path}: {lines} lines"));
        }
    }
    assert!(
        long.is_empty(),
        "at most {LINES_MAX} lines:\n{}",
        long.join("\n")
    );
}

#[test]
fn the_test_itself_tells_a_crossing_from_a_likeness() {
    assert!(names("use crate::host::Handle;", "host"));
    assert!(names("let x: crate::host = 1;", "host"));
    assert!(!names("use crate::hostile::Handle;", "host"));
    assert!(!names("use crate::store::host;", "host"));
    assert_eq!(code("// crate::host\nx").collect::<Vec<_>>(), [(1, "x")]);
}
