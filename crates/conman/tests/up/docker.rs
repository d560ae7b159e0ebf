//! `conman up --runtime docker`: a fleet whose containers Docker's engine makes.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use rustix::process::Signal;

use crate::docker_engine::{IMAGE, TestEngine, shared};
use crate::harness::{PATIENCE, Up, conman, send, stderr, stdout};

/// Answers each request with the name of its container's host and how often it was asked.
const SERVER: &str = "use IO::Socket; $s=IO::Socket::INET->new(LocalAddr=>'127.0.0.1',LocalPort=>$ENV{PORT},\
    Listen=>9,ReuseAddr=>1) or die $!; while($c=$s->accept){sysread($c,$b,4096); $n++; $t=\"asked $n\"; \
    syswrite $c,\"HTTP/1.1 200 OK\\r\\nContent-Length: \".length($t).\"\\r\\nConnection: close\\r\\n\\r\\n$t\"; close $c}";

fn start(engine: &TestEngine, state: &std::path::Path) -> Up {
    let runtime = [
        "--runtime",
        "docker",
        "--image",
        IMAGE,
        "--docker-engine",
        &engine.host,
        "--docker-pull",
        "never",
    ];
    Up::start_with(state, 2, &runtime)
}

/// One request to the repl, through the gateway: its body.
fn get(up: &Up) -> String {
    let mut stream = TcpStream::connect(up.url.trim_start_matches("http://")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = b"GET / HTTP/1.1\r\nHost: web.localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}\n{}", up.log());
    body.to_owned()
}

fn shown(up: &Up, field: &str) -> serde_json::Value {
    up.json(&["repl", "show", "web", "--json"])[field].clone()
}

#[test]
fn lives_through_its_conman_moves_with_a_drain_and_leaves_nothing() {
    let Some(engine) = shared() else {
        return;
    };
    let files = tempfile::tempdir().unwrap();
    let state = files.path().join("state");
    let up = start(&engine, &state);
    let created = up.ask(&[
        "repl", "create", "web", "--port", "8000", "--", "perl", "-e", SERVER,
    ]);
    assert_eq!(stdout(&created), "web: created\n", "{}", stderr(&created));
    assert_eq!(get(&up), "asked 1");
    let ran = up.ask(&[
        "repl",
        "exec",
        "web",
        "--",
        "sh",
        "-c",
        "echo $REPL; exit 3",
    ]);
    assert_eq!(
        (stdout(&ran).as_str(), ran.status.code()),
        ("web\n", Some(3))
    );
    let (host, epoch) = (shown(&up, "host"), shown(&up, "epoch"));
    let host = host.as_str().unwrap().to_owned();

    // Its conman is killed and comes back: it finds the very same container.
    let name = format!("serve {host}");
    let conman = up.children()[&name];
    send(conman, Signal::KILL);
    up.until("another conman", |up| {
        let now = up.children().get(&name).copied();
        now.filter(|now| *now != conman)
    });
    assert_eq!(get(&up), "asked 2");
    assert_eq!(shown(&up, "epoch"), epoch);

    // A drain moves it, and a user waits for it there.
    let began = Instant::now();
    let drained = up.ask(&["host", "drain", &host]);
    assert!(drained.status.success(), "{}", stderr(&drained));
    assert_eq!(get(&up), "asked 1", "a new one");
    eprintln!("drained and answered elsewhere after {:?}", began.elapsed());
    assert_ne!(shown(&up, "host"), host.as_str());

    // Its keeper is killed: the container dies with it, and the next request starts another.
    let host = shown(&up, "host").as_str().unwrap().to_owned();
    let undrained = up.ask(&["host", "undrain", "host-1"]);
    assert!(undrained.status.success(), "{}", stderr(&undrained));
    send(up.children()[&format!("keeper {host}")], Signal::KILL);
    up.until("the container is gone", |up| {
        (shown(up, "state") != "running").then_some(())
    });
    assert_eq!(get(&up), "asked 1", "another one");

    let (status, took) = up.end(Signal::TERM);
    assert_eq!(status.code(), Some(0), "after {took:?}");
    let left = engine.docker(&[
        "ps",
        "-a",
        "--filter",
        "label=conman.repl=web",
        "--format",
        "{{.Names}}",
    ]);
    let left: Vec<_> = left.lines().filter(|name| !name.is_empty()).collect();
    assert_eq!(left, Vec::<&str>::new());
}

#[test]
fn an_engine_that_is_not_there_is_said() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("needs root: nothing is tested");
        return;
    }
    let files = tempfile::tempdir().unwrap();
    let output = conman()
        .args([
            "serve",
            "--runtime",
            "docker",
            "--host",
            "h1",
            "--docker-engine",
        ])
        .args(["unix:///no/such/socket", "--state"])
        .arg(files.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    let expected = "open the docker runtime: no Docker engine: /no/such/socket does not exist";
    assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    for (key, value, expected) in [
        (
            "--docker-engine",
            "tcp://h:1",
            "docker_engine: \"tcp://h:1\" is not the socket",
        ),
        (
            "--image",
            "not an image",
            "image: \"not an image\" is no image",
        ),
        (
            "--docker-pull",
            "often",
            "invalid value 'often' for '--docker-pull",
        ),
    ] {
        let output = conman().args(["up", key, value]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    }
}
