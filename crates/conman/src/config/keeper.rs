//! What a keeper is configured with: the few keys of a host that it shares with its conman.

use std::path::PathBuf;

use keeper::UID_BASE_DEFAULT;
use model::id::{HostId, NameError};

use super::{Common, CommonKeys, ConfigError, File, RuntimeKind, Surroundings, absolute, bad};

/// The keys of a keeper, each a flag and, but for the last, a key of the file.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct KeeperKeys {
    /// Where conman connects [default: a socket in the state directory]
    #[arg(
        long = "socket",
        alias = "keeper-socket",
        env = "CONMAN_KEEPER_SOCKET",
        value_name = "PATH"
    )]
    pub keeper_socket: Option<PathBuf>,
    /// The host that it is the keeper of
    #[arg(long, env = "CONMAN_HOST", value_name = "NAME")]
    pub host: Option<String>,
    /// What containers it makes [default: native]
    #[arg(long, env = "CONMAN_RUNTIME", value_name = "KIND")]
    pub runtime: Option<RuntimeKind>,
    /// The host's id of root in the containers, 65536 ids from there on
    #[arg(long, value_name = "UID", default_value_t = UID_BASE_DEFAULT)]
    pub uid_base: u32,
}

/// A keeper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keeper {
    /// Where conman connects, absolute.
    pub socket: PathBuf,
    /// The host that it is the keeper of.
    pub host: HostId,
    /// What containers it makes.
    pub runtime: RuntimeKind,
    /// The host's id of root in the containers.
    pub uid_base: u32,
}

impl Keeper {
    /// Checks the keys and fills in the defaults.
    ///
    /// # Errors
    /// The first key that cannot work.
    pub fn resolve(
        keys: KeeperKeys,
        file: &File,
        surroundings: &Surroundings,
    ) -> Result<Self, ConfigError> {
        let name = keys.host.or_else(|| file.host.clone());
        let name = name.ok_or_else(|| bad("host", "a keeper must be told whose it is"))?;
        let host: HostId = name
            .parse()
            .map_err(|error: NameError| bad("host", error.to_string()))?;
        let socket = match keys.keeper_socket.or_else(|| file.keeper_socket.clone()) {
            Some(path) => absolute("keeper_socket", path)?,
            None => {
                let common = Common::resolve(CommonKeys::default(), file, surroundings)?;
                common.check_sockets(&host)?;
                common.keeper_socket(&host)
            }
        };
        Ok(Self {
            socket,
            host,
            runtime: keys.runtime.or(file.runtime).unwrap_or_default(),
            uid_base: keys.uid_base,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(keys: KeeperKeys, file: &str) -> Result<Keeper, String> {
        let surroundings = Surroundings {
            docker_host: None,
            xdg_state_home: None,
            home: Some("/home/ann".into()),
        };
        let file: File = toml::from_str(file).unwrap();
        Keeper::resolve(keys, &file, &surroundings).map_err(|error| error.to_string())
    }

    #[test]
    fn is_where_its_conman_looks_for_it() {
        let file = "host = 'h1'\nstate = '/var/lib/conman'\nruntime = 'process'";
        let keeper = resolve(KeeperKeys::default(), file).unwrap();
        assert_eq!(
            keeper.socket,
            PathBuf::from("/var/lib/conman/sockets/h1.keeper")
        );
        assert_eq!(keeper.runtime, RuntimeKind::Process);
        let keeper = resolve(
            KeeperKeys::default(),
            "host = 'h1'\nkeeper_socket = '/run/conman/keeper'",
        )
        .unwrap();
        assert_eq!(keeper.socket, PathBuf::from("/run/conman/keeper"));
        assert_eq!(keeper.runtime, RuntimeKind::Native);
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let keys = KeeperKeys {
            keeper_socket: Some("/x".into()),
            host: Some("h2".into()),
            ..KeeperKeys::default()
        };
        let keeper = resolve(keys, "host = 'h1'\nkeeper_socket = '/y'").unwrap();
        assert_eq!((keeper.host.as_str(), keeper.socket), ("h2", "/x".into()));
    }

    #[test]
    fn must_know_its_host() {
        let refused = resolve(KeeperKeys::default(), "").unwrap_err();
        assert_eq!(
            refused,
            "host: a keeper must be told whose it is (set by --host, CONMAN_HOST, or host in the file)"
        );
        let refused = resolve(KeeperKeys::default(), "host = 'H 1'").unwrap_err();
        assert!(refused.starts_with("host: "), "{refused}");
    }
}
