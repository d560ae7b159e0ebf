//! Who is served: whoever shows a certificate of the fleet, and nobody else.

use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::certs;
use crate::node::{Address, Dialer, Listener};
use crate::reload::LOOK_EVERY;

/// The files of a node that the CA in a directory has signed.
fn signed(ca: &Path, name: &str) -> Files {
    let here = ["127.0.0.1".to_owned()];
    let made = certs::node(ca, ca, name, &here, 1).unwrap();
    Files {
        ca: ca.join("ca.pem"),
        certificate: made.certificate,
        key: made.key,
    }
}

fn authority() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    certs::ca(directory.path()).unwrap();
    directory
}

fn dialer(files: Files) -> Dialer {
    Dialer::new(Some(Arc::new(Identity::load(files).unwrap())))
}

/// A node that says "here" to whom it admits. Its address.
async fn node(dialer: &Dialer) -> Address {
    let free = Address::Tls("127.0.0.1:0".to_owned());
    let listener = dialer.listen(&free).await.unwrap();
    let Listener::Tls(tcp, _) = &listener else {
        panic!("{listener:?}");
    };
    let address = Address::Tls(tcp.local_addr().unwrap().to_string());
    tokio::spawn(async move {
        loop {
            let arrival = listener.accept().await.unwrap();
            tokio::spawn(async move {
                if let Ok(mut stream) = arrival.admit().await {
                    stream.write_all(b"here").await.unwrap();
                    stream.shutdown().await.unwrap();
                }
            });
        }
    });
    address
}

/// What the node says to one who dials it so.
async fn heard(dialer: &Dialer, address: &Address) -> std::io::Result<String> {
    let mut stream = dialer.connect(address).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

#[tokio::test]
async fn who_shows_a_certificate_of_the_fleet_is_served() {
    let ca = authority();
    let address = node(&dialer(signed(ca.path(), "node-1"))).await;
    let other = dialer(signed(ca.path(), "node-2"));
    assert_eq!(heard(&other, &address).await.unwrap(), "here");
}

#[tokio::test]
async fn who_shows_another_cas_certificate_is_not_served() {
    let (ca, stranger) = (authority(), authority());
    let address = node(&dialer(signed(ca.path(), "node-1"))).await;
    // It would not be taken for a node either, for both sides look.
    let error = heard(&dialer(signed(stranger.path(), "node-2")), &address).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("invalid peer certificate"), "{error}");
    // One that believes anybody of the fleet, and shows what another has signed.
    let files = Files {
        ca: ca.path().join("ca.pem"),
        ..signed(stranger.path(), "node-3")
    };
    let refused = heard(&dialer(files), &address)
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("received fatal alert"), "{refused}");
}

#[tokio::test]
async fn who_shows_nothing_is_not_served() {
    let ca = authority();
    let address = node(&dialer(signed(ca.path(), "node-1"))).await;
    let Address::Tls(place) = &address else {
        unreachable!()
    };
    // Without TLS at all.
    let mut plain = TcpStream::connect(place).await.unwrap();
    plain
        .write_all(b"GET /node/v1/status HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    // A reset says as much as an alert.
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.windows(4).any(|word| word == b"here"), "{answer:?}");
    // With TLS and no certificate.
    let mut roots = RootCertStore::empty();
    for ca in certificates(&ca.path().join("ca.pem")).unwrap() {
        roots.add(ca).unwrap();
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let stream = TcpStream::connect(place).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut stream = connector.connect(name, stream).await.unwrap();
    let refused = stream.read_to_end(&mut answer).await.unwrap_err();
    assert!(
        refused.to_string().contains("CertificateRequired"),
        "{refused}"
    );
    // A node without an identity does not even dial.
    let error = heard(&Dialer::default(), &address).await.unwrap_err();
    assert!(error.to_string().contains("node_certificate"), "{error}");
}

#[tokio::test]
async fn one_who_says_nothing_holds_up_nobody() {
    let ca = authority();
    let address = node(&dialer(signed(ca.path(), "node-1"))).await;
    let Address::Tls(place) = &address else {
        unreachable!()
    };
    let _silent = TcpStream::connect(place).await.unwrap();
    let other = dialer(signed(ca.path(), "node-2"));
    assert_eq!(heard(&other, &address).await.unwrap(), "here");
}

#[tokio::test]
async fn certificates_are_changed_under_a_running_node() {
    let (old, new) = (authority(), authority());
    let files = signed(old.path(), "node-1");
    let running = dialer(files.clone());
    let address = node(&running).await;
    let (of_old, of_new) = (signed(old.path(), "old"), signed(new.path(), "new"));
    let by_old = dialer(of_old);
    // This one trusts both, as everybody does while a CA is changed.
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    let both = read(&old.path().join("ca.pem")) + &read(&new.path().join("ca.pem"));
    let trusting = new.path().join("both.pem");
    std::fs::write(&trusting, &both).unwrap();
    let by_new = dialer(Files {
        ca: trusting,
        ..of_new
    });
    let mut standing = by_old.connect(&address).await.unwrap();
    assert!(heard(&by_new, &address).await.is_err());

    // Both are trusted now, and the old certificate is still shown.
    std::fs::write(&files.ca, &both).unwrap();
    tokio::time::sleep(LOOK_EVERY).await;
    assert_eq!(heard(&by_new, &address).await.unwrap(), "here");
    assert_eq!(heard(&by_old, &address).await.unwrap(), "here");
    // A key that is not the certificate's is not taken: what was is shown on.
    let next = signed(new.path(), "node-1");
    std::fs::copy(&next.key, &files.key).unwrap();
    tokio::time::sleep(LOOK_EVERY).await;
    assert_eq!(heard(&by_old, &address).await.unwrap(), "here");
    // The new certificate is whole, and then only its CA is trusted.
    std::fs::copy(&next.certificate, &files.certificate).unwrap();
    std::fs::copy(&next.ca, &files.ca).unwrap();
    tokio::time::sleep(LOOK_EVERY).await;
    assert_eq!(heard(&by_new, &address).await.unwrap(), "here");
    assert!(heard(&by_old, &address).await.is_err());
    // What stood all the while is none the worse for it.
    let mut text = String::new();
    standing.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "here");
}

#[test]
fn a_file_of_no_use_is_named() {
    let ca = authority();
    let good = signed(ca.path(), "node-1");
    let other = signed(ca.path(), "node-2");
    let empty = ca.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    let loaded = |files: Files| Identity::load(files).unwrap_err();
    let error = loaded(Files {
        ca: "/no/such".into(),
        ..good.clone()
    });
    assert!(matches!(&error, IdentityError::Ca(why) if why.starts_with("read /no/such: ")));
    let error = loaded(Files {
        certificate: empty.clone(),
        ..good.clone()
    });
    assert!(
        matches!(&error, IdentityError::Certificate(why) if why.ends_with("has no certificate"))
    );
    let error = loaded(Files {
        key: empty,
        ..good.clone()
    });
    assert!(matches!(&error, IdentityError::Key(_)));
    let error = loaded(Files {
        key: other.key,
        ..good
    });
    assert!(
        matches!(&error, IdentityError::Key(why) if why.contains(" with ")),
        "{error}"
    );
}

#[test]
fn a_key_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let ca = authority();
    let node = signed(ca.path(), "node-1");
    for key in [node.key, ca.path().join("ca-key.pem")] {
        let mode = std::fs::metadata(key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
