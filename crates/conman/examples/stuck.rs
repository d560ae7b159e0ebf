//! `conman stuck` alone: `cargo run --example stuck -- report FILE`.
use clap::Parser;

#[derive(Parser)]
#[command(name = "conman-stuck")]
struct Arguments {
    #[command(flatten)]
    stuck: conman::cli::stuck::StuckArgs,
}

fn main() -> anyhow::Result<std::process::ExitCode> {
    conman::cli::stuck::run(Arguments::parse().stuck).map(Into::into)
}
