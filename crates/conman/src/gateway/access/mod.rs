//! Who may do what: users with tokens for repls, operators with keys for the API, and how often.
//!
//! ```text
//! to a repl ─► a token (query, cookie, Authorization)? ─yes─► of this repl, not expired ─► its user, as X-Conman-User
//!                  │ no                                          └─ else ─► unauthorized, forbidden
//!                  └─► is the repl public? ─yes─► nobody in particular      no ─► unauthorized
//! to the API ─► a key (cookie, Authorization)? ─► as it is said in the file of keys      no ─► unauthorized
//! ```
//!
//! Without keys everything is open, which the configuration allows on loopback alone. What says who somebody is never reaches a
//! container: whoever owns a repl must not be handed its visitors' tokens.

mod headers;
mod keys;
mod rates;
mod tokens;

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, header};
use model::api::{Refusal, RefusalCode};
use model::id::ReplId;
use model::keys as store_keys;
use model::spec::{Spec, Visibility};

use self::headers::{bearer, cookie, take_query};
pub use self::keys::{ApiKeys, new_api_key};
use self::rates::Rates;
pub use self::tokens::{TokenError, TokenKeys, new_token_secret};
use super::Gateway;
use super::door::{Guest, Standing};
use super::fleet::decode;
use crate::reload::Reloaded;
use crate::telemetry::locks::Mutex;

/// The cookie and the query parameter that carry a user's token.
const TOKEN: &str = "conman_token";
/// The cookie that carries an operator's key.
const KEY: &str = "conman_key";
/// Whose token it is, as the container is told; nothing else that a client sends under such a name reaches it.
const USER: &str = "x-conman-user";
/// How long an operator's browser is let in with a key that was given once.
const KEY_COOKIE_SECONDS: i64 = 12 * 60 * 60;
/// How long a repl's visibility is believed: a repl that is made private may be public for so long, at another gateway than that
/// which was told.
const VISIBILITY_MAX: Duration = Duration::from_secs(5);
/// How many repls' visibility is kept in mind.
const VISIBILITIES_MAX: usize = 10_000;

/// What guards a gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccessOptions {
    /// The file of the keys that sign users' tokens.
    pub token_keys: Option<PathBuf>,
    /// The file of operators' keys.
    pub api_keys: Option<PathBuf>,
    /// How many requests a second one user may make.
    pub user_rate: Option<NonZeroU32>,
    /// How many requests a second may be made to one repl.
    pub repl_rate: Option<NonZeroU32>,
}

/// Which of the files is of no use, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// That of the tokens' keys.
    #[error("{0}")]
    TokenKeys(String),
    /// That of the operators' keys.
    #[error("{0}")]
    ApiKeys(String),
}

/// See above.
#[derive(Debug)]
pub struct Access {
    token_keys: Option<Reloaded<TokenKeys, String>>,
    api_keys: Option<Reloaded<ApiKeys, String>>,
    rates: Rates,
    visibilities: Mutex<HashMap<ReplId, (Instant, Visibility)>>,
}

impl Default for Access {
    /// Everything is open.
    fn default() -> Self {
        Self {
            token_keys: None,
            api_keys: None,
            rates: Rates::new(None, None),
            visibilities: Mutex::new("visibilities", HashMap::new()),
        }
    }
}

/// Who has been let in to a repl.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// Its request may go on.
    Enter,
    /// A browser that came with a token in a link: it is to come again with a cookie, for a link is shown, kept and sent on.
    ComeAgain {
        location: HeaderValue,
        cookie: HeaderValue,
    },
}

impl Access {
    /// Reads the files.
    ///
    /// # Errors
    /// Which of them is of no use.
    pub fn open(options: AccessOptions) -> Result<Self, AccessError> {
        let token_keys = options.token_keys.map(|file| {
            let read = file.clone();
            Reloaded::open("the file of tokens' keys", vec![file], move || {
                TokenKeys::read(&read)
            })
            .map_err(AccessError::TokenKeys)
        });
        let api_keys = options.api_keys.map(|file| {
            let read = file.clone();
            Reloaded::open("the file of API keys", vec![file], move || {
                ApiKeys::read(&read)
            })
            .map_err(AccessError::ApiKeys)
        });
        Ok(Self {
            token_keys: token_keys.transpose()?,
            api_keys: api_keys.transpose()?,
            rates: Rates::new(options.user_rate, options.repl_rate),
            ..Self::default()
        })
    }

    /// Forgets whom nobody has asked after for a while.
    pub(super) fn forget_idle(&self) {
        self.rates.forget_idle();
    }

    /// Whether the API answers who sends these.
    pub(super) fn check_api(&self, headers: &HeaderMap, guest: &Guest) -> Result<(), Refusal> {
        let keys = match (&self.api_keys, guest.standing) {
            (Some(keys), Standing::Anybody | Standing::OfFleet) => keys,
            (None, _) | (_, Standing::OfMachine | Standing::Ourselves) => return Ok(()),
        };
        let given = bearer(headers).or_else(|| cookie(headers, KEY));
        let Some(given) = given else {
            let message = "the API wants a key: Authorization: Bearer KEY (CONMAN_API_KEY)";
            return Err(Refusal::new(RefusalCode::Unauthorized, message));
        };
        self.key_name(keys, given).map(drop)
    }

    fn key_name(&self, keys: &Reloaded<ApiKeys, String>, given: &str) -> Result<String, Refusal> {
        let keys = keys.now(Instant::now());
        keys.name_of(given).map(ToOwned::to_owned).ok_or_else(|| {
            let message = "the key is none of this API's";
            Refusal::new(RefusalCode::Unauthorized, message)
        })
    }

    /// Whether somebody may have a cookie that carries this key.
    pub(super) fn log_in(&self, key: &str) -> Result<(), Refusal> {
        match &self.api_keys {
            Some(keys) => self.key_name(keys, key).map(drop),
            None => Ok(()),
        }
    }

    /// Whether a request may go to a repl, and as whom. What says who asks is taken away, and what the container is told of it put
    /// in its place.
    pub(super) async fn admit(
        &self,
        gateway: &Gateway,
        repl: &ReplId,
        parts: &mut Parts,
        guest: &Guest,
    ) -> Result<Pass, Refusal> {
        let forged: Vec<_> = parts
            .headers
            .keys()
            .filter(|name| name.as_str().starts_with("x-conman-"))
            .cloned()
            .collect();
        for name in forged {
            parts.headers.remove(name);
        }
        if guest.standing == Standing::Ourselves {
            return Ok(Pass::Enter);
        }
        let Some(keys) = &self.token_keys else {
            self.rates.take(None, guest.address.ip(), repl)?;
            return Ok(Pass::Enter);
        };
        let keys = keys.now(Instant::now());
        let now = jiff::Timestamp::now().as_second();
        let (in_query, in_cookie) = (take_query(parts, TOKEN), headers::take_cookie(parts, TOKEN));
        let in_header = bearer(&parts.headers).filter(|text| keys.has_signed(text));
        let in_header = in_header.map(ToOwned::to_owned);
        if in_header.is_some() {
            // Another one is the business of the repl's own server.
            parts.headers.remove(header::AUTHORIZATION);
        }
        let is_in_query = in_query.is_some();
        let Some(text) = in_query.or(in_header).or(in_cookie) else {
            let is_public = self.visibility(gateway, repl).await? == Visibility::Public;
            if !is_public {
                let message = format!("{repl} is private: a token for it is needed");
                return Err(Refusal::new(RefusalCode::Unauthorized, message));
            }
            self.rates.take(None, guest.address.ip(), repl)?;
            return Ok(Pass::Enter);
        };
        let token = keys.verify(&text)?;
        if token.repl != *repl {
            let message = format!("the token is for {}, not for {repl}", token.repl);
            return Err(Refusal::new(RefusalCode::Forbidden, message));
        }
        self.rates
            .take(Some(&token.user), guest.address.ip(), repl)?;
        if is_in_query && headers::is_page(parts) {
            return Ok(Pass::ComeAgain {
                location: headers::location(parts)?,
                cookie: headers::set_cookie(
                    (TOKEN, &text),
                    "Lax",
                    token.expires - now,
                    guest.is_secure,
                )?,
            });
        }
        let user = HeaderValue::from_str(&token.user);
        // A name that is no header's value is nobody's whom a container could be told.
        parts.headers.insert(
            USER,
            user.map_err(|_| {
                let message = "the token's user has other than visible ASCII letters";
                Refusal::new(RefusalCode::Unauthorized, message)
            })?,
        );
        Ok(Pass::Enter)
    }

    async fn visibility(&self, gateway: &Gateway, repl: &ReplId) -> Result<Visibility, Refusal> {
        let now = Instant::now();
        if let Some((read, visibility)) = self.visibilities.lock().get(repl)
            && now.duration_since(*read) < VISIBILITY_MAX
        {
            return Ok(*visibility);
        }
        let item = gateway.store.get(&store_keys::spec(repl)).await;
        let item =
            item.map_err(|error| Refusal::new(RefusalCode::StoreUnavailable, error.to_string()))?;
        // Whether one that does not exist exists is not for everybody either.
        let visibility = item
            .and_then(|item| decode::<Spec>(&item.value))
            .map_or(Visibility::Private, |spec| spec.visibility);
        let mut visibilities = self.visibilities.lock();
        if visibilities.len() >= VISIBILITIES_MAX {
            visibilities.clear();
        }
        visibilities.insert(repl.clone(), (now, visibility));
        Ok(visibility)
    }

    /// A repl has another spec now, or none.
    pub(super) fn spec_changed(&self, repl: &ReplId) {
        self.visibilities.lock().remove(repl);
    }
}

/// The cookie of an operator's browser, which carries a key for half a day; an empty one takes it back.
pub(super) fn key_cookie(key: &str, is_secure: bool) -> Result<HeaderValue, Refusal> {
    let seconds = if key.is_empty() {
        0
    } else {
        KEY_COOKIE_SECONDS
    };
    headers::set_cookie((KEY, key), "Strict", seconds, is_secure)
}

/// Whether a request to the API is answered to anybody: what tells nobody anything, and what one who has a key needs to show it.
pub(super) fn is_for_anybody(method: &Method, path: &str) -> bool {
    let is_page = matches!(path, "/" | "/console.js" | "/console.css");
    let is_log_in = path == "/v1/login" && *method == Method::POST;
    is_page || is_log_in || matches!(path, "/healthz" | "/readyz")
}
