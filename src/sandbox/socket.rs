//! A connection's socket, and the ways in which the bank ends it: a hang-up after half a body, and a reset.
//!
//! hyper owns the socket while it serves, so the socket itself knows its fate. A hang-up happens at a flush, which hyper
//! asks for once everything before it was written: the caller sees exactly what was sent. A reset is a close with
//! `SO_LINGER` at zero, which makes it an RST.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// How a connection will end, if the bank has decided it.
#[derive(Clone, Default)]
pub(super) struct Fate {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    hang_up: AtomicBool,
    reset: CancellationToken,
}

impl Fate {
    /// Ends the connection as soon as what was written until now is sent.
    pub(super) fn hang_up_after_flush(&self) {
        self.inner.hang_up.store(true, Ordering::Release);
    }

    /// Resets the connection now.
    pub(super) fn reset(&self) {
        self.inner.reset.cancel();
    }

    /// Comes when the connection is to be reset.
    pub(super) fn is_reset(&self) -> impl Future<Output = ()> + Send + 'static {
        self.inner.reset.clone().cancelled_owned()
    }
}

/// A socket and its fate.
pub(super) struct Socket {
    stream: TcpStream,
    fate: Fate,
}

impl Socket {
    pub(super) fn new(stream: TcpStream, fate: Fate) -> Self {
        Socket { stream, fate }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.fate.inner.reset.is_cancelled() {
            // Fails only for a connection that is gone already.
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.fate.inner.hang_up.load(Ordering::Acquire) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
