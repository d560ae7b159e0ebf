//! A fleet that users and operators reach with keys and tokens alone, over TLS.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use rustix::process::Signal;

use crate::harness::{Up, conman, run, stderr, stdout};

/// What `conman ARGUMENTS` prints, which goes well.
fn said(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        stderr(&output)
    );
    stdout(&output)
}

fn write(path: &Path, text: &str) -> String {
    std::fs::write(path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn users_come_with_tokens_and_operators_with_keys_over_tls() {
    let files = tempfile::tempdir().unwrap();
    let place = files.path().to_str().unwrap();
    said(&["certs", "ca", "--directory", place]);
    let here = ["--directory", place, "--ca-directory", place];
    let node = ["certs", "node", "gate", "--address", "127.0.0.1"];
    said(&[&node[..], &here].concat());
    let line = said(&["token", "api-key", "ann"]);
    let key = line.trim().strip_prefix("ann ").unwrap();
    let api_keys = write(&files.path().join("api-keys"), &line);
    let token_keys = said(&["token", "key", "k1"]);
    let token_keys = write(&files.path().join("token-keys"), &token_keys);
    let (ca, certificate, own_key) = (
        format!("{place}/ca.pem"),
        format!("{place}/gate.pem"),
        format!("{place}/gate-key.pem"),
    );
    let state = files.path().join("state");
    let up = Up::start_with(
        &state,
        1,
        &[
            "--runtime",
            "process",
            "--tls-certificate",
            &certificate,
            "--tls-key",
            &own_key,
            "--api-keys",
            &api_keys,
            "--token-keys",
            &token_keys,
        ],
    );
    assert!(up.url.starts_with("https://127.0.0.1:"), "{}", up.url);

    // Whom the machine does not trust, nobody is shown a key.
    let other = files.path().join("other");
    said(&["certs", "ca", "--directory", other.to_str().unwrap()]);
    let mut command = up.command(&["host", "ls"]);
    let output = command
        .env("SSL_CERT_FILE", other.join("ca.pem"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("invalid peer certificate"),
        "{}",
        stderr(&output)
    );
    let ask = |variables: &[(&str, &str)]| {
        let mut command = up.command(&["host", "ls"]);
        command
            .env("CONMAN_CA", &ca)
            .envs(variables.iter().copied());
        let output = command.output().unwrap();
        (output.status.code(), stderr(&output), stdout(&output))
    };
    let (code, wrong, _) = ask(&[]);
    assert_eq!(code, Some(1));
    let expected =
        "conman: the API wants a key: Authorization: Bearer KEY (CONMAN_API_KEY) (unauthorized)\n";
    assert_eq!(wrong, expected);
    let (code, wrong, _) = ask(&[("CONMAN_API_KEY", "guessed")]);
    assert_eq!(code, Some(1));
    assert_eq!(
        wrong,
        "conman: the key is none of this API's (unauthorized)\n"
    );
    let (code, wrong, hosts) = ask(&[("CONMAN_API_KEY", key)]);
    assert_eq!(code, Some(0), "{wrong}");
    assert!(hosts.contains("host-1"), "{hosts}");
    let (code, wrong, _) = ask(&[("CONMAN_CA", "/no/ca")]);
    assert_eq!(code, Some(2));
    assert!(
        wrong.starts_with("conman: read /no/ca: No such file"),
        "{wrong}"
    );

    // This machine's administrators have a way of their own.
    let own = format!("unix:{}/sockets/gateway", state.display());
    let output = conman().args(["--url", &own]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "a flag of the subcommands");
    let serve = "import http.server, os; http.server.test(HandlerClass=http.server.SimpleHTTPRequestHandler, \
                 port=int(os.environ['PORT']))";
    let create = ["repl", "create", "blue", "--port", "8000", "--url", &own];
    said(&[&create[..], &["--", "python3", "-c", serve]].concat());
    said(&["repl", "start", "blue", "--url", &own]);

    // The user's program trusts the CA: here, an operator's command line shows that a token is one.
    let issue = [
        "token",
        "issue",
        "--token-keys",
        &token_keys,
        "blue",
        "alice",
    ];
    let token = said(&issue);
    assert_eq!(token.trim().split('.').count(), 3, "{token}");
    let json: serde_json::Value =
        serde_json::from_str(&said(&[&issue[..], &["--json"]].concat())).unwrap();
    assert_eq!(json["user"], "alice");

    // In the clear nobody gets anything.
    let address = up.url.strip_prefix("https://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .unwrap();
    let mut answer = Vec::new();
    // It may be reset: that is no answer either.
    let _ = stream.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    let (status, _) = up.end(Signal::TERM);
    assert!(status.success());
}

#[test]
fn what_is_no_key_is_said() {
    let files = tempfile::tempdir().unwrap();
    let short = write(&files.path().join("short"), "ann short\n");
    let state = files.path().join("state");
    let up = |more: &[&str]| {
        let output = conman()
            .args(["up", "--listen", "127.0.0.1:0", "--runtime", "process"])
            .args(["--state", state.to_str().unwrap()])
            .args(more)
            .output()
            .unwrap();
        (output.status.code(), stderr(&output))
    };
    let (code, wrong) = up(&["--api-keys", &short, "--log", "error"]);
    assert_eq!(code, Some(2), "{wrong}");
    let expected = format!(
        "conman: api_keys: {short}: line 1: the key has fewer than 32 letters: `conman token api-key ann` makes one \
         (set by --api-keys, CONMAN_API_KEYS, or api_keys in the file)\n"
    );
    assert_eq!(wrong, expected);
    let (code, wrong) = up(&["--token-keys", "/no/keys", "--log", "error"]);
    assert_eq!(code, Some(2), "{wrong}");
    assert!(
        wrong.starts_with("conman: token_keys: read /no/keys: No such file"),
        "{wrong}"
    );
    let (code, wrong) = up(&[
        "--tls-certificate",
        "/no/c",
        "--tls-key",
        "/no/k",
        "--log",
        "error",
    ]);
    assert_eq!(code, Some(2), "{wrong}");
    assert!(
        wrong.starts_with("conman: tls_certificate: read /no/c: No such file"),
        "{wrong}"
    );
    let issue = run(&["token", "issue", "--token-keys", &short, "blue", "alice"]);
    assert_eq!(issue.status.code(), Some(1));
    let expected =
        format!("conman: {short}: line 1: is not ID HS256 SECRET, nor ID EdDSA PUBLIC\n");
    assert_eq!(stderr(&issue), expected);
    let bad_name = run(&["token", "key", "a b"]);
    assert_eq!(bad_name.status.code(), Some(2));
    assert!(
        stderr(&bad_name).contains("a name has only letters"),
        "{}",
        stderr(&bad_name)
    );
}
