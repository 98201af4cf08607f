//! An S3 server in this process that verifies signatures, over a directory.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use weir::lifecycle::Lifecycle;

/// The key that the server knows.
pub const ACCESS_KEY: &str = "weir-tests";

/// Its secret.
pub const SECRET_KEY: &str = "weir-tests-secret";

/// A running server; it ends with its lifecycle.
pub struct S3Server {
    pub address: SocketAddr,
    scheme: &'static str,
    lifecycle: Lifecycle,
}

impl S3Server {
    /// Serves the buckets below `root`, each a directory.
    pub async fn start(root: &Path) -> Self {
        Self::with(root, None).await
    }

    /// As [`S3Server::start`], over TLS.
    pub async fn start_tls(root: &Path, tls: rustls::ServerConfig) -> Self {
        Self::with(root, Some(TlsAcceptor::from(Arc::new(tls)))).await
    }

    async fn with(root: &Path, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (scheme, lifecycle) = (if tls.is_some() { "https" } else { "http" }, Lifecycle::new());
        lifecycle.spawn("s3 server", serve(listener, service(root), tls, lifecycle.clone()));
        S3Server { address, scheme, lifecycle }
    }

    /// The URL for clients.
    pub fn endpoint(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Ends the server and its connections.
    pub async fn stop(&self) {
        self.lifecycle.stop(std::time::Duration::from_secs(10)).await.expect("the server ends");
    }
}

/// The service over `root`.
pub fn service(root: &Path) -> S3Service {
    let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root).expect("a directory"));
    builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
    builder.build()
}

/// Serves until the lifecycle is stopped, over TLS where there is an acceptor for it.
pub async fn serve(listener: TcpListener, service: S3Service, tls: Option<TlsAcceptor>, lifecycle: Lifecycle) {
    let token = lifecycle.token();
    while let Some(Ok((socket, _))) = token.run_until_cancelled(listener.accept()).await {
        // Otherwise each answer of two pieces waits for 40 ms.
        let _ = socket.set_nodelay(true);
        let (service, token, tls) = (service.clone(), token.clone(), tls.clone());
        lifecycle.spawn("s3 connection", async move {
            let connection = async {
                let Some(tls) = tls else { return answer(socket, service).await };
                // Whom the client does not trust gets no further.
                if let Ok(socket) = tls.accept(socket).await {
                    answer(socket, service).await;
                }
            };
            let _ = token.run_until_cancelled(connection).await;
        });
    }
}

async fn answer(socket: impl AsyncRead + AsyncWrite + Unpin + 'static, service: S3Service) {
    // A client that goes away is no concern of the server's.
    let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service).await;
}
