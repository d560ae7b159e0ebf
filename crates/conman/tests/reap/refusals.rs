//! What a user can get wrong: each with its exit code and a text that says what to do, and nothing killed.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use crate::docker_engine::shared;
use crate::{SLEEPER, document, stderr};

fn reap_at(host: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_conman"));
    command.env("DOCKER_HOST", host).arg("reap");
    command.args(arguments).output().unwrap()
}

fn refused(output: &Output, code: i32, expected: &str) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(expected), "{expected:?} is not in: {said}");
    assert!(output.stdout.is_empty());
}

#[test]
fn no_socket() {
    let output = reap_at("unix:///no/such/socket", &[]);
    let expected = "no Docker engine: /no/such/socket does not exist; is Docker installed, and DOCKER_HOST right?";
    refused(&output, 3, expected);
    let output = reap_at("unix:///no/such/socket", &["--json"]);
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["error"]["code"], "engine_unreachable");
}

#[test]
fn nobody_listens() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("docker.sock");
    drop(UnixListener::bind(&path).unwrap());
    let output = reap_at(&format!("unix://{}", path.display()), &[]);
    refused(&output, 3, "docker.sock; is it running?");
}

#[test]
fn no_permission() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("needs root to become somebody else: nothing is tested");
        return;
    }
    let files = tempfile::tempdir().unwrap();
    let open = Permissions::from_mode(0o755);
    std::fs::set_permissions(files.path(), open).unwrap();
    // A copy where nobody may go: the build's own directory may be below a home.
    let program = files.path().join("conman");
    std::fs::copy(env!("CARGO_BIN_EXE_conman"), &program).unwrap();
    let path = files.path().join("docker.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    let closed = Permissions::from_mode(0o600);
    std::fs::set_permissions(&path, closed).unwrap();
    let output = Command::new(program)
        .arg("reap")
        .env("DOCKER_HOST", format!("unix://{}", path.display()))
        .uid(65_534)
        .gid(65_534)
        .output()
        .unwrap();
    refused(&output, 3, "docker.sock: run this as root");
}

#[test]
fn an_engine_that_is_elsewhere() {
    let output = reap_at("tcp://127.0.0.1:2375", &[]);
    refused(&output, 2, "is not the socket of an engine of this machine");
}

#[test]
fn a_filter_that_is_none() {
    for bad in ["colour=red", "label", "name="] {
        let output = reap_at("unix:///no/such/socket", &["--filter", bad]);
        let expected = format!("{bad:?} is neither name=PATTERN, label=KEY nor label=KEY=VALUE");
        refused(&output, 2, &expected);
    }
    let output = reap_at("unix:///no/such/socket", &["--grace", "soon"]);
    refused(&output, 2, "invalid value 'soon' for '--grace");
}

#[test]
fn a_death_that_is_not_proven_in_time() {
    let Some(engine) = shared() else {
        return;
    };
    let id = engine.run(&[], SLEEPER);
    let filter = format!("label={}", engine.label);
    let arguments = ["--filter", &filter, "--timeout", "1ms"];
    let output = engine.reap(&arguments);
    assert_eq!(output.status.code(), Some(1));
    let expected = format!("conman: {} ", &id[..12]);
    assert!(stderr(&output).contains(&expected), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("was not killed: the engine took too long"),
        "{}",
        stderr(&output)
    );
    let output = engine.reap(&[&arguments[..], &["--json"]].concat());
    assert_eq!(output.status.code(), Some(1));
    let report = document(&output);
    assert_eq!(report["ok"], false);
    assert_eq!(
        (&report["count"], &report["proven"]),
        (&1.into(), &0.into())
    );
    assert_eq!(engine.alive(), [id]);
}
