//! A real Docker engine for tests: the one that `scripts/docker-engine run` has started for all of them, or one of
//! a test's own, for a test that stops it.

#![allow(dead_code, reason = "each test program uses its own part")]

use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

/// What every test's containers are made from: a few of the machine's own tools.
pub(crate) const IMAGE: &str = "conman-test-tools";

const TOOLS: &[&str] = &[
    "sh", "bash", "perl", "cat", "echo", "false", "head", "id", "ls", "sleep", "stty", "true",
];

/// An engine, and the label of this test's containers in it.
pub(crate) struct TestEngine {
    pub(crate) host: String,
    pub(crate) label: String,
    /// What keeps an engine of its own alive, and its process.
    pub(crate) own: Option<(Child, ChildStdin)>,
}

/// The shared engine. `None`, said aloud, where the test command has started none.
pub(crate) fn shared() -> Option<TestEngine> {
    let Ok(host) = std::env::var("CONMAN_TEST_ENGINE") else {
        eprintln!("no CONMAN_TEST_ENGINE (scripts/docker-engine run sets it): nothing is tested");
        return None;
    };
    Some(TestEngine::at(host, None))
}

impl TestEngine {
    pub(crate) fn at(host: String, own: Option<(Child, ChildStdin)>) -> Self {
        let engine = Self {
            host,
            label: format!("conman-test={}-{:p}", std::process::id(), &raw const own),
            own,
        };
        engine.import_tools();
        engine
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.env("DOCKER_HOST", &self.host).args(arguments);
        command
    }

    /// What `docker` says, which must go well.
    pub(crate) fn docker(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert!(
            output.status.success(),
            "docker {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A `docker run -d` of this test's, begun. Options come before the image.
    pub(crate) fn begin_run(&self, options: &[&str], command: &[&str]) -> Child {
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
    pub(crate) fn run(&self, options: &[&str], command: &[&str]) -> String {
        let output = self.begin_run(options, command).wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "docker run: {said}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A field of a container, as `docker inspect` has it.
    pub(crate) fn field(&self, container: &str, field: &str) -> String {
        self.docker(&[
            "inspect",
            "--format",
            &format!("{{{{.{field}}}}}"),
            container,
        ])
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
