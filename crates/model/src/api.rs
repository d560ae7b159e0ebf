//! What a client sees: error codes and states, one closed list for the API, the CLI and the logs.

use serde::{Deserialize, Serialize};

/// Which side failed. Decides a session's outcome and whether to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The request was wrong; trying again changes nothing.
    Client,
    /// The user's own program or spec failed; the platform reached it.
    User,
    /// conman, a host or the store failed; trying again may help.
    Platform,
}

macro_rules! refusal_codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $status:literal, $side:ident;)*) => {
        /// Why something was refused. The code's text is stable; the HTTP status and the failing side follow
        /// from it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum RefusalCode {
            $($(#[$doc])* #[serde(rename = $text)] $name,)*
        }

        impl RefusalCode {
            /// Every code, for tables and tests.
            pub const ALL: &'static [RefusalCode] = &[$(RefusalCode::$name),*];

            /// The stable text.
            pub const fn as_str(self) -> &'static str {
                match self { $(RefusalCode::$name => $text,)* }
            }

            /// The HTTP status that carries it.
            pub const fn status(self) -> u16 {
                match self { $(RefusalCode::$name => $status,)* }
            }

            /// Which side failed.
            pub const fn side(self) -> Side {
                match self { $(RefusalCode::$name => Side::$side,)* }
            }
        }
    };
}

refusal_codes! {
    /// The repl's or host's name is not one.
    BadId = "bad_id", 400, Client;
    /// The body is not JSON, or not of this shape.
    BadJson = "bad_json", 400, Client;
    /// A query parameter or header is wrong.
    BadRequest = "bad_request", 400, Client;
    /// A field of the spec cannot work.
    BadSpec = "bad_spec", 422, Client;
    /// Who asks has not shown who they are, or not in a way that counts.
    Unauthorized = "unauthorized", 401, Client;
    /// Who asks may not do this.
    Forbidden = "forbidden", 403, Client;
    /// More requests than one user, or one repl, may have in a second.
    RateLimited = "rate_limited", 429, Client;
    /// The body is larger than allowed.
    BodyTooLarge = "body_too_large", 413, Client;
    /// Nothing more of the body came.
    RequestTimeout = "request_timeout", 408, Client;
    /// The headers are larger than allowed.
    HeadersTooLarge = "headers_too_large", 431, Client;
    /// A page of another origin had its browser send this.
    CrossOrigin = "cross_origin", 403, Client;
    /// The name that the request was sent to is neither the API's nor a repl's.
    UnknownName = "unknown_name", 421, Client;
    /// No such path.
    NotFound = "not_found", 404, Client;
    /// The path exists, the method does not.
    MethodNotAllowed = "method_not_allowed", 405, Client;
    /// No such repl.
    UnknownRepl = "unknown_repl", 404, Client;
    /// No such host.
    UnknownHost = "unknown_host", 404, Client;
    /// The repl exists with another spec while it runs.
    SpecConflict = "spec_conflict", 409, Client;
    /// The repl has no container now.
    NotRunning = "not_running", 409, Client;
    /// The image's path does not exist, or holds no root file system.
    ImageNotFound = "image_not_found", 422, User;
    /// The command does not exist in the container, or is not executable.
    CommandNotFound = "command_not_found", 422, User;
    /// The container ended before its port accepted a connection.
    ExitedAtOnce = "exited_at_once", 502, User;
    /// The container runs, but nobody listens on the port.
    PortNotListening = "port_not_listening", 502, User;
    /// The spec names no port.
    NoPort = "no_port", 422, User;
    /// The command in the container took longer than allowed.
    ExecTimeout = "exec_timeout", 504, User;
    /// The user's server broke off before it answered.
    UserClosed = "user_closed", 502, User;
    /// The container ended while it worked on the request, which may or may not have been done.
    Interrupted = "interrupted", 503, Platform;
    /// This host is not the owner at that epoch; see the hint.
    NotOwner = "not_owner", 421, Platform;
    /// The host takes nothing new.
    Draining = "draining", 503, Platform;
    /// The host, or every host, carries as many containers as it may.
    NoCapacity = "no_capacity", 503, Platform;
    /// No host is registered.
    NoHost = "no_host", 503, Platform;
    /// The owner could not be reached before the deadline.
    HostUnreachable = "host_unreachable", 503, Platform;
    /// The owner has lost its lease and fenced itself.
    Fenced = "fenced", 503, Platform;
    /// The repl did not become ready before the gateway's deadline.
    ParkTimeout = "park_timeout", 504, Platform;
    /// The container could not be started, through no fault of the user's.
    StartFailed = "start_failed", 503, Platform;
    /// No space is left for the container's files.
    DiskFull = "disk_full", 507, Platform;
    /// The store did not answer.
    StoreUnavailable = "store_unavailable", 503, Platform;
    /// A bug.
    Internal = "internal", 500, Platform;
}

impl std::fmt::Display for RefusalCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A refusal: the closed code and a sentence for people. The API's error body is this under `error`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The reason, for programs.
    pub code: RefusalCode,
    /// The reason, for people: what, which, and what to do.
    pub message: String,
}

impl Refusal {
    /// A refusal with its sentence.
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// Whether the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        self.code.side() == Side::Platform || self.code == RefusalCode::RateLimited
    }
}

/// The state of a repl's container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerState {
    /// Claimed; its process does not run yet.
    Starting,
    /// Its process runs.
    Running,
    /// SIGTERM was sent; the grace runs.
    Destroying,
    /// SIGKILL was sent; its death is not proven yet.
    Killing,
    /// Proven dead; its repl is being released or handed off.
    Releasing,
}

/// How a session's attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The container was reached and answered.
    Ok,
    /// The container was not reached.
    PlatformFail,
    /// The container was reached; the user's own server refused.
    UserFail,
    /// The client went away before.
    ClientAbort,
}
