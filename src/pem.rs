//! Certificates in files: what is in a PEM file, and in words what is wrong with one.
//!
//! Ground floor: whoever connects over TLS to what a private authority has signed reads that authority from such a file.

use std::io;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject};

/// Why a file cannot be used. Nothing that is in it is ever shown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("{path:?} cannot be read: {error}; name a PEM file")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// It has nothing of the kind that is looked for.
    #[error("{path:?} is no PEM file with a {label}: {why}; use one with -----BEGIN {label}-----")]
    Without {
        /// The file.
        path: PathBuf,
        /// What is looked for, as PEM calls it.
        label: &'static str,
        /// What is there.
        why: &'static str,
    },
    /// A certificate in it is no authority's.
    #[error("{path:?} holds a certificate that cannot be trusted: {error}; name a CA's")]
    Untrustable {
        /// The file.
        path: PathBuf,
        /// What rustls says.
        error: rustls::Error,
    },
}

impl Error {
    /// It has nothing of that kind, for this reason.
    pub fn without(path: &Path, label: &'static str, why: &'static str) -> Self {
        Error::Without { path: path.to_owned(), label, why }
    }
}

/// What is in a file.
pub fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|error| Error::Unreadable { path: path.to_owned(), error })
}

/// The certificates in a file, at least one.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    certificates_in(path, &read(path)?)
}

/// The certificates in what was read from a file, at least one.
pub fn certificates_in(path: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    const LABEL: &str = "CERTIFICATE";
    match CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>() {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) | Err(pem::Error::NoItemsFound) => Err(Error::without(path, LABEL, "it holds none")),
        Err(_) => Err(Error::without(path, LABEL, "it is broken")),
    }
}

/// Those certificates of a file as authorities that are trusted. Each must be one that can be.
pub fn roots(path: &Path, certificates: Vec<CertificateDer<'static>>) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        let added = roots.add(certificate);
        added.map_err(|error| Error::Untrustable { path: path.to_owned(), error })?;
    }
    Ok(roots)
}
