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
//! The three keys share a hash tag, so that they are on one node of a Cluster. The pause after a failure grows up to two
//! seconds and is moved by chance, so that a fleet does not come back as one.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::redis::streams::{StreamId, StreamRangeReply, StreamReadReply};
use ::redis::{Cmd, FromRedisValue, Pipeline, RedisResult, Script, cmd, pipe};
use async_trait::async_trait;
use parking_lot::Mutex;
use rand::RngExt;

use super::SettingsError;
use super::store::{
    Edit, FOUND, HISTORY, MAX_DOCUMENT_BYTES, ReadError, Reading, Revision, Store, UNKNOWN, WriteError, within_limit,
};
use crate::redis::{self, Link, Place};

/// How long a change by other means than weir takes to be seen; also how long a request for changes blocks.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// The pause after a failure at first; doubled up to [`LAST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(2);

/// Before the first change.
const BEGINNING: &str = "0-0";

/// The document in a Redis.
pub struct Redis {
    place: Arc<Place>,
    keys: Keys,
    write: Script,
    requests: Link,
    /// Waiting for changes blocks its connection.
    follow: Link,
    seen: Mutex<Seen>,
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
    /// The document in the Redis that the registry is in. Connects at the first request, not here.
    pub fn new(config: &redis::Config, key: &str) -> Result<Self, SettingsError> {
        let wrong = |error: redis::Error| SettingsError::Redis { reason: error.to_string() };
        let place = Arc::new(Place::new(config, key).map_err(wrong)?);
        Ok(Redis {
            keys: Keys {
                document: key.to_owned(),
                history: format!("{key}:history"),
                revision: format!("{key}:revision"),
            },
            write: Script::new(include_str!("redis/write.lua")),
            requests: Link::new(config, place.clone(), Duration::ZERO),
            follow: Link::new(config, place.clone(), POLL_INTERVAL),
            place,
            seen: Mutex::default(),
        })
    }

    /// One request at a time.
    async fn ask<T: FromRedisValue>(&self, request: Request<'_>) -> Result<T, String> {
        let link = if matches!(request, Request::Wait(_)) { &self.follow } else { &self.requests };
        let mut lease = link.lease().await.map_err(|error| error.to_string())?;
        let connection = &mut lease.connection;
        let reply: RedisResult<T> = match request {
            Request::Wait(cmd) | Request::One(cmd) => cmd.query_async(connection).await,
            Request::Many(pipe) => pipe.query_async(connection).await,
            Request::Write(expected, edit) => {
                let Keys { document, history, revision } = &self.keys;
                let mut script = self.write.key(document);
                script.key(history).key(revision).arg(expected).arg(&edit.document).arg(&edit.who).arg(&edit.why);
                script.arg(HISTORY).arg(UNKNOWN).arg(FOUND).arg(MAX_DOCUMENT_BYTES);
                script.invoke_async(connection).await
            }
        };
        lease.settle(reply).map_err(|error| error.to_string())
    }

    async fn look(&self) -> Result<(Option<String>, Vec<u8>), String> {
        // The place in the history first: a change in between is read again, never missed. A transaction would say of a
        // key that has moved only that it was aborted.
        let mut both = pipe();
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
        format!("redis {} {}", self.place.name(), self.keys.document)
    }

    fn may_be_empty(&self) -> bool {
        true
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
            // Its whole size would take one more right of everybody.
            _ => within_limit(document, None),
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
        edit.check()?;
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
            // What somebody else had put there may be no text.
            let document = String::from_utf8_lossy(&entry.get::<Vec<u8>>("document")?).into_owned();
            let edit = Edit { document, who: text("who")?, why: text("why")? };
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
