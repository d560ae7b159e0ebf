//! A real Docker engine for tests: the one that `scripts/docker-engine run` has started for all of them, or one of
//! a test's own, for a test that stops it.

use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};

/// What every test's containers are made from: a few of the machine's own tools.
pub const IMAGE: &str = "conman-test-tools";

const TOOLS: &[&str] = &[
    "sh", "bash", "perl", "cat", "echo", "false", "head", "id", "ls", "sleep", "stty", "true",
];

/// An engine, and the label of this test's containers in it.
pub struct TestEngine {
    pub host: String,
    pub label: String,
    /// What keeps an engine of its own alive, and its process.
    own: Option<(Child, ChildStdin)>,
}

/// The shared engine. `None`, said aloud, where the test command has started none.
pub fn shared() -> Option<TestEngine> {
    let Ok(host) = std::env::var("CONMAN_TEST_ENGINE") else {
        eprintln!("no CONMAN_TEST_ENGINE (scripts/docker-engine run sets it): nothing is tested");
        return None;
    };
    Some(TestEngine::at(host, None))
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/docker-engine")
}

impl TestEngine {
    fn at(host: String, own: Option<(Child, ChildStdin)>) -> Self {
        let engine = Self {
            host,
            label: format!("conman-test={}-{:p}", std::process::id(), &raw const own),
            own,
        };
        engine.import_tools();
        engine
    }

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

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.env("DOCKER_HOST", &self.host).args(arguments);
        command
    }

    /// What `docker` says, which must go well.
    pub fn docker(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert!(
            output.status.success(),
            "docker {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A `docker run -d` of this test's, begun. Options come before the image.
    pub fn begin_run(&self, options: &[&str], command: &[&str]) -> Child {
        let fixed = ["run", "-d", "--network", "none", "--label", &self.label];
        self.command(&fixed)
            .args(options)
            .arg(IMAGE)
            .args(command)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// The same, done: the container's id.
    pub fn run(&self, options: &[&str], command: &[&str]) -> String {
        let output = self.begin_run(options, command).wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "docker run: {said}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A field of a container, as `docker inspect` has it.
    pub fn field(&self, container: &str, field: &str) -> String {
        self.docker(&[
            "inspect",
            "--format",
            &format!("{{{{.{field}}}}}"),
            container,
        ])
    }

    /// This test's containers that the engine calls alive.
    pub fn alive(&self) -> Vec<String> {
        let filter = format!("label={}", self.label);
        let ids = self.docker(&["ps", "-q", "--no-trunc", "--filter", &filter]);
        ids.lines().map(str::to_owned).collect()
    }

    /// `conman reap` at this engine, with nothing from the surroundings.
    pub fn reap(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_conman"));
        command.env("DOCKER_HOST", &self.host).arg("reap");
        command.args(arguments).output().unwrap()
    }

    fn import_tools(&self) {
        if self
            .command(&["image", "inspect", IMAGE])
            .output()
            .unwrap()
            .status
            .success()
        {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        for tool in TOOLS {
            copy_with_libraries(tool, directory.path());
        }
        copy_perl_base(directory.path());
        for name in ["proc", "tmp", "root"] {
            std::fs::create_dir_all(directory.path().join(name)).unwrap();
        }
        let mut tar = Command::new("tar")
            .arg("-C")
            .arg(directory.path())
            .args(["-c", "."])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut import = self.command(&["import", "-", IMAGE]);
        import.stdin(tar.stdout.take().unwrap());
        assert!(import.output().unwrap().status.success(), "docker import");
        assert!(tar.wait().unwrap().success());
    }
}

impl Drop for TestEngine {
    fn drop(&mut self) {
        match self.own.take() {
            Some((mut child, stdin)) => {
                drop(stdin);
                let _ = child.wait();
            }
            None => {
                let filter = format!("label={}", self.label);
                let listed = self.command(&["ps", "-aq", "--filter", &filter]).output();
                let listed = listed.map(|output| output.stdout).unwrap_or_default();
                let text = String::from_utf8_lossy(&listed).into_owned();
                let mut remove = self.command(&["rm", "-f", "-v"]);
                if !text.trim().is_empty() {
                    let _ = remove.args(text.split_whitespace()).output();
                }
            }
        }
    }
}

/// Copies a program of the machine's and what it is linked with into a root file system.
fn copy_with_libraries(program: &str, root: &Path) {
    let places =
        ["/usr/bin", "/bin", "/usr/sbin", "/sbin"].map(|place| Path::new(place).join(program));
    let path = places.iter().find(|path| path.exists());
    let path = path.unwrap_or_else(|| panic!("{program} is on this machine"));
    let listed = Command::new("ldd").arg(path).output().unwrap();
    let text = String::from_utf8(listed.stdout).unwrap();
    let libraries = text.split_whitespace().filter(|word| word.starts_with('/'));
    for library in libraries {
        copy(Path::new(library), &root.join(&library[1..]));
    }
    copy(path, &root.join("bin").join(program));
}

/// The modules that `IO::Socket` needs.
fn copy_perl_base(root: &Path) {
    let printed = Command::new("perl")
        .args([
            "-MIO::Socket",
            "-e",
            "print map {\"$_\\n\"} grep {m:^/:} values %INC, map {\"$_\"} @DynaLoader::dl_shared_objects",
        ])
        .output()
        .unwrap();
    for path in String::from_utf8(printed.stdout).unwrap().lines() {
        copy(Path::new(path), &root.join(&path[1..]));
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to.parent().unwrap()).unwrap();
    std::fs::copy(from, to).unwrap();
}
