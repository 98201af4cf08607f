//! TLS against a server with certificates of the test's own making.

use std::path::PathBuf;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::super::{Answer, Error, Request, Transport};
use super::*;
use crate::integration::recorder::{self, Recorder};
use crate::integration::transport;
use crate::lifecycle::Lifecycle;
use crate::task::Transcript;
use crate::telemetry::Telemetry;

/// A CA, and files of what it has signed.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    directory: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let directory = tempfile::tempdir().expect("a directory");
        let certificate = params.self_signed(&key).expect("signed").pem();
        std::fs::write(directory.path().join("ca.pem"), certificate).expect("written");
        Authority { issuer: Issuer::new(params, key), directory }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes NAME.pem and NAME.key, a certificate for `name`.
    fn sign(&self, name: &str) {
        let (key, params) = (KeyPair::generate().expect("a key"), CertificateParams::new(vec![name.to_owned()]));
        let certificate = params.expect("parameters").signed_by(&key, &self.issuer).expect("signed");
        std::fs::write(self.file(&format!("{name}.pem")), certificate.pem()).expect("written");
        std::fs::write(self.file(&format!("{name}.key")), key.serialize_pem()).expect("written");
    }

    fn ca_only(&self) -> TlsConfig {
        TlsConfig { ca: Some(self.file("ca.pem")), ..TlsConfig::default() }
    }

    fn with_client(&self, name: &str) -> TlsConfig {
        let (certificate, key) = (self.file(&format!("{name}.pem")), self.file(&format!("{name}.key")));
        TlsConfig { client_certificate: Some(certificate), client_key: Some(key), ..self.ca_only() }
    }

    /// A server that says how many certificates its client has shown; it demands one where `demands` is set.
    async fn serve(&self, lifecycle: &Lifecycle, demands: bool) -> String {
        self.sign("127.0.0.1");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let roots = roots(&self.file("ca.pem")).expect("a CA");
        let builder = builder.expect("versions");
        let builder = match demands {
            true => {
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
                builder.with_client_cert_verifier(verifier.expect("a verifier"))
            }
            false => builder.with_no_client_auth(),
        };
        let chain = certificates("certificate", &self.file("127.0.0.1.pem")).expect("a certificate");
        let key = private_key(&self.file("127.0.0.1.key")).expect("a key");
        let acceptor = TlsAcceptor::from(Arc::new(builder.with_single_cert(chain, key).expect("they fit")));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("https://{}/", listener.local_addr().expect("an address"));
        let (owner, token) = (lifecycle.clone(), lifecycle.token());
        lifecycle.spawn("server", async move {
            while let Some(Ok((socket, _))) = token.run_until_cancelled(listener.accept()).await {
                let acceptor = acceptor.clone();
                owner.spawn("connection", async move {
                    let Ok(mut socket) = acceptor.accept(socket).await else { return };
                    let shown = socket.get_ref().1.peer_certificates().map_or(0, <[_]>::len);
                    let _ = socket.read(&mut [0; 4096]).await;
                    let answer = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\n{shown}");
                    let _ = socket.write_all(answer.as_bytes()).await;
                    let _ = socket.shutdown().await;
                });
            }
        });
        url
    }
}

async fn get(url: &str, tls: TlsConfig) -> (Result<Answer, Error>, Transcript) {
    let (telemetry, config) = (Telemetry::new().expect("a recorder"), transport::Config { tls, ..Default::default() });
    let transport = Transport::new("bank", "integrations.bank", &config, &telemetry).expect("valid");
    let recorder = Recorder::new(&recorder::Config::default());
    let deadline = Instant::now() + Duration::from_secs(20);
    let answer = transport.client(&recorder, deadline).send(Request::get(url)).await;
    (answer, recorder.take())
}

#[tokio::test]
async fn a_host_is_trusted_by_the_configured_ca_alone() {
    let (lifecycle, authority) = (Lifecycle::new(), Authority::new());
    let url = authority.serve(&lifecycle, false).await;
    let (answer, transcript) = get(&url, authority.ca_only()).await;
    assert_eq!(&answer.expect("trusted").body[..], b"0");
    assert_eq!(transcript.exchanges[0].response.as_ref().map(|response| response.status), Some(200));

    for tls in [TlsConfig::default(), Authority::new().ca_only()] {
        let (answer, transcript) = get(&url, tls).await;
        let error = answer.err().expect("nobody knows that CA");
        assert!(matches!(error, Error::Connect { .. }), "{error}");
        assert!(error.to_string().contains("certificate"), "{error}");
        assert_eq!(transcript.exchanges[0].error, Some(error.to_string()));
    }
    lifecycle.stop(Duration::from_secs(5)).await.expect("it stops");
}

#[tokio::test]
async fn a_client_shows_its_certificate_where_the_host_demands_one() {
    let (lifecycle, authority) = (Lifecycle::new(), Authority::new());
    authority.sign("weir");
    let url = authority.serve(&lifecycle, true).await;
    let (answer, transcript) = get(&url, authority.with_client("weir")).await;
    assert_eq!(&answer.expect("accepted").body[..], b"1");
    assert_eq!((transcript.exchanges.len(), transcript.secrets.len()), (1, 0), "nothing of the key is in it");

    let stranger = Authority::new();
    stranger.sign("weir");
    let tls = TlsConfig { ca: Some(authority.file("ca.pem")), ..stranger.with_client("weir") };
    for tls in [authority.ca_only(), tls] {
        let (answer, transcript) = get(&url, tls).await;
        let error = answer.err().expect("refused");
        assert!(error.is_retryable(), "{error}");
        assert_eq!(transcript.exchanges[0].error, Some(error.to_string()));
    }
    lifecycle.stop(Duration::from_secs(5)).await.expect("it stops");
}

#[test]
fn files_that_cannot_serve_are_refused_at_boot_with_their_key() {
    let authority = Authority::new();
    authority.sign("weir");
    authority.sign("other");
    let file = |name: &str, content: &str| {
        std::fs::write(authority.file(name), content).expect("written");
        authority.file(name)
    };
    let key = std::fs::read_to_string(authority.file("weir.key")).expect("readable");
    let broken = key.lines().next().expect("a line").to_owned() + "\nCANARY%\n-----END PRIVATE KEY-----\n";
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let with_key = |path: PathBuf| TlsConfig { client_key: Some(path), ..authority.with_client("weir") };
    let with_certificate =
        |path: PathBuf| TlsConfig { client_certificate: Some(path), ..authority.with_client("weir") };
    for (tls, says) in [
        (TlsConfig { ca: Some("/nowhere".into()), ..TlsConfig::default() }, "tls.ca: \"/nowhere\" cannot be read: "),
        (TlsConfig { ca: Some(file("text", "CANARY")), ..TlsConfig::default() }, "with a CERTIFICATE: it holds none"),
        (
            TlsConfig { ca: Some(authority.file("weir.key")), ..TlsConfig::default() },
            "with a CERTIFICATE: it holds none",
        ),
        (with_certificate(file("der", "\0\u{1}CANARY")), "tls.client_certificate: "),
        (with_key(authority.file("weir.pem")), "with a PRIVATE KEY: it holds none"),
        (with_key(file("broken", &broken)), "with a PRIVATE KEY: it is broken"),
        (with_key(file("encrypted", encrypted)), "with a PRIVATE KEY: it is encrypted"),
        (with_key(authority.file("other.key")), "name the key that the certificate is for"),
        (TlsConfig { client_key: None, ..authority.with_client("weir") }, "tls.client_key: it is missing"),
        (
            TlsConfig { client_certificate: None, ..authority.with_client("weir") },
            "tls.client_certificate: it is missing",
        ),
    ] {
        let config = transport::Config { tls, ..Default::default() };
        let telemetry = Telemetry::new().expect("a recorder");
        let error = Transport::new("bank", "integrations.bank", &config, &telemetry).err().expect(says).to_string();
        assert!(error.contains(says), "{says:?} is not in {error:?}");
        assert!(!error.contains("CANARY"), "{error}");
    }
}
