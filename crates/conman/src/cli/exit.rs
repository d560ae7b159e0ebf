//! The exit codes: a closed list, documented in `conman --help`, and what leads to each.

use std::process::ExitCode;

use crate::client::ClientError;
use crate::config::ConfigError;
use crate::reap::driver::CannotReap;

use super::simulate::CannotSimulate;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It did what was asked.
    Done,
    /// The API refused it, it failed on the way, `doctor` found something missing, or `reap` could not prove a death.
    Failed,
    /// The command line or the configuration is wrong; nothing was tried.
    Usage,
    /// The API cannot be reached; for `reap`, the Docker engine, and nothing was killed.
    Unreachable,
    /// A server could not start: state directory or port in use, store unusable, not root.
    CannotStart,
    /// `repl exec` and `repl shell`: conman's own failure, as 125 with other container tools.
    NotRun,
    /// `repl exec` and `repl shell`: as the program ended, 128 + n for signal n.
    Program(u8),
}

/// The part of `conman --help` about exit codes.
pub(super) const HELP: &str = "\
Exit codes:
  0    done
  1    refused or failed; from doctor: something that is needed is missing; from reap: a death is not proven;
       from sim: the invariant was violated
  2    wrong usage or configuration
  3    the API cannot be reached; from reap: nor the Docker engine, and nothing was killed
  4    a server cannot start: state directory or port in use, store unusable, not root
  125  repl exec, repl shell: failed before or beside the program
  n    repl exec, repl shell: the program's own exit code, 128 + n for signal n";

impl Exit {
    /// Its number.
    pub const fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Unreachable => 3,
            Exit::CannotStart => 4,
            Exit::NotRun => 125,
            Exit::Program(code) => code,
        }
    }

    /// What a program's exit code, as the API has it, is to the shell.
    pub fn of_program(exit_code: i32) -> Self {
        Exit::Program(u8::try_from(exit_code).unwrap_or(255))
    }

    /// What an error that has reached the top of a command means.
    pub fn of_error(error: &anyhow::Error) -> Self {
        if let Some(cannot) = error.downcast_ref::<CannotStart>() {
            let CannotStart(_) = cannot;
            return Exit::CannotStart;
        }
        if let Some(
            CannotReap::Engine(_) | CannotReap::FilterNeedsEngine(_) | CannotReap::Find(_),
        ) = error.downcast_ref()
        {
            return Exit::Unreachable;
        }
        if error.is::<ConfigError>() || error.is::<CannotSimulate>() {
            return Exit::Usage;
        }
        match error.downcast_ref::<ClientError>() {
            Some(ClientError::BadUrl(_) | ClientError::BadCredentials(_)) => Exit::Usage,
            Some(ClientError::Unreachable { .. }) => Exit::Unreachable,
            _ => Exit::Failed,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// Why a server cannot start; nothing of it is running.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CannotStart(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_in_the_help() {
        for exit in [
            Exit::Done,
            Exit::Failed,
            Exit::Usage,
            Exit::Unreachable,
            Exit::CannotStart,
            Exit::NotRun,
        ] {
            assert!(
                HELP.contains(&format!("\n  {:<4} ", exit.code())),
                "{exit:?}"
            );
        }
        assert_eq!(Exit::of_program(137).code(), 137);
        assert_eq!(Exit::of_program(-1).code(), 255);
    }

    #[test]
    fn context_does_not_hide_what_an_error_means() {
        let error = anyhow::Error::from(CannotStart("no".into())).context("start");
        assert_eq!(Exit::of_error(&error), Exit::CannotStart);
        let error = anyhow::Error::from(ClientError::Broken("x".into()));
        assert_eq!(Exit::of_error(&error), Exit::Failed);
    }
}
