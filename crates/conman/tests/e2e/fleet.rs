//! A real fleet: the binary, its hosts, its containers; and the witness that reads the machine.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use conman::runtime::RuntimeOptions;
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

/// The variable by which this fleet's servers are known.
const MARK: &str = "FLEET";

/// How long to wait before something that tells of no change is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A fleet that was started by a test, in a directory of its own.
pub(crate) struct Fleet {
    child: Child,
    stdout: BufReader<ChildStdout>,
    address: String,
    pub(crate) state: PathBuf,
    /// Of this test's own, with the state in it unless that was told to be elsewhere.
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

/// A root file system with nothing but the test server and the libraries that it needs; made once.
pub(crate) fn make_image(directory: &Path) -> PathBuf {
    let conman = PathBuf::from(env!("CARGO_BIN_EXE_conman"));
    let server = conman.with_file_name("testserver");
    let image = directory.join("image");
    if image.exists() {
        return image;
    }
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

fn spawn(
    directory: &Path,
    state: &Path,
    address: &str,
    arguments: &[&str],
) -> (Child, BufReader<ChildStdout>) {
    let mut log = std::fs::File::options();
    let log = log.create(true).append(true);
    let mut child = Command::new(env!("CARGO_BIN_EXE_conman"))
        .args(["up", "--runtime", "native", "--listen", address, "--state"])
        .arg(state)
        // Other tests count containers.
        .env("CONMAN_PROBE_HOSTS", "0")
        .args(arguments)
        .arg("--witness")
        .arg(directory.join("witness"))
        .stdout(Stdio::piped())
        .stderr(log.open(directory.join("stderr")).unwrap())
        .spawn()
        .unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    (child, stdout)
}

impl Fleet {
    /// A fleet of real containers; `None`, said so, where that needs a root that the test is not.
    pub(crate) fn native(arguments: &[&str]) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        Self::native_in(directory, &state, arguments)
    }

    /// The same with its state where it is told to be.
    pub(crate) fn native_in(
        directory: tempfile::TempDir,
        state: &Path,
        arguments: &[&str],
    ) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("NOT RUN: the native runtime needs root");
            return None;
        }
        Some(Self::start(directory, state, arguments))
    }

    fn start(directory: tempfile::TempDir, state: &Path, arguments: &[&str]) -> Self {
        let address = format!("127.0.0.1:{}", free_port());
        let (child, stdout) = spawn(directory.path(), state, &address, arguments);
        Self {
            child,
            stdout,
            address,
            state: state.to_owned(),
            directory,
        }
        .ready()
    }

    fn ready(mut self) -> Self {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        let expected = format!("ready http://{}\n", self.address);
        assert_eq!(line, expected, "{}", self.log());
        self
    }

    /// Kills it as the machine's end would, and waits until the kernel has ended all that was alive of it.
    pub(crate) fn kill(&mut self) {
        self.signal(self.child.id().into(), libc::SIGKILL);
        self.child.wait().unwrap();
        // The last of its processes to end lets go of this.
        let members = std::fs::File::open(self.state.join("members")).unwrap();
        rustix::fs::flock(&members, rustix::fs::FlockOperation::LockExclusive).unwrap();
    }

    /// Starts another on the state of one that was killed.
    pub(crate) fn again(mut self, arguments: &[&str]) -> Self {
        let directory = self.directory.path();
        (self.child, self.stdout) = spawn(directory, &self.state, &self.address, arguments);
        self.ready()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("stderr")).unwrap_or_default()
    }

    pub(crate) async fn send(&self, request: http::Request<Full<Bytes>>) -> (u16, Bytes) {
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

    /// An answer of the API that is not JSON.
    pub(crate) async fn text(&self, path: &str) -> (u16, String) {
        let request = http::Request::get(path)
            .header("host", "localhost")
            .body(Full::default())
            .unwrap();
        let (status, body) = self.send(request).await;
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    /// A WebSocket to the repl's server.
    pub(crate) async fn socket(&self, repl: &str) -> WebSocketStream<TcpStream> {
        self.open_socket(&format!("{repl}.localhost"), "/ws").await
    }

    /// A WebSocket at a path of the API or of a repl, by host name.
    pub(crate) async fn open_socket(&self, host: &str, path: &str) -> WebSocketStream<TcpStream> {
        let stream = TcpStream::connect(&self.address).await.unwrap();
        let url = format!("ws://{host}{path}");
        let (socket, _) = tokio_tungstenite::client_async(url, stream).await.unwrap();
        socket
    }

    /// Sends a word through the repl's WebSocket and gets it back; answers with the server's instance.
    pub(crate) async fn echo(&self, repl: &str) -> String {
        let mut socket = self.socket(repl).await;
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

    /// Counts the live servers of each repl by reading the machine's processes. Those of this fleet bear its mark;
    /// the machine may run others.
    pub(crate) fn servers(&self) -> BTreeMap<String, usize> {
        let mut servers = BTreeMap::new();
        let mark = format!("{MARK}={}", self.mark());
        for (_, command, environment) in processes() {
            if command.starts_with("/testserver")
                && environment.split('\0').any(|variable| variable == mark)
                && let Some(repl) = environment
                    .split('\0')
                    .find_map(|variable| variable.strip_prefix("REPL="))
            {
                *servers.entry(repl.to_owned()).or_insert(0) += 1;
            }
        }
        servers
    }

    /// What tells this fleet's containers from others on the machine.
    fn mark(&self) -> String {
        self.directory.path().display().to_string()
    }

    /// A spec of the test server, which bears the fleet's mark.
    pub(crate) fn server_spec(&self) -> Value {
        let image = make_image(self.directory.path());
        json!({
            "image": format!("dir:{}", image.display()),
            "command": ["/testserver"],
            "port": 8000,
            "env": {MARK: self.mark()},
        })
    }

    /// Creates a repl that is not there yet.
    pub(crate) async fn create(&self, repl: &str, spec: &Value) {
        let path = format!("/v1/repls/{repl}");
        let (status, answer) = self.api("PUT", &path, Some(spec.clone())).await;
        assert_eq!(status, 201, "{answer}");
    }

    /// Ends the fleet with SIGTERM and proves that nothing is left of it.
    pub(crate) fn stop(self) {
        self.end(libc::SIGTERM);
    }

    /// Ends the fleet with a signal and proves that nothing is left of it, two seconds later at the most.
    pub(crate) fn end(mut self, signal: i32) {
        let began = Instant::now();
        self.signal(self.child.id().into(), signal);
        let status = self.child.wait().unwrap();
        let spent = began.elapsed();
        assert_eq!(status.code(), Some(0), "{status}\n{}", self.log());
        assert!(
            spent < Duration::from_secs(2),
            "took {spent:?}\n{}",
            self.log()
        );
        assert_eq!(self.leftovers(), Vec::<String>::new(), "{}", self.log());
        let mut more = String::new();
        self.stdout.read_to_string(&mut more).unwrap();
        assert_eq!(more, "", "it said more than that it is ready");
    }

    /// Processes, mounts and cgroups that bear this fleet's directory or its containers' marks.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mark = self.mark();
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
        left.extend(
            self.cgroups()
                .iter()
                .map(|cgroup| format!("cgroup {}", cgroup.display())),
        );
        left
    }

    /// Every cgroup of this fleet.
    fn cgroups(&self) -> Vec<PathBuf> {
        let options = RuntimeOptions {
            host: "any".parse().unwrap(),
            state: self.state.clone(),
            workspaces: self.state.join("workspaces"),
            keeper_socket: self.state.join("unused"),
            witness: None,
            cgroup: None,
        };
        let fleet = format!("/{}/", options.fleet());
        let files = walk(Path::new("/sys/fs/cgroup"));
        files
            .into_iter()
            .filter(|file| file.file_name().is_some_and(|name| name == "cgroup.procs"))
            .filter_map(|file| Some(file.parent()?.to_owned()))
            .filter(|cgroup| format!("{}/", cgroup.display()).contains(&fleet))
            .collect()
    }

    /// What containers have on this machine: cgroups, overlays, records. Each is named after its container.
    fn remains(&self) -> Vec<PathBuf> {
        let mut remains = self.cgroups();
        for directory in ["overlay", "run"] {
            for host in list(&self.state.join(directory)) {
                remains.extend(list(&host));
            }
        }
        let name = |path: &PathBuf| {
            path.file_name()
                .map(|name| name.to_string_lossy().into_owned())
        };
        remains.retain(|path| name(path).is_some_and(|name| name.contains('@')));
        remains
    }

    /// Waits until a repl is free and nothing of any container of it is left. Its removal has no event to wait for:
    /// it comes after what anybody waits for.
    pub(crate) async fn is_free(&self, repl: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let (_, view) = self.api("GET", &format!("/v1/repls/{repl}"), None).await;
            let left: Vec<_> = self
                .remains()
                .into_iter()
                .filter(|path| path.to_string_lossy().contains(&format!("/{repl}@")))
                .collect();
            if view["state"] == "free" && left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "{view} {left:?}\n{}", self.log());
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Waits until nothing of any container is left.
    pub(crate) async fn assert_nothing_half_made(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let left = self.remains();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "{left:?}\n{}", self.log());
            tokio::time::sleep(LOOK_AGAIN).await;
        }
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

fn list(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
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
