//! The registry in Redis 7.0 or later. All keys of a pool share the hash tag `{pool}`:
//!
//! | key | type | holds |
//! |---|---|---|
//! | `weir:{pool}:presence:WORKER` | string, expires | incarnation, a space, the presence as JSON |
//! | `weir:{pool}:members` | sorted set | `WORKER/INCARNATION` by the expiry in ms of Redis' clock |
//! | `weir:{pool}:open` | sorted set | the same, of those that have room |
//! | `weir:{pool}:open:batch` | sorted set | the same, of those that have room for batch tasks |
//! | `weir:{pool}:changes` | stream, capped | `present` with a presence's value, or `gone` with a member |
//! | `weir:{pool}:epoch` | string | names the sequence of changes; gone when the server was emptied |
//! | `weir:{pool}:never` | nothing | what is written to without effect, to see whether writes are taken |
//! | `weir:{pool}:lease:NAME` | string, expires | the token of who has the lease |
//! | `weir:{pool}:lease:NAME:last` | string | the last token that was given |
//!
//! Each write is one atomic script. Followers block on the stream on a connection of their own; twice a second they
//! also have expired members removed, and learn whether the stream still continues where they are: it does not when
//! its epoch is another one, when it ends before them (a failover lost writes), or begins after them (trimmed). A server that
//! takes no writes rejects that, so that nobody believes it when it says who is gone.

mod link;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ::redis::streams::{StreamId, StreamReadReply};
use ::redis::{RedisResult, Script, cmd};
use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::Instant;

use self::link::{Link, Metrics, Operation};
use super::{
    CHANGES_KEPT, CHANGES_PER_READ, CHANGES_WAIT, Change, Changes, Config, Cursor, Incarnation, LEASE_TTL, LOOK_LIMIT,
    Presence, Registry, RegistryError, Snapshot, State, TTL,
};
use crate::redis::{Place, version};
use crate::task::{InvalidName, PoolName, WorkerId};
use crate::telemetry::Telemetry;

/// How often a follower has expired members removed and checks where it is.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// The least time between two reads of changes: in a busy pool one read then brings many.
const READ_INTERVAL: Duration = Duration::from_millis(10);

/// The most workers in a snapshot.
const SNAPSHOT_LIMIT: usize = 100_000;

/// The hyphenated form of a UUID.
const INCARNATION_BYTES: usize = 36;

/// A pool's registry in Redis.
pub struct RedisRegistry {
    keys: Keys,
    scripts: Scripts,
    /// Short requests.
    requests: Link,
    /// Reading changes blocks its connection.
    follow: Link,
    pace: Mutex<Pace>,
    metrics: Metrics,
}

struct Keys {
    members: String,
    open: String,
    open_to_batch: String,
    changes: String,
    epoch: String,
    never: String,
    presence_prefix: String,
    lease_prefix: String,
}

struct Scripts {
    announce: Script,
    withdraw: Script,
    position: Script,
    lease: Script,
}

/// When this follower last did what it does not do on each read.
#[derive(Default)]
struct Pace {
    checked: Option<Instant>,
    read: Option<Instant>,
}

impl RedisRegistry {
    /// The registry of `pool` where the configuration says. Connects at the first request, not here.
    pub fn new(config: &Config, pool: &PoolName, telemetry: &Telemetry) -> Result<Self, RegistryError> {
        let keys = Keys::new(pool);
        // Each pool may be on another node of a Cluster.
        let place = Place::new(config, &keys.members).map_err(|error| RegistryError::of("the configuration", error))?;
        let (place, metrics) = (Arc::new(place), Metrics::new(telemetry));
        let link = |patience| Link::new(config, place.clone(), patience, metrics.clone());
        let (requests, follow) = (link(Duration::ZERO), link(CHANGES_WAIT));
        Ok(RedisRegistry { keys, scripts: Scripts::new(), requests, follow, pace: Mutex::default(), metrics })
    }

    /// Where the changes are: the epoch, the oldest that is kept, and the latest.
    async fn position(&self) -> Result<Position, RegistryError> {
        let mut script = self.scripts.position.prepare_invoke();
        self.keys.pool().into_iter().for_each(|key| {
            script.key(key);
        });
        script.key(&self.keys.never).arg(CHANGES_KEPT);
        let mut lease = self.requests.lease(Operation::Position).await?;
        let reply: RedisResult<(String, String, String)> = script.invoke_async(lease.connection()).await;
        let (epoch, oldest, latest) = lease.settle(reply)?;
        Ok(Position { epoch: epoch.into(), oldest: stream_id(&oldest), latest: stream_id(&latest) })
    }

    /// The token by which the lease is held after it; none when it is not.
    async fn ask_lease(&self, name: &str, held: Option<u64>, ttl: Duration) -> Result<Option<u64>, RegistryError> {
        let key = format!("{}{name}", self.keys.lease_prefix);
        let mut script = self.scripts.lease.prepare_invoke();
        let last = format!("{key}:last");
        script
            .key(key)
            .key(last)
            .arg(ttl.as_millis() as u64)
            .arg(held.map(|token| token.to_string()).unwrap_or_default());
        let mut lease = self.requests.lease(Operation::Lease).await?;
        let reply: RedisResult<String> = script.invoke_async(lease.connection()).await;
        Ok(lease.settle(reply)?.parse().ok())
    }

    /// Fails with `Lagged` when the changes after the cursor are not all there.
    async fn check(&self, after: &Cursor) -> Result<(), RegistryError> {
        let due = self.pace.lock().checked.is_none_or(|checked| checked.elapsed() >= CHECK_INTERVAL);
        if due {
            let position = self.position().await?;
            self.pace.lock().checked = Some(Instant::now());
            position.check(after)?;
        }
        Ok(())
    }

    /// At most [`LOOK_LIMIT`] at once: some 200 KB, a millisecond of Redis' time.
    async fn presences(&self, workers: &[&str]) -> Result<Vec<Presence>, RegistryError> {
        let mut request = cmd("MGET");
        workers.iter().for_each(|worker| {
            request.arg(self.keys.presence(worker));
        });
        let mut lease = self.requests.lease(Operation::Snapshot).await?;
        let reply: RedisResult<Vec<Option<String>>> = request.query_async(lease.connection()).await;
        let values = lease.settle(reply)?.into_iter().flatten();
        Ok(values.filter_map(|value| self.readable(read_presence(&value))).collect())
    }

    /// What cannot be read is counted and skipped: one odd entry must not hide all others.
    fn readable<T>(&self, read: Result<T, String>) -> Option<T> {
        read.inspect_err(|reason| {
            self.metrics.unreadable.increment(1);
            tracing::warn!(reason, "skipped an entry of the registry that is not readable");
        })
        .ok()
    }
}

#[async_trait]
impl Registry for RedisRegistry {
    async fn announce(&self, presence: &Presence, changed: bool) -> Result<(), RegistryError> {
        let json = serde_json::to_string(presence).expect("a presence has only strings, numbers and lists");
        let mut script = self.scripts.announce.prepare_invoke();
        self.keys.pool().into_iter().for_each(|key| {
            script.key(key);
        });
        script
            .key(self.keys.presence(presence.worker.as_str()))
            .arg(presence.worker.as_str())
            .arg(presence.incarnation.to_string())
            .arg(json)
            .arg(TTL.as_millis() as u64)
            .arg(u8::from(presence.state == State::Open))
            .arg(u8::from(presence.takes_batch()))
            .arg(u8::from(changed))
            .arg(CHANGES_KEPT)
            .arg(Incarnation::mint().to_string());
        let mut lease = self.requests.lease(Operation::Announce).await?;
        let reply: RedisResult<u8> = script.invoke_async(lease.connection()).await;
        match lease.settle(reply)? {
            0 => Err(RegistryError::Superseded { worker: presence.worker.clone() }),
            _ => Ok(()),
        }
    }

    async fn withdraw(&self, worker: &WorkerId, incarnation: Incarnation) -> Result<(), RegistryError> {
        let mut script = self.scripts.withdraw.prepare_invoke();
        let [members, open, batch, changes, _] = self.keys.pool();
        script.key(members).key(open).key(batch).key(changes).key(self.keys.presence(worker.as_str()));
        script.arg(worker.as_str()).arg(incarnation.to_string()).arg(CHANGES_KEPT);
        let mut lease = self.requests.lease(Operation::Withdraw).await?;
        let reply: RedisResult<u8> = script.invoke_async(lease.connection()).await;
        lease.settle(reply).map(drop)
    }

    async fn snapshot(&self) -> Result<Snapshot, RegistryError> {
        // The place first, the workers after it: what changes in between is read again, never missed. This spares
        // Redis one long script that would hold up every heartbeat.
        let position = self.position().await?;
        let mut request = cmd("ZRANGE");
        request.arg(&self.keys.members).arg(0).arg(SNAPSHOT_LIMIT - 1);
        let mut lease = self.requests.lease(Operation::Snapshot).await?;
        let reply: RedisResult<Vec<String>> = request.query_async(lease.connection()).await;
        let members = lease.settle(reply)?;
        let ids: Vec<&str> = members.iter().filter_map(|member| Some(member.split_once('/')?.0)).collect();
        let mut workers = Vec::with_capacity(ids.len());
        for some in ids.chunks(LOOK_LIMIT) {
            workers.extend(self.presences(some).await?);
        }
        Ok(Snapshot { workers, cursor: position.cursor() })
    }

    async fn changes(&self, after: &Cursor) -> Result<Changes, RegistryError> {
        let next_read = self.pace.lock().read.map(|read| read + READ_INTERVAL);
        if let Some(next_read) = next_read {
            tokio::time::sleep_until(next_read).await;
        }
        self.check(after).await?;
        let mut request = cmd("XREAD");
        let wait_ms = CHANGES_WAIT.as_millis() as u64;
        request.arg("COUNT").arg(CHANGES_PER_READ).arg("BLOCK").arg(wait_ms).arg("STREAMS");
        request.arg(&self.keys.changes).arg(format!("{}-{}", after.position.0, after.position.1));
        let mut lease = self.follow.lease(Operation::Changes).await?;
        let reply: RedisResult<Option<StreamReadReply>> = request.query_async(lease.connection()).await;
        let entries = lease.settle(reply)?.into_iter().flat_map(|reply| reply.keys).flat_map(|key| key.ids);

        self.pace.lock().read = Some(Instant::now());
        let (mut changes, mut position) = (Vec::new(), after.position);
        for entry in entries {
            position = stream_id(&entry.id).unwrap_or(position);
            changes.extend(self.readable(read_change(&entry)));
        }
        Ok(Changes { changes, cursor: Cursor { epoch: after.epoch.clone(), position } })
    }

    async fn look(&self, workers: &[WorkerId]) -> Result<Vec<Presence>, RegistryError> {
        let ids: Vec<&str> = workers.iter().take(LOOK_LIMIT).map(WorkerId::as_str).collect();
        if ids.is_empty() { Ok(Vec::new()) } else { self.presences(&ids).await }
    }

    async fn lease(&self, name: &str, held: Option<u64>) -> Result<Option<u64>, RegistryError> {
        self.ask_lease(name, held, LEASE_TTL).await
    }

    async fn release(&self, name: &str, token: u64) -> Result<(), RegistryError> {
        self.ask_lease(name, Some(token), Duration::ZERO).await.map(drop)
    }

    async fn probe(&self) -> Result<String, RegistryError> {
        let mut lease = self.requests.lease(Operation::Position).await?;
        let started = Instant::now();
        let reply = cmd("HELLO").query_async(lease.connection()).await;
        let version = version(&lease.settle(reply)?);
        let took = started.elapsed().as_secs_f64() * 1000.0;
        // Scripts are what a user's rights most often lack.
        self.position().await?;
        Ok(format!("redis {version} at {}, {took:.1} ms", self.requests.address()))
    }
}

impl Keys {
    fn new(pool: &PoolName) -> Self {
        let key = |name: &str| format!("weir:{{{pool}}}:{name}");
        Keys {
            members: key("members"),
            open: key("open"),
            open_to_batch: key("open:batch"),
            changes: key("changes"),
            epoch: key("epoch"),
            never: key("never"),
            presence_prefix: key("presence:"),
            lease_prefix: key("lease:"),
        }
    }

    /// In the order in which the scripts take them.
    fn pool(&self) -> [&str; 5] {
        [&self.members, &self.open, &self.open_to_batch, &self.changes, &self.epoch]
    }

    fn presence(&self, worker: &str) -> String {
        format!("{}{worker}", self.presence_prefix)
    }
}

impl Scripts {
    fn new() -> Self {
        const PRELUDE: &str = include_str!("redis/prelude.lua");
        let script = |body: &str| Script::new(&format!("{PRELUDE}\n{body}"));
        Scripts {
            announce: script(include_str!("redis/announce.lua")),
            withdraw: script(include_str!("redis/withdraw.lua")),
            position: script(include_str!("redis/position.lua")),
            lease: script(include_str!("redis/lease.lua")),
        }
    }
}

/// Where the stream of changes begins and ends; no ids when it holds nothing.
struct Position {
    epoch: Arc<str>,
    oldest: Option<(u64, u64)>,
    latest: Option<(u64, u64)>,
}

impl Position {
    fn cursor(self) -> Cursor {
        Cursor { epoch: self.epoch, position: self.latest.unwrap_or_default() }
    }

    fn check(&self, after: &Cursor) -> Result<(), RegistryError> {
        // One may stand on the oldest entry or later. Standing just before it looks like having missed one: a snapshot
        // too many is cheap, and a change too few is not.
        let on_stream = match (self.oldest, self.latest) {
            (Some(oldest), Some(latest)) => (oldest..=latest).contains(&after.position),
            _ => after.position == (0, 0),
        };
        if self.epoch == after.epoch && on_stream { Ok(()) } else { Err(RegistryError::Lagged) }
    }
}

/// The pools that somebody is a member of.
pub async fn pools(config: &Config) -> Result<BTreeSet<PoolName>, RegistryError> {
    let found = crate::redis::keys(config, "weir:{*}:members").await;
    let found = found.map_err(|error| RegistryError::of("the search for all pools", error))?;
    let pool = |key: &String| key.strip_prefix("weir:{")?.strip_suffix("}:members")?.parse().ok();
    Ok(found.iter().filter_map(pool).collect())
}

fn stream_id(text: &str) -> Option<(u64, u64)> {
    let (milliseconds, sequence) = text.split_once('-')?;
    Some((milliseconds.parse().ok()?, sequence.parse().ok()?))
}

fn read_presence(value: &str) -> Result<Presence, String> {
    let json = value.get(INCARNATION_BYTES..).ok_or("it is too short for a presence")?;
    serde_json::from_str(json).map_err(|error| format!("the presence does not parse: {error}"))
}

fn read_change(entry: &StreamId) -> Result<Change, String> {
    if let Some(value) = entry.get::<String>("present") {
        return read_presence(&value).map(Change::Present);
    }
    let member = entry.get::<String>("gone").ok_or("the change is neither present nor gone")?;
    let (worker, incarnation) = member.split_once('/').ok_or("the member has no incarnation")?;
    let worker = worker.parse().map_err(|error: InvalidName| error.to_string())?;
    let incarnation =
        incarnation.parse().map_err(|error: uuid::Error| format!("the incarnation does not parse: {error}"))?;
    Ok(Change::Gone(worker, incarnation))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(epoch: &str, position: (u64, u64)) -> Cursor {
        Cursor { epoch: epoch.into(), position }
    }

    #[test]
    fn a_cursor_is_good_only_on_the_stream_that_it_was_taken_from() {
        let stream = Position { epoch: "a".into(), oldest: Some((10, 0)), latest: Some((20, 1)) };
        for good in [at("a", (10, 0)), at("a", (15, 3)), at("a", (20, 1))] {
            stream.check(&good).expect("on the stream");
        }
        for (lagged, why) in [
            (at("a", (9, 9)), "trimmed"),
            (at("a", (20, 2)), "writes were lost"),
            (at("b", (15, 0)), "the server was emptied and filled again"),
            (at("", (0, 0)), "the pool has come to be"),
        ] {
            assert_eq!(stream.check(&lagged), Err(RegistryError::Lagged), "{why}");
        }
        let empty = Position { epoch: "".into(), oldest: None, latest: None };
        empty.check(&at("", (0, 0))).expect("nothing has happened yet");
        assert_eq!(empty.check(&at("a", (15, 0))), Err(RegistryError::Lagged));
    }

    #[test]
    fn keys_share_the_pools_hash_tag() {
        let keys = Keys::new(&"parallel".parse().expect("a pool"));
        assert_eq!(keys.presence("w1"), "weir:{parallel}:presence:w1");
        assert_eq!(keys.pool()[3], "weir:{parallel}:changes");
    }

    #[test]
    fn what_is_not_a_presence_is_named() {
        assert!(read_presence("short").expect_err("short").contains("too short"));
        let odd = format!("{} {{}}", Incarnation::mint());
        assert!(read_presence(&odd).expect_err("odd").contains("missing field"));
    }
}
