//! What every runtime promises. Each function is one test; `main` runs it on every runtime.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use conman::runtime::{EXEC_OUTPUT_BYTES_MAX, Exit, RuntimeEvent};
use model::api::RefusalCode;
use model::id::{ContainerId, Epoch};
use model::spec::Image;
use model::wire::keeper::START_MAX;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::{EVENT_MAX, Kind, World, below};

const KILLED: Exit = Exit::Signal(libc::SIGKILL);

/// Echoes on `$PORT`, and says so first.
const ECHO_SERVER: &[&str] = &[
    "perl",
    "-MIO::Socket",
    "-e",
    "$|=1; $s=IO::Socket::INET->new(LocalAddr=>'127.0.0.1',LocalPort=>$ENV{PORT},Listen=>9,ReuseAddr=>1) or die $!; \
     print \"up\\n\"; while($c=$s->accept){while(sysread($c,$b,4096)){syswrite $c,$b}}",
];

pub async fn starts_and_is_killed(world: &mut World) {
    let id = world.start_sleeper("a").await;
    let adopted = world.runtime.adopt().await.unwrap();
    assert_eq!(adopted.len(), 1);
    assert_eq!(adopted[0].id, id);
    assert_eq!(world.kill(&id).await, KILLED);
    // Again, and one that never was: no error, no second death.
    let never = ContainerId {
        repl: "never".parse().unwrap(),
        epoch: Epoch(1),
    };
    world.runtime.kill(&[id.clone(), never]).await.unwrap();
    assert_eq!(world.runtime.adopt().await.unwrap(), []);
    let refused = world.exec(&id, &["true"]).await.unwrap_err();
    assert_eq!(refused.code, RefusalCode::NotRunning);
    let refused = world.runtime.terminate(&id).await.unwrap_err();
    assert_eq!(refused.code, RefusalCode::NotRunning);
    assert!(world.events.try_recv().is_err(), "dead once");
}

pub async fn ends_by_itself(world: &mut World) {
    let command: &[&str] = match world.kind {
        Kind::Fake => &["exit", "3"],
        _ => &["sh", "-c", "exit 3"],
    };
    let id = world.start("a", command).await;
    assert_eq!(world.dead(&id).await, Exit::Code(3));
    let refused = world.runtime.dial(&id, 8080).await.unwrap_err();
    assert_eq!(refused.code, RefusalCode::NotRunning);
    assert!(world.runtime.shell(&id, 80, 24).await.is_err());
}

pub async fn is_terminated_within_its_grace(world: &mut World) {
    let id = world.start_sleeper("a").await;
    world.runtime.terminate(&id).await.unwrap();
    assert_eq!(world.dead(&id).await, Exit::Signal(libc::SIGTERM));
}

pub async fn lives_through_terminate_until_killed(world: &mut World) {
    let command: &[&str] = match world.kind {
        Kind::Fake => &["ignore-terminate"],
        // Says when it is ready to be terminated: the first line of its output.
        _ => &[
            "sh",
            "-c",
            "trap '' TERM; echo ready; while :; do sleep 1; done",
        ],
    };
    let id = world.start("a", command).await;
    if world.kind != Kind::Fake {
        until_logged(world, &id, "ready").await;
    }
    world.runtime.terminate(&id).await.unwrap();
    // An exec is answered after the signal was delivered.
    world.exec(&id, &["true"]).await.unwrap();
    assert!(world.events.try_recv().is_err(), "it lives");
    assert_eq!(world.kill(&id).await, KILLED);
}

pub async fn execs(world: &mut World) {
    let id = world.start_sleeper("a").await;
    let output = world.exec(&id, &["echo", "hello", "there"]).await.unwrap();
    assert_eq!(output.exit, Exit::Code(0));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello there\n");
    assert_eq!(output.stderr, b"");
    assert!(!output.truncated);
    let output = world.exec(&id, &["false"]).await.unwrap();
    assert_eq!(output.exit, Exit::Code(1));
    let refused = world.exec(&id, &["missing-command"]).await.unwrap_err();
    assert_eq!(refused.code, RefusalCode::CommandNotFound);
    assert!(refused.message.contains("missing-command"), "{refused}");
    if world.kind != Kind::Fake {
        let script = "echo out; echo err >&2; echo $REPL; kill -9 $$";
        let output = world.exec(&id, &["sh", "-c", script]).await.unwrap();
        assert_eq!(output.exit, KILLED);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "out\na\n");
        assert_eq!(output.stderr, b"err\n");
        // What is left in the background is not waited for, although it holds the output open.
        let started = tokio::time::Instant::now();
        let script = "sleep 1000 & echo done";
        let output = world.exec(&id, &["sh", "-c", script]).await.unwrap();
        assert_eq!(output.stdout, b"done\n");
        assert!(started.elapsed() < EVENT_MAX / 2);
    }
}

pub async fn execs_with_much_input_and_output(world: &mut World) {
    let id = world.start_sleeper("a").await;
    let much = vec![b'x'; 700_000];
    let output = world
        .exec_with(&id, &["cat"], &much, EVENT_MAX)
        .await
        .unwrap();
    assert_eq!((output.stdout.len(), output.truncated), (much.len(), false));
    let more = vec![b'x'; EXEC_OUTPUT_BYTES_MAX + 1];
    let output = world
        .exec_with(&id, &["cat"], &more, EVENT_MAX)
        .await
        .unwrap();
    assert_eq!(output.stdout.len(), EXEC_OUTPUT_BYTES_MAX);
    assert!(output.truncated);
    // A command that does not read its input is not held up by it.
    let output = world
        .exec_with(&id, &["true"], &more, EVENT_MAX)
        .await
        .unwrap();
    assert_eq!(output.exit, Exit::Code(0));
}

pub async fn exec_that_takes_too_long_is_killed(world: &mut World) {
    let id = world.start_sleeper("a").await;
    let timeout = Duration::from_millis(100);
    let refused = world.exec_with(&id, &["sleep", "997"], b"", timeout).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code, RefusalCode::ExecTimeout);
    assert!(refused.message.contains("100 ms"), "{refused}");
    if world.kind != Kind::Fake {
        let deadline = tokio::time::Instant::now() + EVENT_MAX;
        while crate::leftovers::marked(&world.mark)
            .iter()
            .any(|process| process.contains("sleep 997"))
        {
            assert!(tokio::time::Instant::now() < deadline, "it is killed");
            tokio::task::yield_now().await;
        }
    }
    world.exec(&id, &["true"]).await.unwrap();
}

pub async fn has_a_shell_that_is_resized(world: &mut World) {
    let id = world.start_sleeper("a").await;
    let terminal = world.runtime.shell(&id, 80, 24).await.unwrap();
    let size_of = terminal.size;
    let mut master = Master(tokio::fs::File::from(std::fs::File::from(
        blocking(terminal.master).unwrap(),
    )));
    let size = match world.kind {
        Kind::Fake => "size\n",
        _ => "stty size\n",
    };
    master.write(size).await;
    master.read_until("24 80").await;
    size_of.set(master.0.as_fd(), 120, 40);
    master.write(size).await;
    master.read_until("40 120").await;
    master.write("exit 5\n").await;
    let exit = tokio::time::timeout(EVENT_MAX, terminal.ended).await;
    assert_eq!(exit.unwrap().unwrap(), Exit::Code(5));
    // The container lives on.
    world.exec(&id, &["true"]).await.unwrap();
}

pub async fn shell_ends_with_its_container(world: &mut World) {
    let id = world.start_sleeper("a").await;
    let terminal = world.runtime.shell(&id, 80, 24).await.unwrap();
    let dropped = world.runtime.shell(&id, 80, 24).await.unwrap();
    drop(dropped);
    assert_eq!(world.kill(&id).await, KILLED);
    let exit = tokio::time::timeout(EVENT_MAX, terminal.ended).await;
    assert_eq!(exit.unwrap().unwrap(), KILLED);
}

pub async fn lives_through_shells_that_are_dropped(world: &mut World) {
    let id = world.start_sleeper("a").await;
    // The ends of some shells, and the let-go of others, meet in the container's init.
    let rounds = match world.kind {
        // Each takes it a good part of a second.
        Kind::Docker => 5,
        _ => 50,
    };
    for _ in 0..rounds {
        let first = world.runtime.shell(&id, 80, 24).await.unwrap();
        let second = world.runtime.shell(&id, 80, 24).await.unwrap();
        drop(first);
        drop(second);
        let (one, other) = tokio::join!(world.exec(&id, &["true"]), world.exec(&id, &["false"]));
        assert_eq!(one.unwrap().exit, Exit::Code(0));
        assert_eq!(other.unwrap().exit, Exit::Code(1));
    }
    assert_eq!(world.kill(&id).await, KILLED);
}

pub async fn is_dialed(world: &mut World) {
    let id = world.start("a", ECHO_SERVER).await;
    let mut stream = dial_ready(world, &id).await;
    stream.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"ping");
    let refused = world.runtime.dial(&id, 81).await.unwrap_err();
    assert_eq!(refused.code, RefusalCode::PortNotListening);
    assert_eq!(world.kill(&id).await, KILLED);
    // The connection breaks with its container.
    let read = tokio::time::timeout(EVENT_MAX, stream.read(&mut answer)).await;
    assert!(matches!(read.unwrap(), Ok(0) | Err(_)));
}

pub async fn nobody_listens(world: &mut World) {
    let mut request = world.request("a", &["sleep", "1000"]);
    if world.kind == Kind::Fake {
        request.spec.port = None;
    }
    let id = world.runtime.start(request).await.unwrap().id;
    let refused = world.runtime.dial(&id, 8080).await.unwrap_err();
    assert_eq!(refused.code, RefusalCode::PortNotListening);
    assert!(refused.message.contains("8080"), "{refused}");
}

pub async fn command_is_missing(world: &mut World) {
    let refused = world
        .try_start("a", &["missing-command"])
        .await
        .unwrap_err();
    assert_eq!(refused.code, RefusalCode::CommandNotFound);
    assert!(refused.message.contains("missing-command"), "{refused}");
    nothing_runs(world).await;
}

pub async fn image_is_missing(world: &mut World) {
    let mut request = world.request("a", &["sleep", "1000"]);
    let missing = below(world, "no-such-image");
    request.spec.image = match world.kind {
        Kind::Docker => Image::Docker("no-such-image".to_owned()),
        _ => Image::Directory(missing.to_str().unwrap().to_owned()),
    };
    let refused = world.runtime.start(request).await.unwrap_err();
    assert_eq!(refused.code, RefusalCode::ImageNotFound);
    assert!(refused.message.contains("no-such-image"), "{refused}");
    nothing_runs(world).await;
}

pub async fn keeps_its_output(world: &mut World) {
    let id = world.start("a", &["echo", "hello", "log"]).await;
    assert_eq!(world.dead(&id).await, Exit::Code(0));
    assert_eq!(logged(world, &id), "hello log\n");
    // Cleaning up keeps the newest epoch's output, and a newer epoch's cleanup removes it.
    if world.kind != Kind::Fake {
        world.runtime.cleanup(&id).await.unwrap();
        assert_eq!(logged(world, &id), "hello log\n");
        let next = world.start("a", &["echo", "again"]).await;
        world.dead(&next).await;
        world.runtime.cleanup(&next).await.unwrap();
        assert_eq!(world.runtime.logs(&id).0.len(), 0);
        assert_eq!(logged(world, &next), "again\n");
    }
}

pub async fn is_adopted_after_a_restart(world: &mut World) {
    let id = world.start("a", ECHO_SERVER).await;
    let other = world.start_sleeper("b").await;
    let _ = dial_ready(world, &id).await;
    let before = world.runtime.adopt().await.unwrap();
    world.restart_client().await;
    let adopted = world.runtime.adopt().await.unwrap();
    assert_eq!(adopted, before);
    assert_eq!(adopted.len(), 2);
    // It can be used as before, by its old environment.
    let output = world.exec(&id, &["echo", "here"]).await.unwrap();
    assert_eq!(output.stdout, b"here\n");
    let mut stream = dial_ready(world, &id).await;
    stream.write_all(b"x").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
    assert_eq!(world.kill(&id).await, KILLED);
    world.runtime.terminate(&other).await.unwrap();
    assert_eq!(world.dead(&other).await, Exit::Signal(libc::SIGTERM));
    // Its epoch stays used up.
    let mut request = world.request("a", &["sleep", "1000"]);
    request.id = id;
    let refused = world.runtime.start(request).await.unwrap_err();
    assert_eq!(refused.code, RefusalCode::NotOwner);
}

pub async fn is_cleaned_up_again_and_again(world: &mut World) {
    let id = world.start_sleeper("a").await;
    assert!(world.runtime.cleanup(&id).await.is_err(), "it is alive");
    world.exec(&id, &["true"]).await.unwrap();
    assert_eq!(world.kill(&id).await, KILLED);
    world.runtime.cleanup(&id).await.unwrap();
    world.runtime.cleanup(&id).await.unwrap();
    let never = world.request("never", &["sleep", "1000"]);
    world.runtime.cleanup(&never.id).await.unwrap();
}

pub async fn is_lost_with_its_keeper(world: &mut World) {
    let mut ids = BTreeSet::new();
    for name in ["a", "b", "c"] {
        ids.insert(world.start_sleeper(name).await);
    }
    world.lose_keeper();
    let mut lost = 0;
    while lost == 0 || !ids.is_empty() {
        match world.event().await {
            RuntimeEvent::KeeperLost => lost += 1,
            RuntimeEvent::Dead { id, exit } => {
                assert!(ids.remove(&id), "{id} is dead once");
                assert_eq!(exit, Exit::Unknown);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(lost, 1);
    assert_eq!(crate::leftovers::marked(&world.mark), Vec::<String>::new());
    let refused = world.try_start("d", &["sleep", "1000"]).await.unwrap_err();
    assert_eq!(refused.code, RefusalCode::Fenced);
    assert!(world.runtime.adopt().await.is_err());
    // A new one holds nothing, and works.
    world.start_keeper().await;
    world.arm_for(Duration::from_secs(20)).await;
    assert_eq!(world.runtime.adopt().await.unwrap(), []);
    let id = world.start_sleeper("a").await;
    assert_eq!(world.kill(&id).await, KILLED);
}

pub async fn dies_at_the_deadline(world: &mut World) {
    // How long it takes on this machine to start one, and to be told of a death that nothing has to be waited for.
    let start = tokio::time::Instant::now();
    let id = world.start_sleeper("a").await;
    let start = start.elapsed();
    let killed = tokio::time::Instant::now();
    world.lose_keeper();
    lost_with_its_keeper(world, &id).await;
    let by_hand = killed.elapsed();

    // A deadline only grows: a keeper that was armed far ahead cannot be used for this.
    world.start_keeper().await;
    let ahead = Duration::from_secs(2).max(5 * start);
    let deadline = world.arm_for(ahead).await;
    let id = world.start_sleeper("b").await;
    lost_with_its_keeper(world, &id).await;
    let now = conman::runtime::boot_now();
    assert!(now >= deadline, "not before");
    let late = now.since(deadline);
    // The protocol's bound; on a machine that is too slow for it, as an emulated one, what it takes there by hand.
    let bound = model::timing::KILL_BOUND.max(2 * by_hand);
    assert!(late < bound, "{late:?} late, {by_hand:?} by hand");
    world.keeper_has_died().await;
}

/// Waits for both, in either order.
async fn lost_with_its_keeper(world: &mut World, lost: &ContainerId) {
    let mut keeper_lost = false;
    let mut dead = false;
    while !keeper_lost || !dead {
        match world.event().await {
            RuntimeEvent::KeeperLost => {
                assert!(!keeper_lost, "a keeper is lost once");
                keeper_lost = true;
            }
            RuntimeEvent::Dead { id, exit } => {
                assert_eq!((&id, exit), (lost, Exit::Unknown));
                assert!(!dead, "a container is dead once");
                dead = true;
            }
            other => panic!("{other:?}"),
        }
    }
}

pub async fn never_starts_an_older_epoch(world: &mut World) {
    let old = world.request("a", &["sleep", "1000"]);
    let id = world.start_sleeper("a").await;
    assert_eq!(world.kill(&id).await, KILLED);
    let refused = world.runtime.start(old).await.unwrap_err();
    assert_eq!(refused.code, RefusalCode::NotOwner);
    nothing_runs(world).await;
}

pub async fn never_starts_before_the_first_deadline(world: &mut World) {
    world.lose_keeper();
    assert_eq!(world.event().await, RuntimeEvent::KeeperLost);
    world.start_keeper().await;
    let refused = world.try_start("a", &["sleep", "1000"]).await.unwrap_err();
    assert_eq!(refused.code, RefusalCode::Fenced);
    nothing_runs(world).await;
}

pub async fn two_hundred_at_once(world: &mut World) {
    let count = match world.kind {
        // Its engine starts three in a second.
        Kind::Docker => 30,
        _ => 200,
    };
    let requests: Vec<_> = (0..count)
        .map(|number| world.request(&format!("r{number}"), &["sleep", "1000"]))
        .collect();
    // All of them at once, where the last one is not given up before its turn: not on an emulated machine.
    let first = world.start_sleeper("first").await;
    let begun = tokio::time::Instant::now();
    let second = world.start_sleeper("second").await;
    let at_once = START_MAX.as_nanos() / 2 / begun.elapsed().as_nanos();
    let at_once = match world.kind {
        // Its starts are not the keeper's.
        Kind::Docker => count,
        _ => usize::try_from(at_once).unwrap().clamp(1, count),
    };
    eprintln!("{at_once} of {count} are started at once");
    let turns = std::sync::Arc::new(tokio::sync::Semaphore::new(at_once));
    let mut starts = tokio::task::JoinSet::new();
    for request in requests {
        let runtime = world.runtime.clone();
        let turns = turns.clone();
        starts.spawn(async move {
            let _turn = turns.acquire_owned().await.unwrap();
            runtime.start(request).await.unwrap().id
        });
    }
    let mut ids = vec![first, second];
    let count = count + ids.len();
    while let Some(id) = starts.join_next().await {
        ids.push(id.unwrap());
        // A host renews meanwhile: its lease is no limit to how long this takes.
        world.arm_for(crate::world::ARMED).await;
    }
    assert_eq!(world.runtime.adopt().await.unwrap().len(), count);
    world.restart_client().await;
    assert_eq!(world.runtime.adopt().await.unwrap().len(), count);
    // With more names than go into one message to the keeper; nothing runs under the others.
    let mut named = ids.clone();
    named.extend((0..2_500).map(|number| world.request(&format!("none-{number}"), &["true"]).id));
    world.runtime.kill(&named).await.unwrap();
    let mut left: BTreeSet<_> = ids.into_iter().collect();
    while !left.is_empty() {
        match world.event().await {
            RuntimeEvent::Dead { id, exit } => {
                assert!(left.remove(&id), "{id} is dead once");
                assert_eq!(exit, KILLED);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(crate::leftovers::marked(&world.mark), Vec::<String>::new());
}

async fn nothing_runs(world: &mut World) {
    assert_eq!(world.runtime.adopt().await.unwrap(), []);
    assert_eq!(crate::leftovers::marked(&world.mark), Vec::<String>::new());
    assert!(
        world.events.try_recv().is_err(),
        "what never ran is not dead"
    );
}

/// Dials until the server in the container listens.
pub async fn dial_ready(world: &World, id: &ContainerId) -> TcpStream {
    let deadline = tokio::time::Instant::now() + EVENT_MAX;
    loop {
        match world.runtime.dial(id, 8080).await {
            Ok(stream) => return stream,
            Err(refused) => {
                assert_eq!(refused.code, RefusalCode::PortNotListening, "{refused}");
                assert!(tokio::time::Instant::now() < deadline, "nobody listens");
            }
        }
        tokio::task::yield_now().await;
    }
}

fn logged(world: &World, id: &ContainerId) -> String {
    let files = world.runtime.logs(id).0.into_iter();
    files
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect()
}

async fn until_logged(world: &World, id: &ContainerId, text: &str) {
    let deadline = tokio::time::Instant::now() + EVENT_MAX;
    while !logged(world, id).contains(text) {
        assert!(tokio::time::Instant::now() < deadline, "{text:?} is logged");
        tokio::task::yield_now().await;
    }
}

/// Plain file reads and writes, on threads of tokio's, as a terminal's user would do.
fn blocking(fd: OwnedFd) -> std::io::Result<OwnedFd> {
    rustix::io::ioctl_fionbio(&fd, false)?;
    Ok(fd)
}

struct Master(tokio::fs::File);

impl Master {
    async fn write(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
        self.0.flush().await.unwrap();
    }

    async fn read_until(&mut self, wanted: &str) {
        let mut seen = String::new();
        let mut buffer = [0; 1024];
        while !seen.contains(wanted) {
            let read = tokio::time::timeout(EVENT_MAX, self.0.read(&mut buffer)).await;
            let read = read.unwrap_or_else(|_| panic!("{wanted:?} is not in {seen:?}"));
            seen.push_str(&String::from_utf8_lossy(&buffer[..read.unwrap()]));
        }
    }
}
