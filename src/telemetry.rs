//! Metrics and logs of one role.
//!
//! Each role owns a recorder of its own instead of the process-wide one, so that a worker and a router in one process
//! (the demo, the tests) keep their numbers apart. A component registers its handles once, in a struct of its own, and
//! the hot path touches only those handles.

#[cfg(feature = "jemalloc")]
mod allocator;
pub mod lag;
pub mod logs;
pub mod notice;
pub mod process;
pub mod profile;
pub mod repeats;
mod runtime;

use std::sync::Arc;
use std::time::Duration;

use metrics::Gauge;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use parking_lot::Mutex;

use crate::lifecycle::Lifecycle;

/// The media type of Prometheus' text format.
pub const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How often histograms are folded; without it they grow while nobody scrapes.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Buckets of how long tasks run: few, for this histogram has each of them per integration and parallelism level, and a
/// worker at most 10,000 series at 100 integrations. Ratios are of means, which need none.
const TASK_SECONDS: &[f64] = &[0.25, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0];

/// Buckets of all other durations.
const STEP_SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Buckets of sizes: 1 KiB to 64 MiB.
const SIZE_BYTES: &[f64] = &[1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0, 16777216.0, 67108864.0];

/// One role's metrics.
#[derive(Clone)]
pub struct Telemetry {
    inner: Arc<Inner>,
}

struct Inner {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    before_scrape: Mutex<Vec<Box<dyn Fn() + Send>>>,
    fractions: Mutex<Vec<Fraction>>,
}

/// A counter with a fraction. The recorder's own counters are whole numbers.
struct Fraction {
    name: &'static str,
    help: &'static str,
    read: Box<dyn Fn() -> f64 + Send>,
}

impl Telemetry {
    /// A recorder with weir's buckets and nothing in it.
    pub fn new() -> Result<Self, BuildError> {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Full("weir_task_duration_seconds".into()), TASK_SECONDS)?
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), STEP_SECONDS)?
            .set_buckets_for_metric(Matcher::Suffix("_bytes".into()), SIZE_BYTES)?
            .build_recorder();
        let handle = recorder.handle();
        Ok(Telemetry {
            inner: Arc::new(Inner { recorder, handle, before_scrape: Mutex::default(), fractions: Mutex::default() }),
        })
    }

    /// Runs `build` so that every handle that it creates with the `metrics` macros belongs to this role for good.
    pub fn register<T>(&self, build: impl FnOnce() -> T) -> T {
        metrics::with_local_recorder(&self.inner.recorder, build)
    }

    /// Has `read` run before each scrape, for values that are read rather than counted. It must not block.
    pub fn before_scrape(&self, read: impl Fn() + Send + 'static) {
        self.inner.before_scrape.lock().push(Box::new(read));
    }

    /// Shows a counter without labels that has a fraction, such as one of seconds, read at each scrape. It must not block.
    pub fn fraction(&self, name: &'static str, help: &'static str, read: impl Fn() -> f64 + Send + 'static) {
        self.inner.fractions.lock().push(Fraction { name, help, read: Box::new(read) });
    }

    /// The metrics in Prometheus' text format. One scrape at a time: what is read together is told together, however
    /// many scrape.
    pub fn render(&self) -> String {
        let before_scrape = self.inner.before_scrape.lock();
        self.register(|| before_scrape.iter().for_each(|read| read()));
        let mut text = self.inner.handle.render();
        for Fraction { name, help, read } in self.inner.fractions.lock().iter() {
            text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} counter\n{name} {}\n\n", read()));
        }
        text
    }

    /// Keeps histograms small between scrapes.
    pub fn run_upkeep(&self, lifecycle: &Lifecycle) {
        let (handle, token) = (self.inner.handle.clone(), lifecycle.token());
        lifecycle.spawn("metrics upkeep", async move {
            let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            while token.run_until_cancelled(ticks.tick()).await.is_some() {
                handle.run_upkeep();
            }
        });
    }
}

/// Counts one thing in a gauge while it lives.
pub struct Counted(Gauge);

impl Counted {
    /// One more.
    pub fn new(gauge: &Gauge) -> Self {
        gauge.increment(1.0);
        Counted(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_roles_keep_their_numbers_apart() {
        let (first, second) = (Telemetry::new().expect("recorder"), Telemetry::new().expect("recorder"));
        let counter = first.register(|| metrics::counter!("weir_example_total"));
        counter.increment(3);
        first.before_scrape(|| metrics::gauge!("weir_example").set(7.0));
        assert!(first.render().contains("weir_example_total 3"));
        assert!(first.render().contains("weir_example 7"));
        assert!(!second.render().contains("weir_example"));
    }

    #[test]
    fn a_counter_may_have_a_fraction() {
        let telemetry = Telemetry::new().expect("recorder");
        telemetry.register(|| metrics::counter!("weir_example_total")).increment(3);
        telemetry.fraction("weir_example_seconds_total", "How long it took.", || 1.25);
        let text = telemetry.render();
        let shown = "\n# HELP weir_example_seconds_total How long it took.\n# TYPE weir_example_seconds_total counter\n\
                     weir_example_seconds_total 1.25\n";
        assert!(text.contains(shown) && text.contains("weir_example_total 3\n"), "{text}");
    }

    #[test]
    fn what_is_read_together_is_told_together_to_each_of_several_scrapers() {
        let (telemetry, lifecycle) = (Telemetry::new().expect("recorder"), Lifecycle::new());
        let [one, other] = telemetry.register(|| ["weir_one", "weir_other"].map(|name| metrics::gauge!(name)));
        let reads = Mutex::new(0);
        telemetry.before_scrape(move || {
            let mut reads = reads.lock();
            *reads += 1;
            one.set(f64::from(*reads));
            other.set(f64::from(*reads));
        });
        let (told, heard) = std::sync::mpsc::channel();
        for _ in 0..4 {
            let (telemetry, told) = (telemetry.clone(), told.clone());
            let scrape = move |_| (0..300).for_each(|_| told.send(telemetry.render()).expect("the test listens"));
            lifecycle.thread("scraper", scrape).expect("a thread");
        }
        drop(told);
        let value = |text: &str, name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse::<u32>().ok())
        };
        for text in heard {
            assert!(value(&text, "weir_one").is_some());
            assert_eq!(value(&text, "weir_one"), value(&text, "weir_other"), "{text}");
        }
    }
}
