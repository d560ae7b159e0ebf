//! What the tests of `conman reap` want of an engine.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::docker_engine::{TestEngine, shared};

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/docker-engine")
}

impl TestEngine {
    /// One that nobody else uses, for as long as this lives.
    pub fn own() -> Option<Self> {
        shared()?;
        let mut child = Command::new(script())
            .args(["run", "sh", "-c", "echo $DOCKER_HOST; read -r end"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
        let host = line.trim().to_owned();
        assert!(host.starts_with("unix://"), "the engine did not start");
        Some(Self::at(host, Some((child, stdin))))
    }

    /// The engine's own process.
    pub fn pid(&self) -> i32 {
        let socket = Path::new(self.host.trim_start_matches("unix://"));
        let noted = std::fs::read_to_string(socket.with_file_name("engine")).unwrap();
        noted.trim().parse().unwrap()
    }

    /// This test's containers that the engine calls alive.
    pub fn alive(&self) -> Vec<String> {
        let filter = format!("label={}", self.label);
        let ids = self.docker(&["ps", "-q", "--no-trunc", "--filter", &filter]);
        ids.lines().map(str::to_owned).collect()
    }

    /// `conman reap` at this engine, with nothing from the surroundings.
    pub fn reap(&self, arguments: &[&str]) -> Output {
        self.reap_command(arguments).output().unwrap()
    }

    /// The same, not yet run.
    pub fn reap_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_conman"));
        command.env("DOCKER_HOST", &self.host).arg("reap");
        command.args(arguments);
        command
    }
}
