//! Which tokens are good.

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::KeyPair;
use serde_json::{Value, json};

use super::*;

const SECRET: &str = "c2VjcmV0IG9mIDMyIGJ5dGVzIG9yIG1vcmUsIGZvciBIUzI1Ng==";

fn keys(text: &str) -> Result<TokenKeys, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let place = format!("{}: ", file.path().display());
    TokenKeys::read(file.path()).map_err(|error| error.replace(&place, ""))
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// A token with any header and claims, signed by this secret.
fn forge(header: &Value, claims: &Value, secret: &[u8]) -> String {
    let part = |value: &Value| base64url(value.to_string().as_bytes());
    let message = format!("{}.{}", part(header), part(claims));
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let signature = hmac::sign(&key, message.as_bytes());
    format!("{message}.{}", base64url(signature.as_ref()))
}

fn base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn secret_bytes() -> Vec<u8> {
    b"secret of 32 bytes or more, for HS256".to_vec()
}

#[test]
fn what_was_issued_is_good_until_its_time_and_for_who_has_its_key() {
    let repl: ReplId = "blue".parse().unwrap();
    let ours = keys(&format!("a HS256 {SECRET}\n")).unwrap();
    let token = ours.issue("alice", &repl, now() + 60).unwrap();
    let good = ours.verify(&token).unwrap();
    assert_eq!((good.user.as_str(), &good.repl), ("alice", &repl));
    let old = ours.issue("alice", &repl, now() - 60).unwrap();
    assert_eq!(
        ours.verify(&old).unwrap_err().message,
        "the token has expired"
    );
    // A key is rotated: the new one signs, and both are good; then the old one is gone.
    let other = "b3RoZXIgc2VjcmV0IG9mIDMyIGJ5dGVzIG9yIG1vcmUsIHNv";
    let both = keys(&format!(
        "# The new one.\nb HS256 {other}\n\na HS256 {SECRET}\n"
    ))
    .unwrap();
    both.verify(&token).unwrap();
    let newer = both.issue("alice", &repl, now() + 60).unwrap();
    let only = keys(&format!("b HS256 {other}\n")).unwrap();
    only.verify(&newer).unwrap();
    let error = only.verify(&token).unwrap_err();
    assert_eq!(
        error.message,
        "the token is signed by nobody whom this gateway knows"
    );
    let same_name = keys(&format!("a HS256 {other}\n")).unwrap();
    let error = same_name.verify(&token).unwrap_err();
    assert_eq!(error.message, "the token's signature is not right");
}

#[test]
fn nothing_but_what_the_key_signs_is_believed() {
    let ours = keys(&format!("a HS256 {SECRET}\n")).unwrap();
    let header = json!({"alg": "HS256", "kid": "a"});
    let claims = json!({"sub": "alice", "repl": "blue", "exp": now() + 60});
    ours.verify(&forge(&header, &claims, &secret_bytes()))
        .unwrap();
    for header in [
        json!({"alg": "none", "kid": "a"}),
        json!({"alg": "HS384", "kid": "a"}),
        json!({"alg": "RS256", "kid": "a"}),
        json!({"alg": "EdDSA", "kid": "a"}),
        json!({"alg": "HS256"}),
        json!({"alg": "HS256", "kid": "b"}),
    ] {
        let token = forge(&header, &claims, &secret_bytes());
        ours.verify(&token).expect_err(&header.to_string());
    }
    for claims in [
        json!({"repl": "blue", "exp": now() + 60}),
        json!({"sub": "alice", "exp": now() + 60}),
        json!({"sub": "alice", "repl": "blue"}),
        json!({"sub": "alice", "repl": "blue", "exp": "9999999999"}),
        json!({"sub": "alice", "repl": "BLUE", "exp": now() + 60}),
        json!({"sub": "alice", "repl": "blue", "exp": now() + 60, "nbf": now() + 50}),
        json!({"sub": "alice", "repl": "blue", "exp": now() + 60, "nbf": "soon"}),
        json!("alice"),
    ] {
        let token = forge(&header, &claims, &secret_bytes());
        ours.verify(&token).expect_err(&claims.to_string());
    }
    let good = forge(&header, &claims, &secret_bytes());
    let (signed, signature) = good.rsplit_once('.').unwrap();
    for bad in [
        "",
        "a.b.c",
        signed,
        &format!("{signed}."),
        &format!("{signed}x.{signature}"),
        &format!("{good}.{signature}"),
        &forge(&header, &claims, b"another secret"),
    ] {
        ours.verify(bad).expect_err(bad);
    }
}

#[test]
fn a_public_key_verifies_and_signs_nothing() {
    let random = ring::rand::SystemRandom::new();
    let pair = signature::Ed25519KeyPair::generate_pkcs8(&random).unwrap();
    let pair = signature::Ed25519KeyPair::from_pkcs8(pair.as_ref()).unwrap();
    let public = base64url(pair.public_key().as_ref());
    let ours = keys(&format!("e EdDSA {public}\n")).unwrap();
    let part = |value: Value| base64url(value.to_string().as_bytes());
    let signed = |algorithm: &str| {
        let header = part(json!({"alg": algorithm, "kid": "e"}));
        let claims = part(json!({"sub": "alice", "repl": "blue", "exp": now() + 60}));
        let message = format!("{header}.{claims}");
        let signature = base64url(pair.sign(message.as_bytes()).as_ref());
        format!("{message}.{signature}")
    };
    assert_eq!(ours.verify(&signed("EdDSA")).unwrap().user, "alice");
    ours.verify(&signed("HS256")).unwrap_err();
    // The public key is no secret: nobody may use it as one.
    let header = json!({"alg": "HS256", "kid": "e"});
    let claims = json!({"sub": "alice", "repl": "blue", "exp": now() + 60});
    let token = forge(&header, &claims, pair.public_key().as_ref());
    ours.verify(&token).unwrap_err();
    let error = ours
        .issue("alice", &"blue".parse().unwrap(), 0)
        .unwrap_err();
    assert!(error.to_string().contains("has no HS256 key"), "{error}");
}

#[test]
fn what_is_wrong_with_the_file_is_said_by_its_line() {
    for (text, expected) in [
        ("\n# Nothing.\n".to_owned(), "has no key"),
        (
            "a HS256".to_owned(),
            "line 1: is not ID HS256 SECRET, nor ID EdDSA PUBLIC",
        ),
        (
            "\na RS256 x".to_owned(),
            "line 2: the algorithm is neither HS256 nor EdDSA",
        ),
        (
            "a HS256 c2hvcnQ=".to_owned(),
            "line 1: the secret is not base64 of 32 bytes or more: `conman token key` makes one",
        ),
        (
            "a EdDSA c2hvcnQ".to_owned(),
            "line 1: the public key is not base64url of an Ed25519 key's 32 bytes",
        ),
        (
            format!("a HS256 {SECRET}\na HS256 {SECRET}"),
            "line 2: there is another key with this id",
        ),
    ] {
        let error = keys(&text).unwrap_err();
        assert!(error.ends_with(expected), "{error}");
    }
}
