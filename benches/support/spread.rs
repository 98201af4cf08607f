//! Medians and what lies around them.

use std::time::Duration;

/// Durations of one thing, measured many times.
#[derive(Default)]
pub struct Spread(Vec<Duration>);

impl Spread {
    pub fn add(&mut self, duration: Duration) {
        self.0.push(duration);
    }

    /// The duration that a share of all (0 to 1) does not exceed.
    pub fn quantile(&mut self, share: f64) -> Duration {
        self.0.sort_unstable();
        let last = self.0.len().saturating_sub(1);
        self.0.get((last as f64 * share).ceil() as usize).copied().unwrap_or_default()
    }
}
