//! The list of all keys: each once, as a field of the file and as a flag with its variable.

use std::path::PathBuf;

use serde::Deserialize;

use super::store::{StoreKey, TextList};
use super::{LogFormat, Profile, RuntimeKind};
use crate::runtime::docker::Pull;

macro_rules! keys {
    ($($(#[$group_doc:meta])* $group:ident {
        $($(#[$doc:meta])* $key:ident: $type:ty = $variable:literal, $value:literal;)*
    })*) => {
        $(
            $(#[$group_doc])*
            #[derive(Debug, Clone, Default, clap::Args)]
            pub struct $group {
                $($(#[$doc])* #[arg(long, env = $variable, value_name = $value)] pub $key: Option<$type>,)*
            }

            impl $group {
                /// These, and where one is absent the file's.
                pub fn or(self, file: &File) -> Self {
                    Self { $($key: self.$key.or_else(|| file.$key.clone()),)* }
                }
            }
        )*
    };
}

macro_rules! file {
    ($($key:ident: $type:ty,)*) => {
        /// Everything that the file may say. One file serves every command: each takes its own keys.
        #[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        #[allow(missing_docs)] // Each is documented where it is a flag.
        pub struct File {
            $(pub $key: Option<$type>,)*
        }

        /// The names of all keys.
        pub(super) const ALL: &[&str] = &[$(stringify!($key)),*];
    };
}

file! {
    state: PathBuf,
    store: StoreKey,
    store_endpoints: TextList,
    store_prefix: String,
    store_user: String,
    store_password_file: PathBuf,
    store_ca: PathBuf,
    store_certificate: PathBuf,
    store_key: PathBuf,
    workspaces: PathBuf,
    runtime: RuntimeKind,
    image: String,
    docker_engine: String,
    docker_network: String,
    docker_pull: Pull,
    profile: Profile,
    host_capacity: i64,
    witness: PathBuf,
    cgroup: PathBuf,
    session_log: PathBuf,
    api_names: TextList,
    domain: String,
    tls_certificate: PathBuf,
    tls_key: PathBuf,
    proxy_protocol: bool,
    body_bytes_max: String,
    token_keys: PathBuf,
    api_keys: PathBuf,
    user_rate: i64,
    repl_rate: i64,
    drain_grace: String,
    preemption_grace: String,
    log: String,
    log_format: LogFormat,
    hosts: i64,
    listen: String,
    probe_hosts: i64,
    restart: bool,
    host: String,
    host_address: String,
    keeper_socket: PathBuf,
    node_ca: PathBuf,
    node_certificate: PathBuf,
    node_key: PathBuf,
    notice_google: String,
    notice_amazon: String,
    notice_azure: String,
    notice_file: PathBuf,
    stuck_listen: String,
    stuck_database: PathBuf,
    stuck_files: TextList,
    stuck_stdin: bool,
    stuck_journal: TextList,
    stuck_journal_directory: PathBuf,
    stuck_loki: String,
    stuck_loki_query: String,
    stuck_loki_tenant: String,
    stuck_loki_authorization_file: PathBuf,
    stuck_since: String,
    stuck_format: String,
    stuck_entity: String,
    stuck_time: String,
    stuck_ok: String,
    stuck_fail: String,
    stuck_neutral: String,
    stuck_pattern: String,
    stuck_tz: String,
    stuck_gap: String,
    stuck_lateness: String,
    stuck_silence: String,
}

keys! {
    /// The keys of every server.
    CommonKeys {
        /// Where everything of this machine is kept [default: conman in the XDG state directory]
        state: PathBuf = "CONMAN_STATE", "DIR";
        /// Where the store is: sqlite, etcd, or the path of an SQLite file [default: store.db in the state directory]
        store: StoreKey = "CONMAN_STORE", "KIND";
        /// Where etcd's members are, with commas, as in https://10.0.0.1:2379
        store_endpoints: TextList = "CONMAN_STORE_ENDPOINTS", "URLS";
        /// What the keys of this fleet begin with in etcd [default: /conman]
        store_prefix: String = "CONMAN_STORE_PREFIX", "PREFIX";
        /// Who conman is to etcd
        store_user: String = "CONMAN_STORE_USER", "NAME";
        /// The file with that user's password in its first line
        store_password_file: PathBuf = "CONMAN_STORE_PASSWORD_FILE", "FILE";
        /// The certificate of who signs those of etcd's members, in PEM
        store_ca: PathBuf = "CONMAN_STORE_CA", "FILE";
        /// Our own certificate to show to etcd, in PEM
        store_certificate: PathBuf = "CONMAN_STORE_CERTIFICATE", "FILE";
        /// Its key, in PEM
        store_key: PathBuf = "CONMAN_STORE_KEY", "FILE";
        /// Where the repls' workspaces are [default: workspaces in the state directory]
        workspaces: PathBuf = "CONMAN_WORKSPACES", "DIR";
        /// What makes containers: native, Docker's engine, or nothing at all (process: no isolation, no root) [default: native]
        runtime: RuntimeKind = "CONMAN_RUNTIME", "KIND";
        /// Under docker, what repls run that name no image, as in debian:12
        image: String = "CONMAN_IMAGE", "REFERENCE";
        /// The socket of Docker's engine [default: DOCKER_HOST, or unix:///var/run/docker.sock]
        docker_engine: String = "CONMAN_DOCKER_ENGINE", "ADDRESS";
        /// The engine's network for containers; sessions need none [default: none]
        docker_network: String = "CONMAN_DOCKER_NETWORK", "NAME";
        /// When the engine fetches an image [default: missing]
        docker_pull: Pull = "CONMAN_DOCKER_PULL", "WHEN";
        /// The lease timings, the same on every host of a fleet [default: fast]
        profile: Profile = "CONMAN_PROFILE", "NAME";
        /// How many containers a host carries at the most [default: 200]
        host_capacity: i64 = "CONMAN_HOST_CAPACITY", "N";
        /// For tests and drills: where containers leave a witness of their lives
        witness: PathBuf = "CONMAN_WITNESS", "DIR";
        /// The cgroup that the containers' are made in, as a service manager gave it away [default: the root]
        cgroup: PathBuf = "CONMAN_CGROUP", "PATH";
        /// Where each attempt to reach a repl is logged [default: sessions.ndjson in the state directory]
        session_log: PathBuf = "CONMAN_SESSION_LOG", "FILE";
        /// Names of the API and the console, with commas, besides localhost and addresses: browsers reach it by no other
        api_names: TextList = "CONMAN_API_NAMES", "NAMES";
        /// A repl is at its name before this one, as in blue.repl.example, and another port of it at 8001-blue.repl.example [default: localhost]
        domain: String = "CONMAN_DOMAIN", "NAME";
        /// What the gateway shows to users' programs, in PEM, with what leads to whom they trust; read again when it changes
        tls_certificate: PathBuf = "CONMAN_TLS_CERTIFICATE", "FILE";
        /// Its key, in PEM
        tls_key: PathBuf = "CONMAN_TLS_KEY", "FILE";
        /// Whether every connection to the gateway begins with a PROXY header, as a load balancer sends it [default: false]
        proxy_protocol: bool = "CONMAN_PROXY_PROTOCOL", "BOOL";
        /// How large the body of a request to a repl may be, as in 64M [default: as its server takes]
        body_bytes_max: String = "CONMAN_BODY_BYTES_MAX", "BYTES";
        /// The keys that sign users' tokens for repls, a line each; without it every repl is open, which must be on this machine alone
        token_keys: PathBuf = "CONMAN_TOKEN_KEYS", "FILE";
        /// The keys of those who may use the API, a line each; without it whoever reaches the API may
        api_keys: PathBuf = "CONMAN_API_KEYS", "FILE";
        /// How many requests a second one user may make, or one address without a token [default: any]
        user_rate: i64 = "CONMAN_USER_RATE", "N";
        /// How many requests a second may be made to one repl [default: any]
        repl_rate: i64 = "CONMAN_REPL_RATE", "N";
        /// From SIGTERM to SIGKILL when a host is drained by an operator [default: 10s]
        drain_grace: String = "CONMAN_DRAIN_GRACE", "DURATION";
        /// From SIGTERM to SIGKILL when a host is drained because its machine is about to be gone [default: 0s]
        preemption_grace: String = "CONMAN_PREEMPTION_GRACE", "DURATION";
        /// What is logged, as in info or conman::host=debug [default: info]
        log: String = "CONMAN_LOG", "FILTER";
        /// How log lines look [default: text]
        log_format: LogFormat = "CONMAN_LOG_FORMAT", "FORMAT";
    }

    /// The keys of a fleet on one machine.
    UpKeys {
        /// How many hosts [default: 3]
        hosts: i64 = "CONMAN_HOSTS", "N";
        /// Where the gateway listens; port 0 takes a free one [default: 127.0.0.1:8080]
        listen: String = "CONMAN_LISTEN", "ADDRESS";
        /// Of how many hosts the gateway opens a probe once a second, to measure who is stuck; 0 for none [default: 64]
        probe_hosts: i64 = "CONMAN_PROBE_HOSTS", "N";
        /// Whether processes that end are started again [default: true]
        restart: bool = "CONMAN_RESTART", "BOOL";
    }

    /// The keys of one node.
    NodeKeys {
        /// The host's name; without it the node is no host
        host: String = "CONMAN_HOST", "NAME";
        /// Where the host serves the node API: unix:/path, tls:host:port, or tcp:host:port of this machine [default: a socket in the state directory]
        host_address: String = "CONMAN_HOST_ADDRESS", "ADDRESS";
        /// Where the host's keeper listens [default: a socket in the state directory]
        keeper_socket: PathBuf = "CONMAN_KEEPER_SOCKET", "PATH";
        /// Who signs the certificates of the fleet's nodes, in PEM; several, while a CA is changed
        node_ca: PathBuf = "CONMAN_NODE_CA", "FILE";
        /// This node's certificate, in PEM; read again when it changes
        node_certificate: PathBuf = "CONMAN_NODE_CERTIFICATE", "FILE";
        /// Its key, in PEM
        node_key: PathBuf = "CONMAN_NODE_KEY", "FILE";
        /// Take notice of preemption from Google Cloud's metadata server: on, off, or where it is [default: off]
        notice_google: String = "CONMAN_NOTICE_GOOGLE", "URL";
        /// The same from Amazon EC2's: spot interruptions and rebalance recommendations [default: off]
        notice_amazon: String = "CONMAN_NOTICE_AMAZON", "URL";
        /// The same from Azure's: scheduled events, which are acknowledged when the host is empty [default: off]
        notice_azure: String = "CONMAN_NOTICE_AZURE", "URL";
        /// A file whose appearance is a notice; in it may be when, as in 90s
        notice_file: PathBuf = "CONMAN_NOTICE_FILE", "PATH";
        /// Where the gateway listens; without it the node is no gateway. Beyond this machine, for who shows a certificate
        listen: String = "CONMAN_LISTEN", "ADDRESS";
        /// Of how many hosts the gateway opens a probe once a second, to measure who is stuck; 0 for none [default: 64]
        probe_hosts: i64 = "CONMAN_PROBE_HOSTS", "N";
    }

    /// The keys of a stuck tracker.
    StuckKeys {
        /// Where the page of metrics is [default: 127.0.0.1:8090]
        stuck_listen: String = "CONMAN_STUCK_LISTEN", "ADDRESS";
        /// Where it keeps what it has counted [default: stuck.db in the state directory]
        stuck_database: PathBuf = "CONMAN_STUCK_DATABASE", "FILE";
        /// Logs to follow, with commas; they may be rotated and truncated. One with * ? or [ is every file that it matches, now or later
        stuck_files: TextList = "CONMAN_STUCK_FILES", "FILES";
        /// Whether to read standard input [default: false]
        stuck_stdin: bool = "CONMAN_STUCK_STDIN", "BOOL";
        /// Parts of systemd's journal, with commas: units, or matches as in SYSLOG_IDENTIFIER=gate
        stuck_journal: TextList = "CONMAN_STUCK_JOURNAL", "UNITS";
        /// Where the journal's files are [default: this machine's journal]
        stuck_journal_directory: PathBuf = "CONMAN_STUCK_JOURNAL_DIRECTORY", "DIR";
        /// The address of a Grafana Loki, as in `https://loki.example:3100`
        stuck_loki: String = "CONMAN_STUCK_LOKI", "URL";
        /// What to ask Loki for, as in {app="gateway"}
        stuck_loki_query: String = "CONMAN_STUCK_LOKI_QUERY", "LOGQL";
        /// Loki's tenant, where it has several
        stuck_loki_tenant: String = "CONMAN_STUCK_LOKI_TENANT", "TENANT";
        /// A file with what Loki wants in the header Authorization, as in Bearer …
        stuck_loki_authorization_file: PathBuf = "CONMAN_STUCK_LOKI_AUTHORIZATION_FILE", "FILE";
        /// How far back the first reading of the journal or of Loki begins [default: 1h]
        stuck_since: String = "CONMAN_STUCK_SINCE", "DURATION";
        /// The format of lines, as in `stuck report` [default: auto]
        stuck_format: String = "CONMAN_STUCK_FORMAT", "NAME";
        /// The field that names the entity; FIELD~REGEX takes the part in the first group
        stuck_entity: String = "CONMAN_STUCK_ENTITY", "FIELD";
        /// The field that holds the time
        stuck_time: String = "CONMAN_STUCK_TIME", "FIELD";
        /// Attempts that reached the entity, as in 'status<500'
        stuck_ok: String = "CONMAN_STUCK_OK", "EXPR";
        /// Attempts that failed, as in 'status>=500'
        stuck_fail: String = "CONMAN_STUCK_FAIL", "EXPR";
        /// Attempts that prove neither, as in 'status=499'
        stuck_neutral: String = "CONMAN_STUCK_NEUTRAL", "EXPR";
        /// Lines of any other format, by named groups
        stuck_pattern: String = "CONMAN_STUCK_PATTERN", "REGEX";
        /// The zone of stamps without one: UTC, +02:00, Europe/Berlin, local [default: UTC]
        stuck_tz: String = "CONMAN_STUCK_TZ", "ZONE";
        /// An episode is over when nobody tries again for longer than this [default: 10m]
        stuck_gap: String = "CONMAN_STUCK_GAP", "DURATION";
        /// Attempts this late are put in their place; nothing is counted before [default: 30s]
        stuck_lateness: String = "CONMAN_STUCK_LATENESS", "DURATION";
        /// A log that brings nothing for this long is silent: what it would say is unknown [default: 60s]
        stuck_silence: String = "CONMAN_STUCK_SILENCE", "DURATION";
    }
}
