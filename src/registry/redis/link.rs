//! The link to Redis, with what it is asked counted.

use std::sync::Arc;
use std::time::Duration;

use ::redis::RedisResult;
use ::redis::aio::MultiplexedConnection;
use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use tokio::time::Instant;

use super::super::{Config, RegistryError};
use crate::redis::{self, Error, Place};
use crate::telemetry::Telemetry;

/// A counted connection that comes and goes.
pub struct Link {
    inner: redis::Link,
    metrics: Metrics,
}

/// The right to make one request. Dropping it without [`Lease::settle`] drops the connection.
pub struct Lease<'a> {
    inner: redis::Lease<'a>,
    metrics: &'a Metrics,
    operation: Operation,
}

impl Link {
    /// A link that is not connected yet. An answer may take the configured time and `patience` more.
    pub fn new(config: &Config, place: Arc<Place>, patience: Duration, metrics: Metrics) -> Self {
        Link { inner: redis::Link::new(config, place, patience), metrics }
    }

    /// Waits for the request before, connects if need be, and hands out the connection.
    pub async fn lease(&self, operation: Operation) -> Result<Lease<'_>, RegistryError> {
        let (started, metrics) = (Instant::now(), &self.metrics);
        let inner = self.inner.lease().await.map_err(|error| metrics.failed(operation, started, error))?;
        if inner.is_reconnected {
            metrics.reconnects.increment(1);
        }
        Ok(Lease { inner, metrics, operation })
    }

    /// Where the link leads, without user and password.
    pub fn address(&self) -> String {
        self.inner.address()
    }
}

impl Lease<'_> {
    /// What to ask on.
    pub fn connection(&mut self) -> &mut MultiplexedConnection {
        &mut self.inner.connection
    }

    /// Ends the request: keeps the connection if it leads to a healthy primary, and counts it.
    pub fn settle<T>(self, reply: RedisResult<T>) -> Result<T, RegistryError> {
        let (metrics, operation, started) = (self.metrics, self.operation, self.inner.started);
        match self.inner.settle(reply) {
            Ok(value) => {
                metrics.answered(operation, started);
                Ok(value)
            }
            Err(error) => Err(metrics.failed(operation, started, error)),
        }
    }
}

/// What is asked of Redis.
#[derive(Debug, Clone, Copy)]
pub enum Operation {
    /// A worker writes its state.
    Announce,
    /// A worker leaves.
    Withdraw,
    /// A follower has expired members removed and learns where the changes are.
    Position,
    /// A follower reads everyone.
    Snapshot,
    /// A follower waits for changes.
    Changes,
    /// A worker takes, renews or gives back a lease.
    Lease,
}

impl Operation {
    const ALL: [Operation; 6] = [
        Operation::Announce,
        Operation::Withdraw,
        Operation::Position,
        Operation::Snapshot,
        Operation::Changes,
        Operation::Lease,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Operation::Announce => "announce",
            Operation::Withdraw => "withdraw",
            Operation::Position => "position",
            Operation::Snapshot => "snapshot",
            Operation::Changes => "changes",
            Operation::Lease => "lease",
        }
    }
}

/// What links count.
#[derive(Clone)]
pub struct Metrics {
    connected: Gauge,
    reconnects: Counter,
    /// By [`Operation`].
    requests: [Requests; Operation::ALL.len()],
    /// Presences that this version could not read.
    pub unreadable: Counter,
}

#[derive(Clone)]
struct Requests {
    answered: Counter,
    unavailable: Counter,
    login: Counter,
    version: Counter,
    rejected: Counter,
    duration: Histogram,
}

impl Metrics {
    /// Registers the registry's metrics.
    pub fn new(telemetry: &Telemetry) -> Self {
        telemetry.register(|| {
            describe_counter!("weir_registry_requests_total", "Requests to the registry by operation and result.");
            describe_histogram!("weir_registry_request_duration_seconds", "How long requests to the registry took.");
            describe_gauge!("weir_registry_connected", "1 while the registry answers, else 0.");
            describe_counter!("weir_registry_reconnects_total", "Connections made after one was lost.");
            describe_counter!("weir_registry_unreadable_total", "Presences that could not be read, and were skipped.");
            Metrics {
                connected: gauge!("weir_registry_connected"),
                reconnects: counter!("weir_registry_reconnects_total"),
                requests: Operation::ALL.map(Requests::new),
                unreadable: counter!("weir_registry_unreadable_total"),
            }
        })
    }

    fn answered(&self, operation: Operation, started: Instant) {
        self.connected.set(1.0);
        let requests = &self.requests[operation as usize];
        requests.answered.increment(1);
        requests.duration.record(started.elapsed());
    }

    fn failed(&self, operation: Operation, started: Instant, error: Error) -> RegistryError {
        let error = RegistryError::of(operation.as_str(), error);
        let answers = matches!(error, RegistryError::Rejected { .. });
        self.connected.set(if answers { 1.0 } else { 0.0 });
        let requests = &self.requests[operation as usize];
        requests.failed(&error).increment(1);
        requests.duration.record(started.elapsed());
        error
    }
}

impl Requests {
    fn new(operation: Operation) -> Self {
        let operation = operation.as_str();
        let requests = |result: &'static str| counter!("weir_registry_requests_total", "operation" => operation, "result" => result);
        Requests {
            answered: requests("ok"),
            unavailable: requests("unavailable"),
            login: requests("login"),
            version: requests("version"),
            rejected: requests("rejected"),
            duration: histogram!("weir_registry_request_duration_seconds", "operation" => operation),
        }
    }

    fn failed(&self, error: &RegistryError) -> &Counter {
        match error {
            RegistryError::Login { .. } => &self.login,
            RegistryError::Version { .. } => &self.version,
            RegistryError::Rejected { .. } => &self.rejected,
            _ => &self.unavailable,
        }
    }
}
