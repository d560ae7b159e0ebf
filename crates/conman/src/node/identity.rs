//! Who a node is to the others: a certificate of the fleet's CA, shown by both sides of every connection.
//!
//! ```text
//! accept, connect ─► the files as they are now (`reload`)
//! ```
//!
//! Certificates are changed under a running node: what is begun from then on uses the new ones, and what stands goes on.
//! A file with several CAs trusts them all, which is how a CA is changed: first all nodes trust both, then they show the
//! new one's certificates, then they trust only it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use crate::reload::Reloaded;
use tokio::net::TcpStream;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

/// Where the certificates are, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// Those who sign the nodes' certificates.
    pub ca: PathBuf,
    /// This node's certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Which of the files is of no use, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The CA's.
    #[error("{0}")]
    Ca(String),
    /// The certificate.
    #[error("{0}")]
    Certificate(String),
    /// The key, or it is another certificate's.
    #[error("{0}")]
    Key(String),
}

struct Loaded {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
}

/// A node's certificate, its key, and whom it trusts: as they are in the files now.
pub struct Identity {
    loaded: Reloaded<Loaded, IdentityError>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("loaded", &self.loaded)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads the files.
    ///
    /// # Errors
    /// Which of them is of no use.
    pub fn load(files: Files) -> Result<Self, IdentityError> {
        let paths = vec![
            files.ca.clone(),
            files.certificate.clone(),
            files.key.clone(),
        ];
        let loaded = Reloaded::open("the node's certificate", paths, move || load(&files))?;
        Ok(Self { loaded })
    }

    /// Takes a connection from one who shows a certificate of the fleet.
    ///
    /// # Errors
    /// The network's, and when there is no such certificate.
    pub async fn accept(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        let loaded = self.loaded.now(Instant::now());
        loaded.acceptor.accept(stream).await.map(TlsStream::Server)
    }

    /// Shows our certificate over a connection to `host`, a name or an address, whose certificate must be for that.
    ///
    /// # Errors
    /// The network's, and when it is not that host or does not take us.
    pub async fn connect(
        &self,
        host: &str,
        stream: TcpStream,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned()).map_err(std::io::Error::other)?;
        let loaded = self.loaded.now(Instant::now());
        let connected = loaded.connector.connect(name, stream).await?;
        Ok(TlsStream::Client(connected))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("read {}: {error}", path.display()))
}

pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = read(path)?;
    let found = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
    match found {
        Ok(found) if found.is_empty() => Err(format!("{} has no certificate", path.display())),
        Ok(found) => Ok(found),
        Err(error) => Err(format!("{} is no PEM: {error}", path.display())),
    }
}

fn load(files: &Files) -> Result<Loaded, IdentityError> {
    let mut roots = RootCertStore::empty();
    for ca in certificates(&files.ca).map_err(IdentityError::Ca)? {
        let added = roots.add(ca);
        added.map_err(|error| IdentityError::Ca(format!("{}: {error}", files.ca.display())))?;
    }
    let roots = Arc::new(roots);
    let chain = certificates(&files.certificate).map_err(IdentityError::Certificate)?;
    let bytes = read(&files.key).map_err(IdentityError::Key)?;
    let key = PrivateKeyDer::from_pem_slice(&bytes)
        .map_err(|error| IdentityError::Key(format!("{}: {error}", files.key.display())))?;
    let in_words = |error: &dyn std::fmt::Display| {
        let (key, certificate) = (files.key.display(), files.certificate.display());
        IdentityError::Key(format!("{key} with {certificate}: {error}"))
    };
    let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
    let verifier = verifier
        .build()
        .map_err(|error| IdentityError::Ca(format!("{}: {error}", files.ca.display())))?;
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| in_words(&error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.clone(), key.clone_key())
        .map_err(|error| in_words(&error))?;
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| in_words(&error))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|error| in_words(&error))?;
    Ok(Loaded {
        acceptor: TlsAcceptor::from(Arc::new(server)),
        connector: TlsConnector::from(Arc::new(client)),
    })
}

#[cfg(test)]
#[path = "identity/tests.rs"]
mod tests;
