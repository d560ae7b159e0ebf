//! A real Docker engine for tests: the one that `scripts/docker-engine run` has started for all of them, or one of
//! a test's own, for a test that stops it.

#![allow(dead_code, reason = "each test program uses its own part")]

use std::collections::BTreeSet;
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
        let mut tar = Command::new("tar")
            .args(["-C", "/", "-ch"])
            .args(files_of_tools())
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

/// The files of the image, below the machine's root: the tools, what they are linked with, and what `IO::Socket` needs.
fn files_of_tools() -> BTreeSet<String> {
    let tools = TOOLS.iter().map(|tool| format!("/bin/{tool}"));
    let linked = Command::new("ldd").args(tools.clone()).output().unwrap();
    let linked = String::from_utf8(linked.stdout).unwrap();
    let modules = Command::new("perl")
        .args([
            "-MIO::Socket",
            "-e",
            "print map {\"$_\\n\"} values %INC, @DynaLoader::dl_shared_objects",
        ])
        .output()
        .unwrap();
    let modules = String::from_utf8(modules.stdout).unwrap();
    let words = linked
        .split_whitespace()
        .filter(|word| !word.ends_with(':'));
    let found = words.chain(modules.lines()).map(str::to_owned);
    tools
        .chain(found)
        .filter_map(|path| path.strip_prefix('/').map(str::to_owned))
        .collect()
}

/// Whether a process has ended, by what the kernel shows of it: nothing, or what waits for its shim to reap it.
pub(crate) fn is_dead(pid: &str) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return true;
    };
    let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
    state.starts_with(['Z', 'X'])
}
