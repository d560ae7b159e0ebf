//! `conman certs`: a CA and certificates for a small fleet.

use std::path::PathBuf;

use clap::Subcommand;

use super::exit::Exit;
use super::output::Output;
use crate::certs::{self, Made};

/// What is to be made.
#[derive(Debug, clap::Args)]
pub(super) struct CertsArgs {
    #[command(subcommand)]
    command: Command,
    /// Print JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a CA: ca.pem, which every node gets, and ca-key.pem, which none does
    Ca {
        /// Where it is put
        #[arg(long, default_value = ".", value_name = "DIR")]
        directory: PathBuf,
    },
    /// Sign a certificate: NAME.pem and NAME-key.pem; again, to renew it under a running node
    Node {
        /// The node's name, or its load balancer's
        #[arg(value_parser = file_name)]
        name: String,
        /// A name or address by which others dial it; for a client alone, any
        #[arg(long = "address", required = true, value_name = "ADDRESS")]
        addresses: Vec<String>,
        /// Where the CA is
        #[arg(long, default_value = ".", value_name = "DIR")]
        ca_directory: PathBuf,
        /// Where the certificate is put
        #[arg(long, default_value = ".", value_name = "DIR")]
        directory: PathBuf,
        /// How long it is good for
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650), value_name = "N")]
        days: u32,
    },
}

fn file_name(text: &str) -> Result<String, String> {
    let is_good = |letter: char| letter.is_ascii_alphanumeric() || "-._".contains(letter);
    if text == "ca" || text.is_empty() || text.starts_with('.') || !text.chars().all(is_good) {
        return Err("a name has only letters, digits, '-', '_' and '.', and is not ca".to_owned());
    }
    Ok(text.to_owned())
}

pub(super) fn run(args: CertsArgs) -> anyhow::Result<Exit> {
    let Made { certificate, key } = match args.command {
        Command::Ca { directory } => certs::ca(&directory)?,
        Command::Node {
            name,
            addresses,
            ca_directory,
            directory,
            days,
        } => certs::node(&ca_directory, &directory, &name, &addresses, days)?,
    };
    let output = Output::of_process(args.json);
    if args.json {
        output.document(&serde_json::json!({ "certificate": certificate, "key": key }))?;
    } else {
        output.line(&format!("{} {}", certificate.display(), key.display()))?;
    }
    Ok(Exit::Done)
}
