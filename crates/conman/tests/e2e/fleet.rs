//! A real fleet: the binary, its hosts, its containers; and the witness that reads the machine.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use conman::runtime::RuntimeOptions;
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

/// A fleet that was started by a test, in a directory of its own.
pub(crate) struct Fleet {
    child: Child,
    address: String,
    pub(crate) directory: tempfile::TempDir,
}

/// What a server in a container answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) status: u16,
    pub(crate) body: String,
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A root file system with nothing but the test server and the libraries that it needs.
pub(crate) fn make_image(directory: &Path) -> PathBuf {
    let conman = PathBuf::from(env!("CARGO_BIN_EXE_conman"));
    let server = conman.with_file_name("testserver");
    let image = directory.join("image");
    std::fs::create_dir_all(&image).unwrap();
    std::fs::copy(&server, image.join("testserver"))
        .unwrap_or_else(|error| panic!("{}: {error}; build the whole workspace", server.display()));
    let libraries = Command::new("ldd").arg(&server).output().unwrap();
    for path in String::from_utf8(libraries.stdout)
        .unwrap()
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        let inside = image.join(&path[1..]);
        std::fs::create_dir_all(inside.parent().unwrap()).unwrap();
        std::fs::copy(path, inside).unwrap();
    }
    image
}

impl Fleet {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let address = format!("127.0.0.1:{}", free_port());
        let mut child = Command::new(env!("CARGO_BIN_EXE_conman"))
            .args(["up", "--listen", &address, "--state"])
            .arg(directory.path().join("state"))
            .args(arguments)
            .arg("--witness")
            .arg(directory.path().join("witness"))
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(directory.path().join("stderr")).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let fleet = Self {
            child,
            address: address.clone(),
            directory,
        };
        assert_eq!(line, format!("ready http://{address}\n"), "{}", fleet.log());
        fleet
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("stderr")).unwrap_or_default()
    }

    async fn send(&self, request: http::Request<Full<Bytes>>) -> (u16, Bytes) {
        let stream = TcpStream::connect(&self.address).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        let answer = sender.send_request(request).await.unwrap();
        let status = answer.status().as_u16();
        (
            status,
            answer.into_body().collect().await.unwrap().to_bytes(),
        )
    }

    /// One request to a repl's server, as a browser would send it.
    pub(crate) async fn hello(&self, repl: &str) -> Hello {
        let request = http::Request::get("/")
            .header("host", format!("{repl}.localhost"))
            .body(Full::default())
            .unwrap();
        let (status, body) = self.send(request).await;
        let body = String::from_utf8_lossy(&body).into_owned();
        Hello { status, body }
    }

    pub(crate) async fn api(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let body = body.map_or_else(Bytes::new, |body| body.to_string().into());
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .unwrap();
        let (status, body) = self.send(request).await;
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    /// Sends a word through the repl's WebSocket and gets it back; answers with the server's instance.
    pub(crate) async fn echo(&self, repl: &str) -> String {
        let stream = TcpStream::connect(&self.address).await.unwrap();
        let url = format!("ws://{repl}.localhost/ws");
        let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.unwrap();
        let instance = socket.next().await.unwrap().unwrap();
        socket.send(Message::text("marco")).await.unwrap();
        let answer = socket.next().await.unwrap().unwrap();
        assert_eq!(answer, Message::text("marco"));
        instance.into_text().unwrap().to_string()
    }

    /// Every host's row of `GET /v1/hosts`, by name.
    pub(crate) async fn hosts(&self) -> BTreeMap<String, Value> {
        let (status, answer) = self.api("GET", "/v1/hosts", None).await;
        assert_eq!(status, 200, "{answer}");
        let hosts = answer["hosts"].as_array().or_else(|| answer.as_array());
        hosts
            .unwrap_or_else(|| panic!("no hosts in {answer}"))
            .iter()
            .map(|host| (host["id"].as_str().unwrap().to_owned(), host.clone()))
            .collect()
    }

    /// Waits until `condition` holds for the hosts; `/v1/events` says when to look again.
    pub(crate) async fn hosts_until(&self, condition: impl Fn(&BTreeMap<String, Value>) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let hosts = self.hosts().await;
            if condition(&hosts) {
                return;
            }
            assert!(Instant::now() < deadline, "{hosts:?}\n{}", self.log());
            self.next_event().await;
        }
    }

    async fn next_event(&self) {
        let stream = TcpStream::connect(&self.address).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        let connection = tokio::spawn(connection);
        let request = http::Request::get("/v1/events")
            .header("host", "localhost")
            .body(Full::<Bytes>::default())
            .unwrap();
        let mut body = sender.send_request(request).await.unwrap().into_body();
        // The stream begins with what there is; any frame is a reason to look. It may also stay silent.
        let _ = tokio::time::timeout(Duration::from_millis(500), async {
            body.frame().await;
            body.frame().await
        })
        .await;
        connection.abort();
    }

    /// Asks for all repls at once until each has answered, and says how long the slowest took.
    pub(crate) async fn all_answer(&self, repls: &[String]) -> Duration {
        let began = Instant::now();
        let answers = repls.iter().map(|repl| async move {
            let hello = self.hello(repl).await;
            assert_eq!(hello.status, 200, "{repl}: {}\n{}", hello.body, self.log());
            assert!(
                hello.body.starts_with(&format!("hello from {repl} ")),
                "{hello:?}"
            );
        });
        futures_util::future::join_all(answers).await;
        began.elapsed()
    }

    pub(crate) fn signal(&self, pid: i64, signal: i32) {
        let pid = i32::try_from(pid).unwrap();
        // SAFETY: plain system call; the pid is of a process that this test's fleet has started.
        let result = unsafe { libc::kill(pid, signal) };
        assert_eq!(result, 0, "signal {signal} to {pid}");
    }

    /// The witness: what each container's init wrote while it held its repl's lock.
    pub(crate) fn overlaps(&self) -> Vec<String> {
        let mut overlaps = vec![];
        let mut starts = 0;
        for entry in walk(&self.directory.path().join("witness")) {
            let Ok(text) = std::fs::read_to_string(&entry) else {
                continue;
            };
            for line in text.lines() {
                let record: Value = serde_json::from_str(line).unwrap();
                match record["event"].as_str() {
                    Some("start") => starts += 1,
                    _ => overlaps.push(line.to_owned()),
                }
            }
        }
        assert!(starts > 0, "the witness saw nothing");
        overlaps
    }

    /// Counts the live servers of each repl by reading the machine's processes.
    pub(crate) fn servers(&self) -> BTreeMap<String, usize> {
        let mut servers = BTreeMap::new();
        for (_, command, environment) in processes() {
            if command.starts_with("/testserver")
                && let Some(repl) = environment
                    .split('\0')
                    .find_map(|variable| variable.strip_prefix("REPL="))
            {
                *servers.entry(repl.to_owned()).or_insert(0) += 1;
            }
        }
        servers
    }

    /// Ends the fleet with SIGTERM and proves that nothing is left of it.
    pub(crate) fn stop(mut self) {
        let began = Instant::now();
        self.signal(self.child.id().into(), libc::SIGTERM);
        let status = self.child.wait().unwrap();
        let spent = began.elapsed();
        assert!(status.success(), "{status}\n{}", self.log());
        assert!(
            spent < Duration::from_secs(2),
            "took {spent:?}\n{}",
            self.log()
        );
        assert_eq!(self.leftovers(), Vec::<String>::new(), "{}", self.log());
    }

    /// Processes, mounts and cgroups that bear this fleet's directory or its containers' marks.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mark = self.directory.path().to_string_lossy().into_owned();
        let options = RuntimeOptions {
            host: "any".parse().unwrap(),
            state: self.directory.path().join("state"),
            workspaces: self.directory.path().join("state/workspaces"),
            keeper_socket: self.directory.path().join("unused"),
            witness: None,
        };
        let cgroups = options.fleet();
        let mut left = vec![];
        for (pid, command, environment) in processes() {
            let is_ours = command.contains(&mark) || environment.contains(&mark);
            if is_ours && i64::from(std::process::id()) != pid {
                left.push(format!("process {pid} {command}"));
            }
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        left.extend(
            mounts
                .lines()
                .filter(|line| line.contains(&mark))
                .map(str::to_owned),
        );
        for entry in walk(Path::new("/sys/fs/cgroup")) {
            if entry.file_name().is_some_and(|name| name == "cgroup.procs")
                && entry.to_string_lossy().contains(&format!("/{cgroups}/"))
            {
                left.push(format!("cgroup {}", entry.display()));
            }
        }
        left
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn walk(directory: &Path) -> Vec<PathBuf> {
    let mut files = vec![];
    let Ok(entries) = std::fs::read_dir(directory) else {
        return files;
    };
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files.extend(walk(&entry.path())),
            Ok(_) => files.push(entry.path()),
            Err(_) => {}
        }
    }
    files
}

fn processes() -> Vec<(i64, String, String)> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| {
            let pid: i64 = entry.file_name().to_str()?.parse().ok()?;
            let read = |name: &str| std::fs::read(entry.path().join(name)).ok();
            let command = String::from_utf8_lossy(&read("cmdline")?).into_owned();
            let environment = String::from_utf8_lossy(&read("environ")?).into_owned();
            Some((pid, command, environment))
        })
        .collect()
}
