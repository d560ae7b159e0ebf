//! Certificates as an operator makes and gives them: `conman certs`, and nodes that refuse to do without.

use std::path::Path;

use crate::harness::{conman, run, stderr, stdout};

fn certs(arguments: &[&str]) -> std::process::Output {
    run(&[&["certs"], arguments].concat())
}

#[test]
fn a_ca_and_what_it_signs() {
    let files = tempfile::tempdir().unwrap();
    let directory = files.path().to_str().unwrap();
    let made = certs(&["ca", "--directory", directory]);
    assert_eq!(made.status.code(), Some(0), "{}", stderr(&made));
    assert_eq!(
        stdout(&made),
        format!("{directory}/ca.pem {directory}/ca-key.pem\n")
    );
    let again = certs(&["ca", "--directory", directory]);
    assert_eq!(again.status.code(), Some(1));
    let expected = format!(
        "conman: {directory}/ca-key.pem is there already: give another --directory for a new CA\n"
    );
    assert_eq!(stderr(&again), expected);

    let node = [
        "node",
        "n1",
        "--address",
        "10.0.0.1",
        "--directory",
        directory,
    ];
    let node = [&node[..], &["--ca-directory", directory, "--json"]].concat();
    let signed = certs(&node);
    let made: serde_json::Value = serde_json::from_slice(&signed.stdout).unwrap();
    assert_eq!(made["certificate"], format!("{directory}/n1.pem"));
    assert!(Path::new(made["key"].as_str().unwrap()).exists());
    // Signing it again renews it.
    let before = std::fs::read(files.path().join("n1.pem")).unwrap();
    assert!(certs(&node).status.success());
    assert_ne!(std::fs::read(files.path().join("n1.pem")).unwrap(), before);
}

#[test]
fn what_cannot_be_signed() {
    let files = tempfile::tempdir().unwrap();
    let directory = files.path().to_str().unwrap();
    let node = |name: &str, more: &[&str]| {
        let node = ["node", name, "--ca-directory", directory];
        let node = [&node[..], &["--directory", directory], more].concat();
        let output = certs(&node);
        (output.status.code(), stderr(&output))
    };
    let here = ["--address", "10.0.0.1"];
    let (code, said) = node("n1", &here);
    assert_eq!(code, Some(1));
    assert!(
        said.ends_with("No such file or directory (os error 2); `conman certs ca` makes a CA\n"),
        "{said}"
    );
    let (code, said) = node("../n1", &here);
    assert_eq!(code, Some(2));
    assert!(said.contains("a name has only letters, digits"), "{said}");
    let (code, said) = node("n1", &[]);
    assert_eq!(code, Some(2));
    assert!(said.contains("--address <ADDRESS>"), "{said}");
    let (code, said) = node("n1", &["--address", "10.0.0.1", "--days", "0"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("0 is not in 1..=3650"), "{said}");
}

#[test]
fn a_node_that_listens_beyond_this_machine_needs_a_certificate() {
    let files = tempfile::tempdir().unwrap();
    let state = files.path().to_str().unwrap();
    let serve = |more: &[&str]| {
        let output = conman()
            .args(["serve", "--runtime", "process", "--state", state])
            .args(more)
            .output()
            .unwrap();
        (output.status.code(), stderr(&output))
    };
    let (code, said) = serve(&["--listen", "0.0.0.0:0"]);
    assert_eq!(code, Some(2), "{said}");
    assert_eq!(
        said,
        "conman: listen: 0.0.0.0:0 is beyond this machine: whoever reaches it could start, enter and end every repl; \
         give node_ca, node_certificate and node_key, so that only who shows a certificate of the fleet can, as a load \
         balancer does; or tls_certificate and tls_key, with api_keys and token_keys, for users; or listen on 127.0.0.1 (set by --listen, CONMAN_LISTEN, or listen in the file)\n"
    );
    let (code, said) = serve(&["--host", "h", "--host-address", "tcp:0.0.0.0:7000"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(
        said.starts_with(
            "conman: host_address: \"tcp:0.0.0.0:7000\" is beyond this machine and without TLS: whoever reaches it \
             could start, enter and kill every container; use \"tls:0.0.0.0:7000\", with node_ca"
        ),
        "{said}"
    );
    let with = [
        "--node-ca",
        "/no/ca",
        "--node-certificate",
        "/no/c",
        "--node-key",
        "/no/k",
    ];
    let (code, said) = serve(&[&["--listen", "0.0.0.0:0"], &with[..]].concat());
    assert_eq!(code, Some(2), "{said}");
    assert!(
        said.starts_with("conman: token_keys: must be given where"),
        "{said}"
    );
    let everywhere = ["--listen", "0.0.0.0:0", "--token-keys", "/no/t"];
    let (code, said) = serve(&[&everywhere, &with[..]].concat());
    assert_eq!(code, Some(2), "{said}");
    assert!(
        said.starts_with("conman: node_ca: read /no/ca: No such file or directory"),
        "{said}"
    );
}
