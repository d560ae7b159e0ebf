//! `conman stuck` alone: `cargo run --example stuck -- report FILE`.
use clap::Parser;

#[derive(Parser)]
#[command(name = "conman-stuck")]
struct Arguments {
    #[command(flatten)]
    stuck: conman::cli::stuck::StuckArgs,
}

fn main() -> anyhow::Result<std::process::ExitCode> {
    let surroundings = conman::config::Surroundings::of_process();
    conman::cli::stuck::run(Arguments::parse().stuck, &surroundings).map(Into::into)
}
