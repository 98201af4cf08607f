//! The gRPC server that both roles run: their `Tasks`, the `Operations` beside it, health checks and reflection, with
//! every limit set.

mod connection;

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use futures_util::stream::{self, Stream};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic_health::server::HealthReporter;

use super::operations::{Operated, Operations};
use super::proto::operations_server::OperationsServer;
use super::proto::tasks_server::{Tasks, TasksServer};
use super::{DESCRIPTORS, MAX_MESSAGE_BYTES, trace};
use crate::lifecycle::Lifecycle;
use crate::telemetry::Telemetry;
use connection::{Connection, Metrics};

/// Calls at once on one connection: as many as the largest N, for a router has one connection to each worker.
const MAX_CONCURRENT_STREAMS: u32 = 100_000;

/// Streams that were reset before they were accepted, per connection. hyper's 20 is too low for a router that cancels
/// many calls at once; none at all would be the "rapid reset" hole (CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 1_024;

/// Stream errors in a connection's life before it is ended, with everything on it. Cancelled calls count, so this is
/// high; it still ends a peer that does nothing else (RUSTSEC-2024-0003).
const MAX_LOCAL_RESETS: usize = 1_000_000;

const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The pause after a failed accept: without one, a process that is out of descriptors spins.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// How long connections may take to end by themselves once the server stops. Less than the roles wait for the server.
const CONNECTIONS_END_WITHIN: Duration = Duration::from_secs(3);

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address is taken, foreign or not permitted.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The embedded descriptors do not decode.
    #[error("cannot serve reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// A port that is taken and not yet served: who connects waits.
pub struct Port {
    /// Where it listens; with the port that the system chose when port 0 was asked for.
    pub local_address: SocketAddr,
    listener: TcpListener,
    metrics: Metrics,
}

/// A running server. When its lifecycle stops, it stops after the calls that are under way; connections that do not end
/// soon are ended.
pub struct RunningServer {
    /// Where it listens.
    pub local_address: SocketAddr,
    health: HealthReporter,
}

impl Port {
    /// Takes the port. Its connections are counted.
    pub async fn listen(address: SocketAddr, telemetry: &Telemetry) -> Result<Self, ServeError> {
        let failed = |source| ServeError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let local_address = listener.local_addr().map_err(failed)?;
        Ok(Port { local_address, listener, metrics: Metrics::new(telemetry) })
    }

    /// Serves both services on it.
    pub async fn serve<T: Tasks, O: Operated>(
        self,
        tasks: T,
        operations: Operations<O>,
        lifecycle: &Lifecycle,
    ) -> Result<RunningServer, ServeError> {
        let Port { local_address, listener, metrics } = self;
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<TasksServer<T>>().await;
        health.set_serving::<OperationsServer<Operations<O>>>().await;
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let tasks = TasksServer::new(tasks)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let router = Server::builder()
            .trace_fn(|request| trace::span(request.headers()))
            .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
            .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
            .http2_max_local_error_reset_streams(Some(MAX_LOCAL_RESETS))
            .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
            .add_service(tasks)
            .add_service(OperationsServer::new(operations))
            .add_service(health_service)
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?);

        let token = lifecycle.token();
        lifecycle.spawn("grpc server", async move {
            let end = CancellationToken::new();
            let incoming = incoming(listener, end.clone(), metrics);
            let mut serving = pin!(router.serve_with_incoming_shutdown(incoming, token.cancelled()));
            let late = async {
                token.cancelled().await;
                tokio::time::sleep(CONNECTIONS_END_WITHIN).await;
            };
            let served = tokio::select! {
                served = &mut serving => served,
                () = late => {
                    end.cancel();
                    serving.await
                }
            };
            if let Err(error) = served {
                tracing::error!("the gRPC server ended: {error}");
            }
        });
        Ok(RunningServer { local_address, health })
    }
}

impl RunningServer {
    /// Tells health checks, and those who watch them, to send nothing more.
    pub async fn set_not_serving<T: Tasks>(&self) {
        self.health.set_not_serving::<TasksServer<T>>().await;
    }
}

/// Connections, with small writes sent at once: tonic's plain listener stream leaves Nagle's algorithm on, which adds
/// 40 ms to a call.
fn incoming(
    listener: TcpListener,
    end: CancellationToken,
    metrics: Metrics,
) -> impl Stream<Item = io::Result<Connection>> {
    stream::unfold((listener, end, metrics), |(listener, end, metrics)| async {
        loop {
            match listener.accept().await {
                Ok((socket, _)) => {
                    // Fails only for a connection that is gone already; the server will notice.
                    let _ = socket.set_nodelay(true);
                    return Some((Ok(Connection::new(socket, &end, &metrics)), (listener, end, metrics)));
                }
                Err(error) => {
                    metrics.not_accepted.increment(1);
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    })
}
