//! How late the runtime is: what the payload encoders step aside for.
//!
//! A task sleeps for 10 ms again and again, and sees how much later it wakes up. While it sleeps for too long the lag
//! is known too, for others see when it should have woken: a runtime that stands still lags.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use metrics::histogram;

use super::Telemetry;
use crate::lifecycle::Lifecycle;

/// How long the probe sleeps.
const SLEEP: Duration = Duration::from_millis(10);

/// The timers of the runtime have this grain: what is less late than it is in time.
const GRAIN: Duration = Duration::from_millis(1);

/// The lag of one runtime. Clones share it.
#[derive(Clone)]
pub struct Lag {
    shared: Arc<Shared>,
}

struct Shared {
    start: Instant,
    /// How late the probe was the last time.
    last_nanoseconds: AtomicU64,
    /// When it is to wake up, after `start`.
    due_nanoseconds: AtomicU64,
}

impl Lag {
    /// Starts the probe on the current runtime; it ends with the lifecycle.
    pub fn watch(telemetry: &Telemetry, lifecycle: &Lifecycle) -> Self {
        let lateness = telemetry.register(|| {
            metrics::describe_histogram!(
                "weir_runtime_lag_seconds",
                metrics::Unit::Seconds,
                "How much later than due a task of the runtime wakes up."
            );
            histogram!("weir_runtime_lag_seconds")
        });
        let (last_nanoseconds, due_nanoseconds) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
        let lag = Lag { shared: Arc::new(Shared { start: Instant::now(), last_nanoseconds, due_nanoseconds }) };
        let (shared, token) = (lag.shared.clone(), lifecycle.token());
        lifecycle.spawn("runtime lag", async move {
            loop {
                let due = Instant::now() + SLEEP;
                shared.due_nanoseconds.store(nanoseconds(due - shared.start), Ordering::Relaxed);
                if token.run_until_cancelled(tokio::time::sleep(SLEEP)).await.is_none() {
                    break;
                }
                let late = late(Instant::now(), due);
                shared.last_nanoseconds.store(nanoseconds(late), Ordering::Relaxed);
                lateness.record(late);
            }
            shared.last_nanoseconds.store(0, Ordering::Relaxed);
            shared.due_nanoseconds.store(u64::MAX, Ordering::Relaxed);
        });
        lag
    }

    /// How late the runtime is now.
    pub fn now(&self) -> Duration {
        let last = Duration::from_nanos(self.shared.last_nanoseconds.load(Ordering::Relaxed));
        let due = Duration::from_nanos(self.shared.due_nanoseconds.load(Ordering::Relaxed));
        last.max(self.shared.start.elapsed().saturating_sub(due).saturating_sub(GRAIN))
    }
}

fn late(now: Instant, due: Instant) -> Duration {
    now.saturating_duration_since(due).saturating_sub(GRAIN)
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_runtime_that_stands_still_lags_and_then_does_not() {
        let (telemetry, lifecycle) = (Telemetry::new().expect("a recorder"), Lifecycle::new());
        let lag = Lag::watch(&telemetry, &lifecycle);
        tokio::time::sleep(SLEEP * 2).await;
        std::thread::sleep(Duration::from_millis(200));
        assert!(lag.now() >= Duration::from_millis(100), "{:?}", lag.now());
        let started = Instant::now();
        while lag.now() > Duration::from_millis(50) {
            assert!(started.elapsed() < Duration::from_secs(20), "{:?}", lag.now());
            tokio::time::sleep(SLEEP).await;
        }
        lifecycle.stop(Duration::from_secs(5)).await.expect("it ends");
        assert_eq!(lag.now(), Duration::ZERO);
        assert!(telemetry.render().contains("weir_runtime_lag_seconds_count"));
    }
}
