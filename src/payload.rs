//! The debug record of every task: redacted, encoded and stored, without the task ever waiting for it.
//!
//! [`Payloads::offer`] moves a [`Record`] into a bounded queue and returns. Encoder threads of low priority take it
//! from there: redact, encode, wait for an upload slot, hand over. A loss is never silent: the [`Ledger`] has a column
//! for each reason. Everything that is pending counts against the queue's bounds, so a slow store costs payloads, not
//! memory.

pub mod encode;
mod har;
pub mod key;
pub mod ledger;
mod queue;
mod record;
pub mod redact;
pub mod store;
mod upload;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

pub use self::encode::{DecodeError, Limits, decode};
pub use self::ledger::{Ledger, Reason};
use self::queue::Queue;
pub use self::record::{Record, Redacted};
pub use self::store::{Object, Store, StoreError, Stored};
use self::upload::{Encoder, Metrics, Uploader};
use crate::lifecycle::Lifecycle;
use crate::telemetry::Telemetry;

/// The most encoder threads; one encodes about 200 MB of JSON a second.
const MAX_ENCODER_THREADS: usize = 64;

/// The most uploads at once.
const MAX_UPLOADS: usize = 1024;

/// Where payloads go and what they may cost.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `s3`, `directory` or `none`.
    pub store: store::Kind,
    /// What all keys start with.
    pub prefix: String,
    /// The most payloads pending at once.
    pub queue_items: u64,
    /// The most bytes that pending payloads may hold.
    pub queue_bytes: u64,
    /// Threads that redact and encode; never more are started than the machine has cores.
    pub encoder_threads: usize,
    /// The most uploads at once, and so the most connections to the store.
    pub uploads: usize,
    /// 0 (none) to 9 (small and slow).
    pub zlib_level: u32,
    /// How long a stop may spend on storing what is pending.
    #[serde(with = "humantime_serde")]
    pub flush_within: Duration,
    /// What is taken out of a payload before it is encoded.
    pub redaction: redact::Config,
    /// For `store = "directory"`.
    pub directory: store::directory::Config,
    /// For `store = "s3"`.
    pub s3: store::s3::Config,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            store: store::Kind::None,
            prefix: "payloads".into(),
            queue_items: 10_000,
            queue_bytes: 256 << 20,
            encoder_threads: 1,
            uploads: 32,
            zlib_level: 1,
            flush_within: Duration::from_secs(10),
            redaction: Default::default(),
            directory: Default::default(),
            s3: Default::default(),
        }
    }
}

/// A setting that cannot be right.
#[derive(Debug, thiserror::Error)]
#[error("payloads.{key} is {value}; {right}")]
pub struct ConfigError {
    key: &'static str,
    value: String,
    right: String,
}

impl Config {
    /// Whether the values can be right; those of a store only if it is the one in use.
    pub fn check(&self) -> Result<(), ConfigError> {
        let range = |key, value: u64, most: u64| match value {
            value if (1..=most).contains(&value) => Ok(()),
            _ => Err(ConfigError::new(key, value, format!("use 1 to {most}"))),
        };
        range("queue_items", self.queue_items, 10_000_000)?;
        range("queue_bytes", self.queue_bytes, 1 << 40)?;
        range("encoder_threads", self.encoder_threads as u64, MAX_ENCODER_THREADS as u64)?;
        range("uploads", self.uploads as u64, MAX_UPLOADS as u64)?;
        if self.zlib_level > 9 {
            return Err(ConfigError::new("zlib_level", self.zlib_level, "use 0 to 9"));
        }
        if !key::prefix_is_valid(&self.prefix) {
            let right = "use segments of A-Z a-z 0-9 . _ - between single slashes, such as \"weir/payloads\"";
            return Err(ConfigError::new("prefix", format!("{:?}", self.prefix), right));
        }
        self.redaction.check()?;
        match self.store {
            store::Kind::None => Ok(()),
            store::Kind::Directory => self.directory.check(),
            store::Kind::S3 => self.s3.check(),
        }
    }
}

impl ConfigError {
    fn new(key: &'static str, value: impl ToString, right: impl Into<String>) -> Self {
        ConfigError { key, value: value.to_string(), right: right.into() }
    }
}

/// Why the payload path did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting cannot be right.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The system gave no thread.
    #[error("could not start an encoder thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// The way in. Clones share one queue.
#[derive(Clone)]
pub struct Payloads {
    queue: Option<Arc<Queue<Record>>>,
}

impl Payloads {
    /// Starts encoders and uploads; call it on the runtime that is to run the uploads. They end with the lifecycle,
    /// which counts what is then pending as lost: [`Payloads::flush`] first.
    pub fn start(
        config: &Config,
        store: Arc<dyn Store>,
        telemetry: &Telemetry,
        lifecycle: &Lifecycle,
    ) -> Result<Self, StartError> {
        config.check()?;
        let limits = queue::Limits { items: config.queue_items, bytes: config.queue_bytes, uploads: config.uploads };
        let queue = Queue::new(limits);
        let redactor = Arc::new(telemetry.register(|| redact::Redactor::new(&config.redaction))?);
        let uploader = Arc::new(Uploader::new(store, Metrics::register(telemetry, &queue, limits)));
        abandon_at_stop(&queue, lifecycle);
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        for _ in 0..config.encoder_threads.min(cores) {
            let encoder = Encoder::new(config, &queue, &uploader, &redactor, lifecycle, Handle::current());
            lifecycle.thread("payload encoder", move |_token| encoder.run())?;
        }
        Ok(Payloads { queue: Some(queue) })
    }

    /// Takes records and forgets them, uncounted: what is not to be kept is not offered.
    pub fn disabled() -> Self {
        Payloads { queue: None }
    }

    /// Hands a record over. Never waits; what does not fit is dropped and counted.
    pub fn offer(&self, record: Record) {
        if let Some(queue) = &self.queue {
            let bytes = record.size_bytes();
            queue.offer(record, bytes);
        }
    }

    /// The account so far, consistent in itself.
    pub fn ledger(&self) -> Ledger {
        self.queue.as_ref().map(|queue| queue.ledger()).unwrap_or_default()
    }

    /// Waits until nothing is pending; at the deadline, counts the rest as lost. Takes nothing more from then on.
    pub async fn flush(&self, within: Duration) -> Ledger {
        if let Some(queue) = &self.queue
            && tokio::time::timeout(within, queue.close_when_idle()).await.is_err()
        {
            queue.abandon();
            let lost = queue.ledger().dropped(Reason::Shutdown);
            tracing::warn!(lost, ?within, "payloads were lost: they could not be stored before the flush's deadline");
        }
        self.ledger()
    }
}

/// When the lifecycle stops, or the runtime ends without it, the encoder threads must not wait for ever.
fn abandon_at_stop(queue: &Arc<Queue<Record>>, lifecycle: &Lifecycle) {
    struct Abandon(Arc<Queue<Record>>);
    impl Drop for Abandon {
        fn drop(&mut self) {
            self.0.abandon();
        }
    }
    let (abandon, token) = (Abandon(queue.clone()), lifecycle.token());
    lifecycle.spawn("payload stop", async move {
        let _abandon = abandon;
        token.cancelled().await;
    });
}

#[cfg(test)]
mod tests;
