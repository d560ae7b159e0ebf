//! What only native containers promise.

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use conman::runtime::Exit;
use conman::runtime::cgroup::{Cgroups, Controller};
use model::api::RefusalCode;
use model::id::ContainerId;
use model::spec::{Image, Limits};
use model::timing::KILL_BOUND;

use crate::contract::dial_ready;
use crate::leftovers;
use crate::world::{Kind, World, below, this_machine};

/// Processes of a container that take a while to end.
const CROWD: u32 = 300;

macro_rules! native {
    ($($test:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            crate::run(Kind::Native, cases::$test).await;
        }
    )*};
}

native! {
    memory_is_limited,
    memory_that_runs_out_ends_one_process,
    processes_are_limited,
    a_limit_does_not_hold_back_the_dying,
    sees_only_itself,
    has_a_private_etc_and_the_machines_tools,
    workspace_lasts_and_the_rest_does_not,
    runs_a_directory,
    ipv6_loopback_is_dialed_too,
    what_a_crash_left_is_ended,
    a_stopped_keeper_cannot_save_a_container,
    a_record_that_is_gone_is_said,
}

/// With a file system of 64 KiB for the overlays. It is mounted before the keeper starts, which has a mount
/// namespace of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_disk_is_said() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("needs root: nothing is tested");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let overlays = directory.path().join("state/overlay/h1");
    std::fs::create_dir_all(&overlays).unwrap();
    let small = Mounted::tmpfs(&overlays, "size=64k,nr_inodes=64");
    let mut world = World::in_directory(Kind::Native, directory).await.unwrap();
    world.arm_for(Duration::from_secs(50)).await;
    // To the last inode: conman cannot make a directory. With one or two left, the keeper cannot.
    let filler = |number: u32| overlays.join(format!("filler-{number}"));
    let mut fillers = 0;
    while std::fs::write(filler(fillers), "").is_ok() {
        fillers += 1;
    }
    for _ in 0..3 {
        let refused = world.try_start("a", &["sleep", "1000"]).await.unwrap_err();
        assert_eq!(refused.code, RefusalCode::DiskFull, "{refused}");
        assert!(refused.message.contains("no space"), "{refused}");
        assert_eq!(leftovers::marked(&world.mark), Vec::<String>::new());
        fillers -= 1;
        std::fs::remove_file(filler(fillers)).unwrap();
    }
    for number in 0..fillers {
        std::fs::remove_file(filler(number)).unwrap();
    }
    let id = world.start_sleeper("a").await;
    // A program that fills it later gets its own error, and goes on.
    let output = sh(&world, &id, "head -c 1000000 /dev/zero > /tmp/x; echo $?").await;
    assert!(output.contains("No space left"), "{output}");
    world.kill(&id).await;
    world.runtime.cleanup(&id).await.unwrap();
    drop(small);
    world.finish().await;
}

mod cases {
    use super::*;

    pub async fn memory_is_limited(world: &mut World) {
        if !limits_of(world).contains(&Controller::Memory) {
            return;
        }
        let mut request = world.request("a", &["perl", "-e", "$x = 'x' x (256 << 20); sleep 1000"]);
        request.spec.limits.memory_bytes = 32 << 20;
        let id = world.runtime.start(request).await.unwrap().id;
        assert_eq!(world.dead(&id).await, Exit::Signal(libc::SIGKILL));
    }

    /// On v1 and on v2: a command in a workspace takes neither the workspace nor its other users with it.
    pub async fn memory_that_runs_out_ends_one_process(world: &mut World) {
        if !limits_of(world).contains(&Controller::Memory) {
            return;
        }
        let mut request = world.request("a", &["sleep", "1000"]);
        request.spec.limits.memory_bytes = 32 << 20;
        let id = world.runtime.start(request).await.unwrap().id;
        // The shell says on its error output who was killed.
        let hungry = "exec 2>&-; sleep 1000 & perl -e '$x = \"x\" x (256 << 20)'; echo $?; kill $! && echo other lived";
        assert_eq!(sh(world, &id, hungry).await, "137\nother lived\n");
        // The container answers, and its program is the same.
        assert_eq!(sh(world, &id, "cat /proc/2/comm").await, "sleep\n");
        world.kill(&id).await;
    }

    pub async fn processes_are_limited(world: &mut World) {
        if !limits_of(world).contains(&Controller::Pids) {
            return;
        }
        let script = "for n in 1 2 3 4 5 6 7 8 9 10; do sleep 1000 & done; echo all";
        let mut request = world.request("a", &["sh", "-c", script]);
        request.spec.limits = Limits {
            pids: 6,
            ..Limits::default()
        };
        let id = world.runtime.start(request).await.unwrap().id;
        // The shell gives up when it cannot fork.
        assert_eq!(world.dead(&id).await, Exit::Code(2));
        let log = world.runtime.logs(&id).0;
        let log = std::fs::read_to_string(&log[0]).unwrap();
        assert!(log.contains("Cannot fork"), "{log}");
    }

    pub async fn a_limit_does_not_hold_back_the_dying(world: &mut World) {
        if limits_of(world).len() < Controller::ALL.len() {
            return;
        }
        let free = start_crowd(world, "free", None).await;
        let limited = start_crowd(world, "limited", Some(50)).await;
        let began = Instant::now();
        world.kill(&free).await;
        let free = began.elapsed();
        let began = Instant::now();
        world.kill(&limited).await;
        let limited = began.elapsed();
        eprintln!("{CROWD} processes dead in {free:?}, in {limited:?} with a limit");
        // A twentieth of a processor would make it twenty times as long, and seconds.
        assert!(limited < (5 * free).max(KILL_BOUND), "{limited:?}");
    }

    /// With many processes, all of which sleep.
    async fn start_crowd(world: &mut World, name: &str, cpu_millis: Option<u32>) -> ContainerId {
        let script = format!("for (1..{CROWD}) {{ if (!fork) {{ sleep 1000; exit }} }} sleep 1000");
        let mut request = world.request(name, &["perl", "-e", &script]);
        request.spec.limits = Limits {
            cpu_millis,
            pids: 2 * CROWD,
            ..Limits::default()
        };
        let id = world.runtime.start(request).await.unwrap().id;
        let fleet = world.options.fleet();
        let cgroups = Cgroups::prepare(this_machine(), &fleet, &world.options.host).unwrap();
        while cgroups.processes(&id).unwrap().len() < CROWD as usize {
            tokio::task::yield_now().await;
        }
        id
    }

    pub async fn sees_only_itself(world: &mut World) {
        let id = world.start_sleeper("a").await;
        let other = world.start_sleeper("b").await;
        // Its init, its program, and the shell that counts.
        let script = "set -- /proc/[0-9]*; echo $#; hostname; cat /proc/1/comm > /dev/null; id -u";
        assert_eq!(sh(world, &id, script).await, "3\na\n0\n");
        // Everything that it can reach is its own: its program, and with that itself.
        let _ = world.exec(&id, &["sh", "-c", "kill -9 -1"]).await;
        assert_eq!(world.dead(&id).await, Exit::Signal(libc::SIGKILL));
        world.exec(&other, &["true"]).await.unwrap();
        // Root inside is nobody outside.
        let pid = world.runtime.adopt().await.unwrap().into_iter();
        let pid = pid.last().unwrap().pid;
        let uid = std::fs::metadata(format!("/proc/{pid}")).unwrap().uid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(!status.contains("Uid:\t0\t"), "{uid}: {status}");
    }

    pub async fn has_a_private_etc_and_the_machines_tools(world: &mut World) {
        let id = world.start_sleeper("a").await;
        let passwd = sh(world, &id, "cut -d: -f1 /etc/passwd").await;
        assert_eq!(passwd, "root\nrepl\nnobody\n");
        assert_eq!(
            sh(world, &id, "pwd; echo $HOME $REPL $PORT").await,
            "/home/repl\n/home/repl a 8080\n"
        );
        let script = "touch /usr/bin/x 2>&1 || true; touch /etc/mine /tmp/mine mine && echo wrote";
        let output = sh(world, &id, script).await;
        assert!(output.contains("Read-only file system"), "{output}");
        assert!(output.ends_with("wrote\n"), "{output}");
        // The host's secrets are not there.
        let output = sh(world, &id, "cat /etc/shadow; ls /root | wc -l").await;
        assert!(
            output.contains("root:*:") && output.ends_with("\n0\n"),
            "{output}"
        );
        let login = sh(world, &id, "bash -lic 'echo \"$PS1\"' 2>/dev/null").await;
        assert!(login.contains("REPL"), "{login}");
    }

    pub async fn workspace_lasts_and_the_rest_does_not(world: &mut World) {
        let id = world.start_sleeper("a").await;
        sh(
            world,
            &id,
            "echo kept > kept; echo lost > /tmp/lost; ln -s /etc/passwd link",
        )
        .await;
        world.kill(&id).await;
        world.runtime.cleanup(&id).await.unwrap();
        let workspace = world.options.workspaces.join("a");
        assert_eq!(
            std::fs::read_to_string(workspace.join("kept")).unwrap(),
            "kept\n"
        );
        let mode = std::fs::metadata(&world.options.workspaces).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o700, "others may not enter");
        let next = world.start_sleeper("a").await;
        assert_eq!(
            sh(world, &next, "cat kept; test -e /tmp/lost || echo gone").await,
            "kept\ngone\n"
        );
    }

    pub async fn runs_a_directory(world: &mut World) {
        // A root of its own, with the one program that needs no library here.
        let image = below(world, "image");
        std::fs::create_dir_all(image.join("bin")).unwrap();
        std::fs::write(image.join("marker"), "mine").unwrap();
        let busybox = ["/bin/busybox", "/usr/bin/busybox"];
        let Some(busybox) = busybox
            .iter()
            .find(|path| std::path::Path::new(path).exists())
        else {
            // A program with its libraries, then.
            copy_with_libraries("/bin/sh", &image);
            return start_in(
                world,
                &image,
                &["/bin/sh", "-c", "read x < /marker; echo $x; echo done"],
            )
            .await;
        };
        std::fs::copy(busybox, image.join("bin/sh")).unwrap();
        start_in(
            world,
            &image,
            &["/bin/sh", "-c", "read x < /marker; echo $x; echo done"],
        )
        .await;
    }

    async fn start_in(world: &mut World, image: &std::path::Path, command: &[&str]) {
        let mut request = world.request("a", command);
        request.spec.image = Image::Directory(image.to_str().unwrap().to_owned());
        let id = world.runtime.start(request).await.unwrap().id;
        assert_eq!(world.dead(&id).await, Exit::Code(0));
        let log = world.runtime.logs(&id).0;
        assert_eq!(std::fs::read_to_string(&log[0]).unwrap(), "mine\ndone\n");
        // The image itself is untouched: no mount point was made in it.
        assert!(!image.join("home").exists() && !image.join("proc").exists());
    }

    fn copy_with_libraries(program: &str, image: &std::path::Path) {
        let listed = std::process::Command::new("ldd")
            .arg(program)
            .output()
            .unwrap();
        let text = String::from_utf8(listed.stdout).unwrap();
        let libraries = text.split_whitespace().filter(|word| word.starts_with('/'));
        for path in libraries.chain([program]) {
            let target = image.join(path.trim_start_matches('/'));
            std::fs::create_dir_all(target.parent().unwrap()).unwrap();
            std::fs::copy(path, target).unwrap();
        }
    }

    pub async fn ipv6_loopback_is_dialed_too(world: &mut World) {
        let script = "use Socket qw(:all); $|=1; socket(S,AF_INET6,SOCK_STREAM,0); setsockopt(S,SOL_SOCKET,SO_REUSEADDR,1); \
             bind(S,pack_sockaddr_in6(8080,inet_pton(AF_INET6,'::1'))) or die $!; listen(S,5); \
             while(accept(C,S)){syswrite C,'six'; close C}";
        let id = world.start("a", &["perl", "-e", script]).await;
        let mut stream = dial_ready(world, &id).await;
        let mut text = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut text)
            .await
            .unwrap();
        assert_eq!(text, "six");
    }

    pub async fn what_a_crash_left_is_ended(world: &mut World) {
        // As if keeper and conman had died and a process had somehow lived on in its cgroup.
        let fleet = world.options.fleet();
        let cgroups = Cgroups::prepare(this_machine(), &fleet, &world.options.host).unwrap();
        let left: ContainerId = world.request("left", &["sleep", "1000"]).id;
        let placement = cgroups.create(&left, &Limits::default()).unwrap();
        let mut process = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        for directory in placement.v2.iter().chain(&placement.v1) {
            std::fs::write(directory.join("cgroup.procs"), process.id().to_string()).unwrap();
        }
        let overlay = world
            .options
            .state
            .join("overlay/h1")
            .join(left.to_string());
        std::fs::create_dir_all(overlay.join("upper/file")).unwrap();
        let alive = world.start_sleeper("alive").await;
        // A conman that finds the same keeper leaves what that holds, and ends the rest.
        world.restart_client().await;
        assert!(
            cgroups.is_empty(&left).unwrap(),
            "proven before the keeper is announced"
        );
        let killed = process.wait().unwrap();
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&killed),
            Some(libc::SIGKILL)
        );
        let deadline = tokio::time::Instant::now() + crate::world::EVENT_MAX;
        while overlay.exists() || !cgroups.list().unwrap().iter().eq([&alive]) {
            assert!(
                tokio::time::Instant::now() < deadline,
                "what was left is removed"
            );
            tokio::task::yield_now().await;
        }
        world.exec(&alive, &["true"]).await.unwrap();
    }

    pub async fn a_stopped_keeper_cannot_save_a_container(world: &mut World) {
        let id = world.start_sleeper("a").await;
        world.keeper().signal(rustix::process::Signal::STOP);
        let start = tokio::time::Instant::now();
        world.runtime.kill(std::slice::from_ref(&id)).await.unwrap();
        // Nobody could say how the program ended; that it did was proven.
        assert_eq!(world.dead(&id).await, Exit::Unknown);
        assert!(start.elapsed() < Duration::from_secs(3));
        world.keeper().signal(rustix::process::Signal::CONT);
    }

    pub async fn a_record_that_is_gone_is_said(world: &mut World) {
        let id = world.start_sleeper("a").await;
        world.restart_client().await;
        let record = world
            .options
            .state
            .join("overlay/h1")
            .join(id.to_string())
            .join("record.json");
        std::fs::remove_file(record).unwrap();
        let refused = world.exec(&id, &["true"]).await.unwrap_err();
        assert_eq!(refused.code, RefusalCode::Internal);
        assert!(refused.message.contains("record"), "{refused}");
    }
}

fn limits_of(world: &World) -> Vec<Controller> {
    let fleet = world.options.fleet();
    let cgroups = Cgroups::prepare(this_machine(), &fleet, &world.options.host).unwrap();
    let mut limits = Controller::ALL.to_vec();
    limits.retain(|controller| !cgroups.unlimited().contains(controller));
    limits
}

async fn sh(world: &World, id: &ContainerId, script: &str) -> String {
    let output = world.exec(id, &["sh", "-c", script]).await.unwrap();
    let mut text = String::from_utf8(output.stdout).unwrap();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    text
}

/// A mount that is undone.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn tmpfs(place: &std::path::Path, options: &str) -> Self {
        let options = std::ffi::CString::new(options).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("test", place, "tmpfs", flags, options.as_c_str()).unwrap();
        Self(place.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}
