//! A gateway's process is replaced under its users: nobody is refused, who was let in is answered, and whoever has a session
//! without an end is told to connect again.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use rustix::process::Signal;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::harness::{PATIENCE, conman, send};
use crate::service::{Service, ask, configure};

fn address_of(url: &str) -> SocketAddr {
    url.strip_prefix("http://").unwrap().parse().unwrap()
}

/// One request over a connection of its own: what went wrong, if anything did.
fn visit(address: SocketAddr) -> Result<(), String> {
    let in_words = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect(address).map_err(in_words)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(in_words)?;
    let request = "GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).map_err(in_words)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(in_words)?;
    if answer.starts_with("HTTP/1.1 200") {
        Ok(())
    } else {
        Err(format!("{answer:?}"))
    }
}

/// Visits without a pause, until told to stop; then their number, and what went wrong.
struct Visitors {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    thread: std::thread::JoinHandle<Vec<String>>,
}

impl Visitors {
    fn at(address: SocketAddr) -> Self {
        let (stop, count) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let (until, done) = (stop.clone(), count.clone());
        let thread = std::thread::spawn(move || {
            let mut failures = vec![];
            while !until.load(Ordering::Relaxed) {
                failures.extend(visit(address).err());
                done.fetch_add(1, Ordering::Relaxed);
            }
            failures
        });
        Self {
            stop,
            count,
            thread,
        }
    }

    /// Waits until there were so many.
    fn after(&self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.count.load(Ordering::Relaxed) < count {
            assert!(Instant::now() < deadline, "the visitors wait for ever");
            std::thread::yield_now();
        }
    }

    fn end(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let failures = self.thread.join().unwrap();
        (self.count.load(Ordering::Relaxed), failures)
    }
}

#[test]
fn another_process_takes_the_socket_over_and_nobody_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let url = configure(directory);
    let address = address_of(&url);
    let keeper = Service::start(directory, "keeper", None);
    keeper.heard.until("READY=1");
    let old = Service::start(directory, "serve", None);
    old.heard.until("READY=1");
    let serve = "import http.server, os; http.server.test(HandlerClass=http.server.SimpleHTTPRequestHandler, \
                 port=int(os.environ['PORT']))";
    let create = ["repl", "create", "a", "--port", "8000", "--"];
    ask(&url, &[&create[..], &["python3", "-c", serve]].concat());
    ask(&url, &["repl", "start", "a"]);
    let shell = format!("ws://{address}/v1/repls/a/shell");
    let (mut shell, _) = tungstenite::client(shell, TcpStream::connect(address).unwrap()).unwrap();
    let pid = ["repl", "exec", "a", "--", "sh", "-c", "echo $PPID"];
    let before = ask(&url, &pid);

    let visitors = Visitors::at(address);
    let new = Service::start_with(directory, "serve", &["--take-over"], None);
    assert_eq!(old.ended(), Some(0));
    new.heard.until("READY=1");
    new.heard.until("STATUS=h1 registered");
    let (count, failures) = visitors.end();
    assert_eq!(failures, [""; 0], "of {count}");
    assert!(count > 10, "{count}");
    // Its shell was closed at a frame's end, and says that it is to be opened again.
    let close = loop {
        if let Message::Close(frame) = shell.read().unwrap() {
            break frame.unwrap();
        }
    };
    assert_eq!(close.code, CloseCode::Restart);
    assert_eq!(ask(&url, &pid), before, "it is the same container");
    assert_eq!(new.end(Signal::TERM), Some(0));
    assert_eq!(keeper.end(Signal::TERM), Some(0));
}

#[test]
fn without_anybody_to_take_over_from_it_is_a_start_like_any() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    configure(directory);
    let keeper = Service::start(directory, "keeper", None);
    keeper.heard.until("READY=1");
    let node = Service::start_with(directory, "serve", &["--take-over"], None);
    node.heard.until("READY=1");
    assert_eq!(node.end(Signal::TERM), Some(0));
    assert_eq!(keeper.end(Signal::TERM), Some(0));
}

/// `conman serve` with a listening socket as systemd passes it on: descriptor 3, meant for this very process.
fn serve_on(directory: &Path, listener: &TcpListener) -> Child {
    let given = OwnedFd::from(listener.try_clone().unwrap());
    let conman = conman();
    let mut shell = Command::new("sh");
    shell
        .args([
            "-c",
            "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" serve",
        ])
        .arg(conman.get_program())
        .env("CONMAN_CONFIG", directory.join("conman.toml"))
        .stdin(given)
        .stderr(
            File::options()
                .create(true)
                .append(true)
                .open(directory.join("serve.log"))
                .unwrap(),
        );
    shell.spawn().unwrap()
}

#[test]
fn a_socket_that_the_service_manager_holds_refuses_nobody_through_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let address = address_of(&configure(directory));
    let keeper = Service::start(directory, "keeper", None);
    keeper.heard.until("READY=1");
    let listener = TcpListener::bind(address).unwrap();
    let mut node = serve_on(directory, &listener);
    let visitors = Visitors::at(address);
    visitors.after(10);
    for _ in 0..2 {
        send(node.id(), Signal::HUP);
        assert!(node.wait().unwrap().success());
        node = serve_on(directory, &listener);
        let before = visitors.count.load(Ordering::Relaxed);
        visitors.after(before + 10);
    }
    let (count, failures) = visitors.end();
    assert_eq!(failures, [""; 0], "of {count}");
    send(node.id(), Signal::TERM);
    assert!(node.wait().unwrap().success());
    let log = std::fs::read_to_string(directory.join("serve.log")).unwrap();
    assert!(
        log.contains("on the socket that systemd has given"),
        "{log}"
    );
    // One that is not for it is said, and nothing is bound in its place.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut node = serve_on(directory, &other);
    assert_eq!(node.wait().unwrap().code(), Some(4));
    let log = std::fs::read_to_string(directory.join("serve.log")).unwrap();
    let expected = format!(
        "conman: the sockets that systemd gives: none of them listens on {address} (--listen)\n"
    );
    assert!(log.ends_with(&expected), "{log}");
    assert_eq!(keeper.end(Signal::TERM), Some(0));
}
