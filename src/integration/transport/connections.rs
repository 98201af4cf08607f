//! Connections in the making and as long as they are open, counted.
//!
//! The pool of the HTTP client tells nothing of what it keeps. So each TCP stream is wrapped in a value that counts
//! until it is dropped, below TLS: what is open and carries no request is idle.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use metrics::{Counter, counter, describe_counter};
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tower_service::Service;

/// A peer that is gone without a word is noticed after this, several times over.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_RETRIES: u32 = 3;

/// Data that nobody acknowledges ends a connection after this.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(30);

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Connecting<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

/// The sockets of one transport. Clones share the numbers.
#[derive(Clone)]
pub(super) struct Open {
    pub(super) sockets: Arc<AtomicUsize>,
    pub(super) connecting: Arc<AtomicUsize>,
    opened: Counter,
}

/// Counts one thing while it lives.
pub(super) struct Held(Arc<AtomicUsize>);

/// Makes connections within the time for it, TLS included.
#[derive(Clone)]
pub(super) struct Connector {
    https: HttpsConnector<Tcp>,
    within: Duration,
}

/// Makes TCP connections and counts them.
#[derive(Clone)]
pub(super) struct Tcp {
    http: HttpConnector,
    open: Open,
}

/// A TCP connection that is counted.
pub(super) struct Stream {
    tcp: TokioIo<TcpStream>,
    _open: Held,
}

impl Open {
    pub(super) fn new(label: &str) -> Self {
        const NAME: &str = "weir_http_sockets_opened_total";
        describe_counter!(NAME, "Sockets that were opened; few per exchange when they are used again.");
        let opened = counter!(NAME, "integration" => label.to_owned());
        Open { sockets: Arc::default(), connecting: Arc::default(), opened }
    }
}

impl Held {
    pub(super) fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Held(count.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connector {
    pub(super) fn new(tls: ClientConfig, within: Duration, open: Open) -> Self {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(within));
        http.set_keepalive(Some(KEEPALIVE));
        http.set_keepalive_interval(Some(KEEPALIVE));
        http.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
        #[cfg(target_os = "linux")]
        http.set_tcp_user_timeout(Some(UNACKNOWLEDGED_WITHIN));
        Connector { https: (Tcp { http, open }, tls).into(), within }
    }
}

impl Service<Uri> for Connector {
    type Response = MaybeHttpsStream<Stream>;
    type Error = BoxError;
    type Future = Connecting<Self::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.https.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connecting, within) = (self.https.call(uri), self.within);
        Box::pin(async move {
            let connected = tokio::time::timeout(within, connecting).await;
            connected.unwrap_or_else(|_| Err(format!("not within {}", humantime::format_duration(within)).into()))
        })
    }
}

impl Service<Uri> for Tcp {
    type Response = Stream;
    type Error = BoxError;
    type Future = Connecting<Stream>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.http.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connecting, open) = (self.http.call(uri), self.open.clone());
        Box::pin(async move {
            let _connecting = Held::new(&open.connecting);
            let tcp = connecting.await?;
            open.opened.increment(1);
            Ok(Stream { tcp, _open: Held::new(&open.sockets) })
        })
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        self.tcp.connected()
    }
}

impl Read for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buffer)
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, buffers)
    }
}

#[cfg(test)]
mod tests;
