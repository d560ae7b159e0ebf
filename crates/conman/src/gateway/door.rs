//! How clients come in: in the clear, over TLS, or with a certificate of the fleet; and, behind a load balancer, as whom it says.
//!
//! ```text
//! accepted ─► PROXY header, if one is expected ─► TLS, if any ─► a guest: where it is, and what is known of it
//! ```

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use ppp::{HeaderResult, v1, v2};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, UnixListener};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::{TlsAcceptor, TlsStream};

use crate::node::{self, HANDSHAKE_MAX, Identity, Stream};
use crate::reload::Reloaded;

/// The most that a PROXY header may have; its second version has room for what nobody sends.
const PROXY_BYTES_MAX: usize = 4_096;
/// The most that version 1 allows.
const PROXY_V1_BYTES_MAX: usize = 107;
/// What a header of version 2 begins with; its last two bytes say how long the rest is.
const PROXY_V2_BYTES: usize = 16;

/// What those who come in must show, and are shown.
#[derive(Debug, Clone, Default)]
pub enum Lock {
    /// Nothing: only this machine comes here.
    #[default]
    None,
    /// A certificate that users' programs trust. They show nothing yet: what they may do is said by tokens and keys.
    Tls(Arc<Certificate>),
    /// Both sides a certificate of the fleet, as load balancers have.
    Fleet(Arc<Identity>),
}

/// Where clients come in.
#[derive(Debug, Clone, Default)]
pub struct Door {
    /// What is to be shown there.
    pub lock: Lock,
    /// Whether every connection begins with a PROXY header, which says for whom it is.
    pub has_proxy_header: bool,
}

/// What is known of who has come in, besides where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Anybody,
    /// It has shown a certificate of the fleet.
    OfFleet,
    /// It has come by the socket for this machine, which only its administrators may.
    OfMachine,
    /// The gateway itself.
    Ourselves,
}

/// Who has come in.
#[derive(Debug, Clone)]
pub(super) struct Guest {
    pub(super) address: SocketAddr,
    pub(super) is_secure: bool,
    pub(super) standing: Standing,
}

/// Listens where only this process's user may come in. The path is replaced. Must be called within tokio.
///
/// # Errors
/// The operating system's.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

impl Guest {
    /// One who has come by that socket.
    pub(super) fn of_machine() -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            is_secure: false,
            standing: Standing::OfMachine,
        }
    }
}

impl Door {
    /// Lets one in, once it has shown what it must.
    ///
    /// # Errors
    /// When it does not in time, or the network fails.
    pub(super) async fn admit(
        &self,
        stream: TcpStream,
        address: SocketAddr,
    ) -> io::Result<(Stream, Guest)> {
        let admitted = tokio::time::timeout(HANDSHAKE_MAX, self.admitted(stream, address)).await;
        admitted.map_err(io::Error::from)?
    }

    async fn admitted(
        &self,
        mut stream: TcpStream,
        mut address: SocketAddr,
    ) -> io::Result<(Stream, Guest)> {
        // Without it small answers wait for the client's acknowledgement of earlier ones.
        stream.set_nodelay(true)?;
        if self.has_proxy_header {
            address = read_proxy_header(&mut stream).await?.unwrap_or(address);
        }
        let (stream, standing) = match &self.lock {
            Lock::None => (Stream::Tcp(stream), Standing::Anybody),
            Lock::Tls(certificate) => (certificate.accept(stream).await?, Standing::Anybody),
            Lock::Fleet(identity) => {
                let stream = identity.accept(stream).await?;
                (Stream::Tls(Box::new(stream)), Standing::OfFleet)
            }
        };
        let is_secure = matches!(stream, Stream::Tls(_));
        let guest = Guest {
            address,
            is_secure,
            standing,
        };
        Ok((stream, guest))
    }
}

/// Where the certificate is that users' programs are shown, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, and those that lead to who is trusted.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Which of the files is of no use, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// The certificate.
    #[error("{0}")]
    Certificate(String),
    /// The key, or it is another certificate's.
    #[error("{0}")]
    Key(String),
}

/// A server's certificate as it is in its files now. What stands goes on with the one that it began with.
#[derive(Debug)]
pub struct Certificate {
    acceptor: Reloaded<TlsAcceptor, CertificateError>,
}

impl Certificate {
    /// Reads the files.
    ///
    /// # Errors
    /// Which of them is of no use.
    pub fn load(files: CertificateFiles) -> Result<Self, CertificateError> {
        let paths = vec![files.certificate.clone(), files.key.clone()];
        let acceptor =
            Reloaded::open("the gateway's certificate", paths, move || acceptor(&files))?;
        Ok(Self { acceptor })
    }

    async fn accept(&self, stream: TcpStream) -> io::Result<Stream> {
        let acceptor = self.acceptor.now(Instant::now());
        let stream = acceptor.accept(stream).await?;
        Ok(Stream::Tls(Box::new(TlsStream::Server(stream))))
    }
}

fn acceptor(files: &CertificateFiles) -> Result<TlsAcceptor, CertificateError> {
    let chain = node::certificates(&files.certificate).map_err(CertificateError::Certificate)?;
    let of_no_use = |error: &dyn std::fmt::Display| {
        CertificateError::Key(format!("{}: {error}", files.key.display()))
    };
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| of_no_use(&error))?;
    let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| of_no_use(&error))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| of_no_use(&error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Reads the header that a load balancer puts before a connection (the PROXY protocol, versions 1 and 2). `None` where it speaks
/// for itself, as its health checks do.
async fn read_proxy_header(stream: &mut TcpStream) -> io::Result<Option<SocketAddr>> {
    let wrong = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    // The shortest of version 1 has 15 bytes, so that nothing of what follows is read here.
    let mut header = vec![0; v2::PROTOCOL_PREFIX.len()];
    stream.read_exact(&mut header).await?;
    if header == v2::PROTOCOL_PREFIX {
        let mut more = [0; PROXY_V2_BYTES - v2::PROTOCOL_PREFIX.len()];
        stream.read_exact(&mut more).await?;
        header.extend_from_slice(&more);
        let length = usize::from(u16::from_be_bytes([more[2], more[3]]));
        if length > PROXY_BYTES_MAX {
            return Err(wrong(format!("a PROXY header of {length} bytes")));
        }
        header.resize(PROXY_V2_BYTES + length, 0);
        stream.read_exact(&mut header[PROXY_V2_BYTES..]).await?;
    } else {
        while !header.ends_with(b"\r\n") {
            if header.len() >= PROXY_V1_BYTES_MAX || !header.starts_with(b"PROXY ") {
                return Err(wrong("no PROXY header".to_owned()));
            }
            header.push(stream.read_u8().await?);
        }
    }
    match HeaderResult::parse(&header) {
        HeaderResult::V1(Ok(header)) => Ok(match header.addresses {
            v1::Addresses::Tcp4(it) => Some((it.source_address, it.source_port).into()),
            v1::Addresses::Tcp6(it) => Some((it.source_address, it.source_port).into()),
            v1::Addresses::Unknown => None,
        }),
        HeaderResult::V2(Ok(header)) if header.command == v2::Command::Local => Ok(None),
        HeaderResult::V2(Ok(header)) => Ok(match header.addresses {
            v2::Addresses::IPv4(it) => Some((it.source_address, it.source_port).into()),
            v2::Addresses::IPv6(it) => Some((it.source_address, it.source_port).into()),
            v2::Addresses::Unix(_) | v2::Addresses::Unspecified => None,
        }),
        HeaderResult::V1(Err(error)) => Err(wrong(format!("a PROXY header: {error}"))),
        HeaderResult::V2(Err(error)) => Err(wrong(format!("a PROXY header: {error}"))),
    }
}
