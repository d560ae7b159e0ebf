//! The command line: what each subcommand takes, and its exit codes.
//!
//! ```text
//! arguments, variables, file ──► one command's checked values ──► its module ──► Exit
//! ```
//!
//! Raw options become checked values here, once; the modules take only those. An error that reaches the
//! top is printed here, once, with all its causes, and its kind decides the exit code.

mod certs;
mod debug;
mod doctor;
mod escape;
pub mod exit;
mod handover;
mod host;
mod keeper;
mod log;
pub mod output;
mod reap;
mod repl;
mod screen;
mod serve;
mod service;
mod shell;
mod simulate;
pub mod stuck;
mod token;
mod top;
mod tracker;
mod up;

use std::io;
use std::path::PathBuf;

use clap::{CommandFactory, Parser, Subcommand};

use self::exit::Exit;
use self::output::Output;
use crate::client::{ApiUrl, Client, ClientError, Credentials};
use crate::config::{self, CommonKeys, File, NodeKeys, Surroundings, UpKeys};
use crate::reap::driver::CannotReap;

/// Zero or one live container per repl, on machines that may vanish.
#[derive(Debug, Parser)]
#[command(name = "conman", version, after_help = exit::HELP, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a whole fleet on this machine
    Up(Box<UpArgs>),
    /// Run one node: a host, a gateway, or both
    Serve(Box<ServeArgs>),
    /// Run a host's keeper: the parent of its containers, which holds its deadline
    Keeper(keeper::KeeperArgs),
    /// Runs a program that ends with the supervisor that has started it
    #[command(hide = true)]
    Tied(TiedArgs),
    /// Create, reach and end repls
    Repl {
        #[command(flatten)]
        api: ApiArgs,
        #[command(subcommand)]
        command: repl::Command,
    },
    /// Look at and empty hosts
    Host {
        #[command(flatten)]
        api: ApiArgs,
        #[command(subcommand)]
        command: host::Command,
    },
    /// Look at what is under way, and at what hangs
    Debug {
        #[command(flatten)]
        api: ApiArgs,
        #[command(subcommand)]
        command: debug::Command,
    },
    /// Make certificates for the nodes of a small fleet
    Certs(certs::CertsArgs),
    /// Make keys, and tokens that let users in to repls
    Token(token::TokenArgs),
    /// Kill this machine's Docker containers by their PIDs, prove it, and let the engine clean up
    Reap(reap::ReapArgs),
    /// Check what this machine offers, and say what each missing thing costs
    Doctor(doctor::DoctorArgs),
    /// Find stuck sessions in logs
    Stuck(stuck::StuckArgs),
    /// Simulate a fleet with the rules that run in production: what a fault rate costs users and the store
    Sim(simulate::SimArgs),
}

#[derive(Debug, clap::Args)]
struct UpArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    up: UpKeys,
    #[command(flatten)]
    common: CommonKeys,
}

#[derive(Debug, clap::Args)]
struct ServeArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    node: NodeKeys,
    #[command(flatten)]
    common: CommonKeys,
    #[command(flatten)]
    tie: TieArgs,
    /// Take the gateway's listening socket over from the process of this state directory that has it, which then ends
    #[arg(long)]
    take_over: bool,
}

#[derive(Debug, clap::Args)]
struct ConfigArgs {
    /// A TOML file with any of the keys that are flags here
    #[arg(long, env = "CONMAN_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigArgs {
    fn read(&self) -> Result<File, config::ConfigError> {
        let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        config::check_variables(names)?;
        self.config
            .as_deref()
            .map_or_else(|| Ok(File::default()), File::read)
    }
}

/// Ties a process to the supervisor that has started it.
#[derive(Debug, Clone, Copy, clap::Args)]
struct TieArgs {
    /// End as soon as the process with this id, our parent, does
    #[arg(long, hide = true, value_name = "PID")]
    tied_to: Option<u32>,
}

impl TieArgs {
    /// From here on the kernel ends this process with its parent. Must be called on the main thread.
    fn tie(self) -> anyhow::Result<()> {
        use rustix::process::{Signal, getppid, set_parent_process_death_signal};
        let Some(parent) = self.tied_to else {
            return Ok(());
        };
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // It may have ended before the line above; then somebody else is our parent by now.
        let is_there = getppid().is_some_and(|pid| u32::try_from(pid.as_raw_pid()) == Ok(parent));
        anyhow::ensure!(is_there, "the supervisor has ended");
        Ok(())
    }
}

#[derive(Debug, clap::Args)]
struct TiedArgs {
    #[command(flatten)]
    tie: TieArgs,
    /// The program and its arguments
    #[arg(trailing_var_arg = true, required = true, allow_hyphen_values = true)]
    program: Vec<std::ffi::OsString>,
}

impl TiedArgs {
    /// The tie outlives the change of program.
    fn run(&self) -> anyhow::Result<Exit> {
        use std::os::unix::process::CommandExt;
        self.tie.tie()?;
        let Some((program, arguments)) = self.program.split_first() else {
            return Ok(Exit::Usage);
        };
        let error = std::process::Command::new(program).args(arguments).exec();
        Err(anyhow::Error::from(error).context(format!("run {}", program.display())))
    }
}

/// Where the API is and how to print what it says.
#[derive(Debug, clap::Args)]
struct ApiArgs {
    /// Where the API is: http://, https://, or unix: with the path of the socket that a gateway has for its machine
    #[arg(
        long,
        env = "CONMAN_URL",
        default_value = "http://127.0.0.1:8080",
        value_name = "URL",
        global = true
    )]
    url: String,
    /// The key that it wants; from the variable, for everybody on this machine can read arguments
    #[arg(
        long,
        env = "CONMAN_API_KEY",
        hide_env_values = true,
        value_name = "KEY",
        global = true
    )]
    api_key: Option<String>,
    /// Who signs its certificate, in PEM [default: whom this machine trusts]
    #[arg(long, env = "CONMAN_CA", value_name = "FILE", global = true)]
    ca: Option<PathBuf>,
    /// A certificate of the fleet to show, in PEM
    #[arg(
        long,
        env = "CONMAN_CERTIFICATE",
        value_name = "FILE",
        global = true,
        requires = "key"
    )]
    certificate: Option<PathBuf>,
    /// Its key, in PEM
    #[arg(
        long,
        env = "CONMAN_KEY",
        value_name = "FILE",
        global = true,
        requires = "certificate"
    )]
    key: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

impl ApiArgs {
    fn client(&self) -> Result<Client, ClientError> {
        let credentials = Credentials {
            api_key: self.api_key.clone(),
            ca: self.ca.clone(),
            certificate: self.certificate.clone().zip(self.key.clone()),
        };
        Ok(Client::with(self.url.parse::<ApiUrl>()?, credentials))
    }

    fn output(&self) -> Output {
        Output::of_process(self.json)
    }
}

/// Runs the command that this process's arguments ask for.
pub fn main() -> Exit {
    let began = std::time::Instant::now();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version come this way too, and are no failure.
            let exit = if error.use_stderr() {
                Exit::Usage
            } else {
                Exit::Done
            };
            // A closed pipe is all that can go wrong.
            let _ = error.print();
            return exit;
        }
    };
    let json = match &arguments.command {
        Command::Repl { api, .. } | Command::Host { api, .. } | Command::Debug { api, .. } => {
            api.json
        }
        Command::Reap(args) => args.json,
        Command::Certs(args) => args.json,
        Command::Token(args) => args.json,
        Command::Sim(args) => args.json,
        Command::Stuck(args) => args.is_json(),
        _ => false,
    };
    let passes_on = matches!(
        &arguments.command,
        Command::Repl {
            command: repl::Command::Exec { .. } | repl::Command::Shell { .. },
            ..
        }
    );
    match run(arguments.command, began) {
        Ok(exit) => exit,
        Err(error) if is_closed_pipe(&error) => Exit::Done,
        Err(error) => {
            complain(&error, json);
            if passes_on {
                Exit::NotRun
            } else {
                Exit::of_error(&error)
            }
        }
    }
}

fn run(command: Command, began: std::time::Instant) -> anyhow::Result<Exit> {
    let surroundings = Surroundings::of_process();
    match command {
        Command::Up(args) => {
            let file = args.config.read()?;
            up::run(config::Up::resolve(
                args.up,
                args.common,
                &file,
                &surroundings,
            )?)
        }
        Command::Serve(args) => {
            args.tie.tie()?;
            let file = args.config.read()?;
            let member = match args.tie.tied_to {
                Some(_) => serve::Membership::OfFleet,
                None => serve::Membership::Alone,
            };
            let node = config::Node::resolve(args.node, args.common, &file, &surroundings)?;
            serve::run(node, member, args.take_over)
        }
        Command::Tied(args) => args.run(),
        Command::Keeper(args) => keeper::run(args, &surroundings),
        Command::Repl { api, command } => client_runtime()?.block_on(repl::run(api, command)),
        Command::Host { api, command } => client_runtime()?.block_on(host::run(api, command)),
        Command::Debug { api, command } => client_runtime()?.block_on(debug::run(api, command)),
        Command::Reap(args) => client_runtime()?.block_on(reap::run(args, began)),
        Command::Certs(args) => certs::run(args),
        Command::Token(args) => token::run(args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Sim(args) => simulate::run(&args),
        Command::Stuck(args) => stuck::run(args, &surroundings),
    }
}

fn client_runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// Whoever read our output has seen enough.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn complain(error: &anyhow::Error, json: bool) {
    if json {
        let code = match error.downcast_ref::<ClientError>() {
            Some(ClientError::Refused { code, .. }) => code.clone(),
            Some(ClientError::Unreachable { .. }) => "api_unreachable".to_owned(),
            None => match error.downcast_ref::<CannotReap>() {
                Some(CannotReap::Engine(_) | CannotReap::FilterNeedsEngine(_)) => {
                    "engine_unreachable".to_owned()
                }
                _ => "failed".to_owned(),
            },
            Some(_) => "failed".to_owned(),
        };
        let message = format!("{error:#}");
        eprintln!(
            "{}",
            serde_json::json!({ "error": { "code": code, "message": message } })
        );
    } else {
        eprintln!("conman: {error:#}");
    }
}

/// The whole command line, for its documentation and its tests.
pub fn command() -> clap::Command {
    Arguments::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn the_help_names_the_exit_codes() {
        let help = command().render_help().to_string();
        assert!(help.contains("125  repl exec"), "{help}");
    }
}
