//! The command line: what each subcommand takes, and its exit codes.

pub mod stuck;
