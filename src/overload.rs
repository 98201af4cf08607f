//! Whether the worker must shed load, whatever room its gate has; and which integration blocked an async thread.
//!
//! Five signals, each with a threshold to enter, a lower one to leave, and a time that it must stay below
//! (`hysteresis`). While one of them is high the worker takes nothing new; what runs goes on. It recovers by itself.
//!
//! | signal | what is measured |
//! |---|---|
//! | memory | what the working set will soon be against the cgroup's limit, or the resident memory against a configured one, or the machine's |
//! | descriptors | open ones against the soft limit of the process |
//! | blocked thread | how long an integration's code has kept an async thread without giving it back |
//! | CPU quota | the share of the cgroup's periods in which it was throttled |
//! | lag | how much later than due the runtime's tasks wake up |
//!
//! A thread of the operating system watches, for a runtime that stands still cannot tell that it does. That thread itself
//! tells whoever must know (a worker's gate), so that the first call that a runtime sees when it moves again is refused
//! already. To leave the open index in Redis, however, takes the runtime: while all of it stands still nobody says
//! anything there, and the presence ends by its age.

mod cgroup;
pub mod config;
mod growth;
mod hysteresis;
mod judge;
mod meters;
mod metrics;
pub mod polls;
mod relief;
mod throttle;
mod watchdog;
mod why;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::lifecycle::Lifecycle;
use crate::task::IntegrationName;
use crate::telemetry::Telemetry;

pub use self::config::Config;
use self::judge::Judge;
use self::meters::Meters;
pub use self::meters::Sources;
use self::metrics::Metrics;
pub use self::polls::Polls;
use self::relief::Relief;
use self::watchdog::{Seen, Watchdog};
use self::why::Why;

/// How late the runtime is now.
pub type Lag = Arc<dyn Fn() -> Duration + Send + Sync>;

/// What can overload a worker. Of several that are high the first in this order is named: causes before effects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Memory runs out.
    Memory,
    /// Descriptors run out.
    Descriptors,
    /// An integration blocks an async thread.
    BlockedThread,
    /// The cgroup's CPU quota is used up again and again.
    CpuQuota,
    /// The runtime's tasks wake up late.
    Lag,
}

impl Signal {
    /// Every signal.
    pub const ALL: [Signal; 5] =
        [Signal::Memory, Signal::Descriptors, Signal::BlockedThread, Signal::CpuQuota, Signal::Lag];

    /// The name used in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Signal::Memory => "memory",
            Signal::Descriptors => "descriptors",
            Signal::BlockedThread => "blocked_thread",
            Signal::CpuQuota => "cpu_quota",
            Signal::Lag => "lag",
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether the worker sheds load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pressure {
    /// No signal is high.
    Calm,
    /// This one is, and perhaps others after it.
    Shedding(Signal),
}

/// Whose limit something is measured against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// The configuration's: `overload.memory.limit_bytes`, on the resident memory of this process.
    Configuration,
    /// That of a cgroup v2 that the process is in.
    Cgroup,
    /// What the machine has.
    Machine,
}

impl Whose {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Whose::Configuration => "configuration",
            Whose::Cgroup => "cgroup",
            Whose::Machine => "machine",
        }
    }
}

/// How much of something is used, and how much there is: bytes, or descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Used now.
    pub used: u64,
    /// The limit.
    pub limit: u64,
}

impl Usage {
    /// The used share of the limit.
    pub fn share(self) -> f64 {
        self.of_limit(self.used)
    }

    fn of_limit(self, amount: u64) -> f64 {
        amount as f64 / self.limit.max(1) as f64
    }
}

/// What was measured last.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Readings {
    /// How late the runtime's tasks are, smoothed over about half a second.
    pub lag: Duration,
    /// Async threads that integrations block.
    pub blocked_threads: u32,
    /// Who blocks one, of several the one that has for longest, and how long already.
    pub blocked_by: Option<(IntegrationName, Duration)>,
    /// Memory, where it can be measured.
    pub memory: Option<(Usage, Whose)>,
    /// Bytes of memory that will be in use in 200 ms if it grows as in the last 100 ms; as many as now where it does not.
    pub memory_expected: Option<u64>,
    /// The share of the cgroup's periods in which it was throttled, where there is a quota.
    pub throttled: Option<f64>,
    /// Descriptors, where they can be counted and are limited.
    pub descriptors: Option<Usage>,
}

/// A size as people say it: `912 MiB`, `1.5 GiB`.
pub fn bytes_text(bytes: u64) -> String {
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    if mebibytes < 1024.0 { format!("{mebibytes:.0} MiB") } else { format!("{:.1} GiB", mebibytes / 1024.0) }
}

/// What the watchdog has found out. Clones are the same.
#[derive(Clone)]
pub struct Overload {
    shared: Arc<Shared>,
    polls: Arc<Polls>,
}

/// What the watchdog's thread writes and others read.
struct Shared {
    pressure: watch::Sender<Pressure>,
    found: Mutex<Found>,
}

#[derive(Default)]
struct Found {
    readings: Readings,
    high: Vec<Signal>,
    why: Option<Why>,
}

impl Overload {
    /// Starts the watchdog, on a thread that ends with the lifecycle. `tell` is called on that thread at each change, and
    /// must not wait for anything.
    ///
    /// # Errors
    /// The thread does not start.
    pub fn start(
        config: &Config,
        sources: &Sources,
        integrations: &[IntegrationName],
        lag: Lag,
        tell: impl Fn(Pressure) + Send + 'static,
        telemetry: &Telemetry,
        lifecycle: &Lifecycle,
    ) -> io::Result<Self> {
        let polls = Polls::new(config.blocked_thread.after, integrations, telemetry);
        let mut meters = Meters::open(sources, config.memory.limit_bytes);
        let shared = Arc::new(Shared { pressure: watch::Sender::new(Pressure::Calm), found: Mutex::default() });
        let overload = Overload { shared: shared.clone(), polls: polls.clone() };
        let metrics = Metrics::new(telemetry);
        let read = overload.clone();
        telemetry.before_scrape(move || Metrics::publish(&read));
        tracing::info!("watching for overload: {}", meters.describe());
        let (judge, relief, tell) = (Judge::new(config), Relief::default(), Box::new(tell));
        let mut watchdog = Watchdog { judge, meters, relief, lag, polls, shared, metrics, tell };
        // The first look is before the first task.
        let mut seen = Seen::default();
        watchdog.look(&mut seen, Instant::now());
        lifecycle.thread("overload watchdog", move |token| watchdog.run(seen, &token))?;
        Ok(overload)
    }

    /// Follows the pressure.
    pub fn pressure(&self) -> watch::Receiver<Pressure> {
        self.shared.pressure.subscribe()
    }

    /// What was measured last.
    pub fn readings(&self) -> Readings {
        self.shared.found.lock().readings.clone()
    }

    /// Why load is shed, in words; none while it is not.
    pub fn why(&self) -> Option<String> {
        self.shared.found.lock().why.as_ref().map(ToString::to_string)
    }

    /// Where integrations' futures are watched as they are polled.
    pub fn polls(&self) -> &Arc<Polls> {
        &self.polls
    }

    fn high(&self) -> Vec<Signal> {
        self.shared.found.lock().high.clone()
    }
}
