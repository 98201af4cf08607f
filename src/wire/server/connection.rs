//! A server's connection that is counted while it lives, and can be ended from outside.
//!
//! A graceful stop waits for each connection's calls, and so for ever where a peer never ends its own: an open watch of
//! a health check, a handshake that was begun and left. tonic runs connections on tasks of its own and has no other way
//! to end them, so here the socket itself does: from the end on, reading fails, and with it the connection.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::telemetry::{Counted, Telemetry};

/// A socket, and when it must end.
pub(super) struct Connection {
    socket: TcpStream,
    _open: Counted,
    end: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Connection {
    /// Ends when `end` is cancelled.
    pub(super) fn new(socket: TcpStream, end: &CancellationToken, metrics: &Metrics) -> Self {
        metrics.accepted.increment(1);
        // A child: connections do not share the lock that each read takes.
        Connection { socket, _open: Counted::new(&metrics.open), end: Box::pin(end.child_token().cancelled_owned()) }
    }
}

/// The connections of a port in numbers.
pub(super) struct Metrics {
    open: Gauge,
    accepted: Counter,
    pub(super) not_accepted: Counter,
}

impl Metrics {
    pub(super) fn new(telemetry: &Telemetry) -> Self {
        telemetry.register(|| {
            describe_gauge!("weir_grpc_connections", "Open connections to the gRPC port.");
            describe_counter!(
                "weir_grpc_connections_accepted_total",
                "Connections to the gRPC port that were accepted; many more than are open say that peers do not keep theirs."
            );
            describe_counter!(
                "weir_grpc_connections_not_accepted_total",
                "Connections to the gRPC port that could not be accepted, mostly for a lack of descriptors."
            );
            Metrics {
                open: gauge!("weir_grpc_connections"),
                accepted: counter!("weir_grpc_connections_accepted_total"),
                not_accepted: counter!("weir_grpc_connections_not_accepted_total"),
            }
        })
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.end.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.socket.connect_info()
    }
}
