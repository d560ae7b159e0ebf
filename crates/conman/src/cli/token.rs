//! `conman token`: the keys of users and operators, and tokens.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use model::id::ReplId;
use serde_json::json;

use super::exit::Exit;
use super::output::Output;
use super::repl::parse_duration;
use crate::gateway::{TokenKeys, new_api_key, new_token_secret};

/// What is to be made.
#[derive(Debug, clap::Args)]
pub(super) struct TokenArgs {
    #[command(subcommand)]
    command: Command,
    /// Print JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a key that signs users' tokens: a line for the file of `token_keys`
    Key {
        /// Its name, which its tokens carry
        #[arg(value_parser = word)]
        id: String,
    },
    /// Make an operator's key for the API: a line for the file of `api_keys`
    ApiKey {
        /// Whose it is
        #[arg(value_parser = word)]
        name: String,
    },
    /// Sign a token that lets a user in to a repl
    Issue {
        /// The file of keys; its first HS256 key signs
        #[arg(long, env = "CONMAN_TOKEN_KEYS", value_name = "FILE")]
        token_keys: PathBuf,
        /// The repl
        repl: ReplId,
        /// The user, as the repl's server is told
        user: String,
        /// How long it is good for
        #[arg(long, default_value = "8h", value_parser = parse_duration, value_name = "TIME")]
        expires_in: Duration,
    },
}

fn word(text: &str) -> Result<String, String> {
    let is_good = |letter: char| letter.is_ascii_alphanumeric() || "-._@".contains(letter);
    if text.is_empty() || !text.chars().all(is_good) {
        return Err("a name has only letters, digits, '-', '_', '.' and '@'".to_owned());
    }
    Ok(text.to_owned())
}

pub(super) fn run(args: TokenArgs) -> anyhow::Result<Exit> {
    let output = Output::of_process(args.json);
    let (line, document) = match args.command {
        Command::Key { id } => {
            let secret = new_token_secret()?;
            let document = json!({ "id": id, "algorithm": "HS256", "secret": secret });
            (format!("{id} HS256 {secret}"), document)
        }
        Command::ApiKey { name } => {
            let key = new_api_key()?;
            let document = json!({ "name": name, "key": key });
            (format!("{name} {key}"), document)
        }
        Command::Issue {
            token_keys,
            repl,
            user,
            expires_in,
        } => {
            let keys = TokenKeys::read(&token_keys).map_err(anyhow::Error::msg)?;
            let now = jiff::Timestamp::now().as_second();
            let expires = now.saturating_add_unsigned(expires_in.as_secs());
            let token = keys.issue(&user, &repl, expires)?;
            let document =
                json!({ "token": token, "repl": repl, "user": user, "expires": expires });
            (token, document)
        }
    };
    if args.json {
        output.document(&document)?;
    } else {
        output.line(&line)?;
    }
    Ok(Exit::Done)
}
