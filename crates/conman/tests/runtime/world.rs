//! One runtime under test, with its keeper, its directories and its events.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use conman::runtime::cgroup::Mounts;
use conman::runtime::docker::{self, DockerOptions, Pull};
use conman::runtime::fake::Fake;
use conman::runtime::{
    Exec, ExecOutput, Exit, Running, Runtime, RuntimeEvent, RuntimeOptions, StartRequest, boot_now,
    native, process,
};
use model::api::Refusal;
use model::id::{ContainerId, Epoch};
use model::spec::{Image, Limits, Spec, Visibility};
use model::time::BootTime;
use rustix::process::Signal;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::docker_engine::{self, TestEngine};
use crate::keeper_process::KeeperProcess;
use crate::leftovers;

/// The runtimes under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Fake,
    Process,
    /// With all the cgroup trees of this machine.
    Native,
    /// With its v1 trees only.
    NativeV1,
    /// With its v2 tree only: limits are kept only where that has the controllers.
    NativeV2,
    /// With the engine of the test command.
    Docker,
}

pub struct World {
    pub kind: Kind,
    pub runtime: Arc<dyn Runtime>,
    pub events: UnboundedReceiver<RuntimeEvent>,
    pub options: RuntimeOptions,
    pub mark: String,
    pub directory: tempfile::TempDir,
    fake: Option<Fake>,
    pub engine: Option<TestEngine>,
    keeper: Option<KeeperProcess>,
    /// What was started, to be cleaned up.
    started: Vec<ContainerId>,
    next_epoch: u64,
}

pub const EVENT_MAX: Duration = Duration::from_secs(10);

/// How far ahead keepers are armed, where a test does not say otherwise.
pub const ARMED: Duration = Duration::from_secs(50);

pub fn this_machine() -> Mounts {
    Mounts::parse(&std::fs::read_to_string("/proc/self/mountinfo").unwrap())
}

impl World {
    /// With a keeper that is connected and armed; `None`, with the reason said, where that cannot be.
    pub async fn new(kind: Kind) -> Option<Self> {
        let mut world = Self::unarmed(kind).await?;
        world.arm_for(ARMED).await;
        world.events.try_recv().expect_err("no event is due");
        Some(world)
    }

    /// With a keeper that was never armed.
    pub async fn unarmed(kind: Kind) -> Option<Self> {
        Self::in_directory(kind, tempfile::tempdir().unwrap()).await
    }

    pub async fn in_directory(kind: Kind, directory: tempfile::TempDir) -> Option<Self> {
        // Shown when the test fails. A second call finds the first one's.
        let _ = tracing_subscriber::fmt()
            .with_writer(std::io::stderr)
            .try_init();
        let needs_root = !matches!(kind, Kind::Fake | Kind::Process);
        if needs_root && !rustix::process::geteuid().is_root() {
            eprintln!("{kind:?} needs root: nothing is tested");
            return None;
        }
        if kind == Kind::NativeV1 && this_machine().v1.is_empty() {
            eprintln!("{kind:?} needs a cgroup tree of version 1: nothing is tested");
            return None;
        }
        let engine = match kind {
            Kind::Docker => Some(docker_engine::shared()?),
            _ => None,
        };
        let options = RuntimeOptions {
            host: "h1".parse().unwrap(),
            state: directory.path().join("state"),
            workspaces: directory.path().join("workspaces"),
            keeper_socket: directory.path().join("keeper"),
            witness: None,
            cgroup: None,
        };
        let fake = (kind == Kind::Fake).then(Fake::new);
        if let Some(fake) = &fake {
            fake.enforce_deadlines();
        }
        let runtime = open(kind, &options, fake.as_ref(), engine.as_ref());
        let mut world = Self {
            kind,
            events: runtime.events().unwrap(),
            runtime,
            mark: format!("{}-{:p}", std::process::id(), &raw const *directory.path()),
            options,
            directory,
            fake,
            engine,
            keeper: None,
            started: Vec::new(),
            next_epoch: 1,
        };
        assert!(
            world.runtime.events().is_none(),
            "the first caller got them"
        );
        match kind {
            Kind::Fake => {
                world.connected().await;
            }
            _ => world.start_keeper().await,
        }
        Some(world)
    }

    /// Starts a keeper and waits until the runtime has found it.
    pub async fn start_keeper(&mut self) {
        let pid = match &self.fake {
            Some(fake) => {
                fake.connect_keeper();
                None
            }
            None => {
                let native = !matches!(self.kind, Kind::Process | Kind::Docker);
                let keeper = KeeperProcess::start(&self.options.keeper_socket, native);
                Some(self.keeper.insert(keeper).pid())
            }
        };
        let found = self.connected().await;
        assert_eq!(pid.unwrap_or(found), found);
    }

    async fn connected(&mut self) -> u32 {
        match self.event().await {
            RuntimeEvent::KeeperConnected { pid } => pid,
            other => panic!("{other:?} instead of a keeper"),
        }
    }

    pub async fn arm_for(&self, ahead: Duration) -> BootTime {
        let deadline = boot_now().plus(ahead);
        self.runtime.arm(deadline).await.unwrap();
        deadline
    }

    pub async fn event(&mut self) -> RuntimeEvent {
        tokio::time::timeout(EVENT_MAX, self.events.recv())
            .await
            .expect("an event in time")
            .expect("the runtime lives")
    }

    /// The next event, which must be this container's death.
    pub async fn dead(&mut self, id: &ContainerId) -> Exit {
        match self.event().await {
            RuntimeEvent::Dead { id: dead, exit } if dead == *id => exit,
            other => panic!("{other:?} instead of the death of {id}"),
        }
    }

    /// A new container's request: a name of its own and the next epoch.
    pub fn request(&mut self, name: &str, command: &[&str]) -> StartRequest {
        let epoch = Epoch(self.next_epoch);
        self.next_epoch += 1;
        let id = ContainerId {
            repl: name.parse().unwrap(),
            epoch,
        };
        self.started.push(id.clone());
        StartRequest {
            id,
            spec: Spec {
                visibility: Visibility::default(),
                image: Image::Host,
                command: command.iter().map(|word| (*word).to_owned()).collect(),
                env: BTreeMap::from([(leftovers::MARK.to_owned(), self.mark.clone())]),
                port: Some(8080),
                limits: Limits::default(),
                idle_timeout_seconds: None,
            },
        }
    }

    pub async fn try_start(&mut self, name: &str, command: &[&str]) -> Result<Running, Refusal> {
        let request = self.request(name, command);
        self.runtime.start(request).await
    }

    pub async fn start(&mut self, name: &str, command: &[&str]) -> ContainerId {
        let running = self.try_start(name, command).await.unwrap();
        assert!(running.started <= boot_now());
        running.id
    }

    /// One that runs until it is killed.
    pub async fn start_sleeper(&mut self, name: &str) -> ContainerId {
        self.start(name, &["sleep", "1000"]).await
    }

    pub async fn kill(&mut self, id: &ContainerId) -> Exit {
        self.runtime.kill(std::slice::from_ref(id)).await.unwrap();
        self.dead(id).await
    }

    pub async fn exec(&self, id: &ContainerId, command: &[&str]) -> Result<ExecOutput, Refusal> {
        self.exec_with(id, command, b"", EVENT_MAX).await
    }

    pub async fn exec_with(
        &self,
        id: &ContainerId,
        command: &[&str],
        stdin: &[u8],
        timeout: Duration,
    ) -> Result<ExecOutput, Refusal> {
        let exec = Exec {
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout,
            stdin: stdin.to_vec(),
        };
        self.runtime.exec(id, exec).await
    }

    /// As after a SIGKILL of conman: the old client is gone, a new one finds the keeper.
    pub async fn restart_client(&mut self) {
        self.fake = self.fake.as_ref().map(Fake::restarted);
        // The old one goes first: its connection closes.
        self.runtime = Arc::new(Fake::new());
        let (fake, engine) = (self.fake.as_ref(), self.engine.as_ref());
        self.runtime = open(self.kind, &self.options, fake, engine);
        self.events = self.runtime.events().unwrap();
        let found = self.connected().await;
        let keeper = self.keeper.as_ref().map(KeeperProcess::pid);
        assert_eq!(keeper.unwrap_or(found), found);
    }

    /// As after a restart of conman with other options.
    pub async fn replace_runtime(&mut self, runtime: Arc<dyn Runtime>) {
        self.runtime = runtime;
        self.events = self.runtime.events().unwrap();
        self.connected().await;
    }

    /// SIGKILL to the keeper.
    pub fn lose_keeper(&mut self) {
        match (&self.fake, self.keeper.take()) {
            (Some(fake), _) => fake.lose_keeper(),
            (None, Some(keeper)) => keeper.signal(Signal::KILL),
            (None, None) => panic!("there is no keeper"),
        }
    }

    pub fn keeper(&self) -> &KeeperProcess {
        self.keeper.as_ref().unwrap()
    }

    /// The keeper has died by itself: it is reaped.
    pub async fn keeper_has_died(&mut self) {
        if let Some(keeper) = self.keeper.take() {
            assert!(!keeper.ended().await, "it was killed");
        }
    }

    /// Ends everything in order, cleans up, and proves that nothing is left.
    pub async fn finish(mut self) {
        let alive: Vec<_> = match self.runtime.adopt().await {
            Ok(running) => running.into_iter().map(|running| running.id).collect(),
            // The keeper was lost.
            Err(_) => Vec::new(),
        };
        self.runtime.kill(&alive).await.unwrap();
        for _ in &alive {
            assert!(matches!(self.event().await, RuntimeEvent::Dead { .. }));
        }
        for id in std::mem::take(&mut self.started) {
            self.runtime.cleanup(&id).await.unwrap();
        }
        leftovers::assert_clean(self.kind, &self.options);
        if let Some(keeper) = self.keeper.take() {
            keeper.signal(Signal::TERM);
            assert!(keeper.ended().await, "a regular end");
            assert_eq!(self.event().await, RuntimeEvent::KeeperLost);
        }
        self.runtime = Arc::new(Fake::new());
        if leftovers::has_cgroups(self.kind) {
            native::purge(&self.options).unwrap();
            native::purge(&self.options).unwrap();
        }
        if let Some(engine) = &self.engine {
            assert_eq!(leftovers::containers(engine, &self.options), "");
            for _ in 0..2 {
                docker::purge(&self.options, docker_options(engine)).unwrap();
            }
        }
        leftovers::assert_gone(&self.options, &self.mark);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Nothing is left to do for a test that came to its end; one that failed leaves nothing either.
        self.keeper = None;
        if leftovers::has_cgroups(self.kind) {
            let _ = native::purge(&self.options);
        }
        if let Some(engine) = &self.engine {
            let _ = docker::purge(&self.options, docker_options(engine));
        }
    }
}

pub fn docker_options(engine: &TestEngine) -> DockerOptions {
    DockerOptions {
        engine: engine.host.parse().unwrap(),
        image: Some(docker_engine::IMAGE.to_owned()),
        pull: Pull::Never,
        network: "none".to_owned(),
    }
}

fn open(
    kind: Kind,
    options: &RuntimeOptions,
    fake: Option<&Fake>,
    engine: Option<&TestEngine>,
) -> Arc<dyn Runtime> {
    let here = this_machine();
    let mounts = match kind {
        Kind::Fake => return Arc::new(fake.unwrap().clone()),
        Kind::Process => return Arc::new(process::open(options).unwrap()),
        Kind::Docker => {
            let docker = docker_options(engine.unwrap());
            return Arc::new(docker::open(options, docker).unwrap());
        }
        Kind::Native => return Arc::new(native::open(options).unwrap()),
        Kind::NativeV1 => Mounts { v2: None, ..here },
        Kind::NativeV2 => Mounts {
            v1: BTreeMap::new(),
            ..here
        },
    };
    Arc::new(native::open_on(options, mounts).unwrap())
}

/// A port's or a file's path below the world's own directory.
pub fn below(world: &World, name: &str) -> PathBuf {
    world.directory.path().join(name)
}
