//! The keys that say whom a host believes that its machine is about to be gone.

use std::path::PathBuf;

use http::Uri;

use super::{ConfigError, absolute, bad};
use crate::host::{Notices, Terminate};
use crate::node::Address;

/// Where the metadata services of all providers are: the same address, of the machine itself.
const METADATA: &str = "169.254.169.254:80";

/// The keys as they were given.
#[derive(Default)]
pub(super) struct NoticeKeys {
    pub(super) google: Option<String>,
    pub(super) amazon: Option<String>,
    pub(super) azure: Option<String>,
    pub(super) file: Option<PathBuf>,
}

impl NoticeKeys {
    pub(super) fn resolve(self) -> Result<Notices, ConfigError> {
        Ok(Notices {
            google: service("notice_google", self.google)?,
            amazon: service("notice_amazon", self.amazon)?,
            azure: service("notice_azure", self.azure)?,
            file: self
                .file
                .map(|path| absolute("notice_file", path))
                .transpose()?,
            terminate: Terminate::Notice,
        })
    }
}

/// `on`, `off`, or where else it is.
fn service(key: &'static str, text: Option<String>) -> Result<Option<Address>, ConfigError> {
    match text.as_deref() {
        None | Some("off") => Ok(None),
        Some("on") => Ok(Some(Address::Tcp(METADATA.to_owned()))),
        Some(text) => {
            let place = place(text).ok_or_else(|| {
                let reason =
                    format!("{text:?} is not on, off, or an address as in http://{METADATA}");
                bad(key, reason)
            })?;
            Ok(Some(Address::Tcp(place)))
        }
    }
}

fn place(text: &str) -> Option<String> {
    let uri: Uri = text.parse().ok()?;
    let authority = uri
        .authority()
        .filter(|authority| !authority.host().is_empty())?;
    let is_bare = uri.scheme_str() == Some("http") && uri.path() == "/" && uri.query().is_none();
    let port = authority.port_u16().unwrap_or(80);
    is_bare.then(|| format!("{}:{port}", authority.host()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn google(text: &str) -> Result<Option<Address>, String> {
        let keys = NoticeKeys {
            google: Some(text.to_owned()),
            ..NoticeKeys::default()
        };
        let notices = keys.resolve().map_err(|error| error.to_string())?;
        Ok(notices.google)
    }

    #[test]
    fn a_service_is_on_off_or_elsewhere() {
        let at = |place: &str| Ok(Some(Address::Tcp(place.to_owned())));
        assert_eq!(google("off"), Ok(None));
        assert_eq!(google("on"), at("169.254.169.254:80"));
        assert_eq!(google("http://127.0.0.1:8000"), at("127.0.0.1:8000"));
        assert_eq!(google("http://metadata"), at("metadata:80"));
        for wrong in [
            "yes",
            "https://metadata",
            "http://metadata/path",
            "http://:80",
            "",
        ] {
            let error = google(wrong).unwrap_err();
            assert_eq!(
                error,
                format!(
                    "notice_google: {wrong:?} is not on, off, or an address as in http://169.254.169.254:80 \
                     (set by --notice-google, CONMAN_NOTICE_GOOGLE, or notice_google in the file)"
                )
            );
        }
    }
}
