//! The document in Redis 7.0 or later: one key, so that one write reaches every worker.
//!
//! | key | type | holds |
//! |---|---|---|
//! | `weir:{settings}` (`settings.redis_key`) | string | the document |
//! | `weir:{settings}:history` | stream | the last 50 changes: revision, who, why, and the document |
//! | `weir:{settings}:revision` | string | the number of changes |
//!
//! A write is one atomic script, which changes nothing when the document is not the one that was expected. Workers block
//! on the stream: unlike pub/sub it can be gone on with after a lost connection, so no change is missed. After five
//! seconds without one they read the document anyway, for it may have been set by hand.
//!
//! Whatever is not an answer drops the connection, and the next request makes a new one; the client library alone would
//! keep one whose answers time out. The pause before that grows up to two seconds and is moved by chance, so that a
//! fleet does not come back as one.

use std::time::{Duration, SystemTime};

use ::redis::aio::MultiplexedConnection;
use ::redis::io::tcp::TcpSettings;
use ::redis::streams::{StreamId, StreamRangeReply, StreamReadReply};
use ::redis::{
    AsyncConnectionConfig, Client, Cmd, FromRedisValue, IntoConnectionInfo, Pipeline, ProtocolVersion, RedisResult,
    Script, cmd, pipe,
};
use async_trait::async_trait;
use parking_lot::Mutex as ShortLock;
use rand::RngExt;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Mutex;

use super::SettingsError;
use super::store::{
    Edit, FOUND, HISTORY, MAX_DOCUMENT_BYTES, ReadError, Reading, Revision, Store, UNKNOWN, WriteError,
};

/// How long a change by other means than weir takes to be seen; also how long a request for changes blocks.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// How long connecting and logging in, or an answer, may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// The pause after a failure at first; doubled up to [`LAST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(2);

/// Before the first change.
const BEGINNING: &str = "0-0";

/// The document in a Redis.
pub struct Redis {
    client: Client,
    address: String,
    keys: Keys,
    write: Script,
    requests: Mutex<Option<MultiplexedConnection>>,
    /// Waiting for changes blocks its connection.
    follow: Mutex<Option<MultiplexedConnection>>,
    seen: ShortLock<Seen>,
}

struct Keys {
    document: String,
    history: String,
    revision: String,
}

/// What the reads so far came to.
#[derive(Default)]
struct Seen {
    /// The last change before the document was read; none until it was.
    change: Option<String>,
    /// Reads in a row that failed.
    failures: u32,
}

impl Redis {
    /// The document in the Redis of that URL. Connects at the first request, not here.
    pub fn new(url: &SecretString, key: &str) -> Result<Self, SettingsError> {
        let wrong = |reason: String| SettingsError::Redis { reason };
        // The words for a wrong URL may quote it; registry.url is checked where it belongs.
        let info =
            url.expose_secret().into_connection_info().map_err(|_| wrong("registry.url is no Redis URL".into()))?;
        let address = info.addr().to_string();
        let redis = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let redis = redis.set_lib_name("weir", env!("CARGO_PKG_VERSION"));
        let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true)).set_redis_settings(redis);
        Ok(Redis {
            client: Client::open(info).map_err(|error| wrong(error.to_string()))?,
            address,
            keys: Keys {
                document: key.to_owned(),
                history: format!("{key}:history"),
                revision: format!("{key}:revision"),
            },
            write: Script::new(include_str!("redis/write.lua")),
            requests: Mutex::default(),
            follow: Mutex::default(),
            seen: ShortLock::default(),
        })
    }

    async fn connect(&self, answer_within: Duration) -> Result<MultiplexedConnection, String> {
        let timeouts = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER_TIMEOUT))
            .set_response_timeout(Some(answer_within));
        let connecting = self.client.get_multiplexed_async_connection_with_config(&timeouts);
        match tokio::time::timeout(ANSWER_TIMEOUT, connecting).await {
            Ok(connected) => connected.map_err(|error| self.failed(&error)),
            Err(_) => Err(format!("{}: no connection in time", self.address)),
        }
    }

    fn failed(&self, error: &::redis::RedisError) -> String {
        let reason = if error.is_timeout() { "no answer in time".into() } else { error.to_string() };
        format!("{}: {reason}", self.address)
    }

    /// One request at a time; one that fails, or is dropped midway, takes its connection with it.
    async fn ask<T: FromRedisValue>(&self, request: Request<'_>) -> Result<T, String> {
        let (slot, answer_within) = match request {
            Request::Wait(_) => (&self.follow, POLL_INTERVAL + ANSWER_TIMEOUT),
            _ => (&self.requests, ANSWER_TIMEOUT),
        };
        let mut slot = slot.lock().await;
        let mut connection = match slot.take() {
            Some(connection) => connection,
            None => self.connect(answer_within).await?,
        };
        let reply: RedisResult<T> = match request {
            Request::Wait(cmd) | Request::One(cmd) => cmd.query_async(&mut connection).await,
            Request::Many(pipe) => pipe.query_async(&mut connection).await,
            Request::Write(expected, edit) => {
                let Keys { document, history, revision } = &self.keys;
                let mut script = self.write.key(document);
                script.key(history).key(revision).arg(expected).arg(&edit.document).arg(&edit.who).arg(&edit.why);
                script.arg(HISTORY).arg(UNKNOWN).arg(FOUND).invoke_async(&mut connection).await
            }
        };
        let answer = reply.map_err(|error| self.failed(&error))?;
        *slot = Some(connection);
        Ok(answer)
    }

    async fn look(&self) -> Result<(Option<String>, Vec<u8>), String> {
        let mut both = pipe();
        both.atomic();
        both.cmd("XREVRANGE").arg(&self.keys.history).arg("+").arg("-").arg("COUNT").arg(1);
        // As much of it as tells a document from one that is too large.
        both.cmd("GETRANGE").arg(&self.keys.document).arg(0).arg(MAX_DOCUMENT_BYTES);
        let (last, document): (StreamRangeReply, Vec<u8>) = self.ask(Request::Many(&both)).await?;
        Ok((last.ids.into_iter().next().map(|last| last.id), document))
    }
}

enum Request<'a> {
    One(&'a Cmd),
    Many(&'a Pipeline),
    Wait(&'a Cmd),
    Write(&'a [u8], &'a Edit),
}

#[async_trait]
impl Store for Redis {
    fn name(&self) -> String {
        format!("redis {} {}", self.address, self.keys.document)
    }

    async fn read(&self) -> Reading {
        let found = self.look().await;
        let mut seen = self.seen.lock();
        let (change, document) = found.map_err(|reason| {
            seen.failures = seen.failures.saturating_add(1);
            ReadError::Failed(reason)
        })?;
        *seen = Seen { change: Some(change.unwrap_or_else(|| BEGINNING.into())), failures: 0 };
        match document.len() {
            0 => Err(ReadError::Missing),
            bytes if bytes > MAX_DOCUMENT_BYTES => {
                Err(ReadError::Failed(format!("it is larger than {MAX_DOCUMENT_BYTES} bytes")))
            }
            _ => Ok(document),
        }
    }

    async fn wait(&self) {
        let (change, failures) = {
            let seen = self.seen.lock();
            (seen.change.clone(), seen.failures)
        };
        if failures > 0 {
            let pause = FIRST_PAUSE.saturating_mul(1 << (failures - 1).min(10)).min(LAST_PAUSE);
            let share = rand::rng().random_range(0.5..1.0);
            tokio::time::sleep(pause.mul_f64(share)).await;
            return;
        }
        let Some(change) = change else { return };
        let mut request = cmd("XREAD");
        request.arg("COUNT").arg(1).arg("BLOCK").arg(POLL_INTERVAL.as_millis() as u64);
        request.arg("STREAMS").arg(&self.keys.history).arg(change);
        // Why it failed, the read that follows will say.
        let answer: Result<Option<StreamReadReply>, String> = self.ask(Request::Wait(&request)).await;
        if answer.is_err() {
            tokio::time::sleep(FIRST_PAUSE).await;
        }
    }

    async fn write(&self, expected: Option<&[u8]>, edit: &Edit) -> Result<u64, WriteError> {
        let number: u64 =
            self.ask(Request::Write(expected.unwrap_or_default(), edit)).await.map_err(WriteError::Failed)?;
        if number == 0 { Err(WriteError::Conflict) } else { Ok(number) }
    }

    async fn history(&self) -> Result<Vec<Revision>, ReadError> {
        let mut request = cmd("XRANGE");
        request.arg(&self.keys.history).arg("-").arg("+").arg("COUNT").arg(HISTORY);
        let entries: StreamRangeReply = self.ask(Request::One(&request)).await.map_err(ReadError::Failed)?;
        let revision = |entry: &StreamId| {
            let ms = entry.id.split('-').next()?.parse().ok()?;
            let text = |name: &str| entry.get::<String>(name);
            let edit = Edit { document: text("document")?, who: text("who")?, why: text("why")? };
            Some(Revision {
                number: entry.get("revision")?,
                at: SystemTime::UNIX_EPOCH + Duration::from_millis(ms),
                edit,
            })
        };
        let revisions: Option<Vec<_>> = entries.ids.iter().map(revision).collect();
        revisions.ok_or_else(|| ReadError::Failed(format!("{} holds what weir did not write", self.keys.history)))
    }
}
