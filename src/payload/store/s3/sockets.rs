//! The one HTTP client of a store: its sockets, their number and their certificates.
//!
//! The SDK's pool knows a limit per host: uploads are bounded by their slots already, and it holds for whatever else
//! speaks to the store. The pool tells of each socket that opens and closes, which is how many are open.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_sdk_s3::config::SharedHttpClient;
use aws_smithy_http_client::pool::{Client, ConnectionEvent, ConnectionPool};
use aws_smithy_http_client::tls::{self, TlsContext, TrustStore};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::config::Config;
use crate::payload::ConfigError;

/// Sockets that are open.
#[derive(Debug, Clone, Default)]
pub(super) struct Sockets(Arc<AtomicU64>);

impl Sockets {
    pub fn open(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A client of at most `max_sockets` sockets to a host.
pub(super) fn client(config: &Config, max_sockets: usize) -> Result<(SharedHttpClient, Sockets), ConfigError> {
    let sockets = Sockets::default();
    let count = sockets.0.clone();
    let count = move |event: &ConnectionEvent<'_>| match event {
        ConnectionEvent::Opened(_) => drop(count.fetch_add(1, Ordering::Relaxed)),
        ConnectionEvent::PhysicalClose(_) => drop(count.fetch_sub(1, Ordering::Relaxed)),
        _ => {}
    };
    let pool = ConnectionPool::builder()
        .max_connections_per_host(max_sockets)
        .idle_timeout(config.idle_timeout)
        .tcp_nodelay(true)
        .event_listener(count)
        .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
        .tls_context(trust(config)?)
        .build_https();
    let failed = |error: String| ConfigError::new("s3", error, "the HTTP client could not be made");
    let pool = pool.map_err(|error| failed(error.to_string()))?;
    let client = Client::new(&pool).map_err(|error| failed(error.to_string()))?;
    Ok((SharedHttpClient::new(client), sockets))
}

/// The system's certificates, and those of the file that the settings name.
pub(super) fn trust(config: &Config) -> Result<TlsContext, ConfigError> {
    let mut trusted = TrustStore::default();
    if let Some(path) = &config.ca_file {
        let shown = format!("{:?}", path.display().to_string());
        let wrong = |right: String| ConfigError::new("s3.ca_file", &shown, right);
        let pem = std::fs::read(path).map_err(|error| wrong(format!("it cannot be read: {error}")))?;
        // The SDK would panic.
        if !is_trustable(&pem) {
            return Err(wrong("name a file of certificates in PEM".into()));
        }
        trusted = trusted.with_pem_certificate(pem);
    }
    let context = TlsContext::builder().with_trust_store(trusted).build();
    context.map_err(|error| ConfigError::new("s3.ca_file", error, "name a file of certificates in PEM"))
}

/// Whether these are certificates, one at least, and each can be an authority's.
fn is_trustable(pem: &[u8]) -> bool {
    let mut store = RootCertStore::empty();
    let mut certificates = CertificateDer::pem_slice_iter(pem);
    certificates.all(|certificate| certificate.is_ok_and(|certificate| store.add(certificate).is_ok()))
        && !store.is_empty()
}
