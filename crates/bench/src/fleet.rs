//! A fleet to measure: the real binary, in a directory of its own.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::http::{self, Answer};

/// A running `conman up`.
pub(crate) struct Fleet {
    child: Child,
    address: String,
    directory: tempfile::TempDir,
    image: PathBuf,
}

/// A host that is to be lost.
pub(crate) struct Lost {
    pub(crate) host: String,
    /// Its keeper and its conman.
    pub(crate) processes: [u64; 2],
    /// What it carries.
    pub(crate) repls: Vec<String>,
}

/// What the product takes of the machine's memory, as PSS.
#[derive(Default)]
pub(crate) struct Product {
    /// How many inits there are, one for each container.
    pub(crate) inits: usize,
    pub(crate) inits_bytes: u64,
    /// Gateway, hosts, keepers and what belongs to them.
    pub(crate) others_bytes: u64,
}

/// The first number behind a name in a file of procfs.
pub(crate) fn field(text: &str, name: &str) -> anyhow::Result<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name));
    let number = rest.and_then(|rest| rest.split_whitespace().next());
    let number = number.with_context(|| format!("find {name} in {text}"))?;
    number.parse().with_context(|| format!("read {name}"))
}

fn is_init(status: &str) -> anyhow::Result<bool> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let pids = line.context("find NSpid")?.split_whitespace();
    // As seen from here, and from each namespace further in.
    Ok(pids.clone().count() > 1 && pids.last() == Some("1"))
}

fn binaries() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("find this program")?;
    Ok(own.parent().context("find its directory")?.to_owned())
}

/// A root file system with nothing but the test server and its libraries.
pub(crate) fn make_image(directory: &Path) -> anyhow::Result<PathBuf> {
    let server = binaries()?.join("testserver");
    let image = directory.join("image");
    std::fs::create_dir_all(&image)?;
    std::fs::copy(&server, image.join("testserver"))
        .with_context(|| format!("copy {}", server.display()))?;
    let libraries = Command::new("ldd")
        .arg(&server)
        .output()
        .context("run ldd")?;
    for path in String::from_utf8_lossy(&libraries.stdout)
        .split_whitespace()
        .filter_map(|word| word.strip_prefix('/'))
    {
        let inside = image.join(path);
        std::fs::create_dir_all(inside.parent().context("a library's directory")?)?;
        std::fs::copy(Path::new("/").join(path), inside)?;
    }
    Ok(image)
}

fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port())
}

impl Fleet {
    /// Starts a fleet and waits until it is ready.
    pub(crate) fn start(hosts: u16, arguments: &[&str]) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let image = make_image(directory.path())?;
        let address = format!("127.0.0.1:{}", free_port()?);
        let mut child = Command::new(binaries()?.join("conman"))
            .args([
                "up",
                "--hosts",
                &hosts.to_string(),
                "--runtime",
                "native",
                "--listen",
                &address,
            ])
            .arg("--state")
            .arg(directory.path().join("state"))
            .arg("--witness")
            .arg(directory.path().join("witness"))
            .args(arguments)
            // It counts containers, and nothing else is to run.
            .env("CONMAN_PROBE_HOSTS", "0")
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(directory.path().join("stderr"))?)
            .spawn()
            .context("start conman")?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("conman's output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let fleet = Self {
            child,
            address,
            directory,
            image,
        };
        ensure!(
            line.starts_with("ready "),
            "conman is not ready: {}",
            fleet.log()
        );
        Ok(fleet)
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("stderr")).unwrap_or_default()
    }

    /// Where its gateway listens.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Where it keeps everything.
    pub(crate) fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// The first process of each container that there is.
    pub(crate) async fn pids(&self) -> anyhow::Result<Vec<i32>> {
        let repls = self.api("GET", "/v1/repls").await?;
        let repls = repls["repls"].as_array().context("the repls")?;
        let pids = repls.iter().filter_map(|repl| repl["pid"].as_u64());
        pids.map(|pid| Ok(i32::try_from(pid)?)).collect()
    }

    /// Creates repls that run this, free at first.
    pub(crate) async fn create(&self, repls: &[String], command: &[&str]) -> anyhow::Result<()> {
        for repl in repls {
            self.create_with(repl, command, &json!({})).await?;
        }
        Ok(())
    }

    /// Creates one with these limits.
    pub(crate) async fn create_with(
        &self,
        repl: &str,
        command: &[&str],
        limits: &Value,
    ) -> anyhow::Result<()> {
        let spec = json!({
            "image": format!("dir:{}", self.image.display()),
            "command": command,
            "port": 8000,
            "limits": limits,
        });
        let path = format!("/v1/repls/{repl}");
        let answer = self
            .send("localhost", "PUT", &path, &spec.to_string())
            .await?;
        ensure!(answer.status == 201, "create {repl}: {}", answer.body);
        Ok(())
    }

    async fn send(
        &self,
        host: &str,
        method: &str,
        path: &str,
        body: &str,
    ) -> anyhow::Result<Answer> {
        http::send(&self.address, host, method, path, body).await
    }

    /// One request to a repl, whatever comes of it.
    pub(crate) async fn try_get(&self, repl: &str) -> anyhow::Result<Answer> {
        self.send(&format!("{repl}.localhost"), "GET", "/", "")
            .await
    }

    /// One request to a repl that must be answered by it.
    pub(crate) async fn get(&self, repl: &str) -> anyhow::Result<Answer> {
        let answer = self.try_get(repl).await?;
        ensure!(
            answer.status == 200 && answer.body.starts_with("hello from"),
            "{repl}: {} {}\n{}",
            answer.status,
            answer.body,
            self.log()
        );
        Ok(answer)
    }

    /// One call of the API.
    pub(crate) async fn api(&self, method: &str, path: &str) -> anyhow::Result<Value> {
        let answer = self.send("localhost", method, path, "").await?;
        ensure!(answer.status < 300, "{method} {path}: {}", answer.body);
        Ok(serde_json::from_str(&answer.body).unwrap_or(Value::Null))
    }

    /// The host that carries most.
    pub(crate) async fn busiest(&self) -> anyhow::Result<Lost> {
        let hosts = self.api("GET", "/v1/hosts").await?;
        let hosts = hosts["hosts"].as_array().context("the hosts")?;
        let busiest = hosts.iter().max_by_key(|host| host["containers"].as_u64());
        let busiest = busiest.context("a host")?;
        let process = |name: &str| busiest[name].as_u64().context(format!("its {name}"));
        let repls = self.api("GET", "/v1/repls").await?;
        let repls = repls["repls"].as_array().context("the repls")?;
        Ok(Lost {
            host: busiest["id"].as_str().context("its name")?.to_owned(),
            processes: [process("keeper_pid")?, process("conman_pid")?],
            repls: repls
                .iter()
                .filter(|repl| repl["host"] == busiest["id"])
                .filter_map(|repl| repl["id"].as_str().map(str::to_owned))
                .collect(),
        })
    }

    /// Memory of the product itself: of all processes that run its binary.
    pub(crate) fn product(&self) -> anyhow::Result<Product> {
        let binary = std::fs::canonicalize(binaries()?.join("conman"))?;
        let mut product = Product::default();
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let is_ours =
                std::fs::read_link(entry.path().join("exe")).is_ok_and(|program| program == binary);
            if !is_ours {
                continue;
            }
            let read = |name| std::fs::read_to_string(entry.path().join(name));
            let bytes = 1_024 * field(&read("smaps_rollup")?, "Pss:")?;
            // Of all that run this binary only an init is the first process of a PID namespace of its own.
            if is_init(&read("status")?)? {
                product.inits += 1;
                product.inits_bytes += bytes;
            } else {
                product.others_bytes += bytes;
            }
        }
        Ok(product)
    }

    /// How many times the witness saw two containers of one repl.
    pub(crate) fn double_alive(&self) -> usize {
        let mut directories = vec![self.directory.path().join("witness")];
        let mut overlaps = 0;
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                if entry.path().is_dir() {
                    directories.push(entry.path());
                } else if let Ok(text) = std::fs::read_to_string(entry.path()) {
                    overlaps += text.matches("\"overlap\"").count();
                }
            }
        }
        overlaps
    }

    /// Ends the fleet.
    pub(crate) fn stop(mut self) -> anyhow::Result<Duration> {
        let began = std::time::Instant::now();
        kill(self.child.id().into(), libc::SIGTERM)?;
        let status = self.child.wait()?;
        ensure!(
            status.success(),
            "conman ended with {status}: {}",
            self.log()
        );
        Ok(began.elapsed())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // Only after an error: `stop` has waited already, and a process that is gone cannot be killed.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill(self.child.id().into(), libc::SIGTERM);
            let _ = self.child.wait();
        }
    }
}

/// As many open files as this process may have: every container that is watched needs one, every user too.
pub(crate) fn raise_open_files() -> anyhow::Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("raise the limit of open files")
}

/// How many open files this process may have, and those that it starts.
pub(crate) fn open_files() -> u64 {
    use rustix::process::{Resource, getrlimit};
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Sends a signal to a process of the fleet.
pub(crate) fn kill(pid: u64, signal: i32) -> anyhow::Result<()> {
    let pid = i32::try_from(pid)?;
    // SAFETY: a plain system call without memory; the pid is of a process that this run has started.
    let result = unsafe { libc::kill(pid, signal) };
    ensure!(
        result == 0,
        "signal {signal} to {pid}: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}
