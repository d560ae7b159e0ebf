//! The keys that say where the store is: a file of this machine, or the etcd of a fleet.
//!
//! In the file they may stand in a table of their own: `endpoints` in `[store]` is `store_endpoints`, and `kind` and
//! `file` are `store`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use http::Uri;
use http::uri::Scheme;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de::value::MapAccessDeserializer};

use super::{ConfigError, absolute, bad};
use crate::store::PREFIX_BYTES_MAX;
use crate::store::etcd::{Credentials, Options, Shown, Tls};

/// What all keys of a fleet in etcd begin with when nothing is said.
const PREFIX: &str = "/conman";

/// Where the store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Store {
    /// In a file.
    Sqlite(PathBuf),
    /// In an etcd, as far as it is said where.
    Etcd(Option<Options>),
}

/// The key `store`: `sqlite`, `etcd`, a file, or in the file a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreKey {
    /// `sqlite`, `etcd` or a file.
    Text(String),
    /// All keys of the store.
    Table(Box<StoreTable>),
}

/// `[store]` of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)] // Each is documented where it is a flag.
pub struct StoreTable {
    pub kind: Option<String>,
    pub file: Option<String>,
    pub endpoints: Option<TextList>,
    pub prefix: Option<String>,
    pub user: Option<String>,
    pub password_file: Option<PathBuf>,
    pub ca: Option<PathBuf>,
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

impl FromStr for StoreKey {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(StoreKey::Text(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for StoreKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = StoreKey;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"sqlite\", \"etcd\", a file, or a table")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<StoreKey, E> {
                Ok(StoreKey::Text(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<StoreKey, A::Error> {
                let table = StoreTable::deserialize(MapAccessDeserializer::new(map))?;
                Ok(StoreKey::Table(Box::new(table)))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// Several texts: with commas, or in the file a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TextList(Vec<String>);

impl TextList {
    /// With commas.
    pub fn parse(text: &str) -> Self {
        let urls = text.split(',').map(str::trim).filter(|url| !url.is_empty());
        Self(urls.map(str::to_owned).collect())
    }

    /// The texts.
    pub fn into_vec(self) -> Vec<String> {
        self.0
    }
}

impl FromStr for TextList {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self::parse(text))
    }
}

impl<'de> Deserialize<'de> for TextList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = TextList;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of texts")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<TextList, E> {
                Ok(TextList::parse(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<TextList, A::Error> {
                let mut urls = Vec::new();
                while let Some(url) = list.next_element()? {
                    urls.push(url);
                }
                Ok(TextList(urls))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// The keys as they were given: by flags, variables and the flat keys of the file.
#[derive(Default)]
pub(super) struct Keys {
    pub(super) store: Option<StoreKey>,
    pub(super) endpoints: Option<TextList>,
    pub(super) prefix: Option<String>,
    pub(super) user: Option<String>,
    pub(super) password_file: Option<PathBuf>,
    pub(super) ca: Option<PathBuf>,
    pub(super) certificate: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
}

impl Keys {
    /// `in_file` is the file's `store`: its table gives what is not given elsewhere, also where a flag says the kind.
    pub(super) fn resolve(
        mut self,
        in_file: Option<&StoreKey>,
        state: &Path,
    ) -> Result<Store, ConfigError> {
        let mut table_kind = None;
        if let Some(StoreKey::Table(table)) = in_file {
            let table = table.as_ref().clone();
            table_kind = table.kind.or(table.file);
            self.endpoints = self.endpoints.or(table.endpoints);
            self.prefix = self.prefix.or(table.prefix);
            self.user = self.user.or(table.user);
            self.password_file = self.password_file.or(table.password_file);
            self.ca = self.ca.or(table.ca);
            self.certificate = self.certificate.or(table.certificate);
            self.key = self.key.or(table.key);
        }
        let kind = match &self.store {
            Some(StoreKey::Text(text)) => Some(text.clone()),
            Some(StoreKey::Table(_)) | None => table_kind,
        };
        let store = match kind.as_deref() {
            Some("etcd") => return self.etcd().map(Store::Etcd),
            None | Some("sqlite") => match in_file {
                Some(StoreKey::Table(table)) if table.file.is_some() => {
                    let file = table.file.clone().unwrap_or_default();
                    Store::Sqlite(absolute("store", file.into())?)
                }
                _ => Store::Sqlite(state.join("store.db")),
            },
            Some(file) if file.contains('/') => Store::Sqlite(absolute("store", file.into())?),
            Some(other) => {
                let reason = format!("{other:?} is not sqlite, etcd, or the path of a file");
                return Err(bad("store", reason));
            }
        };
        match self.given() {
            Some(key) => Err(bad(key, "is of use only where the store is etcd")),
            None => Ok(store),
        }
    }

    /// The first key of etcd's that was given.
    fn given(&self) -> Option<&'static str> {
        let given = [
            (self.endpoints.is_some(), "store_endpoints"),
            (self.prefix.is_some(), "store_prefix"),
            (self.user.is_some(), "store_user"),
            (self.password_file.is_some(), "store_password_file"),
            (self.ca.is_some(), "store_ca"),
            (self.certificate.is_some(), "store_certificate"),
            (self.key.is_some(), "store_key"),
        ];
        given
            .into_iter()
            .find_map(|(is_given, key)| is_given.then_some(key))
    }

    fn etcd(self) -> Result<Option<Options>, ConfigError> {
        let prefix = prefix(self.prefix)?;
        let Some(TextList(endpoints)) = self.endpoints else {
            return Ok(None);
        };
        if endpoints.is_empty() {
            return Err(bad("store_endpoints", "must name at least one"));
        }
        let secure = endpoints
            .iter()
            .map(|url| is_secure(url))
            .collect::<Result<Vec<_>, _>>()?;
        let is_secure = secure[0];
        if secure.contains(&!is_secure) {
            let reason = "some are https and some http: all must be the same";
            return Err(bad("store_endpoints", reason));
        }
        let tls = match (is_secure, self.ca) {
            (true, Some(ca)) => Some(Tls {
                ca: read("store_ca", &ca)?,
                identity: identity(self.certificate, self.key)?,
            }),
            (true, None) => {
                let reason =
                    "must be given where the endpoints are https: who signs their certificates";
                return Err(bad("store_ca", reason));
            }
            (false, ca) => {
                let given = [
                    (ca, "store_ca"),
                    (self.certificate, "store_certificate"),
                    (self.key, "store_key"),
                ];
                if let Some((_, key)) = given.into_iter().find(|(path, _)| path.is_some()) {
                    return Err(bad(key, "is of use only with https endpoints"));
                }
                None
            }
        };
        let credentials = match (self.user, self.password_file) {
            (None, None) => None,
            (Some(user), Some(file)) => Some(Credentials {
                user,
                password: password(&file)?,
            }),
            (Some(_), None) => {
                return Err(bad("store_password_file", "must be given with store_user"));
            }
            (None, Some(_)) => {
                return Err(bad("store_user", "must be given with store_password_file"));
            }
        };
        Ok(Some(Options {
            endpoints,
            prefix,
            credentials,
            tls,
        }))
    }
}

fn prefix(given: Option<String>) -> Result<String, ConfigError> {
    let prefix = given.unwrap_or_else(|| PREFIX.to_owned());
    let is_good =
        prefix.starts_with('/') && !prefix.ends_with('/') && prefix.len() <= PREFIX_BYTES_MAX;
    if is_good {
        return Ok(prefix);
    }
    let reason = format!(
        "{prefix:?} must begin with a slash, not end with one, and have at most {PREFIX_BYTES_MAX} bytes"
    );
    Err(bad("store_prefix", reason))
}

/// Whether an endpoint is of TLS. Without it, it must not be beyond this machine: whoever can write there can have
/// anything run on every host.
fn is_secure(url: &str) -> Result<bool, ConfigError> {
    let wrong = || {
        let reason = format!("{url:?} is not a URL as in https://10.0.0.1:2379");
        bad("store_endpoints", reason)
    };
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    let authority = uri.authority().ok_or_else(wrong)?;
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(wrong());
    }
    match uri.scheme() {
        Some(scheme) if *scheme == Scheme::HTTPS => Ok(true),
        Some(scheme) if *scheme == Scheme::HTTP => {
            let host = authority
                .host()
                .trim_start_matches('[')
                .trim_end_matches(']');
            let is_here = host == "localhost"
                || host
                    .parse::<std::net::IpAddr>()
                    .is_ok_and(|address| address.is_loopback());
            if is_here {
                return Ok(false);
            }
            let reason = format!(
                "{url:?} is beyond this machine and without TLS: whoever reads along could run anything on \
                 every host; use https, with store_ca"
            );
            Err(bad("store_endpoints", reason))
        }
        _ => Err(wrong()),
    }
}

fn identity(
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
) -> Result<Option<Shown>, ConfigError> {
    match (certificate, key) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => Ok(Some(Shown {
            certificate: read("store_certificate", &certificate)?,
            key: read("store_key", &key)?,
        })),
        (Some(_), None) => Err(bad("store_key", "must be given with store_certificate")),
        (None, Some(_)) => Err(bad("store_certificate", "must be given with store_key")),
    }
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(path).map_err(|error| bad(key, format!("read {}: {error}", path.display())))
}

fn password(file: &Path) -> Result<String, ConfigError> {
    let bytes = read("store_password_file", file)?;
    let text = String::from_utf8(bytes).map_err(|_| {
        bad(
            "store_password_file",
            format!("{} is no text", file.display()),
        )
    })?;
    let password = text.lines().next().unwrap_or_default();
    if password.is_empty() {
        let reason = format!("{} is empty", file.display());
        return Err(bad("store_password_file", reason));
    }
    Ok(password.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::{Common, CommonKeys, File, Surroundings};
    use super::*;

    fn store(file: &str) -> Result<Store, String> {
        let file: File = toml::from_str(file).map_err(|error| error.to_string())?;
        let surroundings = Surroundings {
            home: Some("/home/ann".into()),
            ..Surroundings::default()
        };
        Common::resolve(CommonKeys::default(), &file, &surroundings)
            .map(|common| common.store)
            .map_err(|error| error.to_string())
    }

    fn etcd(file: &str) -> Options {
        match store(file) {
            Ok(Store::Etcd(Some(options))) => options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_file_by_whatever_name() {
        let default = "/home/ann/.local/state/conman/store.db";
        for (text, expected) in [
            ("", default),
            ("store = 'sqlite'", default),
            ("[store]\nkind = 'sqlite'", default),
            ("store = '/x/y.db'", "/x/y.db"),
            ("[store]\nfile = '/x/y.db'", "/x/y.db"),
            ("[store]\nkind = 'sqlite'\nfile = '/x/y.db'", "/x/y.db"),
        ] {
            assert_eq!(store(text), Ok(Store::Sqlite(expected.into())), "{text}");
        }
    }

    #[test]
    fn an_etcd_as_a_table_or_flat() {
        let flat = etcd("store = 'etcd'\nstore_endpoints = 'http://127.0.0.1:1,http://[::1]:2'");
        assert_eq!(flat.endpoints, ["http://127.0.0.1:1", "http://[::1]:2"]);
        assert_eq!(flat.prefix, "/conman");
        let table = etcd(
            "[store]\nkind = 'etcd'\nendpoints = ['http://127.0.0.1:1', 'http://[::1]:2']\nprefix = '/conman'",
        );
        assert_eq!(table, flat);
        assert_eq!(store("store = 'etcd'"), Ok(Store::Etcd(None)));
    }

    #[test]
    fn what_is_of_the_user_and_of_tls_is_read() {
        let files = tempfile::tempdir().unwrap();
        let path = |name: &str, text: &str| {
            let path = files.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let (password, ca) = (path("password", "secret\n"), path("ca", "CA"));
        let (certificate, key) = (path("certificate", "C"), path("key", "K"));
        let options = etcd(&format!(
            "[store]\nkind = 'etcd'\nendpoints = ['https://10.0.0.1:2379']\nuser = 'conman'\n\
             password_file = '{password}'\nca = '{ca}'\ncertificate = '{certificate}'\nkey = '{key}'"
        ));
        let expected = Credentials {
            user: "conman".to_owned(),
            password: "secret".to_owned(),
        };
        assert_eq!(options.credentials, Some(expected));
        let tls = Tls {
            ca: b"CA".to_vec(),
            identity: Some(Shown {
                certificate: b"C".to_vec(),
                key: b"K".to_vec(),
            }),
        };
        assert!(options.tls == Some(tls), "{options:?}");
        assert!(!format!("{options:?}").contains("secret"));
    }

    #[test]
    fn what_cannot_work_is_named_by_its_key() {
        let here = "store = 'etcd'\nstore_endpoints = ['http://127.0.0.1:1']";
        let there = "store = 'etcd'\nstore_endpoints = ['https://10.0.0.1:1']";
        for (text, expected) in [
            (
                "store = 'ectd'".to_owned(),
                "store: \"ectd\" is not sqlite, etcd, or the path of a file (set by --store, CONMAN_STORE, or store in the file)",
            ),
            (
                "store = 3".to_owned(),
                "expected \"sqlite\", \"etcd\", a file, or a table",
            ),
            (
                "[store]\nknd = 'etcd'".to_owned(),
                "unknown field `knd`, expected one of `kind`",
            ),
            (
                "store_user = 'x'".to_owned(),
                "store_user: is of use only where the store is etcd",
            ),
            (
                "store = 'etcd'\nstore_endpoints = []".to_owned(),
                "store_endpoints: must name at least one",
            ),
            (
                "store = 'etcd'\nstore_endpoints = ['10.0.0.1:2379']".to_owned(),
                "store_endpoints: \"10.0.0.1:2379\" is not a URL as in https://10.0.0.1:2379",
            ),
            (
                "store = 'etcd'\nstore_endpoints = ['http://10.0.0.1:2379']".to_owned(),
                "store_endpoints: \"http://10.0.0.1:2379\" is beyond this machine and without TLS",
            ),
            (
                format!("{here}\nstore_ca = '/x'"),
                "store_ca: is of use only with https endpoints",
            ),
            (
                there.to_owned(),
                "store_ca: must be given where the endpoints are https",
            ),
            (
                format!("{there}\nstore_ca = '/no/such'"),
                "store_ca: read /no/such: No such file",
            ),
            (
                format!("{here}\nstore_user = 'x'"),
                "store_password_file: must be given with store_user",
            ),
            (
                format!("{here}\nstore_password_file = 'x'"),
                "store_user: must be given with store_password_file",
            ),
            (
                format!("{here}\nstore_prefix = 'x/'"),
                "store_prefix: \"x/\" must begin with a slash",
            ),
            (
                "store = 'etcd'\nstore_endpoints = 'http://127.0.0.1:1,https://10.0.0.1:1'"
                    .to_owned(),
                "store_endpoints: some are https and some http",
            ),
        ] {
            let error = store(&text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
