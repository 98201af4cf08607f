//! The client's side of TLS: whom it trusts, and what it shows of itself.
//!
//! Files are read at boot, and what is wrong with them is said then, with its key. Nothing of a key's file is ever shown.

use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, InconsistentKeys, RootCertStore};
use rustls_platform_verifier::Verifier;

use super::config::TlsConfig;
use crate::integration::Invalid;

/// What handshakes are made with.
pub(super) fn client(config: &TlsConfig) -> Result<ClientConfig, Invalid> {
    let mut client = unnegotiated(config)?;
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(client)
}

fn unnegotiated(config: &TlsConfig) -> Result<ClientConfig, Invalid> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| Invalid::new("ca", error.to_string()))?;
    let builder = match &config.ca {
        Some(path) => {
            let roots = roots(path)?;
            let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider).build();
            builder.with_webpki_verifier(verifier.map_err(|error| Invalid::new("ca", error.to_string()))?)
        }
        None => builder.dangerous().with_custom_certificate_verifier(system(provider)?),
    };
    let (Some(certificate), Some(key)) = (&config.client_certificate, &config.client_key) else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates("client_certificate", certificate)?;
    let private = private_key(key)?;
    builder.with_client_auth_cert(chain, private).map_err(|error| match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            let problem =
                format!("{key:?} is not the key of {certificate:?}: name the key that the certificate is for");
            Invalid::new("client_key", problem)
        }
        error => Invalid::new("client_key", format!("{key:?} cannot be used: {error}; use RSA, ECDSA or Ed25519")),
    })
}

/// The system's CAs, read once for all transports: there are more than a hundred.
fn system(provider: Arc<CryptoProvider>) -> Result<Arc<Verifier>, Invalid> {
    static SYSTEM: OnceLock<Arc<Verifier>> = OnceLock::new();
    if let Some(verifier) = SYSTEM.get() {
        return Ok(verifier.clone());
    }
    let verifier = Verifier::new(provider).map_err(|error| {
        Invalid::new("ca", format!("the system's certificates cannot be used: {error}; name a file with others"))
    })?;
    Ok(SYSTEM.get_or_init(|| Arc::new(verifier)).clone())
}

fn roots(path: &Path) -> Result<Arc<RootCertStore>, Invalid> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("ca", path)? {
        let problem = |error| format!("{path:?} holds a certificate that cannot be trusted: {error}; name a CA's");
        roots.add(certificate).map_err(|error| Invalid::new("ca", problem(error)))?;
    }
    Ok(Arc::new(roots))
}

fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Invalid> {
    let text = read(key, path)?;
    let certificates = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) | Err(pem::Error::NoItemsFound) => Err(not_pem(key, path, "CERTIFICATE", "it holds none")),
        Err(_) => Err(not_pem(key, path, "CERTIFICATE", "it is broken")),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Invalid> {
    let text = read("client_key", path)?;
    warn_of_readers(path);
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
        let is_encrypted = text.windows(9).any(|part| part == b"ENCRYPTED");
        let why = match error {
            _ if is_encrypted => "it is encrypted, and there is no way to give a passphrase",
            pem::Error::NoItemsFound => "it holds none",
            _ => "it is broken",
        };
        not_pem("client_key", path, "PRIVATE KEY", why)
    })
}

fn read(key: &str, path: &Path) -> Result<Vec<u8>, Invalid> {
    let unreadable = |error: io::Error| Invalid::new(key, format!("{path:?} cannot be read: {error}; name a PEM file"));
    std::fs::read(path).map_err(unreadable)
}

fn not_pem(key: &str, path: &Path, label: &str, why: &str) -> Invalid {
    Invalid::new(key, format!("{path:?} is no PEM file with a {label}: {why}; use one with -----BEGIN {label}-----"))
}

/// Whoever can read the key can be the client.
fn warn_of_readers(path: &Path) {
    #[cfg(unix)]
    if let Ok(metadata) = std::fs::metadata(path) {
        use std::os::unix::fs::PermissionsExt;
        if metadata.permissions().mode() & 0o004 != 0 {
            let path = path.display();
            tracing::warn!(%path, "every user of this machine can read the client's key: take that right away (chmod o-r)");
        }
    }
}

#[cfg(test)]
mod tests;
