//! What all runs of one worker share: the HTTP client for integrations written in Rust, and the places for CPU-heavy
//! work on blocking threads.
//!
//! Blocking work is capped at `blocking_threads`, twice the cores unless configured: more would only take turns on the
//! cores, while each holds its task's memory. Who finds no place waits, and stops waiting when the task is cancelled.

use std::sync::Arc;

use metrics::Gauge;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::transport::{self, Transport};
use super::{Invalid, recorder};
use crate::lifecycle::Lifecycle;
use crate::telemetry::Telemetry;

/// More places than this are a mistake; tokio's pool of blocking threads has 512, and DNS needs some of them.
const MAX_BLOCKING_THREADS: usize = 256;

/// The metric label of the client for integrations written in Rust; no integration can have this name.
const LABEL: &str = "_custom";

/// What all runs of one worker share.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How many closures of [`super::Context::blocking`] run at the same time.
    pub blocking_threads: usize,
    /// Limits of a run's transcript.
    pub recorder: recorder::Config,
    /// The HTTP client of integrations written in Rust.
    pub http: transport::Config,
}

impl Default for Config {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Config {
            blocking_threads: (2 * cores).min(MAX_BLOCKING_THREADS),
            recorder: recorder::Config::default(),
            http: transport::Config::default(),
        }
    }
}

impl Config {
    /// Checks the values.
    pub fn check(&self) -> Result<(), Invalid> {
        if !(1..=MAX_BLOCKING_THREADS).contains(&self.blocking_threads) {
            let problem = format!("{} is out of range: use 1 to {MAX_BLOCKING_THREADS}", self.blocking_threads);
            return Err(Invalid::new("blocking_threads", problem));
        }
        self.recorder.check().map_err(|invalid| invalid.within("recorder"))?;
        self.http.check().map_err(|invalid| invalid.within("http"))
    }
}

/// What all runs of one worker share; made once.
pub struct Environment {
    pub(super) transport: Transport,
    pub(super) lifecycle: Lifecycle,
    pub(super) blocking: Arc<Semaphore>,
    /// Each closure that waits for a place has a clone: their number is how many wait.
    pub(super) waiting: Arc<()>,
    pub(super) metrics: Metrics,
    places: usize,
    recorder: recorder::Config,
}

/// Closures that are on blocking threads, all that may be, and those that wait for one to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the struct says what they are")]
pub struct BlockingFull {
    pub running: usize,
    pub waiting: usize,
}

impl Environment {
    /// Blocking work runs on `lifecycle`, which so can tell what still runs. `section` is the configuration's section
    /// with these values, for messages that name the key to change.
    pub fn new(
        config: &Config,
        section: &str,
        lifecycle: &Lifecycle,
        telemetry: &Telemetry,
    ) -> Result<Arc<Self>, Invalid> {
        config.check()?;
        let transport = Transport::new(LABEL, &format!("{section}.http"), &config.http, telemetry)
            .map_err(|invalid| invalid.within("http"))?;
        Ok(Arc::new(Environment {
            transport,
            lifecycle: lifecycle.clone(),
            blocking: Arc::new(Semaphore::new(config.blocking_threads)),
            waiting: Arc::new(()),
            metrics: telemetry.register(|| Metrics::new(config.blocking_threads)),
            places: config.blocking_threads,
            recorder: config.recorder.clone(),
        }))
    }

    /// How it is with blocking work, while some of it waits because all places are taken.
    pub fn blocking_full(&self) -> Option<BlockingFull> {
        let (free, waiting) = (self.blocking.available_permits(), Arc::strong_count(&self.waiting) - 1);
        (free == 0 && waiting > 0).then_some(BlockingFull { running: self.places, waiting })
    }

    /// An empty transcript for a run.
    pub fn recorder(&self) -> recorder::Recorder {
        recorder::Recorder::new(&self.recorder)
    }
}

/// Blocking work in numbers.
pub(super) struct Metrics {
    pub(super) running: Gauge,
    pub(super) waiting: Gauge,
}

impl Metrics {
    fn new(limit: usize) -> Self {
        use metrics::{describe_gauge, gauge};
        describe_gauge!("weir_blocking_running", "Closures of integrations that run on blocking threads.");
        describe_gauge!("weir_blocking_waiting", "Closures of integrations that wait for a blocking thread.");
        describe_gauge!("weir_blocking_limit", "Closures of integrations that may run on blocking threads.");
        gauge!("weir_blocking_limit").set(limit as f64);
        Metrics { running: gauge!("weir_blocking_running"), waiting: gauge!("weir_blocking_waiting") }
    }
}
