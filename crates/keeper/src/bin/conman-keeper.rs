//! The keeper as a program by itself, for its tests: `conman-keeper SOCKET HOST [UID_BASE]`. Without a uid
//! base it makes plain processes only. The product runs it as `conman keeper`.

use std::process::ExitCode;

use keeper::{Config, Walls};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(config) = read(&arguments) else {
        eprintln!("usage: conman-keeper SOCKET HOST [UID_BASE]");
        return ExitCode::from(2);
    };
    match keeper::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("conman-keeper: {error}");
            ExitCode::FAILURE
        }
    }
}

fn read(arguments: &[String]) -> Option<Config> {
    let (socket, host, walls) = match arguments {
        [socket, host] => (socket, host, Walls::ProcessOnly),
        [socket, host, uid_base] => {
            let uid_base = uid_base.parse().ok()?;
            (socket, host, Walls::Native { uid_base })
        }
        _ => return None,
    };
    Some(Config {
        socket: socket.into(),
        host: host.parse().ok()?,
        walls,
        manager: None,
    })
}
