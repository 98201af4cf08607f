//! The client's side of TLS: whom it trusts, and what it shows of itself.
//!
//! Files are read at boot, and what is wrong with them is said then, with its key. Nothing of a key's file is ever shown.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::Error::NoItemsFound;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, InconsistentKeys, RootCertStore};
use rustls_platform_verifier::Verifier;

use super::config::TlsConfig;
use crate::integration::Invalid;
use crate::pem;

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
    let roots = pem::roots(path, certificates("ca", path)?);
    roots.map(Arc::new).map_err(|error| Invalid::new("ca", error.to_string()))
}

fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Invalid> {
    pem::certificates(path).map_err(|error| Invalid::new(key, error.to_string()))
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Invalid> {
    let wrong = |error: pem::Error| Invalid::new("client_key", error.to_string());
    let text = pem::read(path).map_err(wrong)?;
    warn_of_readers(path);
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
        let is_encrypted = text.windows(9).any(|part| part == b"ENCRYPTED");
        let why = match error {
            _ if is_encrypted => "it is encrypted, and there is no way to give a passphrase",
            NoItemsFound => "it holds none",
            _ => "it is broken",
        };
        wrong(pem::Error::without(path, "PRIVATE KEY", why))
    })
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
