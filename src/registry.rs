//! Who is in the pool: workers announce themselves here and routers follow them.
//!
//! A registry is a bulletin board, not a lock. The worker's own gate is the authority on what it admits; whatever is
//! lost or late here costs a refused call. Each announcement carries the worker's whole state, so that a registry that
//! lost everything is whole again after one heartbeat of each worker. Expiry happens in the registry's time, never in
//! a worker's.
//!
//! Followers take one [`Registry::snapshot`] and then read [`Registry::changes`] from its cursor on; nobody reads the
//! whole pool at an interval, since that is what makes large fleets expensive.

mod absence;
pub mod memory;
pub mod redis;
mod rejected;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::redis::Error;
use crate::task::{IntegrationName, PoolName, WorkerId};
use crate::telemetry::Telemetry;

pub use absence::{Absence, is_gone};
pub use rejected::{NAME_BYTES, NAMES, Rejected};

pub use crate::redis::{Cluster, Config, Error as RedisError, Sentinel, Tls};

/// How often a worker announces itself when nothing changes. With 4,000 workers that is 2,700 writes per second.
pub const HEARTBEAT: Duration = Duration::from_millis(1500);

/// Each heartbeat is moved by up to this share of itself, so that a fleet that started or reconnected as one spreads.
pub const HEARTBEAT_JITTER: f64 = 0.2;

/// How long an announcement counts: three heartbeats, so that one lost write and one late one are not a death.
pub const TTL: Duration = Duration::from_millis(4500);

/// Changes of state within this time become one write. A gate at the edge of its target flips with every task; half of
/// the 100 ms in which routers must hear of a change stays for the way.
pub const COALESCE: Duration = Duration::from_millis(50);

/// How long a lease holds without being renewed: three renewals, so that a failover of Redis costs none.
pub const LEASE_TTL: Duration = Duration::from_secs(15);

/// How often its holder renews it.
pub const LEASE_RENEWAL: Duration = Duration::from_secs(5);

/// The longest that [`Registry::changes`] waits for something to report.
pub const CHANGES_WAIT: Duration = Duration::from_secs(1);

/// Changes that are kept for followers that were away; one that missed more takes a snapshot.
const CHANGES_KEPT: usize = 10_000;

/// The most workers in one [`Registry::look`]; what is beyond is left out.
pub const LOOK_LIMIT: usize = 500;

/// The most changes in one answer.
const CHANGES_PER_READ: usize = 1_000;

/// One life of a worker process. Time-ordered (UUID version 7): of two with the same worker id, the larger is newer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Incarnation(pub Uuid);

impl Incarnation {
    /// A new one, for now.
    pub fn mint() -> Self {
        Incarnation(Uuid::now_v7())
    }
}

impl FromStr for Incarnation {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        text.parse().map(Incarnation)
    }
}

impl TryFrom<String> for Incarnation {
    type Error = uuid::Error;
    fn try_from(text: String) -> Result<Self, uuid::Error> {
        text.parse()
    }
}

impl From<Incarnation> for String {
    fn from(incarnation: Incarnation) -> String {
        incarnation.to_string()
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a worker says of itself. Fields that a newer worker adds are ignored by an older reader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// Who.
    pub worker: WorkerId,
    /// Where routers reach it: `http://host:port`.
    pub address: String,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// The pool that it serves in.
    pub pool: PoolName,
    /// How many slots it admits.
    pub target: u32,
    /// How many of them are held.
    pub in_flight: u32,
    /// How many of those that are free only interactive tasks may take.
    #[serde(default)]
    pub reserved: u32,
    /// Whether it takes tasks, and if not, why.
    pub state: State,
    /// What it runs.
    pub integrations: Vec<IntegrationName>,
    /// Those of which it runs as many tasks as it may; in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub full: Vec<IntegrationName>,
    /// Those that it spares, because they fail; in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub broken: Vec<IntegrationName>,
    /// Those that were spared and that a few tasks may try; in order. Routers send tasks of them as of all others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub half_open: Vec<IntegrationName>,
    /// The version of the settings that it runs with.
    pub settings_version: String,
    /// What of the last settings document it does not run with; none where it took all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings_rejected: Option<Box<Rejected>>,
    /// The most slots that it takes as its target from the next document, unless that allows a jump. None of an older worker,
    /// which does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jump_limit: Option<u32>,
}

impl Presence {
    /// Whether it has a slot that batch tasks may take; otherwise its room, if any, is for interactive ones.
    pub fn takes_batch(&self) -> bool {
        self.state == State::Open && self.in_flight.saturating_add(self.reserved) < self.target
    }
}

/// Whether a worker takes tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It has room.
    Open,
    /// All of its slots are held.
    Full,
    /// It has slots and takes nothing, because it lags.
    Overloaded,
    /// It finishes what it has and then ends.
    Draining,
}

/// Everyone in the pool at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Each worker that lives.
    pub workers: Vec<Presence>,
    /// Where the changes after this snapshot begin. Some that it holds already may be reported again.
    pub cursor: Cursor,
}

/// What happened after a cursor, oldest first.
#[derive(Debug, Clone)]
pub struct Changes {
    /// Empty when nothing happened while the call waited.
    pub changes: Vec<Change>,
    /// Where to go on.
    pub cursor: Cursor,
}

/// One thing that happened in the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A worker came, or its state changed. Replaces what was known of the worker id, an older incarnation included.
    Present(Presence),
    /// This incarnation withdrew or was not heard of for [`TTL`]. A newer one of the same worker is not meant.
    Gone(WorkerId, Incarnation),
}

/// A place in the pool's sequence of changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// Names one unbroken sequence; another one begins when the registry has lost its memory.
    epoch: Arc<str>,
    /// The last change that was read.
    position: (u64, u64),
}

/// The registry of one pool.
#[async_trait]
pub trait Registry: Send + Sync {
    /// Writes the worker's whole state, which counts for [`TTL`]; `changed` says that followers must hear of it.
    ///
    /// Followers also hear of it when the registry did not know the worker. Fails with [`RegistryError::Superseded`]
    /// when a newer incarnation has the worker's id.
    async fn announce(&self, presence: &Presence, changed: bool) -> Result<(), RegistryError>;

    /// Removes the worker, if it is still this incarnation that is there.
    async fn withdraw(&self, worker: &WorkerId, incarnation: Incarnation) -> Result<(), RegistryError>;

    /// Everyone in the pool now, and where the changes after that begin.
    async fn snapshot(&self) -> Result<Snapshot, RegistryError>;

    /// What happened after the cursor; waits for it at most for [`CHANGES_WAIT`].
    ///
    /// Fails with [`RegistryError::Lagged`] when that is no longer known: take a snapshot. Dropping the call loses
    /// nothing, the same cursor may be used again.
    async fn changes(&self, after: &Cursor) -> Result<Changes, RegistryError>;

    /// What these workers last said of themselves, at their last heartbeat; those that are gone are left out. It is for
    /// the few that somebody looks at: a number in flight alone is no change, so followers do not hear of it.
    async fn look(&self, workers: &[WorkerId]) -> Result<Vec<Presence>, RegistryError>;

    /// The right to do what one worker of the pool does at a time, for [`LEASE_TTL`]: taken where nobody has it, or renewed
    /// by the token that it is `held` by. Answers with the token, which is larger than all before it; none when another
    /// has it, or when it is no longer held.
    ///
    /// It is a hint as all of the registry is: a holder that was away for longer than the TTL may still act when another
    /// has begun to. So it asks before it makes its work known, and signs that with the token.
    async fn lease(&self, name: &str, held: Option<u64>) -> Result<Option<u64>, RegistryError>;

    /// Gives a lease back, if that token still holds it.
    async fn release(&self, name: &str, token: u64) -> Result<(), RegistryError>;

    /// Whether it answers: what it is, where, and how fast.
    async fn probe(&self) -> Result<String, RegistryError>;
}

/// What went wrong with the registry. None of it holds the password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// A wrong value in the configuration.
    #[error("registry.{key} is not valid: {reason}")]
    Config {
        /// Which.
        key: &'static str,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// It cannot be reached, or did not answer in time. It may be back at the next call.
    #[error("the registry at {address} cannot be reached: {reason}")]
    Unavailable {
        /// Where.
        address: String,
        /// What happened.
        reason: String,
    },
    /// It does not know the user or the password.
    #[error("the registry at {address} refused the login ({reason}); correct user and password in registry.url")]
    Login {
        /// Where.
        address: String,
        /// The server's words.
        reason: String,
    },
    /// The server is too old.
    #[error("the registry at {address} is version {version}; Redis 7.0 or later is needed")]
    Version {
        /// Where.
        address: String,
        /// What it says it is.
        version: String,
    },
    /// It answered with an error.
    #[error("the registry at {address} rejected {operation}: {reason}")]
    Rejected {
        /// Where.
        address: String,
        /// What was asked.
        operation: &'static str,
        /// The server's words.
        reason: String,
    },
    /// The changes after the cursor are no longer known.
    #[error("the registry no longer holds the changes after this cursor; take a snapshot")]
    Lagged,
    /// A newer incarnation has taken the worker's id.
    #[error("worker {worker} lives in a newer incarnation; give each worker an id of its own")]
    Superseded {
        /// The id that two processes use.
        worker: WorkerId,
    },
}

impl RegistryError {
    /// What went wrong with Redis when it was asked for `operation`.
    fn of(operation: &'static str, error: Error) -> Self {
        match error {
            Error::Config { key, reason } => RegistryError::Config { key, reason },
            Error::Unavailable { address, reason } => RegistryError::Unavailable { address, reason },
            Error::Login { address, reason } => RegistryError::Login { address, reason },
            Error::Version { address, version } => RegistryError::Version { address, version },
            Error::Rejected { address, reason } => RegistryError::Rejected { address, operation, reason },
        }
    }
}

/// The registry that the configuration names: Redis, or one of its own in this process.
///
/// Does not connect; that Redis is away is no reason for a worker not to start.
pub fn open(config: &Config, pool: &PoolName, telemetry: &Telemetry) -> Result<Arc<dyn Registry>, RegistryError> {
    config.check().map_err(|error| RegistryError::of("the configuration", error))?;
    Ok(match &config.url {
        Some(_) => Arc::new(self::redis::RedisRegistry::new(config, pool, telemetry)?),
        None => Arc::new(memory::MemoryRegistry::new()),
    })
}

/// The registries of all pools, for those who find out only while they run which pools they need.
pub struct Registries {
    of: Of,
}

enum Of {
    Redis { config: Box<Config>, telemetry: Telemetry },
    Memory(Mutex<BTreeMap<PoolName, Arc<memory::MemoryRegistry>>>),
}

impl Registries {
    /// Those in the Redis that the configuration names, or in this process without one. Each pool's own connects by itself.
    pub fn open(config: &Config, telemetry: &Telemetry) -> Result<Self, RegistryError> {
        config
            .check()
            .and_then(|()| config.check_certificates())
            .map_err(|error| RegistryError::of("the configuration", error))?;
        Ok(match &config.url {
            Some(_) => Registries { of: Of::Redis { config: Box::new(config.clone()), telemetry: telemetry.clone() } },
            None => Self::in_memory(),
        })
    }

    /// Those in this process.
    pub fn in_memory() -> Self {
        Registries { of: Of::Memory(Mutex::default()) }
    }

    /// A pool's. Connects at the first request, not here.
    pub fn of(&self, pool: &PoolName) -> Result<Arc<dyn Registry>, RegistryError> {
        Ok(match &self.of {
            Of::Redis { config, telemetry } => Arc::new(self::redis::RedisRegistry::new(config, pool, telemetry)?),
            Of::Memory(pools) => pools.lock().entry(pool.clone()).or_default().clone(),
        })
    }
}

#[cfg(test)]
impl Presence {
    /// A worker that is open and has nothing, with N of 1; for tests, which change what they are about.
    pub(crate) fn of_a_test(worker: &str) -> Self {
        Presence {
            worker: worker.parse().expect("a worker id"),
            address: "http://127.0.0.1:1".into(),
            incarnation: Incarnation::mint(),
            pool: PoolName::default(),
            target: 1,
            in_flight: 0,
            reserved: 0,
            state: State::Open,
            integrations: vec![],
            full: vec![],
            broken: vec![],
            half_open: vec![],
            settings_version: "start".into(),
            settings_rejected: None,
            jump_limit: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn presence(worker: &str, state: State) -> Presence {
        Presence {
            worker: worker.parse().expect("a worker id"),
            address: "http://127.0.0.1:7000".into(),
            incarnation: Incarnation::mint(),
            pool: "parallel".parse().expect("a pool"),
            target: 30,
            in_flight: 3,
            reserved: 0,
            state,
            integrations: vec!["bank".parse().expect("an integration")],
            full: vec![],
            broken: vec![],
            half_open: vec![],
            settings_version: "start".into(),
            settings_rejected: None,
            jump_limit: None,
        }
    }

    #[test]
    fn a_presence_survives_json_and_ignores_what_a_newer_worker_adds() {
        let written = presence("worker-1", State::Overloaded);
        let mut json = serde_json::to_value(&written).expect("serializes");
        json["added_later"] = 1.into();
        assert_eq!(json["state"], "overloaded");
        json.as_object_mut().expect("an object").remove("reserved").expect("it was there; an older worker has none");
        assert_eq!(serde_json::from_value::<Presence>(json).expect("tolerant"), written);
    }

    /// As a worker of before there were rejections writes it, and as it reads one of today.
    #[test]
    fn an_older_presence_says_nothing_of_rejections_and_a_younger_one_keeps_what_it_says() {
        let older = r#"{"worker":"w","address":"http://127.0.0.1:7000","incarnation":"019ac000-0000-7000-8000-000000000000",
            "pool":"parallel","target":30,"in_flight":3,"state":"open","integrations":["bank"],"settings_version":"start"}"#;
        let read: Presence = serde_json::from_str(older).expect("readable");
        assert_eq!((read.settings_rejected, read.jump_limit), (None, None));
        let rejected = Some(Box::new(Rejected::new("1c5e6f3a9b07", ["max_parallelism"], 0)));
        let written = Presence { settings_rejected: rejected, jump_limit: Some(30), ..presence("w", State::Open) };
        let text = serde_json::to_string(&written).expect("serializes");
        assert!(
            text.contains(r#""settings_rejected":{"version":"1c5e6f3a9b07","keys":["max_parallelism"]}"#),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<Presence>(&text).expect("readable"), written);
        let silent = serde_json::to_string(&presence("w", State::Open)).expect("serializes");
        assert!(!silent.contains("settings_rejected") && !silent.contains("jump_limit"), "{silent}");
    }
}
