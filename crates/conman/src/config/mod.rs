//! Configuration: one TOML file, every key of which is also a flag and an environment variable.
//!
//! ```text
//! flag ─or─ CONMAN_… ─or─ file ─or─ default   ──►   Common, Up, Node: checked once, at the start
//! ```
//!
//! The key `host_capacity` of the file is the flag `--host-capacity` and the variable
//! `CONMAN_HOST_CAPACITY`. What is wrong is said by its key, wherever it came from; a key that does not
//! exist is wrong too, in the file and among the variables.

mod docker;
mod gateway;
mod identity;
mod keeper;
mod keys;
mod kinds;
mod notices;
mod store;
mod stuck;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::ParseIntError;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::id::{HostId, NameError};
use model::timing::{DRAIN_RESERVE, PREEMPTION_NOTICE};

use self::gateway::GatewayKeys;
pub use self::gateway::{Gateway, load_access, load_certificate};
use self::identity::IdentityKeys;
pub use self::identity::load_identity;
pub use self::keeper::{Keeper, KeeperKeys};
pub use self::keys::{CommonKeys, File, NodeKeys, StuckKeys, UpKeys};
pub use self::kinds::{LogFormat, Profile, RuntimeKind};
use self::notices::NoticeKeys;
pub use self::store::{Store, StoreKey, TextList};
pub use self::stuck::{Stuck, fleet_tracker};
use crate::host::{Drains, Notices};
use crate::node::{Address, BadAddress, Files};
use crate::runtime::docker::DockerOptions;

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("config: read {}: {source}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no TOML, or has an unknown key, or a value of the wrong type: the text says where.
    #[error("config: {}: {source}", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What and where.
        source: Box<toml::de::Error>,
    },
    /// A key's value cannot work.
    #[error("{key}: {reason} (set by --{}, {}, or {key} in the file)", key.replace('_', "-"), variable(key))]
    BadValue {
        /// Which key.
        key: &'static str,
        /// What would work.
        reason: String,
    },
    /// A variable that looks like one of ours and is none.
    #[error("{0}: there is no such key; `conman up --help` lists them")]
    UnknownVariable(String),
}

fn variable(key: &str) -> String {
    format!("CONMAN_{}", key.to_uppercase())
}

fn bad(key: &'static str, reason: impl Into<String>) -> ConfigError {
    ConfigError::BadValue {
        key,
        reason: reason.into(),
    }
}

impl File {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// When it cannot be read, is no TOML, or has a key that does not exist or a value of a wrong type.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        toml::from_str(&text).map_err(|source| ConfigError::Malformed {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }
}

/// Refuses variables that begin with `CONMAN_` and are no key: a misspelt one must not be silently
/// without effect.
///
/// # Errors
/// [`ConfigError::UnknownVariable`], with the first.
pub fn check_variables(names: impl Iterator<Item = String>) -> Result<(), ConfigError> {
    // Not keys, but ours: the file itself, the API's address and what is shown there, and what the tests say to themselves.
    let known = |name: &str| {
        matches!(
            name,
            "CONMAN_CONFIG"
                | "CONMAN_URL"
                | "CONMAN_API_KEY"
                | "CONMAN_CA"
                | "CONMAN_CERTIFICATE"
                | "CONMAN_KEY"
        ) || name.starts_with("CONMAN_TEST_")
            || keys::ALL.iter().any(|key| variable(key) == name)
    };
    match names
        .filter(|name| name.starts_with("CONMAN_"))
        .find(|name| !known(name))
    {
        Some(name) => Err(ConfigError::UnknownVariable(name)),
        None => Ok(()),
    }
}

/// What every server needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Common {
    /// Where everything of this machine is kept, absolute.
    pub state: PathBuf,
    /// Where the store is.
    pub store: Store,
    /// Where the repls' workspaces are, absolute.
    pub workspaces: PathBuf,
    /// What makes containers.
    pub runtime: RuntimeKind,
    /// What is the docker runtime's own.
    pub docker: DockerOptions,
    /// The lease timings.
    pub profile: Profile,
    /// How many containers each host carries at the most.
    pub host_capacity: u32,
    /// Where containers leave a witness of their lives.
    pub witness: Option<PathBuf>,
    /// The cgroup that the containers' are made in, if not the root.
    pub cgroup: Option<PathBuf>,
    /// Where the gateway writes a line for every attempt.
    pub session_log: PathBuf,
    /// Whom the gateway serves, and as whom.
    pub gateway: Gateway,
    /// How hosts are emptied.
    pub drains: Drains,
    /// What is logged.
    pub log: String,
    /// How log lines look.
    pub log_format: LogFormat,
}

/// A fleet on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Up {
    /// What all of its processes need.
    pub common: Common,
    /// How many hosts.
    pub hosts: u16,
    /// Where the gateway listens.
    pub listen: SocketAddr,
    /// How many hosts it probes at the most.
    pub probe_hosts: usize,
    /// Whether processes that end are started again.
    pub restart: bool,
}

/// One node: a host, a gateway, or both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What every node needs.
    pub common: Common,
    /// The host's role, if it has it.
    pub host: Option<Host>,
    /// Where the gateway listens, if it has that role.
    pub listen: Option<SocketAddr>,
    /// How many hosts it probes at the most.
    pub probe_hosts: usize,
    /// What it shows to the other nodes.
    pub identity: Option<Files>,
}

/// The host's role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Its name.
    pub name: HostId,
    /// Where it serves the node API.
    pub address: Address,
    /// Where its keeper listens.
    pub keeper_socket: PathBuf,
    /// Whom it believes that its machine is about to be gone.
    pub notices: Notices,
}

/// The gateway's address when nothing is said.
pub const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);

/// The longest path of a Unix socket: `sun_path`, less its final NUL.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Where the variables and directories come from that are nobody's key.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// `XDG_STATE_HOME`.
    pub xdg_state_home: Option<PathBuf>,
    /// `HOME`.
    pub home: Option<PathBuf>,
    /// `DOCKER_HOST`.
    pub docker_host: Option<String>,
}

impl Surroundings {
    /// Those of this process.
    pub fn of_process() -> Self {
        let directory = |name| std::env::var_os(name).map(PathBuf::from);
        Self {
            docker_host: std::env::var("DOCKER_HOST").ok(),
            xdg_state_home: directory("XDG_STATE_HOME"),
            home: directory("HOME"),
        }
    }

    /// By the XDG rules a relative path counts as none.
    fn state(&self) -> Option<PathBuf> {
        let absolute = |path: &&PathBuf| path.is_absolute();
        let base = self
            .xdg_state_home
            .as_ref()
            .filter(absolute)
            .cloned()
            .or_else(|| {
                self.home
                    .as_ref()
                    .filter(absolute)
                    .map(|home| home.join(".local/state"))
            })?;
        Some(base.join("conman"))
    }
}

fn absolute(key: &'static str, path: PathBuf) -> Result<PathBuf, ConfigError> {
    std::path::absolute(path).map_err(|error| bad(key, error.to_string()))
}

fn between(key: &'static str, value: i64, least: u32, most: u32) -> Result<u32, ConfigError> {
    match u32::try_from(value) {
        Ok(value) if (least..=most).contains(&value) => Ok(value),
        _ => Err(bad(key, format!("must be {least} to {most}, not {value}"))),
    }
}

fn drains(operator: Option<String>, preemption: Option<String>) -> Result<Drains, ConfigError> {
    let default = Drains::default();
    let grace = |key, text: Option<String>, default, most: Duration| match text {
        None => Ok(default),
        Some(text) => match ::stuck::query::parse_duration(&text) {
            Ok(grace) if grace <= most => Ok(grace),
            Ok(_) => Err(bad(key, format!("must be at most {} s", most.as_secs()))),
            Err(why) => Err(bad(key, why)),
        },
    };
    Ok(Drains {
        operator_grace: grace(
            "drain_grace",
            operator,
            default.operator_grace,
            Duration::from_secs(3600),
        )?,
        preemption_grace: grace(
            "preemption_grace",
            preemption,
            default.preemption_grace,
            PREEMPTION_NOTICE.saturating_sub(DRAIN_RESERVE),
        )?,
    })
}

fn probe_hosts(value: Option<i64>) -> Result<usize, ConfigError> {
    // At most 1,000.
    Ok(between("probe_hosts", value.unwrap_or(64), 0, 1_000)? as usize)
}

fn listen_address(text: &str) -> Result<SocketAddr, ConfigError> {
    address_of("listen", text)
}

fn address_of(key: &'static str, text: &str) -> Result<SocketAddr, ConfigError> {
    text.parse().map_err(|_| {
        bad(
            key,
            format!("{text:?} is not an IP address with a port, as in 127.0.0.1:8080"),
        )
    })
}

impl Common {
    /// Checks the keys and fills in the defaults.
    ///
    /// # Errors
    /// The first key that cannot work.
    pub fn resolve(
        keys: CommonKeys,
        file: &File,
        surroundings: &Surroundings,
    ) -> Result<Self, ConfigError> {
        let keys = keys.or(file);
        let state = match keys.state {
            Some(path) => absolute("state", path)?,
            None => surroundings
                .state()
                .ok_or_else(|| bad("state", "must be given where there is no HOME"))?,
        };
        let below = |key, path: Option<PathBuf>, name: &str| match path {
            Some(path) => absolute(key, path),
            None => Ok(state.join(name)),
        };
        let witness = keys
            .witness
            .map(|path| absolute("witness", path))
            .transpose()?;
        let docker = docker::Keys {
            engine: keys.docker_engine,
            image: keys.image,
            network: keys.docker_network,
            pull: keys.docker_pull,
        };
        let gateway = GatewayKeys {
            api_names: keys.api_names,
            domain: keys.domain,
            certificate: keys.tls_certificate,
            key: keys.tls_key,
            proxy_protocol: keys.proxy_protocol,
            body_bytes_max: keys.body_bytes_max,
            token_keys: keys.token_keys,
            api_keys: keys.api_keys,
            user_rate: keys.user_rate,
            repl_rate: keys.repl_rate,
        };
        let log = keys.log.unwrap_or_else(|| "info".into());
        if let Err(error) = tracing_subscriber::EnvFilter::builder().parse(&log) {
            return Err(bad("log", format!("{log:?} is no filter: {error}")));
        }
        let store = store::Keys {
            store: keys.store,
            endpoints: keys.store_endpoints,
            prefix: keys.store_prefix,
            user: keys.store_user,
            password_file: keys.store_password_file,
            ca: keys.store_ca,
            certificate: keys.store_certificate,
            key: keys.store_key,
        };
        Ok(Self {
            store: store.resolve(file.store.as_ref(), &state)?,
            workspaces: below("workspaces", keys.workspaces, "workspaces")?,
            session_log: below("session_log", keys.session_log, "sessions.ndjson")?,
            gateway: gateway.resolve()?,
            state,
            runtime: keys.runtime.unwrap_or_default(),
            docker: docker.resolve(surroundings)?,
            profile: keys.profile.unwrap_or_default(),
            host_capacity: between(
                "host_capacity",
                keys.host_capacity.unwrap_or(200),
                1,
                100_000,
            )?,
            witness,
            cgroup: keys.cgroup,
            drains: drains(keys.drain_grace, keys.preemption_grace)?,
            log,
            log_format: keys.log_format.unwrap_or_default(),
        })
    }

    /// Where the gateway writes a line for every attempt of its prober.
    pub fn probe_log(&self) -> PathBuf {
        self.state.join("probes.ndjson")
    }

    /// Where the processes of this machine find each other.
    pub fn sockets(&self) -> PathBuf {
        self.state.join("sockets")
    }

    /// The gateway's socket for this machine.
    pub fn gateway_socket(&self) -> PathBuf {
        self.sockets().join("gateway")
    }

    /// Where a gateway's process hears another that takes its place.
    pub fn successor_socket(&self) -> PathBuf {
        self.sockets().join("successor")
    }

    /// The socket of a host's node API.
    pub fn host_socket(&self, host: &HostId) -> PathBuf {
        self.sockets().join(format!("{host}.node"))
    }

    /// The socket on which the supervisor of a fleet hears a host's conman.
    pub fn signs_socket(&self, host: &HostId) -> PathBuf {
        self.sockets().join(format!("{host}.signs"))
    }

    /// The socket of a host's keeper.
    pub fn keeper_socket(&self, host: &HostId) -> PathBuf {
        self.sockets().join(format!("{host}.keeper"))
    }

    fn check_sockets(&self, host: &HostId) -> Result<(), ConfigError> {
        let longest = self.keeper_socket(host).as_os_str().len();
        if longest <= SOCKET_PATH_BYTES_MAX {
            return Ok(());
        }
        Err(bad(
            "state",
            format!(
                "{} is too long a path by {} bytes: the Unix sockets below it would not work",
                self.state.display(),
                longest - SOCKET_PATH_BYTES_MAX
            ),
        ))
    }
}

/// The name of the host with this number, from 1, in a fleet on one machine.
pub fn host_name(number: u32) -> HostId {
    let name = format!("host-{number}");
    // Letters, a hyphen and digits, at most 15 of them: always a name.
    name.parse()
        .unwrap_or_else(|error: NameError| unreachable!("{name}: {error}"))
}

impl Up {
    /// Checks the keys and fills in the defaults.
    ///
    /// # Errors
    /// The first key that cannot work.
    pub fn resolve(
        keys: UpKeys,
        common: CommonKeys,
        file: &File,
        surroundings: &Surroundings,
    ) -> Result<Self, ConfigError> {
        let keys = keys.or(file);
        let common = Common::resolve(common, file, surroundings)?;
        common.check_sockets(&host_name(u32::MAX))?;
        if let Store::Etcd(Some(_)) = common.store {
            // It would clear what other machines' hosts have in there.
            return Err(bad(
                "store_endpoints",
                "`conman up` has an etcd of its own; the hosts of a fleet are `conman serve`",
            ));
        }
        let hosts = between("hosts", keys.hosts.unwrap_or(3), 1, 64)?;
        let listen = keys.listen.as_deref().map_or(Ok(LISTEN), listen_address)?;
        common.gateway.check(Some(listen), false)?;
        Ok(Self {
            common,
            // At most 64.
            hosts: hosts as u16,
            listen,
            probe_hosts: probe_hosts(keys.probe_hosts)?,
            restart: keys.restart.unwrap_or(true),
        })
    }
}

impl Node {
    /// Checks the keys and fills in the defaults.
    ///
    /// # Errors
    /// The first key that cannot work.
    pub fn resolve(
        keys: NodeKeys,
        common: CommonKeys,
        file: &File,
        surroundings: &Surroundings,
    ) -> Result<Self, ConfigError> {
        let keys = keys.or(file);
        let common = Common::resolve(common, file, surroundings)?;
        if common.store == Store::Etcd(None) {
            return Err(bad(
                "store_endpoints",
                "must be given where the store is etcd, as in https://10.0.0.1:2379",
            ));
        }
        let listen = keys.listen.as_deref().map(listen_address).transpose()?;
        let notices = NoticeKeys {
            google: keys.notice_google,
            amazon: keys.notice_amazon,
            azure: keys.notice_azure,
            file: keys.notice_file,
        };
        let host = match keys.host {
            Some(name) => Some(Host::resolve(
                &name,
                keys.host_address,
                keys.keeper_socket,
                notices.resolve()?,
                &common,
            )?),
            None => None,
        };
        if host.is_none() && listen.is_none() {
            return Err(bad("host", "a node needs host, listen, or both"));
        }
        let identity = IdentityKeys {
            ca: keys.node_ca,
            certificate: keys.node_certificate,
            key: keys.node_key,
        };
        let identity = identity.resolve()?;
        let host_address = host.as_ref().map(|host| &host.address);
        identity::check(identity.as_ref(), host_address)?;
        common.gateway.check(listen, identity.is_some())?;
        Ok(Self {
            common,
            host,
            listen,
            probe_hosts: probe_hosts(keys.probe_hosts)?,
            identity,
        })
    }
}

impl Host {
    fn resolve(
        name: &str,
        address: Option<String>,
        keeper_socket: Option<PathBuf>,
        notices: Notices,
        common: &Common,
    ) -> Result<Self, ConfigError> {
        let name: HostId = name
            .parse()
            .map_err(|error: NameError| bad("host", error.to_string()))?;
        let address = match address {
            Some(text) => text
                .parse()
                .map_err(|error: BadAddress| bad("host_address", error.to_string()))?,
            None => {
                common.check_sockets(&name)?;
                Address::Unix(common.host_socket(&name))
            }
        };
        let keeper_socket = match keeper_socket {
            Some(path) => absolute("keeper_socket", path)?,
            None => common.keeper_socket(&name),
        };
        Ok(Self {
            name,
            address,
            keeper_socket,
            notices,
        })
    }
}

/// A size as people write it: a number of bytes, or with K, M, G (powers of 1024).
///
/// # Errors
/// A sentence that says what would work.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 20),
        Some(b'g' | b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: Result<u64, ParseIntError> = digits.parse();
    number
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| format!("{text:?} is not a number of bytes, as in 512M"))
}

#[cfg(test)]
mod tests;
