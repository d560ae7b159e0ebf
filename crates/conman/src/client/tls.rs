//! The client's side of TLS: whom it trusts, and what it shows.

use std::io;
use std::sync::Arc;

use rustls_platform_verifier::BuilderVerifierExt;
use tokio::net::TcpStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_rustls::{TlsConnector, TlsStream};

use super::Credentials;
use crate::node::{self, Stream};

/// Reads the files.
pub(super) fn connector(credentials: &Credentials) -> Result<TlsConnector, String> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = match &credentials.ca {
        None => builder
            .with_platform_verifier()
            .map_err(|error| format!("whom this machine trusts: {error}"))?,
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            for certificate in node::certificates(ca)? {
                let added = roots.add(certificate);
                added.map_err(|error| format!("{}: {error}", ca.display()))?;
            }
            builder.with_root_certificates(roots)
        }
    };
    let config = match &credentials.certificate {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = node::certificates(certificate)?;
            let wrong = |error: &dyn std::fmt::Display| format!("{}: {error}", key.display());
            let read = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(&error))?;
            builder
                .with_client_auth_cert(chain, read)
                .map_err(|error| wrong(&error))?
        }
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Shows what is to be shown to the server of this name and port.
pub(super) async fn connect(
    connector: &TlsConnector,
    authority: &str,
    stream: TcpStream,
) -> io::Result<Stream> {
    let host = node::host_of(authority).to_owned();
    let name = ServerName::try_from(host).map_err(io::Error::other)?;
    let connected = connector.connect(name, stream).await?;
    Ok(Stream::Tls(Box::new(TlsStream::Client(connected))))
}
