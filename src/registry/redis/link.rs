//! One connection to Redis' primary, made when it is needed and dropped at the first doubt.
//!
//! The client library keeps a connection whose answers time out, and one to a server that has become a replica, for as
//! long as the socket lives. A link does the opposite: whatever is not an answer of a healthy primary drops the
//! connection, and the next call makes a new one. There is no retry here; callers come again by themselves (heartbeats)
//! or back off (followers). One request is in flight at a time, and a request that is dropped midway takes its
//! connection with it, so that no answer can reach the wrong question.

use std::sync::Arc;
use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ErrorKind, RedisError, RedisResult, ServerErrorKind, Value};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::super::{Config, RegistryError};
use super::place::Place;
use crate::telemetry::Telemetry;

/// The oldest major version whose scripts and streams behave as the registry needs.
const OLDEST_MAJOR: u32 = 7;

/// A connection that comes and goes.
pub struct Link {
    place: Arc<Place>,
    timeouts: AsyncConnectionConfig,
    connect_timeout: Duration,
    slot: Mutex<Slot>,
    metrics: Metrics,
}

#[derive(Default)]
struct Slot {
    connection: Option<MultiplexedConnection>,
    /// Where the connection leads.
    address: String,
    connected_before: bool,
}

/// The right to make one request. Dropping it without [`Lease::settle`] drops the connection.
pub struct Lease<'a> {
    /// What to ask on.
    pub connection: MultiplexedConnection,
    link: &'a Link,
    slot: MutexGuard<'a, Slot>,
    operation: Operation,
    started: Instant,
}

impl Link {
    /// A link that is not connected yet. An answer may take the configured time and `patience` more.
    pub fn new(config: &Config, place: Arc<Place>, patience: Duration, metrics: Metrics) -> Self {
        let timeouts = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(config.connect_timeout))
            .set_response_timeout(Some(config.response_timeout + patience));
        Link { place, timeouts, connect_timeout: config.connect_timeout, slot: Mutex::default(), metrics }
    }

    /// Waits for the request before, connects if need be, and hands out the connection.
    pub async fn lease(&self, operation: Operation) -> Result<Lease<'_>, RegistryError> {
        let mut slot = self.slot.lock().await;
        let started = Instant::now();
        // When another link found the primary elsewhere, this one has no business where it is.
        let is_moved = slot.address != self.place.current();
        let connection = match slot.connection.take().filter(|_| !is_moved) {
            Some(connection) => connection,
            None => match self.connect().await {
                Ok(connection) => {
                    if std::mem::replace(&mut slot.connected_before, true) {
                        self.metrics.reconnects.increment(1);
                    }
                    slot.address = self.place.current();
                    connection
                }
                Err(error) => return Err(self.metrics.failed(operation, started, error)),
            },
        };
        Ok(Lease { connection, link: self, slot, operation, started })
    }

    /// Where the link leads, without user and password.
    pub fn address(&self) -> String {
        self.place.current()
    }

    async fn connect(&self) -> Result<MultiplexedConnection, RegistryError> {
        let client = self.place.find().await?;
        let connecting = async {
            let mut connection = client.get_multiplexed_async_connection_with_config(&self.timeouts).await?;
            let hello: Value = redis::cmd("HELLO").query_async(&mut connection).await?;
            Ok((connection, hello))
        };
        let connected = tokio::time::timeout(self.connect_timeout, connecting).await;
        let (connection, hello) = match connected {
            Ok(Ok(connected)) => connected,
            Ok(Err(error)) => return Err(self.explain("the login", &error)),
            Err(_) => {
                let limit = humantime::format_duration(self.connect_timeout);
                let reason = format!("no connection within {limit}");
                return Err(RegistryError::Unavailable { address: self.address(), reason });
            }
        };
        if field(&hello, "role").is_some_and(|role| role != "master") {
            let reason = "it is a replica; weir needs the primary".into();
            return Err(RegistryError::Unavailable { address: self.address(), reason });
        }
        let version = version(&hello);
        match version.split('.').next().and_then(|major| major.parse::<u32>().ok()) {
            Some(major) if major >= OLDEST_MAJOR => Ok(connection),
            _ => Err(RegistryError::Version { address: self.address(), version }),
        }
    }

    fn explain(&self, operation: &'static str, error: &RedisError) -> RegistryError {
        let (address, reason) = (self.address(), error.to_string());
        match (error.kind(), error.code()) {
            (ErrorKind::AuthenticationFailed, _) | (_, Some("WRONGPASS" | "NOAUTH")) => {
                RegistryError::Login { address, reason }
            }
            (ErrorKind::RESP3NotSupported, _) => RegistryError::Version { address, version: "5 or older".into() },
            (_, Some("BUSY")) => {
                let reason = format!("it is busy with somebody's script that runs for too long ({reason})");
                RegistryError::Unavailable { address, reason }
            }
            _ if error.is_timeout() => RegistryError::Unavailable { address, reason: "no answer in time".into() },
            _ if is_right_missing(error, &reason) => {
                let reason = format!("{reason} (ACL LOG on the server names what the user lacks)");
                RegistryError::Rejected { address, operation, reason }
            }
            _ if is_plain_reply(error) => RegistryError::Rejected { address, operation, reason },
            _ => RegistryError::Unavailable { address, reason },
        }
    }
}

impl Lease<'_> {
    /// Ends the request: keeps the connection if the answer came from a healthy primary, and counts it.
    pub fn settle<T>(mut self, reply: RedisResult<T>) -> Result<T, RegistryError> {
        let metrics = &self.link.metrics;
        match reply {
            Ok(value) => {
                self.slot.connection = Some(self.connection);
                metrics.answered(self.operation, self.started);
                Ok(value)
            }
            Err(error) => {
                if is_plain_reply(&error) {
                    self.slot.connection = Some(self.connection);
                }
                Err(metrics.failed(self.operation, self.started, self.link.explain(self.operation.as_str(), &error)))
            }
        }
    }
}

/// Whether the error is a healthy primary's answer, such as a script's own error: the connection is good.
fn is_plain_reply(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Server(kind) => !matches!(
            kind,
            ServerErrorKind::ReadOnly
                | ServerErrorKind::BusyLoading
                | ServerErrorKind::MasterDown
                | ServerErrorKind::ClusterDown
        ),
        // An error code that the library does not know: `NOREPLICAS`, `OOM`, `WRONGTYPE` and the like.
        ErrorKind::Extension => true,
        _ => false,
    }
}

/// Whether the user may not do what was asked. Inside a script, Redis 7.0 does not say what.
fn is_right_missing(error: &RedisError, reason: &str) -> bool {
    error.code() == Some("NOPERM") || reason.contains("user executing the script")
}

/// The server's version as `HELLO` reports it.
pub fn version(hello: &Value) -> String {
    field(hello, "version").unwrap_or("unknown").to_owned()
}

fn field<'a>(hello: &'a Value, name: &str) -> Option<&'a str> {
    let mut fields = hello.as_map_iter()?;
    fields.find_map(|(key, value)| (text(key) == Some(name)).then(|| text(value)).flatten())
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
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

    fn failed(&self, operation: Operation, started: Instant, error: RegistryError) -> RegistryError {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_hello() {
        let hello = Value::Map(vec![
            (Value::BulkString(b"server".into()), Value::BulkString(b"redis".into())),
            (Value::BulkString(b"version".into()), Value::BulkString(b"7.0.15".into())),
        ]);
        assert_eq!(version(&hello), "7.0.15");
        assert_eq!(version(&Value::Nil), "unknown");
    }
}
