//! One connection to Redis' primary, made when it is needed and dropped at the first doubt.
//!
//! The client library keeps a connection whose answers time out, and one to a server that has become a replica, for as
//! long as the socket lives. A link does the opposite: whatever is not an answer of a healthy primary drops the
//! connection, and the next call asks where the primary is and makes a new one. There is no retry here; callers come
//! again by themselves (heartbeats) or back off (followers). One request is in flight at a time, and a request that is
//! dropped midway takes its connection with it, so that no answer can reach the wrong question.
//!
//! While a Cluster moves the keys' slot to another node, both nodes refuse a script that has a key here and one there
//! (`TRYAGAIN`), and the old one refuses those that have gone (`ASK`). A link waits then: it does not follow `ASK`, for the
//! other node would refuse the next script as well, and each key is written by one node at a time. When the slot has
//! moved, the old node says so (`MOVED`), and the next call finds the new one.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ErrorKind, RedisError, RedisResult, ServerErrorKind, Value};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::cluster::text;
use super::place::Place;
use super::{Config, Error, guide};

/// The oldest major version whose scripts and streams behave as weir needs.
const OLDEST_MAJOR: u32 = 7;

/// A connection that comes and goes.
pub struct Link {
    place: Arc<Place>,
    timeouts: AsyncConnectionConfig,
    connect_timeout: Duration,
    slot: Mutex<Slot>,
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
    /// Whether the connection was made for this request, after one was lost.
    pub is_reconnected: bool,
    /// When the request before had ended.
    pub started: Instant,
    link: &'a Link,
    slot: MutexGuard<'a, Slot>,
}

impl Link {
    /// A link that is not connected yet. An answer may take the configured time and `patience` more.
    pub fn new(config: &Config, place: Arc<Place>, patience: Duration) -> Self {
        let timeouts = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(config.connect_timeout))
            .set_response_timeout(Some(config.response_timeout + patience));
        Link { place, timeouts, connect_timeout: config.connect_timeout, slot: Mutex::default() }
    }

    /// Waits for the request before, connects if need be, and hands out the connection.
    pub async fn lease(&self) -> Result<Lease<'_>, Error> {
        let mut slot = self.slot.lock().await;
        let started = Instant::now();
        // When another link found the primary elsewhere, this one has no business where it is.
        let is_moved = slot.address != self.place.current();
        let (connection, is_reconnected) = match slot.connection.take().filter(|_| !is_moved) {
            Some(connection) => (connection, false),
            None => {
                let (connection, address) = self.connect().await?;
                slot.address = address;
                (connection, std::mem::replace(&mut slot.connected_before, true))
            }
        };
        Ok(Lease { connection, is_reconnected, started, link: self, slot })
    }

    /// Where the link leads, without user and password.
    pub fn address(&self) -> String {
        self.place.current()
    }

    /// A connection, and where it leads: another link may find the primary elsewhere meanwhile.
    async fn connect(&self) -> Result<(MultiplexedConnection, String), Error> {
        let client = self.place.find().await?;
        let address = client.get_connection_info().addr().to_string();
        let connection = self.connect_to(&client).await.inspect_err(|_| self.place.doubt(&address))?;
        Ok((connection, address))
    }

    async fn connect_to(&self, client: &redis::Client) -> Result<MultiplexedConnection, Error> {
        let connecting = async {
            let mut connection = client.get_multiplexed_async_connection_with_config(&self.timeouts).await?;
            let hello: Value = redis::cmd("HELLO").query_async(&mut connection).await?;
            Ok((connection, hello))
        };
        let connected = tokio::time::timeout(self.connect_timeout, connecting).await;
        let advice = |error| guide::advice(client.get_connection_info().addr(), error);
        let (connection, hello) = match connected {
            Ok(Ok(connected)) => connected,
            Ok(Err(error)) => {
                let mut explained = self.explain(&error);
                if let Error::Unavailable { reason, .. } = &mut explained {
                    reason.push_str(advice(Some(&error)));
                }
                return Err(explained);
            }
            Err(_) => {
                let limit = humantime::format_duration(self.connect_timeout);
                let reason = format!("no connection within {limit}{}", advice(None));
                return Err(Error::Unavailable { address: self.address(), reason });
            }
        };
        if field(&hello, "role").is_some_and(|role| role != "master") {
            let reason = "it is a replica; weir needs the primary".into();
            return Err(Error::Unavailable { address: self.address(), reason });
        }
        let version = version(&hello);
        match version.split('.').next().and_then(|major| major.parse::<u32>().ok()) {
            Some(major) if major >= OLDEST_MAJOR => Ok(connection),
            _ => Err(Error::Version { address: self.address(), version }),
        }
    }

    fn explain(&self, error: &RedisError) -> Error {
        let (address, reason) = (self.address(), error.to_string());
        let unavailable = |why: &str| format!("{why} ({reason})");
        match (error.kind(), error.code()) {
            (ErrorKind::AuthenticationFailed, _) | (_, Some("WRONGPASS" | "NOAUTH")) => {
                Error::Login { address, reason }
            }
            (ErrorKind::RESP3NotSupported, _) => Error::Version { address, version: "5 or older".into() },
            (_, Some("BUSY")) => {
                let reason = unavailable("it is busy with somebody's script that runs for too long");
                Error::Unavailable { address, reason }
            }
            (ErrorKind::Server(ServerErrorKind::Moved), _) => {
                let reason = unavailable(match self.place.is_cluster() {
                    true => "another node of the Cluster serves these keys now",
                    false => {
                        "it is a node of a Redis Cluster, and another one serves these keys; name nodes in \
                         registry.cluster.addresses"
                    }
                });
                Error::Unavailable { address, reason }
            }
            (ErrorKind::Server(ServerErrorKind::Ask | ServerErrorKind::TryAgain), _) => {
                let reason = unavailable("the Cluster is moving these keys to another node");
                Error::Unavailable { address, reason }
            }
            _ if error.is_timeout() => Error::Unavailable { address, reason: "no answer in time".into() },
            _ if is_right_missing(error, &reason) => {
                let reason = format!("{reason} (ACL LOG on the server names what the user lacks)");
                Error::Rejected { address, reason }
            }
            _ if standing(error) == Standing::Serves => Error::Rejected { address, reason },
            _ => Error::Unavailable { address, reason },
        }
    }
}

impl Lease<'_> {
    /// Ends the request, and keeps the connection if it leads to a healthy primary.
    pub fn settle<T>(mut self, reply: RedisResult<T>) -> Result<T, Error> {
        let place = &self.link.place;
        let standing = reply.as_ref().map_or_else(standing, |_| Standing::Serves);
        match standing {
            Standing::Serves => place.trust(&self.slot.address),
            Standing::Waits => {}
            Standing::Fails => place.doubt(&self.slot.address),
        }
        if standing != Standing::Fails {
            self.slot.connection = Some(self.connection);
        }
        reply.map_err(|error| self.link.explain(&error))
    }
}

/// What an error says of the server that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It is a healthy primary, and the error is its answer, such as a script's own error.
    Serves,
    /// It is one, and cannot serve these keys while they are on their way to another node.
    Waits,
    /// It is none, or not that of these keys; or nothing was heard of it.
    Fails,
}

fn standing(error: &RedisError) -> Standing {
    match error.kind() {
        ErrorKind::Server(ServerErrorKind::Ask | ServerErrorKind::TryAgain) => Standing::Waits,
        ErrorKind::Server(
            ServerErrorKind::ReadOnly
            | ServerErrorKind::BusyLoading
            | ServerErrorKind::MasterDown
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::Moved,
        ) => Standing::Fails,
        // An error code that the library does not know: `NOREPLICAS`, `OOM`, `WRONGTYPE` and the like.
        ErrorKind::Server(_) | ErrorKind::Extension => Standing::Serves,
        _ => Standing::Fails,
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
