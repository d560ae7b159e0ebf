//! `conman keeper`: the keeper in this process. No thread may be started before it.

use std::path::PathBuf;

use anyhow::Context;
use keeper::{Config, UID_BASE_DEFAULT, Walls};
use model::id::HostId;

use super::TieArgs;
use super::exit::Exit;
use crate::config::RuntimeKind;

/// How a keeper is started.
#[derive(Debug, clap::Args)]
pub(super) struct KeeperArgs {
    /// Where conman connects
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// The host that it is the keeper of
    #[arg(long, value_name = "NAME")]
    host: HostId,
    /// What containers it makes
    #[arg(long, value_name = "KIND", default_value = "native")]
    runtime: RuntimeKind,
    /// The host's id of root in the containers, 65536 ids from there on
    #[arg(long, value_name = "UID", default_value_t = UID_BASE_DEFAULT)]
    uid_base: u32,
    /// The state directory of the fleet that it belongs to
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    #[command(flatten)]
    tie: TieArgs,
}

pub(super) fn run(args: KeeperArgs) -> anyhow::Result<Exit> {
    args.tie.tie()?;
    let _member = args
        .state
        .as_deref()
        .map(super::up::join_members)
        .transpose()?;
    let walls = match args.runtime {
        RuntimeKind::Native => Walls::Native {
            uid_base: args.uid_base,
        },
        RuntimeKind::Process => Walls::ProcessOnly,
    };
    let config = Config {
        socket: args.socket,
        host: args.host,
        walls,
    };
    keeper::run(config).context("run the keeper")?;
    Ok(Exit::Done)
}
