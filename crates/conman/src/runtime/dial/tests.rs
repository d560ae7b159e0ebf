//! With a network namespace of our own making, on a thread that stays in it.

use super::*;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// A namespace with nothing but a loopback, and a listener on a port of it. Needs root.
fn listener_elsewhere() -> Option<(std::net::TcpListener, std::process::Child)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    // A process that stays in the namespace, for its pidfd.
    let mut child = std::process::Command::new("unshare")
        .args([
            "--net",
            "sh",
            "-c",
            "ip link set lo up; echo up; exec sleep 1000",
        ])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut up = [0; 3];
    io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut up).unwrap();
    let pid = child.id();
    let listener = std::thread::spawn(move || {
        let there = std::fs::File::open(format!("/proc/{pid}/ns/net")).unwrap();
        let kind = Some(LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(there.as_fd(), kind).unwrap();
        std::net::TcpListener::bind(("127.0.0.1", 8080)).unwrap()
    });
    Some((listener.join().unwrap(), child))
}

fn pidfd(child: &std::process::Child) -> Arc<OwnedFd> {
    let pid = rustix::process::Pid::from_child(child);
    let flags = rustix::process::PidfdFlags::empty();
    Arc::new(rustix::process::pidfd_open(pid, flags).unwrap())
}

fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[tokio::test]
async fn dials_elsewhere_and_leaks_nothing() {
    let Some((listener, mut child)) = listener_elsewhere() else {
        return;
    };
    let dialer = Dialer::default();
    let pidfd = pidfd(&child);
    drop(dialer.dial(&pidfd, 8080).await.unwrap());
    drop(listener.accept().unwrap());
    let before = open_fds();
    let mut took = Vec::new();
    for _ in 0..200 {
        let start = std::time::Instant::now();
        let stream = dialer.dial(&pidfd, 8080).await.unwrap();
        took.push(start.elapsed());
        drop(listener.accept().unwrap());
        drop(stream);
        let refused = dialer.dial(&pidfd, 8081).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
    assert_eq!(open_fds(), before);
    took.sort();
    // Measured: 60 µs. The bound is for a machine that is busy with other tests.
    assert!(took[100] < Duration::from_millis(2), "p50 {:?}", took[100]);
    // Nothing of ours is in the namespace: 8080 here is nobody's.
    assert!(TcpStream::connect(("127.0.0.1", 8080)).await.is_err());

    child.kill().unwrap();
    child.wait().unwrap();
    let dead = dialer.dial(&pidfd, 8080).await.unwrap_err();
    assert_eq!(dead.raw_os_error(), Some(libc::ESRCH));
    assert!(pidfd.as_raw_fd() >= 0);
}
