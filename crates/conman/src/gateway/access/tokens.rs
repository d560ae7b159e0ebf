//! Users' tokens: signed, for one repl and one user, until a time (JSON Web Tokens, RFC 7519).
//!
//! A file has the keys, a line for each: `ID HS256 SECRET` or `ID EdDSA PUBLIC`, in base64. A token names its key by `kid`, which
//! is how keys are rotated: the new one is added, whoever signs uses it, and the old one goes when its last token has expired.
//! With HS256 the gateways could sign too; with EdDSA they can only verify.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Once;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::signature::{Error as SignatureError, Signer, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use model::api::{Refusal, RefusalCode};
use model::id::ReplId;
use ring::{hmac, signature};
use serde::{Deserialize, Serialize};

use super::keys::{lines, random};

/// How far the clocks of who signs and who verifies may be apart.
const LEEWAY_SECONDS: u64 = 5;
/// The fewest bytes that a secret may have (RFC 7518, 3.2).
const SECRET_BYTES_MIN: usize = 32;

/// What a token says, and is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Claims {
    /// The user.
    sub: String,
    repl: ReplId,
    /// When it expires, in seconds since 1970.
    exp: i64,
}

/// A token that was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) user: String,
    pub(super) repl: ReplId,
    /// In seconds since 1970.
    pub(super) expires: i64,
}

/// Why a token cannot be signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// There is no key that signs.
    #[error("{0} has no HS256 key: who has an EdDSA key's other half signs with that")]
    NoSecret(String),
    /// The library's.
    #[error("sign: {0}")]
    Sign(String),
}

struct Key {
    algorithm: Algorithm,
    verifies: DecodingKey,
    signs: Option<EncodingKey>,
}

/// The keys, by their names, in the file's order.
pub struct TokenKeys {
    keys: BTreeMap<String, Key>,
    /// The first that signs.
    signer: Option<String>,
    path: String,
}

impl std::fmt::Debug for TokenKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenKeys")
            .field("ids", &self.keys.keys())
            .finish_non_exhaustive()
    }
}

impl TokenKeys {
    /// Reads the file.
    ///
    /// # Errors
    /// What is wrong with it, and in which line; never the key itself.
    pub fn read(path: &Path) -> Result<Self, String> {
        use_ring();
        let (mut keys, mut signer) = (BTreeMap::new(), None);
        for (number, words) in lines(path)? {
            let wrong = |why: &str| format!("{}: line {number}: {why}", path.display());
            let [id, algorithm, text] = &words[..] else {
                return Err(wrong("is not ID HS256 SECRET, nor ID EdDSA PUBLIC"));
            };
            let key = match algorithm.as_str() {
                "HS256" => secret(text),
                "EdDSA" => public(text),
                _ => Err("the algorithm is neither HS256 nor EdDSA"),
            };
            let key = key.map_err(wrong)?;
            if key.signs.is_some() && signer.is_none() {
                signer = Some(id.clone());
            }
            if keys.insert(id.clone(), key).is_some() {
                return Err(wrong("there is another key with this id"));
            }
        }
        let path = path.display().to_string();
        if keys.is_empty() {
            return Err(format!("{path} has no key"));
        }
        Ok(Self { keys, signer, path })
    }

    /// Whether a text says that it is signed by one of these keys.
    pub(super) fn has_signed(&self, text: &str) -> bool {
        self.key_of(text).is_some()
    }

    fn key_of(&self, text: &str) -> Option<&Key> {
        let kid = jsonwebtoken::decode_header(text).ok()?.kid?;
        self.keys.get(&kid)
    }

    /// What a token says, if it is good now.
    pub(super) fn verify(&self, text: &str) -> Result<Token, Refusal> {
        let refused = |why: &str| Refusal::new(RefusalCode::Unauthorized, why);
        let key = self
            .key_of(text)
            .ok_or_else(|| refused("the token is signed by nobody whom this gateway knows"))?;
        // The key decides on the algorithm, never the token.
        let mut validation = Validation::new(key.algorithm);
        validation.leeway = LEEWAY_SECONDS;
        validation.validate_nbf = true;
        validation.validate_aud = false;
        validation.set_required_spec_claims(&["exp", "sub"]);
        let decoded = jsonwebtoken::decode::<Claims>(text, &key.verifies, &validation);
        let claims = decoded.map_err(|error| match error.kind() {
            ErrorKind::Json(why) => refused(&format!("the token: {why}")),
            ErrorKind::MissingRequiredClaim(claim) => refused(&format!("the token has no {claim}")),
            ErrorKind::ExpiredSignature => refused("the token has expired"),
            ErrorKind::ImmatureSignature => refused("the token is not good yet"),
            ErrorKind::InvalidSignature | ErrorKind::InvalidAlgorithm => {
                refused("the token's signature is not right")
            }
            _ => refused(&format!("the token: {error}")),
        })?;
        let Claims { sub, repl, exp } = claims.claims;
        Ok(Token {
            user: sub,
            repl,
            expires: exp,
        })
    }

    /// A token for a user, until a time in seconds since 1970.
    ///
    /// # Errors
    /// When there is no key that signs.
    pub fn issue(&self, user: &str, repl: &ReplId, expires: i64) -> Result<String, TokenError> {
        let signing = self.signer.as_ref().and_then(|id| {
            let key = self.keys.get(id)?;
            Some((id, key.algorithm, key.signs.as_ref()?))
        });
        let Some((id, algorithm, key)) = signing else {
            return Err(TokenError::NoSecret(self.path.clone()));
        };
        let header = Header {
            kid: Some(id.clone()),
            ..Header::new(algorithm)
        };
        let claims = Claims {
            sub: user.to_owned(),
            repl: repl.clone(),
            exp: expires,
        };
        jsonwebtoken::encode(&header, &claims, key)
            .map_err(|error| TokenError::Sign(error.to_string()))
    }
}

/// A new secret for HS256, as it stands in the file.
///
/// # Errors
/// When this machine has no randomness.
pub fn new_token_secret() -> std::io::Result<String> {
    Ok(STANDARD.encode(random()?))
}

fn secret(text: &str) -> Result<Key, &'static str> {
    const WRONG: &str =
        "the secret is not base64 of 32 bytes or more: `conman token key` makes one";
    let verifies = DecodingKey::from_base64_secret(text).map_err(|_| WRONG)?;
    if verifies.try_get_as_bytes().map_err(|_| WRONG)?.len() < SECRET_BYTES_MIN {
        return Err(WRONG);
    }
    Ok(Key {
        algorithm: Algorithm::HS256,
        verifies,
        signs: Some(EncodingKey::from_base64_secret(text).map_err(|_| WRONG)?),
    })
}

fn public(text: &str) -> Result<Key, &'static str> {
    const WRONG: &str = "the public key is not base64url of an Ed25519 key's 32 bytes";
    let verifies = DecodingKey::from_ed_components(text).map_err(|_| WRONG)?;
    if verifies.try_get_as_bytes().map_err(|_| WRONG)?.len() != 32 {
        return Err(WRONG);
    }
    Ok(Key {
        algorithm: Algorithm::EdDSA,
        verifies,
        signs: None,
    })
}

/// The library leaves the cryptography to others: it is done by what does it for TLS.
fn use_ring() {
    static PROVIDER: CryptoProvider = CryptoProvider {
        signer_factory: |algorithm, key| match algorithm {
            Algorithm::HS256 => Ok(Box::new(Hs256(hmac::Key::new(
                hmac::HMAC_SHA256,
                key.as_bytes(),
            )))),
            _ => Err(ErrorKind::UnsupportedAlgorithm.into()),
        },
        verifier_factory: |algorithm, key| match algorithm {
            Algorithm::HS256 => Ok(Box::new(Hs256(hmac::Key::new(
                hmac::HMAC_SHA256,
                key.try_get_as_bytes()?,
            )))),
            Algorithm::EdDSA => Ok(Box::new(Ed25519(key.try_get_as_bytes()?.to_vec()))),
            _ => Err(ErrorKind::UnsupportedAlgorithm.into()),
        },
        key_utils: KeyUtils::new_unimplemented(),
    };
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // Nobody else in this process installs one.
        let _ = PROVIDER.install_default();
    });
}

struct Hs256(hmac::Key);

impl Signer<Vec<u8>> for Hs256 {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, SignatureError> {
        Ok(hmac::sign(&self.0, message).as_ref().to_vec())
    }
}

impl Verifier<Vec<u8>> for Hs256 {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), SignatureError> {
        hmac::verify(&self.0, message, signature).map_err(|_| SignatureError::new())
    }
}

impl JwtSigner for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

impl JwtVerifier for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

struct Ed25519(Vec<u8>);

impl Verifier<Vec<u8>> for Ed25519 {
    fn verify(&self, message: &[u8], given: &Vec<u8>) -> Result<(), SignatureError> {
        signature::UnparsedPublicKey::new(&signature::ED25519, &self.0)
            .verify(message, given)
            .map_err(|_| SignatureError::new())
    }
}

impl JwtVerifier for Ed25519 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::EdDSA
    }
}

#[cfg(test)]
#[path = "tokens_tests.rs"]
mod tests;
