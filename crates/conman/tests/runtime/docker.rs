//! What only the docker runtime promises.

use std::sync::Arc;
use std::time::Duration;

use conman::runtime::docker::{self, DockerOptions, Pull};
use conman::runtime::{Exit, boot_now};
use model::api::RefusalCode;
use model::spec::{Image, Limits};
use rustix::process::Signal;

use crate::docker_engine::{IMAGE, is_dead};
use crate::world::{Kind, World, docker_options};

macro_rules! docker {
    ($($test:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            crate::run(Kind::Docker, cases::$test).await;
        }
    )*};
}

docker! {
    limits_and_network_are_the_engines,
    images_are_fetched_as_is_asked_for,
    orphans_are_killed_and_removed,
    a_stopped_keeper_cannot_save_a_container,
    an_end_by_somebody_else_is_no_end_by_us,
}

mod cases {
    use super::*;

    pub async fn limits_and_network_are_the_engines(world: &mut World) {
        let mut request = world.request("a", &["sleep", "1000"]);
        request.spec.limits = Limits {
            memory_bytes: 64 * 1024 * 1024,
            cpu_millis: Some(500),
            pids: 20,
        };
        let id = world.runtime.start(request).await.unwrap().id;
        let engine = world.engine.as_ref().unwrap();
        let name = format!("{}-h1-{}-{}", world.options.fleet(), id.repl, id.epoch);
        let field = |field: &str| engine.field(&name, field);
        assert_eq!(field("HostConfig.Memory"), "67108864");
        assert_eq!(field("HostConfig.NanoCpus"), "500000000");
        assert_eq!(field("HostConfig.PidsLimit"), "20");
        assert_eq!(field("HostConfig.NetworkMode"), "none");
        assert_eq!(field("HostConfig.RestartPolicy.Name"), "no");
        // The workspace is the machine's own directory, and outlives the container.
        world
            .exec(&id, &["sh", "-c", "echo kept > kept"])
            .await
            .unwrap();
        let kept = world.options.workspaces.join("a/kept");
        assert_eq!(std::fs::read_to_string(kept).unwrap(), "kept\n");
        let home = world
            .exec(&id, &["sh", "-c", "pwd; echo $HOME"])
            .await
            .unwrap();
        assert_eq!(home.stdout, b"/home/repl\n/home/repl\n");
    }

    pub async fn images_are_fetched_as_is_asked_for(world: &mut World) {
        for (pull, image, expected) in [
            (
                Pull::Never,
                "no-such-image",
                "is not on this machine, and docker_pull is never",
            ),
            // There is no registry to be reached from this engine.
            (
                Pull::Missing,
                "no-such-image:1",
                "docker:no-such-image:1 could not be fetched: ",
            ),
            (Pull::Always, IMAGE, "could not be fetched: "),
        ] {
            let options = DockerOptions {
                pull,
                ..docker_options(world.engine.as_ref().unwrap())
            };
            reopen(world, options).await;
            let mut request = world.request("a", &["sleep", "1000"]);
            request.spec.image = Image::Docker(image.to_owned());
            let refused = world.runtime.start(request).await.unwrap_err();
            assert_eq!(refused.code, RefusalCode::ImageNotFound, "{refused}");
            assert!(refused.message.contains(expected), "{refused}");
        }
        // What is here is not fetched.
        let options = DockerOptions {
            pull: Pull::Missing,
            image: None,
            ..docker_options(world.engine.as_ref().unwrap())
        };
        reopen(world, options).await;
        let refused = world.try_start("a", &["sleep", "1000"]).await.unwrap_err();
        assert_eq!(refused.code, RefusalCode::BadSpec);
        assert!(
            refused.message.contains("no default image (--image)"),
            "{refused}"
        );
        let mut request = world.request("a", &["sleep", "1000"]);
        request.spec.image = Image::Docker(IMAGE.to_owned());
        world.runtime.start(request).await.unwrap();
        let mut request = world.request("b", &["sleep", "1000"]);
        request.spec.image = Image::Directory("/some".to_owned());
        let refused = world.runtime.start(request).await.unwrap_err();
        assert!(
            refused.message.contains("needs the native runtime"),
            "{refused}"
        );
    }

    /// Another conman with other options, on the same keeper.
    async fn reopen(world: &mut World, options: DockerOptions) {
        let runtime = docker::open(&world.options, options).unwrap();
        world.replace_runtime(Arc::new(runtime)).await;
    }

    pub async fn orphans_are_killed_and_removed(world: &mut World) {
        let held = world.start_sleeper("held").await;
        // As if conman had been killed between the engine's start and the keeper's hold.
        let orphan = {
            let engine = world.engine.as_ref().unwrap();
            let fleet = format!("conman.fleet={}", world.options.fleet());
            let labels = [
                &fleet,
                "conman.host=h1",
                "conman.repl=orphan",
                "conman.epoch=77",
            ];
            let mut options = vec!["--name"];
            let name = format!("{}-h1-orphan-77", world.options.fleet());
            options.push(&name);
            for label in labels {
                options.extend(["--label", label]);
            }
            engine.run(&options, &["sleep", "1000"])
        };
        let pid = world.engine.as_ref().unwrap().field(&orphan, "State.Pid");
        // A conman that finds a keeper for the first time ends what that does not hold.
        world.restart_client().await;
        assert!(is_dead(&pid), "proven before the keeper is announced");
        let deadline = tokio::time::Instant::now() + crate::world::EVENT_MAX;
        let engine = world.engine.as_ref().unwrap();
        while crate::leftovers::containers(engine, &world.options)
            .lines()
            .count()
            != 1
        {
            assert!(tokio::time::Instant::now() < deadline, "it is removed");
            tokio::task::yield_now().await;
        }
        world.exec(&held, &["true"]).await.unwrap();
    }

    pub async fn a_stopped_keeper_cannot_save_a_container(world: &mut World) {
        world.lose_keeper();
        let _lost = world.event().await;
        world.start_keeper().await;
        world.arm_for(Duration::from_secs(20)).await;
        let id = world.start_sleeper("a").await;
        world.keeper().signal(Signal::STOP);
        world.runtime.kill(std::slice::from_ref(&id)).await.unwrap();
        assert_eq!(world.dead(&id).await, Exit::Signal(libc::SIGKILL));
        world.keeper().signal(Signal::CONT);
        // At the deadline nobody has to be well but the kernel and the keeper's guard.
        let id = world.start_sleeper("b").await;
        world.lose_keeper();
        let began = boot_now();
        let mut exit = None;
        while exit.is_none() {
            if let conman::runtime::RuntimeEvent::Dead { exit: how, id: one } = world.event().await
            {
                assert_eq!(one, id);
                exit = Some(how);
            }
        }
        assert_eq!(exit, Some(Exit::Unknown));
        assert!(boot_now().since(began) < Duration::from_secs(3));
    }

    pub async fn an_end_by_somebody_else_is_no_end_by_us(world: &mut World) {
        let id = world.start_sleeper("a").await;
        let name = format!("{}-h1-{}-{}", world.options.fleet(), id.repl, id.epoch);
        world.engine.as_ref().unwrap().docker(&["kill", &name]);
        assert_eq!(world.dead(&id).await, Exit::Signal(libc::SIGKILL));
    }
}
