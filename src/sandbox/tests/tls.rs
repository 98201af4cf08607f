//! The bank over TLS, with and without certificates of its clients.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::*;

/// A root, and what it has signed.
struct Authority {
    root: CertifiedIssuer<'static, KeyPair>,
    directory: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a root");
        Authority { root, directory: tempfile::tempdir().expect("a directory") }
    }

    fn write(&self, name: &str, pem: &str) -> PathBuf {
        let file = self.directory.path().join(name);
        std::fs::write(&file, pem).expect("written");
        file
    }

    /// Files of a certificate for this name, and of its key.
    fn certify(&self, name: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.root).expect("signed");
        (
            self.write(&format!("{name}.pem"), &certificate.pem()),
            self.write(&format!("{name}.key"), &key.serialize_pem()),
        )
    }

    async fn start(&self, with_clients: bool) -> Fixture {
        let (certificate, key) = self.certify("localhost");
        let client_ca = with_clients.then(|| self.write("root.pem", &self.root.pem()));
        let tls = Tls { certificate: Some(certificate), key: Some(key), client_ca };
        Fixture::with(Config { tls, ..at_once() }, 4).await
    }

    /// Sends a request over TLS, perhaps with a certificate for `name`; all that comes back.
    async fn ask(&self, fixture: &Fixture, request: &str, name: Option<&str>) -> std::io::Result<String> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.root.der().clone()).expect("a root");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let config = match name.map(|name| self.certify(name)) {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = vec![CertificateDer::from_pem_file(certificate).expect("a certificate")];
                builder
                    .with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(key).expect("a key"))
                    .expect("they fit")
            }
        };
        let socket = TcpStream::connect(fixture.sandbox.local_addr).await?;
        let name = ServerName::try_from("localhost").expect("a name");
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }
}

const ACCOUNTS: &str = "GET /accounts?customer=c1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// A request with the token of client `a`.
fn with_token(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer sandbox.a\r\n\r\n")
}

#[tokio::test]
async fn the_bank_speaks_tls() {
    let authority = Authority::new();
    let fixture = authority.start(false).await;
    let request = &with_token("/accounts/acc-0123456789abcdef/transactions?pagination=link&limit=1");
    let answer = authority.ask(&fixture, request, None).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("link: <https://localhost/accounts/"), "{answer}");
    let answer = authority.ask(&fixture, ACCOUNTS, Some("bank-client.example")).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 401"), "a certificate that nobody asked for is none: {answer}");
    let resets = Behaviour { resets: Some(1.0), ..Behaviour::default() };
    fixture.sandbox.set_behaviour(resets).expect("valid");
    let error = authority.ask(&fixture, request, None).await.expect_err("reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    fixture.stop().await;
}

#[tokio::test]
async fn a_client_certificate_is_required_and_names_the_client() {
    let authority = Authority::new();
    let fixture = authority.start(true).await;
    let answer = authority.ask(&fixture, ACCOUNTS, Some("bank-client.example")).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(fixture.counts("bank-client.example").total, 1);
    let bearer = with_token("/accounts?customer=c1");
    let answer = authority.ask(&fixture, &bearer, Some("bank-client.example")).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200") && fixture.counts("a").total == 1, "another credential comes first");
    let form = "grant_type=client_credentials";
    let token = format!(
        "POST /oauth/token HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
        form.len()
    );
    let answer = authority.ask(&fixture, &token, Some("bank-client.example")).await.expect("an answer");
    assert!(answer.contains("access.bank-client.example."), "the certificate authenticates there, too: {answer}");
    authority.ask(&fixture, ACCOUNTS, None).await.expect_err("no certificate");
    let stranger = Authority::new();
    let error = stranger.ask(&fixture, ACCOUNTS, Some("bank-client.example")).await;
    assert!(error.is_err(), "another root's");
    fixture.stop().await;
}

#[tokio::test]
async fn bad_files_are_named() {
    let authority = Authority::new();
    let (certificate, key) = authority.certify("localhost");
    let empty = authority.write("empty.pem", "");
    let some = |file: &PathBuf| Some(file.clone());
    let start = |certificate, key, client_ca| async {
        let tls = Tls { certificate, key, client_ca };
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = Config { tls, listen, ..at_once() };
        Sandbox::start(config, &Lifecycle::new()).await.err().expect("wrong").to_string()
    };
    for (error, key) in [
        (start(some(&empty), some(&key), None).await, "tls.certificate"),
        (start(some(&certificate), some(&empty), None).await, "tls.key"),
        (start(some(&certificate), some(&key), some(&empty)).await, "tls.client_ca"),
    ] {
        assert!(error.starts_with(key) && error.contains("empty.pem"), "{error}");
    }
}
