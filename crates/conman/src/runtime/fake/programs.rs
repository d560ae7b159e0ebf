//! The few programs that a fake container knows.
//!
//! | command | as a container's program | as an exec |
//! |---|---|---|
//! | `true`, `false` | ends at once with 0, 1 | the same |
//! | `exit N` | ends at once with N | the same |
//! | `echo WORDS` | writes to the log, ends with 0 | answers with the words |
//! | `cat` | runs | answers with its input |
//! | `sleep N` | runs | answers after N seconds |
//! | `ignore-terminate` | runs, and lives through SIGTERM | – |
//! | `missing…` | refused: command not found | the same |
//! | anything else | runs, and listens on the spec's port | ends with 0 |

use std::time::Duration;

use model::api::Refusal;
use model::spec::{Image, Spec};

use crate::runtime::{EXEC_OUTPUT_BYTES_MAX, Exec, ExecOutput, Exit};

/// What a fake container does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// Runs until it is ended.
    Runs,
    /// Runs until it is killed.
    IgnoresTerminate,
    /// Is over as soon as it has begun.
    Ends {
        /// How.
        exit: Exit,
        /// What it wrote.
        output: Vec<u8>,
    },
}

pub(super) fn parse(spec: &Spec) -> Result<Program, Refusal> {
    if let Image::Directory(path) = &spec.image {
        let path = std::path::Path::new(path);
        if !path.is_dir() {
            return Err(crate::runtime::image_not_found(path, "does not exist"));
        }
    }
    let mut words = spec.command.iter().map(String::as_str);
    let ends = |code, output| Program::Ends {
        exit: Exit::Code(code),
        output,
    };
    Ok(match words.next().unwrap_or_default() {
        "true" => ends(0, Vec::new()),
        "false" => ends(1, Vec::new()),
        "exit" => ends(number(words.next()), Vec::new()),
        "echo" => ends(0, echoed(words)),
        "ignore-terminate" => Program::IgnoresTerminate,
        name if name.starts_with("missing") => return Err(crate::runtime::command_not_found(name)),
        _ => Program::Runs,
    })
}

pub(super) async fn run(exec: &Exec) -> Result<ExecOutput, Refusal> {
    let mut words = exec.command.iter().map(String::as_str);
    let (code, mut stdout) = match words.next().unwrap_or_default() {
        "false" => (1, Vec::new()),
        "exit" => (number(words.next()), Vec::new()),
        "echo" => (0, echoed(words)),
        "cat" => (0, exec.stdin.clone()),
        "sleep" => {
            let seconds = words.next().and_then(|word| word.parse().ok());
            tokio::time::sleep(Duration::from_secs_f64(seconds.unwrap_or_default())).await;
            (0, Vec::new())
        }
        name if name.starts_with("missing") => return Err(crate::runtime::command_not_found(name)),
        _ => (0, Vec::new()),
    };
    let truncated = stdout.len() > EXEC_OUTPUT_BYTES_MAX;
    stdout.truncate(EXEC_OUTPUT_BYTES_MAX);
    Ok(ExecOutput {
        exit: Exit::Code(code),
        stdout,
        stderr: Vec::new(),
        truncated,
    })
}

fn number(word: Option<&str>) -> i32 {
    word.and_then(|word| word.parse().ok()).unwrap_or_default()
}

fn echoed<'a>(words: impl Iterator<Item = &'a str>) -> Vec<u8> {
    let mut line = words.collect::<Vec<_>>().join(" ");
    line.push('\n');
    line.into_bytes()
}
