//! The engine that both of Docker's contenders use, and containers in it that sleep. The script has started it.

use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

const IMAGE: &str = "conman-bench-destroy";

/// How many `docker run` go on at once.
const AT_ONCE: usize = 6;

/// What marks this benchmark's containers among others of the engine.
pub(crate) const LABEL: &str = "conman-bench-destroy";

/// The engine, with an image to run.
pub(crate) struct Engine;

impl Engine {
    /// Makes the image: `sleep`, and what it is linked with.
    pub(crate) fn prepare() -> anyhow::Result<Self> {
        let program = "bin/sleep";
        let linked = Command::new("ldd").arg(format!("/{program}")).output();
        let linked = String::from_utf8(linked.context("run ldd")?.stdout)?;
        let libraries = linked.split_whitespace();
        let libraries = libraries.filter_map(|word| word.strip_prefix('/'));
        let mut tar = Command::new("tar")
            .args(["-C", "/", "-ch", program])
            .args(libraries)
            .stdout(Stdio::piped())
            .spawn()
            .context("run tar")?;
        let import = Command::new("docker")
            .args(["import", "-", IMAGE])
            .stdin(tar.stdout.take().context("tar's output")?)
            .stdout(Stdio::null())
            .status();
        let imported = import.context("run docker")?.success();
        ensure!(tar.wait()?.success() && imported, "docker import");
        Ok(Self)
    }

    /// Runs so many containers on the bridge; their ids, and the PIDs of their PID 1.
    pub(crate) fn run(&self, count: usize) -> anyhow::Result<Vec<(String, i32)>> {
        let mut ids = Vec::with_capacity(count);
        while ids.len() < count {
            let batch = AT_ONCE.min(count - ids.len());
            let batch: Vec<_> = (0..batch)
                .map(|_| {
                    let mut run = Command::new("docker");
                    run.args([
                        "run",
                        "-d",
                        "--label",
                        LABEL,
                        IMAGE,
                        "/bin/sleep",
                        "1000000",
                    ]);
                    run.stdout(Stdio::piped()).spawn()
                })
                .collect();
            for child in batch {
                let output = child.context("run docker")?.wait_with_output()?;
                ensure!(output.status.success(), "docker run");
                ids.push(String::from_utf8(output.stdout)?.trim().to_owned());
            }
        }
        let inspected = docker(&["inspect", "--format", "{{.State.Pid}}"], &ids)?;
        let pids = inspected.lines().map(str::parse::<i32>);
        let pids = pids.collect::<Result<Vec<_>, _>>().context("read PIDs")?;
        ensure!(pids.len() == count, "a container has no PID");
        Ok(ids.into_iter().zip(pids).collect())
    }

    /// Removes dead containers.
    pub(crate) fn remove(&self, containers: &[(String, i32)]) -> anyhow::Result<()> {
        let ids: Vec<_> = containers.iter().map(|(id, _)| id.clone()).collect();
        docker(&["rm", "-f"], &ids).map(drop)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // What an error on the way has left in an engine that is not the script's own.
        let filter = format!("label={LABEL}");
        if let Ok(left) = docker(&["ps", "-aq", "--filter", &filter], &[]) {
            let left: Vec<_> = left.lines().map(str::to_owned).collect();
            if !left.is_empty() {
                let _ = docker(&["rm", "-f"], &left);
            }
        }
        let _ = docker(&["rmi", "-f", IMAGE], &[]);
    }
}

/// What `docker` says, which must go well.
pub(crate) fn docker(arguments: &[&str], containers: &[String]) -> anyhow::Result<String> {
    let output = Command::new("docker")
        .args(arguments)
        .args(containers)
        .output()
        .context("run docker")?;
    ensure!(
        output.status.success(),
        "docker {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
