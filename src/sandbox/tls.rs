//! The bank over TLS, and clients that show a certificate.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};
use tokio_rustls::TlsAcceptor;

use super::Error;

/// PEM files; without a certificate the bank speaks plain HTTP.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// The bank's certificate, and those that lead to its root.
    pub certificate: Option<PathBuf>,
    /// The certificate's private key.
    pub key: Option<PathBuf>,
    /// Roots of client certificates. With it every client must show one, and its first DNS name is the client id of
    /// requests without another credential.
    pub client_ca: Option<PathBuf>,
}

impl Tls {
    /// Checks that what belongs together is there.
    pub(super) fn check(&self) -> Result<(), Error> {
        let invalid = |key: &str, problem: &str| Err(Error::Invalid { key: key.into(), problem: problem.into() });
        match (&self.certificate, &self.key, &self.client_ca) {
            (Some(_), None, _) => invalid("tls.key", "it is missing: tls.certificate needs it"),
            (None, Some(_), _) => invalid("tls.certificate", "it is missing: tls.key belongs to it"),
            (None, None, Some(_)) => invalid("tls.certificate", "it is missing: tls.client_ca needs TLS"),
            _ => Ok(()),
        }
    }

    /// Reads the files; none without a certificate.
    pub(super) fn acceptor(&self) -> Result<Option<TlsAcceptor>, Error> {
        let (Some(certificate), Some(key)) = (&self.certificate, &self.key) else {
            return Ok(None);
        };
        let bad = |key: &str, file: &PathBuf, problem: String| Error::Invalid {
            key: format!("tls.{key}"),
            problem: format!("{}: {problem}", file.display()),
        };
        let chain = certificates(certificate).map_err(|problem| bad("certificate", certificate, problem))?;
        let private = PrivateKeyDer::from_pem_file(key).map_err(|error| bad("key", key, error.to_string()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| bad("certificate", certificate, error.to_string()))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let problem = |problem| bad("client_ca", file, problem);
                let mut roots = RootCertStore::empty();
                for root in certificates(file).map_err(problem)? {
                    roots.add(root).map_err(|error| problem(error.to_string()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| problem(error.to_string()))?)
            }
        };
        let config = builder.with_single_cert(chain, private).map_err(|error| bad("key", key, error.to_string()))?;
        Ok(Some(TlsAcceptor::from(Arc::new(config))))
    }
}

fn certificates(file: &PathBuf) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(file).map_err(|error| error.to_string())?;
    let certificates = read.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
    if certificates.is_empty() {
        return Err("it holds no certificate: use a PEM file".into());
    }
    Ok(certificates)
}

/// The first DNS name of a certificate.
pub(super) fn first_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    certificate.valid_dns_names().next().map(str::to_owned)
}
