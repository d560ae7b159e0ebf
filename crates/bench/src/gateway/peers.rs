//! HAProxy and nginx, in the network namespace of the container that they stand before.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::fleet::{field, kill, open_files};

const THREADS: usize = 2;
const READY_MAX: Duration = Duration::from_secs(10);

/// One that runs.
#[derive(Debug)]
pub(super) struct Peer {
    child: Child,
    address: String,
}

impl Peer {
    pub(super) fn start(name: &str, container: i32, work: &Path) -> anyhow::Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let directory = work.join(name);
        std::fs::create_dir(&directory)?;
        let log = std::fs::File::create(directory.join("log"))?;
        let child = Command::new(std::env::current_exe()?)
            .args(["behind", name, &container.to_string(), &port.to_string()])
            .arg(&directory)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let peer = Self {
            child,
            address: format!("127.0.0.1:{port}"),
        };
        let deadline = Instant::now() + READY_MAX;
        // The socket is there before its program: an answer is what counts.
        while !answers(&peer.address) {
            let log = std::fs::read_to_string(directory.join("log")).unwrap_or_default();
            ensure!(Instant::now() < deadline, "{name} does not answer: {log}");
            std::thread::yield_now();
        }
        Ok(peer)
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Of it and of those that it has started.
    pub(super) fn memory_bytes(&self) -> anyhow::Result<u64> {
        let mut bytes = 0;
        let own = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children"))?;
        for pid in children
            .split_whitespace()
            .chain([own.to_string().as_str()])
        {
            let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            bytes += 1_024 * field(&text, "Pss:")?;
        }
        Ok(bytes)
    }
}

fn answers(address: &str) -> bool {
    let asked = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.starts_with("HTTP/1.1 200"))
    };
    asked().unwrap_or(false)
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Both end at once with it, workers and all.
        let _ = kill(self.child.id().into(), libc::SIGTERM);
        let _ = self.child.wait();
    }
}

/// `bench behind NAME PID PORT DIRECTORY`: listens here, enters the container's network namespace, and becomes the peer.
pub(crate) fn run_behind(arguments: &[String]) -> anyhow::Result<()> {
    let [name, pid, port, directory] = arguments else {
        bail!("behind wants NAME PID PORT DIRECTORY");
    };
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).context("listen")?;
    // nginx takes it as it is: one worker would wait in it for a connection that the other has taken, with all of its own.
    listener.set_nonblocking(true)?;
    let inside = std::fs::File::open(format!("/proc/{pid}/ns/net")).context("the namespace")?;
    move_into_link_name_space(
        std::os::fd::AsFd::as_fd(&inside),
        Some(LinkNameSpaceType::Network),
    )
    .context("enter the namespace")?;
    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty())?;
    let fd = listener.as_raw_fd();
    let config = Path::new(directory).join("config");
    let (text, mut command) = match name.as_str() {
        "haproxy" => {
            let mut command = Command::new("haproxy");
            command.arg("-f").arg(&config);
            (haproxy(fd), command)
        }
        "nginx" => {
            let mut command = Command::new("nginx");
            // As it passes them on to a new binary of its own.
            command
                .arg("-c")
                .arg(&config)
                .env("NGINX", format!("{fd};"));
            (nginx(port, directory), command)
        }
        other => bail!("there is no peer {other}"),
    };
    std::fs::write(&config, text)?;
    Err(command.exec()).with_context(|| format!("run {name}"))
}

fn haproxy(fd: i32) -> String {
    format!(
        "global
    nbthread {THREADS}
    maxconn {}
defaults
    mode http
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout tunnel 1h
    option http-keep-alive
    option forwardfor
frontend users
    bind fd@{fd}
    default_backend container
backend container
    http-reuse always
    server container 127.0.0.1:8000
",
        open_files().saturating_sub(1_000) / 2
    )
}

fn nginx(port: &str, directory: &str) -> String {
    format!(
        "daemon off;
worker_processes {THREADS};
pid {directory}/pid;
error_log {directory}/error.log;
events {{ worker_connections 19000; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    keepalive_requests 100000000;
    map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
    upstream container {{ server 127.0.0.1:8000; keepalive 512; keepalive_requests 100000000; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://container;
            proxy_http_version 1.1;
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_read_timeout 1h;
        }}
    }}
}}
"
    )
}
