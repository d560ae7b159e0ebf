//! `conman keeper`: the keeper in this process. No thread may be started before it.

use std::path::PathBuf;

use anyhow::Context;
use keeper::Walls;
use keeper::manager::Manager;

use super::exit::Exit;
use super::{ConfigArgs, TieArgs};
use crate::config::{Keeper, KeeperKeys, RuntimeKind, Surroundings};

/// How a keeper is started.
#[derive(Debug, clap::Args)]
pub(super) struct KeeperArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    keeper: KeeperKeys,
    /// The state directory of the `conman up` that it belongs to
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    #[command(flatten)]
    tie: TieArgs,
}

pub(super) fn run(args: KeeperArgs, surroundings: &Surroundings) -> anyhow::Result<Exit> {
    args.tie.tie()?;
    let file = args.config.read()?;
    let keeper = Keeper::resolve(args.keeper, &file, surroundings)?;
    let _member = args
        .state
        .as_deref()
        .map(super::up::join_members)
        .transpose()?;
    let walls = match keeper.runtime {
        RuntimeKind::Native => Walls::Native {
            uid_base: keeper.uid_base,
        },
        // Docker's are only watched.
        RuntimeKind::Docker | RuntimeKind::Process => Walls::ProcessOnly,
    };
    keeper::run(keeper::Config {
        socket: keeper.socket,
        host: keeper.host,
        walls,
        // The one of a fleet's supervisor is not meant for its processes.
        manager: Manager::of_process().filter(|_| args.tie.tied_to.is_none()),
    })
    .context("run the keeper")?;
    Ok(Exit::Done)
}
