//! Commands in running containers.

use std::os::fd::{AsFd, OwnedFd};

use model::wire::keeper::*;

use crate::harness::{
    Exec, Host, await_readable, channel, exec_plan, from_exec, id, is_root, send,
};

#[test]
fn a_command_reads_writes_and_ends_with_its_code() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let mut client = host.armed_client();
    let running = host.idle(&mut client, &id("one", 1));
    let mut exec = Exec::start(&running.control, &["sh", "-c", "cat; echo err >&2; exit 9"]);
    let stdin = exec.stdin.take().expect("a pipe");
    rustix::io::write(&stdin, b"input\n").expect("write");
    drop(stdin);
    assert_eq!(exec.output(), "input\nerr\n");
    assert_eq!(exec.exit(), WireExit::Code { code: 9 });
    host.end();
}

#[test]
fn a_command_that_is_not_there_says_so() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let mut client = host.armed_client();
    let running = host.idle(&mut client, &id("one", 1));
    let exec = Exec::ask(&running.control, &["no-such-program"]);
    match from_exec(&exec.channel) {
        Some((FromExec::Failed(refusal), _)) => {
            assert_eq!(refusal.code, KeeperRefusalCode::CommandNotFound);
        }
        other => panic!("not failed: {other:?}"),
    }
    assert!(from_exec(&exec.channel).is_none());
    host.end();
}

/// Its session's processes, whatever their process groups, are gone.
const SESSION: &str = "set -m; sleep 1000 & sleep 1001 & echo $$; wait";

#[test]
fn kill_ends_the_whole_session() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let mut client = host.armed_client();
    let running = host.idle(&mut client, &id("one", 1));
    let mut exec = Exec::start(&running.control, &["sh", "-c", SESSION]);
    send(&exec.channel, &ToExec::Kill, &[]);
    // The end of the output is the end of everyone that could write to it.
    exec.output();
    assert_eq!(exec.exit(), WireExit::Signal { signal: 9 });
    host.end();
}

#[test]
fn a_signal_reaches_the_command() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let mut client = host.armed_client();
    let running = host.idle(&mut client, &id("one", 1));
    let exec = Exec::start(&running.control, &["sleep", "1000"]);
    send(&exec.channel, &ToExec::Signal { signal: 2 }, &[]);
    assert_eq!(exec.exit(), WireExit::Signal { signal: 2 });
    host.end();
}

#[test]
fn a_command_dies_with_its_channel() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let mut client = host.armed_client();
    let running = host.idle(&mut client, &id("one", 1));
    let mut exec = Exec::start(&running.control, &["sh", "-c", SESSION]);
    let (unused, _) = channel();
    drop(std::mem::replace(&mut exec.channel, unused));
    exec.output();
    assert!(!running.is_dead());
    host.end();
}

#[test]
fn commands_end_with_the_container_and_their_channels_say_nothing() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let mut client = host.armed_client();
    let one = id("one", 1);
    let running = host.idle(&mut client, &one);
    let exec = Exec::start(&running.control, &["sleep", "1000"]);
    client.done(Request::Kill { ids: vec![one] });
    assert!(from_exec(&exec.channel).is_none());
    host.end();
}

fn terminal(control: &OwnedFd, command: &[&str]) -> (OwnedFd, OwnedFd) {
    let (mine, theirs) = channel();
    let size = TtySize {
        columns: 91,
        rows: 23,
    };
    let plan = ToInit::Exec(exec_plan(command, Some(size)));
    send(control, &plan, &[theirs.as_fd()]);
    drop(theirs);
    match from_exec(&mine) {
        Some((FromExec::Started { .. }, fds)) => {
            let [master] = <[OwnedFd; 1]>::try_from(fds).expect("the master");
            (mine, master)
        }
        other => panic!("not started: {other:?}"),
    }
}

/// What comes from the terminal until `end` has come.
fn read_until(master: &OwnedFd, end: &str) -> String {
    let mut text = String::new();
    while !text.contains(end) {
        await_readable(master);
        let mut bytes = [0; 4096];
        let length = rustix::io::read(master, &mut bytes[..]).expect("the terminal is there");
        text.push_str(&String::from_utf8_lossy(&bytes[..length]));
    }
    text
}

#[test]
fn a_terminal_is_the_containers_own_has_a_size_and_job_control() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let mut client = host.armed_client();
    let running = host.idle(&mut client, &id("one", 1));
    let (shell, master) = terminal(&running.control, &["sh"]);
    rustix::io::write(&master, b"stty -echo; PS1=; tty; stty size; echo en''d\n").expect("write");
    let text = read_until(&master, "end");
    assert!(text.contains("/dev/pts/0"), "{text}");
    assert!(text.contains("23 91"), "{text}");
    // Resized by the master.
    let size = rustix::termios::Winsize {
        ws_row: 50,
        ws_col: 132,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(&master, size).expect("resize");
    rustix::io::write(&master, b"stty size; echo en''d\n").expect("write");
    assert!(read_until(&master, "end").contains("50 132"));
    // Ctrl-C ends what runs, not the shell. What runs says so itself: it has the terminal by then.
    let command = b"PS1=pro''mpt; sh -c \"echo sta''rt; exec sleep 1000\"\n";
    rustix::io::write(&master, command).expect("write");
    read_until(&master, "start");
    rustix::io::write(&master, b"\x03").expect("write");
    // What is typed before the shell has its terminal back may be flushed with the interrupt.
    read_until(&master, "prompt");
    rustix::io::write(&master, b"echo ag''ain; exit 4\n").expect("write");
    read_until(&master, "again");
    assert!(matches!(
        from_exec(&shell),
        Some((
            FromExec::Exited {
                exit: WireExit::Code { code: 4 }
            },
            _
        ))
    ));
    host.end();
}

#[test]
fn a_hundred_commands_one_after_another_leave_nothing_in_the_init() {
    if !is_root() {
        return;
    }
    let mut host = Host::native();
    let mut client = host.armed_client();
    let running = host.idle(&mut client, &id("one", 1));
    let fds = |pid: u32| {
        std::fs::read_dir(format!("/proc/{pid}/fd"))
            .expect("fds")
            .count()
    };
    let before = fds(running.held.pid);
    for number in 0..100 {
        let (exit, text) = running.script(&format!("echo {number}"));
        assert_eq!(
            (exit, text),
            (WireExit::Code { code: 0 }, format!("{number}\n"))
        );
    }
    assert_eq!(fds(running.held.pid), before);
    host.end();
}
