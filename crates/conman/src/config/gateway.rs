//! The keys of the gateway: whom it serves, as whom, and what those must show.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;

use super::store::TextList;
use super::{ConfigError, absolute, bad, parse_bytes};
use crate::gateway::{
    Access, AccessError, AccessOptions, Certificate, CertificateError, CertificateFiles,
};

/// `<repl>.localhost` leads to a repl: browsers take every name below it for this machine.
const DOMAIN: &str = "localhost";

/// The keys as they were given.
#[derive(Default)]
pub(super) struct GatewayKeys {
    pub(super) api_names: Option<TextList>,
    pub(super) domain: Option<String>,
    pub(super) certificate: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) proxy_protocol: Option<bool>,
    pub(super) body_bytes_max: Option<String>,
    pub(super) token_keys: Option<PathBuf>,
    pub(super) api_keys: Option<PathBuf>,
    pub(super) user_rate: Option<i64>,
    pub(super) repl_rate: Option<i64>,
}

/// Whom the gateway serves, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    /// The API's own names, besides addresses and `localhost`.
    pub api_names: Vec<String>,
    /// `<repl>.<domain>` leads to a repl.
    pub domain: String,
    /// What users' programs are shown, if they come over TLS.
    pub tls: Option<CertificateFiles>,
    /// Whether a load balancer says for whom each connection is.
    pub proxy_protocol: bool,
    /// How many bytes the body of a request to a repl may have.
    pub body_bytes_max: Option<u64>,
    /// Who may do what.
    pub access: AccessOptions,
}

impl GatewayKeys {
    pub(super) fn resolve(self) -> Result<Gateway, ConfigError> {
        let api_names = self.api_names.map_or(Vec::new(), TextList::into_vec);
        if let Some(name) = api_names.iter().find(|name| !is_name(name)) {
            return Err(bad(
                "api_names",
                format!("{name:?} is not a name without a port, as in fleet.example"),
            ));
        }
        let domain = self.domain.unwrap_or_else(|| DOMAIN.to_owned());
        if !is_name(&domain) {
            return Err(bad(
                "domain",
                format!("{domain:?} is not a name without a port, as in repl.example"),
            ));
        }
        let tls = match (self.certificate, self.key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some(CertificateFiles {
                certificate: absolute("tls_certificate", certificate)?,
                key: absolute("tls_key", key)?,
            }),
            (Some(_), None) => return Err(bad("tls_key", "must be given with tls_certificate")),
            (None, Some(_)) => return Err(bad("tls_certificate", "must be given with tls_key")),
        };
        let body_bytes_max = self.body_bytes_max.as_deref().map(parse_bytes).transpose();
        let file = |key, path: Option<PathBuf>| path.map(|path| absolute(key, path)).transpose();
        Ok(Gateway {
            api_names,
            domain: domain.to_ascii_lowercase(),
            tls,
            proxy_protocol: self.proxy_protocol.unwrap_or(false),
            body_bytes_max: body_bytes_max.map_err(|why| bad("body_bytes_max", why))?,
            access: AccessOptions {
                token_keys: file("token_keys", self.token_keys)?,
                api_keys: file("api_keys", self.api_keys)?,
                user_rate: rate("user_rate", self.user_rate)?,
                repl_rate: rate("repl_rate", self.repl_rate)?,
            },
        })
    }
}

impl Gateway {
    /// Refuses an address that whoever reaches it could use. Of those who come to a node's, with `is_for_fleet`, a certificate of
    /// the fleet is asked; what they hand on comes from users all the same.
    pub(super) fn check(
        &self,
        listen: Option<SocketAddr>,
        is_for_fleet: bool,
    ) -> Result<(), ConfigError> {
        const FLEET: &str = "node_ca, node_certificate and node_key";
        let Some(listen) = listen.filter(|listen| !listen.ip().is_loopback()) else {
            return Ok(());
        };
        if self.tls.is_none() && !is_for_fleet {
            return Err(bad(
                "listen",
                format!(
                    "{listen} is beyond this machine: whoever reaches it could start, enter and end every repl; give {FLEET}, \
                     so that only who shows a certificate of the fleet can, as a load balancer does; or tls_certificate and \
                     tls_key, with api_keys and token_keys, for users; or listen on 127.0.0.1"
                ),
            ));
        }
        if self.tls.is_some() && self.access.api_keys.is_none() {
            return Err(bad(
                "api_keys",
                format!(
                    "must be given where users reach {listen}: the file of operators' keys, without which whoever reaches it \
                     could start, enter and end every repl; `conman token api-key` makes one"
                ),
            ));
        }
        if self.access.token_keys.is_none() {
            return Err(bad(
                "token_keys",
                format!(
                    "must be given where {listen} is beyond this machine: the file of the keys that sign users' tokens, without \
                     which every repl is open to everybody; `conman token key` makes one"
                ),
            ));
        }
        Ok(())
    }
}

/// At most a million requests a second.
const RATE_MAX: i64 = 1_000_000;

fn rate(key: &'static str, value: Option<i64>) -> Result<Option<NonZeroU32>, ConfigError> {
    let Some(value) = value else {
        return Ok(None);
    };
    let rate = u32::try_from(value).ok().filter(|_| value <= RATE_MAX);
    match rate.and_then(NonZeroU32::new) {
        Some(rate) => Ok(Some(rate)),
        None => Err(bad(key, format!("must be 1 to {RATE_MAX}, not {value}"))),
    }
}

/// Reads what guards the gateway.
///
/// # Errors
/// The key of the file that is of no use.
pub fn load_access(options: AccessOptions) -> Result<Access, ConfigError> {
    Access::open(options).map_err(|error| match error {
        AccessError::TokenKeys(why) => bad("token_keys", why),
        AccessError::ApiKeys(why) => bad("api_keys", why),
    })
}

/// Reads what users' programs are shown.
///
/// # Errors
/// The key of the file that is of no use.
pub fn load_certificate(files: CertificateFiles) -> Result<Certificate, ConfigError> {
    Certificate::load(files).map_err(|error| match error {
        CertificateError::Certificate(why) => bad("tls_certificate", why),
        CertificateError::Key(why) => bad("tls_key", why),
    })
}

fn is_name(text: &str) -> bool {
    let is_good = |letter: char| letter.is_ascii_alphanumeric() || "-._".contains(letter);
    !text.is_empty() && text.chars().all(is_good)
}
