//! A real terminal with a make-believe shell on it: `size` prints the size, `exit N` ends, any other
//! line is answered with `you said LINE`.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};

use crate::runtime::{Exit, Terminal, TerminalSize};

pub(super) fn open(
    columns: u16,
    rows: u16,
    mut dead: watch::Receiver<bool>,
) -> std::io::Result<Terminal> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags)?;
    rustix::io::ioctl_fionbio(&master, true)?;
    rustix::pty::grantpt(&master)?;
    rustix::pty::unlockpt(&master)?;
    let name = rustix::pty::ptsname(&master, Vec::new())?;
    let slave = rustix::fs::open(
        name.as_c_str(),
        OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK,
        Mode::empty(),
    )?;
    rustix::termios::tcsetwinsize(
        &master,
        Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        },
    )?;
    let slave = crate::runtime::ready::watch(slave, tokio::io::Interest::READABLE)?;
    let (send, ended) = oneshot::channel();
    tokio::spawn(async move {
        let exit = tokio::select! {
            exit = talk(&slave) => exit.unwrap_or(Exit::Signal(libc::SIGHUP)),
            _ = dead.wait_for(|dead| *dead) => Exit::Signal(libc::SIGKILL),
        };
        // Nobody may be waiting for the end any more.
        let _ = send.send(exit);
    });
    Ok(Terminal {
        master,
        size: TerminalSize::OfMaster,
        ended,
    })
}

async fn talk(slave: &AsyncFd<std::sync::Arc<OwnedFd>>) -> std::io::Result<Exit> {
    let mut buffer = [0; 4096];
    loop {
        let mut ready = slave.readable().await?;
        // The terminal is in line mode: one read is one line.
        let Ok(read) = ready.try_io(|slave| Ok(rustix::io::read(slave, &mut buffer)?)) else {
            continue;
        };
        let line = String::from_utf8_lossy(&buffer[..read?]).trim().to_owned();
        let answer = match line.split_once(' ').unwrap_or((&line, "")) {
            ("exit", code) => return Ok(Exit::Code(code.parse().unwrap_or_default())),
            ("size", _) => {
                let size = rustix::termios::tcgetwinsize(slave.get_ref())?;
                format!("{} {}\n", size.ws_row, size.ws_col)
            }
            _ => format!("you said {line}\n"),
        };
        // A terminal's buffer takes a line at once; what it does not take is lost, as on a real one.
        rustix::io::write(slave.get_ref(), answer.as_bytes())?;
    }
}
