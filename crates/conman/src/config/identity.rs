//! The keys of a node's certificate, and the rule that nothing listens beyond this machine without one.

use std::path::PathBuf;

use super::{ConfigError, absolute, bad};
use crate::node::{Address, Files, Identity, IdentityError};

/// The keys as they were given.
#[derive(Default)]
pub(super) struct IdentityKeys {
    pub(super) ca: Option<PathBuf>,
    pub(super) certificate: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
}

impl IdentityKeys {
    /// All three or none.
    pub(super) fn resolve(self) -> Result<Option<Files>, ConfigError> {
        let missing = |key, other| Err(bad(key, format!("must be given with {other}")));
        match (self.ca, self.certificate, self.key) {
            (None, None, None) => Ok(None),
            (Some(ca), Some(certificate), Some(key)) => Ok(Some(Files {
                ca: absolute("node_ca", ca)?,
                certificate: absolute("node_certificate", certificate)?,
                key: absolute("node_key", key)?,
            })),
            (None, Some(_), _) => missing("node_ca", "node_certificate"),
            (None, None, Some(_)) => missing("node_ca", "node_key"),
            (Some(_), None, _) => missing("node_certificate", "node_ca"),
            (Some(_), Some(_), None) => missing("node_key", "node_certificate"),
        }
    }
}

/// Refuses addresses that whoever reaches them could use.
pub(super) fn check(
    files: Option<&Files>,
    host_address: Option<&Address>,
) -> Result<(), ConfigError> {
    const KEYS: &str = "node_ca, node_certificate and node_key";
    match host_address {
        Some(Address::Tcp(place)) if !is_loopback(place) => {
            return Err(bad(
                "host_address",
                format!(
                    "\"tcp:{place}\" is beyond this machine and without TLS: whoever reaches it could start, enter and \
                     kill every container; use \"tls:{place}\", with {KEYS}"
                ),
            ));
        }
        Some(Address::Tls(place)) if files.is_none() => {
            return Err(bad(
                "node_certificate",
                format!("must be given where host_address is \"tls:{place}\": {KEYS}"),
            ));
        }
        _ => {}
    }
    Ok(())
}

fn is_loopback(place: &str) -> bool {
    let host = place.rsplit_once(':').map_or(place, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Reads the certificates.
///
/// # Errors
/// The key of the file that is of no use.
pub fn load_identity(files: Files) -> Result<Identity, ConfigError> {
    Identity::load(files).map_err(|error| match error {
        IdentityError::Ca(why) => bad("node_ca", why),
        IdentityError::Certificate(why) => bad("node_certificate", why),
        IdentityError::Key(why) => bad("node_key", why),
    })
}
