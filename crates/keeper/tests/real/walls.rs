//! What a container cannot see and cannot do.

use std::os::unix::fs::MetadataExt;

use crate::harness::{Host, Running, id, is_root};

fn idle() -> Option<(Host, crate::harness::Client, Running)> {
    if !is_root() {
        return None;
    }
    let mut host = Host::native();
    let mut client = host.armed_client();
    let running = host.idle(&mut client, &id("one", 1));
    Some((host, client, running))
}

#[test]
fn root_inside_is_nobody_outside() {
    let Some((host, _client, running)) = idle() else {
        return;
    };
    let script = "id -u; touch /tmp/mine /home/repl/kept; stat -c %u /usr/bin /tmp/mine /etc /home/repl /home/repl/kept";
    assert_eq!(running.script(script).1, "0\n".repeat(6));
    // Its processes are of its own range, and what it writes to its workspace is plain root's on disk.
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.held.pid));
    let uid = format!("Uid:\t{0}\t{0}\t{0}\t{0}\n", host.uid_base);
    assert!(status.expect("status").contains(&uid));
    let kept = std::fs::metadata(host.path("work/one/kept")).expect("kept");
    assert_eq!((kept.uid(), kept.gid()), (0, 0));
    let upper = std::fs::metadata(host.path("one-1/upper/tmp/mine")).expect("upper");
    assert_eq!(upper.uid(), host.uid_base);
    host.end();
}

#[test]
fn capabilities_privileges_and_filter_are_as_decided() {
    let Some((host, _client, running)) = idle() else {
        return;
    };
    let (_, text) = running.script("grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status");
    // CHOWN 0, DAC_OVERRIDE 1, FOWNER 3, FSETID 4, KILL 5, SETGID 6, SETUID 7, NET_BIND_SERVICE 10.
    let kept = "00000000000004fb";
    let expected = format!(
        "CapInh:\t0000000000000000\nCapPrm:\t{kept}\nCapEff:\t{kept}\nCapBnd:\t{kept}\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n"
    );
    assert_eq!(text, expected);
    // They are good for what they are for.
    let uses = "touch /tmp/f && chown 33:33 /tmp/f && chmod 600 /tmp/f && cat /tmp/f && perl -e '$> = 33; print $>'";
    assert_eq!(running.script(uses).1, "33");
    host.end();
}

/// System calls by number and arguments; all must fail with this error.
#[test]
fn the_kernel_is_out_of_reach() {
    let Some((host, _client, running)) = idle() else {
        return;
    };
    let eperm = 1;
    let enosys = 38;
    let newuser = libc::CLONE_NEWUSER;
    let calls = [
        (libc::SYS_mount, "0, 0, 0, 0, 0".to_owned(), eperm),
        (libc::SYS_umount2, "0, 0".to_owned(), eperm),
        (libc::SYS_pivot_root, "0, 0".to_owned(), eperm),
        (libc::SYS_chroot, "0".to_owned(), eperm),
        (libc::SYS_fsopen, "0, 0".to_owned(), eperm),
        (libc::SYS_open_tree, "0, 0, 0".to_owned(), eperm),
        (libc::SYS_unshare, newuser.to_string(), eperm),
        (libc::SYS_setns, "0, 0".to_owned(), eperm),
        (libc::SYS_clone, format!("{newuser}, 0, 0, 0, 0"), eperm),
        (libc::SYS_clone3, "0, 0".to_owned(), enosys),
        (libc::SYS_ptrace, "0, 0, 0, 0".to_owned(), eperm),
        (
            libc::SYS_process_vm_readv,
            "1, 0, 0, 0, 0, 0".to_owned(),
            eperm,
        ),
        (libc::SYS_keyctl, "0, 0, 0, 0, 0".to_owned(), eperm),
        (libc::SYS_add_key, "0, 0, 0, 0, 0".to_owned(), eperm),
        (libc::SYS_bpf, "0, 0, 0".to_owned(), eperm),
        (libc::SYS_perf_event_open, "0, 0, 0, 0, 0".to_owned(), eperm),
        (libc::SYS_io_uring_setup, "1, 0".to_owned(), eperm),
        (libc::SYS_userfaultfd, "0".to_owned(), eperm),
        (libc::SYS_init_module, "0, 0, 0".to_owned(), eperm),
        (libc::SYS_kexec_load, "0, 0, 0, 0".to_owned(), eperm),
        (libc::SYS_reboot, "0, 0, 0, 0".to_owned(), eperm),
        (libc::SYS_open_by_handle_at, "0, 0, 0".to_owned(), eperm),
        (libc::SYS_sethostname, "0, 0".to_owned(), eperm),
        (libc::SYS_settimeofday, "0, 0".to_owned(), eperm),
        (
            libc::SYS_socket,
            format!("{}, 3, 0", libc::AF_PACKET),
            eperm,
        ),
        (libc::SYS_socket, format!("{}, 1, 0", libc::AF_VSOCK), eperm),
        (libc::SYS_socket, format!("{}, 5, 0", libc::AF_ALG), eperm),
        (libc::SYS_personality, "262144".to_owned(), eperm),
        // Newer than the filter's list, and the x32 variant of mount.
        (5_000, "0".to_owned(), enosys),
        (
            0x4000_0000 + libc::SYS_mount,
            "0, 0, 0, 0, 0".to_owned(),
            enosys,
        ),
    ];
    for (number, arguments, errno) in calls {
        let script =
            format!("perl -e 'my $r = syscall({number}, {arguments}); print $r, \" \", $! + 0'");
        assert_eq!(
            running.script(&script).1,
            format!("-1 {errno}"),
            "{number}({arguments})"
        );
    }
    // Characters cannot be put into a terminal's input.
    let (_, text) = running.script(&format!(
        "perl -e 'my $x = \"x\"; ioctl(STDIN, {}, $x); print $! + 0'",
        libc::TIOCSTI
    ));
    assert_eq!(text, "1");
    // The same calls do work where they should: the filter is no wall around everything.
    assert_eq!(
        running
            .script("perl -MSocket -e 'socket(S, AF_INET, SOCK_STREAM, 0) and print 1'")
            .1,
        "1"
    );
    host.end();
}

#[test]
fn proc_and_sys_show_and_change_nothing_of_the_hosts() {
    let Some((host, _client, running)) = idle() else {
        return;
    };
    // Masked files are empty, masked directories too.
    for file in ["kcore", "keys", "timer_list", "interrupts", "kallsyms"] {
        let script =
            format!("[ ! -e /proc/{file} ] || cat /proc/{file} | wc -c | grep -qx 0 && echo ok");
        assert_eq!(running.script(&script).1, "ok\n", "{file}");
    }
    for directory in ["/proc/acpi", "/proc/scsi", "/sys/firmware", "/sys/kernel"] {
        let script = format!("ls {directory} 2>/dev/null | wc -l");
        assert_eq!(running.script(&script).1.trim(), "0", "{directory}");
    }
    for file in [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/vm/drop_caches",
        "/proc/sysrq-trigger",
        "/sys/power/state",
        "/sys/x",
        "/dev/x",
        "/usr/x",
    ] {
        let (_, text) = running.script(&format!("(echo 1 > {file}) 2>/dev/null || echo refused"));
        assert_eq!(text, "refused\n", "{file}");
    }
    // Only its own processes: PID 1, the program, this shell and its two children.
    let (_, text) = running.script("ls -d /proc/[0-9]* | wc -l");
    assert!(text.trim().parse::<u32>().expect("a number") <= 5, "{text}");
    let secret = std::process::id();
    assert_eq!(
        running
            .script(&format!("kill -0 {secret} 2>/dev/null || echo none"))
            .1,
        "none\n"
    );
    host.end();
}

#[test]
fn devices_are_the_harmless_ones() {
    let Some((host, _client, running)) = idle() else {
        return;
    };
    let listed = "cd /dev; ls | tr '\\n' ' '";
    let expected = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero ";
    assert_eq!(running.script(listed).1, expected);
    let uses = "echo x > /dev/null && head -c 4 /dev/zero | od -An -tx1 && head -c 9 /dev/urandom | wc -c && echo a > /dev/shm/a && cat /dev/shm/a";
    assert_eq!(running.script(uses).1, " 00 00 00 00\n9\na\n");
    assert_eq!(
        running
            .script("mknod /tmp/sda b 8 0 2>/dev/null || echo refused")
            .1,
        "refused\n"
    );
    host.end();
}

#[test]
fn the_network_is_its_own_loopback() {
    let Some((host, _client, running)) = idle() else {
        return;
    };
    assert_eq!(running.script("ls /sys/class/net").1, "lo\n");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = listener.local_addr().expect("address").port();
    let connect = |port: u16| {
        format!(
            "perl -MIO::Socket::INET -e 'print IO::Socket::INET->new(PeerAddr => \"127.0.0.1:{port}\") ? \"in\" : $! + 0'"
        )
    };
    // Refused: nobody listens there, inside.
    assert_eq!(
        running.script(&connect(port)).1,
        libc::ECONNREFUSED.to_string()
    );
    let both = "perl -MIO::Socket::INET -e '$l = IO::Socket::INET->new(LocalAddr => \"127.0.0.1:80\", Listen => 1) or die $!; print IO::Socket::INET->new(PeerAddr => \"127.0.0.1:80\") ? \"in\" : \"out\"'";
    assert_eq!(running.script(both).1, "in");
    host.end();
}

#[test]
fn the_host_never_sees_a_containers_mounts() {
    let Some((host, _client, running)) = idle() else {
        return;
    };
    let inside = running.script("cat /proc/self/mountinfo").1;
    assert!(inside.contains(" / / "), "{inside}");
    assert!(!inside.contains("k.sock.keeper"), "{inside}");
    let outside = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let ours = host.directory.path().to_str().expect("a path");
    assert!(!outside.contains(ours), "{outside}");
    assert!(!outside.contains("overlay"), "{outside}");
    host.end();
}

#[test]
fn an_init_holds_only_its_own_files() {
    let Some((mut host, mut client, first)) = idle() else {
        return;
    };
    let second = host.idle(&mut client, &id("two", 1));
    for running in [first, second] {
        let links: Vec<String> = std::fs::read_dir(format!("/proc/{}/fd", running.held.pid))
            .expect("fds")
            .map(|entry| std::fs::read_link(entry.expect("entry").path()).expect("link"))
            .map(|path| path.to_string_lossy().into_owned())
            .collect();
        let count = |kind: &str| links.iter().filter(|link| link.starts_with(kind)).count();
        // Keeper and control, the log's pipe, its signals, three times /dev/null, and two logs; no mounts left.
        let seen = (
            count("socket:"),
            count("pipe:"),
            count("anon_inode:"),
            count("/dev/null"),
        );
        assert_eq!(seen, (2, 1, 1, 3), "{links:?}");
        assert_eq!(
            links.iter().filter(|link| link.contains(".log.")).count(),
            2,
            "{links:?}"
        );
        assert_eq!(links.len(), 9, "{links:?}");
    }
    host.end();
}

#[test]
fn a_program_sees_its_own_limits_and_cannot_change_them() {
    let Some((host, _client, running)) = idle() else {
        return;
    };
    if crate::harness::cgroup_v2().is_none() {
        eprintln!("SKIPPED: no cgroup v2 tree on this machine");
        return;
    }
    // PID 1, the program, this shell and its child: the cgroup's root is the container's own.
    let script =
        "cd /sys/fs/cgroup; cat cgroup.procs | head -1; cut -d: -f3 /proc/self/cgroup | sort -u";
    assert_eq!(running.script(script).1, "1\n/\n");
    let script = "(echo 1 > /sys/fs/cgroup/cgroup.kill) 2>/dev/null || echo refused";
    assert_eq!(running.script(script).1, "refused\n");
    host.end();
}

#[test]
fn a_crash_leaves_no_core_and_an_ordinary_score() {
    let Some((host, _client, running)) = idle() else {
        return;
    };
    let score = std::fs::read_to_string("/proc/self/oom_score_adj").expect("score");
    let (_, text) = running.script("cat /proc/self/oom_score_adj; ulimit -c");
    assert_eq!(text, format!("{score}0\n"));
    // Limited to one byte, which a shell counts as no block.
    let limits = running.script("grep core /proc/self/limits").1;
    let fields: Vec<&str> = limits.split_whitespace().collect();
    assert_eq!(fields[4..6], ["1", "1"], "{limits}");
    host.end();
}
