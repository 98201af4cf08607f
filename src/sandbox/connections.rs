//! The bank's connections: accepted, perhaps by way of TLS, and served until they end or are made to.
//!
//! Each is a task of the lifecycle. A stop lets answers that are under way go out and then ends all of them.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Extension;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::socket::{Fate, Socket};
use super::tls;
use crate::lifecycle::Lifecycle;

/// Connections at a time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 20_000;

/// How long a connection may take to send a request's head, an idle one included. Longer than clients keep idle ones.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an answer may still take after the stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// How long to wait after a failed accept, which is mostly a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The connection that a request came on.
#[derive(Clone)]
pub(super) struct Peer {
    /// The first name in the client's certificate.
    pub(super) certificate: Option<Arc<str>>,
    /// `http` or `https`.
    pub(super) scheme: &'static str,
    pub(super) fate: Fate,
}

pub(super) async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, routes: Router, lifecycle: Lifecycle) {
    let (token, slots) = (lifecycle.token(), Arc::new(Semaphore::new(MAX_CONNECTIONS)));
    let accepting = async {
        // The semaphore is never closed.
        while let Ok(slot) = slots.clone().acquire_owned().await {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (tls, routes, token) = (tls.clone(), routes.clone(), lifecycle.token());
                    lifecycle.spawn("sandbox connection", async move {
                        begin(stream, tls, routes, token).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the sandbox could not accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    token.run_until_cancelled(accepting).await;
}

async fn begin(stream: TcpStream, tls: Option<TlsAcceptor>, routes: Router, token: CancellationToken) {
    // Without it a small answer waits for the delayed acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    let fate = Fate::default();
    let socket = Socket::new(stream, fate.clone());
    let Some(acceptor) = tls else {
        return serve(socket, Peer { certificate: None, scheme: "http", fate }, routes, token).await;
    };
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(socket));
    let encrypted = match token.run_until_cancelled(handshake).await {
        Some(Ok(Ok(encrypted))) => encrypted,
        Some(Ok(Err(error))) => return tracing::debug!("a TLS handshake with the sandbox failed: {error}"),
        _ => return,
    };
    let certificates = encrypted.get_ref().1.peer_certificates();
    let certificate = certificates.and_then(|chain| tls::first_name(chain.first()?)).map(Arc::from);
    serve(encrypted, Peer { certificate, scheme: "https", fate }, routes, token).await;
}

async fn serve<S>(socket: S, peer: Peer, routes: Router, token: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let reset = peer.fate.is_reset();
    let service = TowerToHyperService::new(routes.layer(Extension(peer)).into_service());
    let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(socket), service));
    let mut reset = pin!(reset);
    // A peer that goes away, or that is hung up on, is no concern of ours: nothing is logged.
    tokio::select! {
        biased;
        () = &mut reset => return,
        _ = connection.as_mut() => return,
        () = token.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let rest = tokio::time::timeout(STOP_TIMEOUT, connection);
    tokio::select! {
        biased;
        () = reset => {}
        _ = rest => {}
    }
}
