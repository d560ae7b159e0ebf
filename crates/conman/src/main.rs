//! The `conman` binary: see `conman --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    conman::cli::main().into()
}
