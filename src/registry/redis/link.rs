//! One connection to Redis, made when it is needed and dropped at the first doubt.
//!
//! The client library keeps a connection whose answers time out, and one to a server that has become a replica, for as
//! long as the socket lives. A link does the opposite: whatever is not an answer of a healthy primary drops the
//! connection, and the next call makes a new one. There is no retry here; callers come again by themselves (heartbeats)
//! or back off (followers). One request is in flight at a time, and a request that is dropped midway takes its
//! connection with it, so that no answer can reach the wrong question.

use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use redis::aio::MultiplexedConnection;
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, ProtocolVersion,
    RedisError, RedisResult, ServerErrorKind, Value,
};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::super::{Config, RegistryError};
use crate::telemetry::Telemetry;

/// An idle connection is probed after this time, so that one through a dead firewall entry is found out.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// How long sent bytes may stay without an acknowledgement.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(5);

/// The oldest major version whose scripts and streams behave as the registry needs.
const OLDEST_MAJOR: u32 = 7;

/// A connection that comes and goes.
pub struct Link {
    client: Client,
    timeouts: AsyncConnectionConfig,
    connect_timeout: Duration,
    address: String,
    slot: Mutex<Slot>,
    metrics: Metrics,
}

#[derive(Default)]
struct Slot {
    connection: Option<MultiplexedConnection>,
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
    pub fn new(
        config: &Config,
        info: ConnectionInfo,
        patience: Duration,
        metrics: Metrics,
    ) -> Result<Self, RedisError> {
        let address = info.addr().to_string();
        let timeouts = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(config.connect_timeout))
            .set_response_timeout(Some(config.response_timeout + patience));
        let client = Client::open(info)?;
        Ok(Link { client, timeouts, connect_timeout: config.connect_timeout, address, slot: Mutex::default(), metrics })
    }

    /// Waits for the request before, connects if need be, and hands out the connection.
    pub async fn lease(&self, operation: Operation) -> Result<Lease<'_>, RegistryError> {
        let mut slot = self.slot.lock().await;
        let started = Instant::now();
        let connection = match slot.connection.take() {
            Some(connection) => connection,
            None => match self.connect().await {
                Ok(connection) => {
                    if std::mem::replace(&mut slot.connected_before, true) {
                        self.metrics.reconnects.increment(1);
                    }
                    connection
                }
                Err(error) => return Err(self.metrics.failed(operation, started, error)),
            },
        };
        Ok(Lease { connection, link: self, slot, operation, started })
    }

    /// Where the link leads, without user and password.
    pub fn address(&self) -> String {
        self.address.clone()
    }

    async fn connect(&self) -> Result<MultiplexedConnection, RegistryError> {
        let connecting = async {
            let mut connection = self.client.get_multiplexed_async_connection_with_config(&self.timeouts).await?;
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
            _ if error.is_timeout() => RegistryError::Unavailable { address, reason: "no answer in time".into() },
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

/// Reads a URL into what the client library needs, with the socket options that it does not set by itself.
pub fn connection_info(url: &str) -> Result<ConnectionInfo, RegistryError> {
    let invalid = |reason: &str| RegistryError::Config {
        key: "url",
        reason: format!("{reason}; use redis://[user[:password]@]host[:port][/database], or rediss:// for TLS"),
    };
    let info = url.into_connection_info().map_err(|error| match error.kind() {
        // The library's words for these name parts of the URL, never the password.
        ErrorKind::InvalidClientConfig => invalid(&error.to_string()),
        _ => invalid("it is not a Redis URL"),
    })?;
    if matches!(info.addr(), ConnectionAddr::TcpTls { insecure: true, .. }) {
        return Err(invalid("#insecure would accept any server's certificate"));
    }
    let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(TcpKeepalive::new().with_time(KEEPALIVE));
    #[cfg(target_os = "linux")]
    let tcp = tcp.set_user_timeout(UNACKNOWLEDGED);
    let redis = info.redis_settings().clone();
    let redis = redis.set_protocol(ProtocolVersion::RESP3).set_lib_name("weir", env!("CARGO_PKG_VERSION"));
    Ok(info.set_tcp_settings(tcp).set_redis_settings(redis))
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

/// The server's version as `HELLO` reports it.
pub fn version(hello: &Value) -> String {
    let version = hello.as_map_iter().and_then(|mut fields| {
        fields.find_map(|(key, value)| (text(key) == Some("version")).then(|| text(value)).flatten())
    });
    version.unwrap_or("unknown").to_owned()
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
}

impl Operation {
    const ALL: [Operation; 5] =
        [Operation::Announce, Operation::Withdraw, Operation::Position, Operation::Snapshot, Operation::Changes];

    fn as_str(self) -> &'static str {
        match self {
            Operation::Announce => "announce",
            Operation::Withdraw => "withdraw",
            Operation::Position => "position",
            Operation::Snapshot => "snapshot",
            Operation::Changes => "changes",
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
    fn urls_are_checked_without_showing_the_password() {
        for good in [
            "redis://localhost",
            "redis://user:hunter2@10.0.0.1:7000/2",
            "rediss://cache.example:6380",
            "unix:///run/r",
        ] {
            connection_info(good).expect(good);
        }
        for bad in ["", "localhost", "http://:hunter2@x", "redis://:hunter2@x/db", "rediss://:hunter2@x/#insecure"] {
            let error = connection_info(bad).expect_err(bad).to_string();
            assert!(error.contains("use redis://") && !error.contains("hunter2"), "{error}");
        }
    }

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
