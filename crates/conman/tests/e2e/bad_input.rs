//! What users and machines get wrong, against the real binary and real containers: each is told its code and
//! what is wrong, and nothing is left half-made.

use bytes::Bytes;
use http_body_util::Full;
use serde_json::{Value, json};

use crate::fleet::{self, Fleet};

/// A refusal as one line: status, code, side, sentence.
fn line(status: u16, body: &Value) -> String {
    let word = |name: &str| {
        let error = &body["error"][name];
        error.as_str().unwrap_or_else(|| panic!("{status} {body}"))
    };
    format!(
        "{status} {} ({}): {}",
        word("code"),
        word("side"),
        word("message")
    )
}

async fn refused(fleet: &Fleet, method: &str, path: &str, body: Option<Value>) -> String {
    let (status, answer) = fleet.api(method, path, body).await;
    line(status, &answer)
}

/// What comes of a request for a repl's own server.
async fn visited(fleet: &Fleet, repl: &str) -> String {
    let hello = fleet.hello(repl).await;
    let answer = serde_json::from_str(&hello.body).unwrap_or(Value::Null);
    line(hello.status, &answer)
}

/// A header or body of this size, by hand: clients of the tests' library would not send it.
async fn too_large(fleet: &Fleet, header_bytes: usize, body_bytes: usize) -> String {
    let request = http::Request::put("/v1/repls/large")
        .header("host", "localhost")
        .header("x-large", "x".repeat(header_bytes))
        .body(Full::new(Bytes::from(vec![b' '; body_bytes])))
        .unwrap();
    let (status, answer) = fleet.send(request).await;
    line(status, &serde_json::from_slice(&answer).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_wrong() {
    let Some(fleet) = Fleet::native(&["--hosts", "1"]) else {
        return;
    };
    let mut lines = vec![];
    for (method, path) in [
        ("GET", "/v1/repls/nobody"),
        ("POST", "/v1/repls/nobody/start"),
        ("POST", "/v1/repls/nobody/kill"),
        ("POST", "/v1/repls/nobody/destroy"),
        ("DELETE", "/v1/repls/nobody"),
        ("GET", "/v1/repls/nobody/logs"),
        ("GET", "/v1/repls/Bad_Name"),
        ("POST", "/v1/hosts/nobody/drain"),
    ] {
        lines.push(refused(&fleet, method, path, None).await);
    }
    lines.push(visited(&fleet, "nobody").await);
    let exec = json!({"command": ["true"]});
    lines.push(refused(&fleet, "POST", "/v1/repls/nobody/exec", Some(exec)).await);
    let spec = json!({"command": ["true"], "colour": "blue"});
    lines.push(refused(&fleet, "PUT", "/v1/repls/blue", Some(spec)).await);
    lines.push(refused(&fleet, "PUT", "/v1/repls/blue", None).await);
    lines.push(too_large(&fleet, 1, (1 << 20) + 1).await);
    lines.push(too_large(&fleet, 70_000, 0).await);
    insta::assert_snapshot!(lines.join("\n"), @r#"
    404 unknown_repl (client): there is no repl "nobody"
    404 unknown_repl (client): there is no repl "nobody"
    404 unknown_repl (client): there is no repl "nobody"
    404 unknown_repl (client): there is no repl "nobody"
    404 unknown_repl (client): there is no repl "nobody"
    404 unknown_repl (client): there is no repl "nobody"
    400 bad_id (client): "Bad_Name": a name has only a-z, 0-9 and '-', not 'B'
    404 unknown_host (client): there is no host "nobody"
    404 unknown_repl (client): there is no repl "nobody"
    404 unknown_repl (client): there is no repl "nobody"
    422 bad_spec (client): unknown field `colour`, expected one of `image`, `command`, `env`, `port`, `limits`, `idle_timeout_seconds`, `visibility`
    400 bad_json (client): the body: EOF while parsing a value at line 1 column 0
    413 body_too_large (client): the body has more than 1048576 bytes
    431 headers_too_large (client): the headers have more than 65536 bytes
    "#);
    assert_eq!(
        fleet.api("GET", "/v1/repls", None).await.1,
        json!({"repls": []})
    );
    fleet.assert_nothing_half_made().await;
    fleet.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn specs_that_do_not_work() {
    let Some(fleet) = Fleet::native(&["--hosts", "1"]) else {
        return;
    };
    let image = fleet::make_image(fleet.directory.path());
    let not_executable = image.join("notes");
    std::fs::write(&not_executable, "not a program").unwrap();
    let image = format!("dir:{}", image.display());
    let spec = |command: &[&str]| json!({"image": image, "command": command, "port": 8000});
    let with_image = |path: &str| json!({"image": path, "command": ["/testserver"], "port": 8000});
    let mut lines = vec![];
    for (repl, spec) in [
        ("no-command", spec(&["/no/such/program"])),
        ("no-command-in-path", spec(&["no-such-program"])),
        ("not-executable", spec(&["/notes"])),
        ("no-image", with_image("dir:/no/such/directory")),
        ("image-is-a-file", with_image("dir:/etc/passwd")),
        (
            "empty-image",
            with_image(&format!(
                "dir:{}",
                fleet.directory.path().join("witness").display()
            )),
        ),
        // Ends before it would listen.
        (
            "exits",
            json!({"image": "host", "command": ["false"], "port": 8000}),
        ),
        (
            "exits-later",
            json!({"image": "host", "command": ["sh", "-c", "sleep 0.2; exit 3"], "port": 8000}),
        ),
    ] {
        fleet.create(repl, &spec).await;
        lines.push(visited(&fleet, repl).await);
        fleet.is_free(repl).await;
    }
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"/tmp/[^ ]+/", "TMP/");
    let _bound = settings.bind_to_scope();
    // Its end may be known before its start is, or after: both are said rightly, and which it is depends on the machine.
    for line in &mut lines {
        let known_first = "the program of exits ended as soon as it had started";
        let known_after = "the program of exits ended before its port accepted a connection";
        *line = line.replace(known_first, known_after);
    }
    insta::assert_snapshot!(lines.join("\n"), @r#"
    422 command_not_found (user): execute command: /no/such/program: No such file or directory (os error 2)
    422 command_not_found (user): execute command: no-such-program: No such file or directory (os error 2)
    422 command_not_found (user): execute command: /notes: Permission denied (os error 13)
    422 image_not_found (user): image dir:/no/such/directory does not exist
    422 image_not_found (user): image dir:/etc/passwd is not a directory
    422 command_not_found (user): execute command: /testserver: No such file or directory (os error 2)
    502 exited_at_once (user): the program of exits ended before its port accepted a connection
    502 exited_at_once (user): the program of exits-later ended before its port accepted a connection
    "#);
    fleet.assert_nothing_half_made().await;
    fleet.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_on_which_nobody_listens() {
    let Some(fleet) = Fleet::native(&["--hosts", "1"]) else {
        return;
    };
    let deaf = json!({"image": "host", "command": ["sleep", "1000"], "port": 8000});
    let portless = json!({"image": "host", "command": ["sleep", "1000"]});
    for (repl, spec) in [
        ("deaf", deaf),
        ("server", fleet.server_spec()),
        ("portless", portless),
    ] {
        fleet.create(repl, &spec).await;
    }
    assert_eq!(fleet.hello("server").await.status, 200);
    let lines = [
        // Its port may yet come: it is waited for as long as a program may take to start.
        visited(&fleet, "deaf").await,
        // This one listens where it was told to, so another port is its user's own mistake.
        visited(&fleet, "9-server").await,
        visited(&fleet, "portless").await,
    ];
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"@\d+", "@EPOCH");
    let _bound = settings.bind_to_scope();
    insta::assert_snapshot!(lines.join("\n"), @r#"
    502 port_not_listening (user): nothing listens on port 8000 in the container of deaf@EPOCH
    502 port_not_listening (user): nothing listens on port 9 in the container of server@EPOCH
    422 no_port (user): the spec of portless names no port
    "#);
    // They run, as they were told to: a container is not taken away for a port.
    for repl in ["deaf", "server", "portless"] {
        let (_, view) = fleet.api("GET", &format!("/v1/repls/{repl}"), None).await;
        assert_eq!(view["state"], "running", "{view}");
        let (status, _) = fleet
            .api("DELETE", &format!("/v1/repls/{repl}"), None)
            .await;
        assert_eq!(status, 204);
    }
    fleet.assert_nothing_half_made().await;
    fleet.stop();
}

/// A small file system of its own, until dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let size = Some(c"size=8m");
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("small", directory.path(), "tmpfs", flags, size).unwrap();
        Self(directory)
    }

    /// Takes all the space that is left.
    fn fill(&self) -> std::path::PathBuf {
        use std::io::Write;
        let path = self.0.path().join("fill");
        let mut file = std::fs::File::create(&path).unwrap();
        let error = loop {
            if let Err(error) = file.write_all(&[1; 4096]) {
                break error;
            }
        };
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let detach = rustix::mount::UnmountFlags::DETACH;
        let _ = rustix::mount::unmount(self.0.path(), detach);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("NOT RUN: a file system of its own needs root");
        return;
    }
    let disk = SmallDisk::new();
    let files = tempfile::tempdir().unwrap();
    let store = files.path().join("store.db");
    let state = disk.0.path().join("state");
    let store = ["--hosts", "2", "--store", store.to_str().unwrap()];
    let Some(fleet) = Fleet::native_in(files, &state, &store) else {
        return;
    };
    let spec = fleet.server_spec();
    for repl in ["before", "after"] {
        fleet.create(repl, &spec).await;
    }
    let before = fleet.hello("before").await;
    assert_eq!(before.status, 200, "{}", before.body);
    let filled = disk.fill();
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"@\d+", "@EPOCH");
    settings.add_filter(r"/tmp/[^ ]+/", "TMP/");
    let _bound = settings.bind_to_scope();
    insta::assert_snapshot!(visited(&fleet, "after").await, @r#"507 disk_full (platform): no space is left for the files of after@EPOCH: No space left on device (os error 28)"#);
    fleet.is_free("after").await;
    // What runs already goes on.
    assert_eq!(fleet.hello("before").await, before);
    std::fs::remove_file(filled).unwrap();
    let after = fleet.hello("after").await;
    assert_eq!(after.status, 200, "{}", after.body);
    fleet.stop();
}

/// The store's own disk: nothing can be promised then, so nothing is; and it ends with the cause.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_under_the_store() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("NOT RUN: a file system of its own needs root");
        return;
    }
    let disk = SmallDisk::new();
    let files = tempfile::tempdir().unwrap();
    let state = files.path().join("state");
    let store = disk.0.path().join("store.db");
    let store = ["--hosts", "2", "--store", store.to_str().unwrap()];
    let Some(fleet) = Fleet::native_in(files, &state, &store) else {
        return;
    };
    let spec = fleet.server_spec();
    fleet.create("before", &spec).await;
    let before = fleet.hello("before").await;
    assert_eq!(before.status, 200, "{}", before.body);
    let filled = disk.fill();
    let (status, refusal) = fleet.api("PUT", "/v1/repls/new", Some(spec.clone())).await;
    assert_eq!(
        (status, &refusal["error"]["code"]),
        (503, &json!("store_unavailable")),
        "{refusal}"
    );
    let message = refusal["error"]["message"].as_str().unwrap();
    assert!(message.contains("no space is left"), "{message}");
    std::fs::remove_file(filled).unwrap();
    fleet.create("new", &spec).await;
    for repl in ["before", "new"] {
        let answer = fleet.hello(repl).await;
        assert_eq!(answer.status, 200, "{repl}: {}", answer.body);
    }
    fleet.stop();
}
