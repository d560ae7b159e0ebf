//! Certificates for a small fleet: a CA of its own, and what it signs. For a large one, whoever signs already.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};

/// The name in the CA's certificate. A CA that follows another has the same: which of the two has signed is told by keys.
const CA_NAME: &str = "conman fleet";

/// How long a CA is good for.
const CA_DAYS: u32 = 3_650;

/// Clocks of a fleet differ: a certificate is good from a little before it was made.
const BEFORE: Duration = Duration::from_secs(3_600);

/// Why no certificate was made.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    /// A CA is not replaced by accident: every node trusts it.
    #[error("{} is there already: give another --directory for a new CA", .0.display())]
    CaExists(PathBuf),
    /// The CA's files.
    #[error("read {}: {why}; `conman certs ca` makes a CA", path.display())]
    NoCa {
        /// Which file.
        path: PathBuf,
        /// Why.
        why: std::io::Error,
    },
    /// A file could not be written.
    #[error("write {}: {why}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        why: std::io::Error,
    },
    /// A name or a key that cannot be in a certificate.
    #[error("make the certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// The two files of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key, readable by its owner only.
    pub key: PathBuf,
}

impl Made {
    fn in_directory(directory: &Path, name: &str) -> Self {
        Self {
            certificate: directory.join(format!("{name}.pem")),
            key: directory.join(format!("{name}-key.pem")),
        }
    }

    /// The key first: whoever sees the new certificate finds its key.
    fn write(&self, certificate: &str, key: &str) -> Result<(), CertsError> {
        write(&self.key, key, 0o600)?;
        write(&self.certificate, certificate, 0o644)
    }
}

/// Makes a CA in a directory.
///
/// # Errors
/// When there is one, or it cannot be written.
pub fn ca(directory: &Path) -> Result<Made, CertsError> {
    let made = Made::in_directory(directory, "ca");
    if let Some(path) = [&made.key, &made.certificate]
        .into_iter()
        .find(|path| path.exists())
    {
        return Err(CertsError::CaExists(path.clone()));
    }
    std::fs::create_dir_all(directory).map_err(|why| CertsError::Write {
        path: directory.to_owned(),
        why,
    })?;
    let key = KeyPair::generate()?;
    let certificate = ca_parameters()?.self_signed(&key)?;
    made.write(&certificate.pem(), &key.serialize_pem())?;
    Ok(made)
}

/// Signs a certificate with the CA of a directory, for the names and addresses that others will dial.
///
/// # Errors
/// When there is no CA, a name cannot be in a certificate, or it cannot be written.
pub fn node(
    ca_directory: &Path,
    directory: &Path,
    name: &str,
    addresses: &[String],
    days: u32,
) -> Result<Made, CertsError> {
    let path = Made::in_directory(ca_directory, "ca").key;
    let ca_key = std::fs::read_to_string(&path).map_err(|why| CertsError::NoCa { path, why })?;
    let issuer = Issuer::new(ca_parameters()?, KeyPair::from_pem(&ca_key)?);
    let mut parameters = CertificateParams::new(addresses)?;
    parameters.distinguished_name = named(name);
    valid_for(&mut parameters, days);
    parameters.use_authority_key_identifier_extension = true;
    parameters.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    // Nodes, load balancers and etcd's members: each is a server here and a client there.
    parameters.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let key = KeyPair::generate()?;
    let certificate = parameters.signed_by(&key, &issuer)?;
    let made = Made::in_directory(directory, name);
    made.write(&certificate.pem(), &key.serialize_pem())?;
    Ok(made)
}

fn ca_parameters() -> Result<CertificateParams, rcgen::Error> {
    let mut parameters = CertificateParams::new(Vec::<String>::new())?;
    parameters.distinguished_name = named(CA_NAME);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for(&mut parameters, CA_DAYS);
    Ok(parameters)
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

fn valid_for(parameters: &mut CertificateParams, days: u32) {
    // What a certificate says is the wall clock's. No rule of the protocol looks at it.
    #[allow(clippy::disallowed_methods)]
    let now = SystemTime::now();
    parameters.not_before = (now - BEFORE).into();
    parameters.not_after = (now + Duration::from_secs(u64::from(days) * 86_400)).into();
}

/// Replaces a file as a whole: who reads it finds the old or the new.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), CertsError> {
    let next = path.with_extension("next");
    let written = || -> std::io::Result<()> {
        // Left by one that was killed.
        let _ = std::fs::remove_file(&next);
        let mut file = std::fs::File::options()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&next)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&next, path)
    };
    written().map_err(|why| CertsError::Write {
        path: path.to_owned(),
        why,
    })
}
