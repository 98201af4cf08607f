//! The debug record of every task: redacted, encoded and stored, without the task ever waiting for it.
//!
//! [`Payloads::offer`] moves a [`Record`] into a bounded queue and returns. Encoder threads of low priority take it
//! from there: redact, encode, wait for an upload slot, hand over. What the store does not take lies in a spool on disk
//! until it does. A loss is never silent: the [`Ledger`] has a column for each reason. Everything that is pending counts
//! against the queue's bounds, so a slow store costs payloads, not memory.
//!
//! ```text
//! offer ─▶ queue ─▶ work: redact ▶ encode ─▶ upload ─▶ store
//!                                               │ ▲
//!                                               ▼ │ feed
//!                                              spool
//! ```

mod body;
mod breaker;
pub mod decode;
pub mod encode;
pub mod encoding;
mod feed;
mod har;
mod health;
pub mod key;
pub mod ledger;
mod losses;
mod metrics;
mod pace;
mod progress;
mod queue;
mod record;
mod recorded;
mod refusals;
pub mod redact;
pub mod sample;
pub mod search;
pub mod spool;
pub mod store;
mod upload;
mod watch;
mod work;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::time::Instant;

pub use self::body::Body;
pub use self::decode::{DecodeError, Limits, decode};
pub use self::encoding::{Compression, Encoding};
use self::feed::Feed;
pub use self::key::Key;
pub use self::ledger::{Ledger, Reason};
use self::metrics::Metrics;
use self::queue::{Crew, Queue};
pub use self::record::{Record, Redacted};
pub use self::recorded::{Recorded, RecordedExchange};
use self::sample::Sampler;
pub use self::sample::Value;
use self::spool::{Load, Spool};
pub use self::store::{Listed, Object, Page, Store, StoreError, Stored};
use self::upload::{Offered, PayloadQueue, Uploader};
use self::watch::Watch;
use self::work::Encoders;
use crate::lifecycle::Lifecycle;
use crate::task::{IntegrationName, Outcome};
use crate::telemetry::Telemetry;

/// The most encoder threads; one encodes about 200 MB of JSON a second.
const MAX_ENCODER_THREADS: usize = 64;

/// The most uploads at once.
const MAX_UPLOADS: usize = 1024;

/// A store other than S3, which has a setting for it, counts as away when it answers no upload for so long.
const STALLED_AFTER: Duration = Duration::from_secs(10);

/// How late the runtime is; encoders step aside for it.
pub type Lag = Arc<dyn Fn() -> Duration + Send + Sync>;

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
    /// `zlib`, `gzip` or `zstd`.
    pub compression: Compression,
    /// 0 (none) to 9 (small and slow) for zlib and gzip, 1 to 19 for zstd.
    pub level: u32,
    /// Whether payloads are stored as base64 text.
    pub base64: bool,
    /// Payloads of runs that took longer than this share of their integration's runs are kept whatever the sampling: the
    /// start value of the setting `payload_slow_quantile`.
    pub slow_quantile: f64,
    /// How long a stop may spend on storing what is pending.
    #[serde(with = "humantime_serde")]
    pub flush_within: Duration,
    /// Where payloads wait for a store that is down or slow.
    pub spool: spool::Config,
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
            uploads: 64,
            compression: Compression::Zlib,
            level: 2,
            base64: true,
            slow_quantile: 0.99,
            flush_within: Duration::from_secs(10),
            spool: Default::default(),
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

impl ConfigError {
    /// The value and what would be right, without the key.
    pub fn what(&self) -> String {
        format!("{}; {}", self.value, self.right)
    }
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
        self.encoding().check()?;
        if !(self.slow_quantile > 0.0 && self.slow_quantile < 1.0) {
            return Err(ConfigError::new("slow_quantile", self.slow_quantile, "use more than 0 and less than 1"));
        }
        self.spool.check()?;
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

    /// The form in which payloads are stored.
    pub fn encoding(&self) -> Encoding {
        Encoding { compression: self.compression, level: self.level, base64: self.base64 }
    }

    /// The object that is stored to find out whether the store takes any.
    pub fn probe(&self) -> Object {
        let (key, media_type) = (format!("{}weir-check", key::base(&self.prefix)), "text/plain".to_owned());
        Object { key, body: "weir was here; this may be deleted\n".into(), media_type, metadata: Vec::new() }
    }

    fn stalled_after(&self) -> Duration {
        match self.store {
            store::Kind::S3 => self.s3.attempt_timeout,
            store::Kind::Directory | store::Kind::None => STALLED_AFTER,
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
    inner: Option<Arc<Inner>>,
}

struct Inner {
    sampler: Sampler,
    queue: Arc<PayloadQueue>,
    uploader: Arc<Uploader>,
    encoders: Arc<Encoders>,
    lifecycle: Lifecycle,
}

impl Payloads {
    /// Starts encoders and uploads; call it on the runtime that is to run the uploads. They end with the lifecycle,
    /// which counts what is then pending as lost: [`Payloads::flush`] first.
    pub fn start(
        config: &Config,
        store: Arc<dyn Store>,
        lag: Lag,
        telemetry: &Telemetry,
        lifecycle: &Lifecycle,
    ) -> Result<Self, StartError> {
        config.check()?;
        let limits = queue::Limits { items: config.queue_items, bytes: config.queue_bytes, uploads: config.uploads };
        let queue = Queue::new(limits);
        let redactor = Arc::new(telemetry.register(|| redact::Redactor::new(&config.redaction))?);
        let (spool, metrics) = (Spool::new(&config.spool), Metrics::register(telemetry));
        let spool_limit = spool.as_ref().map(|_| config.spool.max_bytes);
        let to_the_store = upload::Limits { uploads: config.uploads, stalled_after: config.stalled_after() };
        let uploader = Arc::new(Uploader::new(store, spool, &queue, metrics, lifecycle, to_the_store, config.probe()));
        uploader.open_spool();
        metrics::publish(telemetry, limits, spool_limit, &queue, &uploader);
        lifecycle.spawn("payload watch", Watch::new(&uploader, lifecycle).run(lifecycle.token()));
        let feed = Feed { uploader: uploader.clone(), lifecycle: lifecycle.clone() };
        lifecycle.spawn("payload feed", feed.run(lifecycle.token()));
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let encoders = Arc::new(Encoders {
            uploader: uploader.clone(),
            redactor,
            prefix: config.prefix.clone(),
            encoding: config.encoding(),
            lag,
            runtime: Handle::current(),
            threads: config.encoder_threads.min(cores),
            flush_threads: (cores * (1 + usize::from(uploader.spool.is_some()))).min(MAX_ENCODER_THREADS),
        });
        encoders.start(Crew::Background, lifecycle)?;
        let (sampler, lifecycle) = (Sampler::default(), lifecycle.clone());
        Ok(Payloads { inner: Some(Arc::new(Inner { sampler, queue, uploader, encoders, lifecycle })) })
    }

    /// Takes records and forgets them, uncounted: what is not to be kept is not offered.
    pub fn disabled() -> Self {
        Payloads { inner: None }
    }

    /// What the payload of a run is worth, runs beyond that quantile of their integration's being slow; learns from each run
    /// that it is told of.
    pub fn value(&self, integration: &IntegrationName, outcome: &Outcome, slow_quantile: f64) -> Value {
        let value = |inner: &Arc<Inner>| inner.sampler.value(integration, outcome, slow_quantile);
        self.inner.as_ref().map_or(Value::Ordinary, value)
    }

    /// Hands a record over. Never waits; what does not fit is dropped and counted, the least wanted first.
    pub fn offer(&self, record: Record, value: Value) {
        if let Some(inner) = &self.inner {
            let bytes = record.size_bytes();
            inner.queue.offer(Box::new(Offered { record, value }), bytes, value);
        }
    }

    /// What is wrong with the way to the store now, in words: nothing when all is well.
    pub fn degraded(&self) -> Vec<String> {
        self.inner.as_ref().map(|inner| degraded(&inner.uploader)).unwrap_or_default()
    }

    /// The account so far, consistent in itself.
    pub fn ledger(&self) -> Ledger {
        self.inner.as_ref().map(|inner| inner.queue.ledger()).unwrap_or_default()
    }

    /// Waits until nothing is pending; encoders no longer hold back for tasks. Where there is a spool, what is pending goes
    /// there as soon as the store is seen not to take it in half of the time; where there is none, a store that is away is asked
    /// once more, and what it does not take then is lost. At the deadline, counts the rest as lost.
    /// Takes nothing more from then on.
    pub async fn flush(&self, within: Duration) -> Ledger {
        let Some(inner) = self.inner.as_deref() else { return Ledger::default() };
        let Inner { queue, uploader, .. } = inner;
        let half = Instant::now() + within / 2;
        queue.drain();
        inner.relieve_encoders();
        let settled = async {
            tokio::select! {
                biased;
                () = queue.close_when_idle() => return,
                () = uploader.falls_behind(half) => uploader.hurry(),
            }
            if uploader.spool.is_some() {
                tokio::select! {
                    biased;
                    () = queue.close_when_idle() => return,
                    () = uploader.is_hopeless(half) => uploader.interrupt(),
                }
            }
            queue.close_when_idle().await;
        };
        if tokio::time::timeout(within, settled).await.is_err() {
            let why = format!("they could be neither stored nor spooled within payloads.flush_within, {within:?}");
            uploader.losses.because(Reason::Shutdown, &why);
            queue.abandon();
        }
        uploader.close_spool();
        queue.ledger()
    }
}

impl Inner {
    /// Encodes what waits at the normal priority from now on, if anything does.
    fn relieve_encoders(&self) {
        if self.queue.ledger().pending == 0 {
            return;
        }
        match self.encoders.start(Crew::Flush, &self.lifecycle) {
            Ok(()) => self.queue.relieve(),
            Err(error) => tracing::warn!("the flush goes on with encoders of low priority: {error}"),
        }
    }
}

/// What the store and the spool do not do as they should.
fn degraded(uploader: &Uploader) -> Vec<String> {
    let (spool, load) = (uploader.spool.as_ref().map(Spool::location), uploader.spool_load());
    let away = uploader.health.away_since().map(|since| {
        let goes = match load {
            None => "payloads wait in memory, for there is no spool, and are lost when the queue is full",
            Some(Load { is_open: true, is_writable: true, .. }) => "payloads go to the spool",
            Some(_) => "payloads are lost, for the spool does not take them",
        };
        format!("the store has been away for {:.0?}: {goes}", since.elapsed())
    });
    let at = spool.unwrap_or_default();
    let spool = load.and_then(|load| match load {
        Load { is_open: false, .. } => Some(format!("the spool {at} could not be opened, and is tried again")),
        Load { is_writable: false, .. } => Some(format!("the spool {at} did not take the last payload: see the log")),
        Load { is_full: true, bytes, limit_bytes, .. } => {
            Some(format!("the spool {at} is full, {bytes} of {limit_bytes} bytes: the oldest payloads give way"))
        }
        _ => None,
    });
    away.into_iter().chain(spool).collect()
}

#[cfg(test)]
mod tests;
