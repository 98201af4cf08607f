//! How many tasks at once an integration bears, found from how long they take. Pure: the time comes in from outside.
//!
//! Below its knee a bank takes as long for one of n as for one alone; beyond it n tasks share what it has, and latency
//! grows with n. So latency against a **baseline** tells whether the limit is beyond the knee. Runs are judged in
//! windows, by their median and by the mean number of tasks that ran beside them. With gradient = tolerance × baseline /
//! median, after a window
//!
//! - in which at most half of the limit ran, the baseline follows the median, and the limit stays (what is not in use
//!   proves nothing);
//! - whose gradient is below 1, the limit becomes (in flight × gradient + limit) / 2, at least half of it; only a shadow,
//!   beyond which tasks run, may grow by that;
//! - in which the share that failed is more than a tenth above that of the last quiet one, the limit is a tenth lower;
//! - else, if the limit was reached, the limit grows by a twentieth, at least by 1.
//!
//! A baseline that was learned beyond the knee would hide it, and one that follows latency would be poisoned by it; a
//! minimum would drag the limit down wherever latency varies. So when no window has been quiet for
//! `REMEASURE_AFTER` windows, or the limit has shrunk to half of what it was at the last baseline, half of the limit
//! is put in force until one is. Where latency is proportional to n beyond the knee, a baseline that was measured too high
//! gets nearer to the true one with each measurement: the limit that it allows is half × tolerance times the one before.
//!
//! The gradient, its bound of 1/2 and the smoothing are those of Netflix' concurrency-limits, `Gradient2Limit`:
//! limit' = limit × max(1/2, min(1, tolerance × long / short)) + queue, whose baseline is a moving average of the latency
//! itself. Measuring under a lowered limit is Envoy's adaptive concurrency (there down to 3), and growing only when in
//! use is both's.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::config::duration;
use crate::quantile::Durations;

/// Windows without a quiet one after which one is made.
const REMEASURE_AFTER: u32 = 60;

/// The fewest successful runs in a window. The median of n runs whose durations vary by s (the standard deviation of their
/// logarithm) is off by about 1.25 s / √n: with s = 0.8 that is 14% for 50 runs, well within the tolerance, but 22% for 20,
/// and a low limit that is judged by so few does not get up again (2 of 20 courses of `variable_latency`, at 0.6 of the
/// throughput).
const MIN_RUNS: f32 = 50.0;

/// A window that has not come to enough runs in so many times its length is thrown away.
const STALE_AFTER: u32 = 20;

/// By so much more than in a quiet window the share of failures must be to lower the limit.
const FAILING: f64 = 0.1;

/// Whether the limit is in force.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// There is none.
    #[default]
    Off,
    /// It is only reported.
    Shadow,
    /// The gate holds to it.
    On,
}

impl Mode {
    /// The name used in metrics and `weir describe`.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Off => "off",
            Mode::Shadow => "shadow",
            Mode::On => "on",
        }
    }
}

/// How a limit is found.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether it is.
    pub mode: Mode,
    /// Tasks at once: where it starts, and its clamps.
    pub initial: u32,
    /// It is never lower.
    pub min: u32,
    /// It is never higher.
    pub max: u32,
    /// How much longer than the baseline is still good, as a factor.
    pub tolerance: f64,
    /// How long runs are gathered before they are judged; longer where they take longer.
    #[serde(with = "humantime_serde")]
    pub window: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config { mode: Mode::Off, initial: 20, min: 4, max: 1_000, tolerance: 1.3, window: Duration::from_secs(1) }
    }
}

impl Config {
    pub(super) fn check(&self) -> Result<(), String> {
        const MOST: u32 = 100_000;
        duration("window", self.window, Duration::from_millis(10), Duration::from_secs(600))?;
        let number = |key: &str, value: u32, least: u32, most: u32| match (least..=most).contains(&value) {
            true => Ok(()),
            false => Err(format!("{key}: {value} is not {least} to {most}")),
        };
        number("min", self.min, 1, MOST)?;
        number("max", self.max, self.min, MOST)?;
        number("initial", self.initial, self.min, self.max)?;
        match (1.05..=3.0).contains(&self.tolerance) {
            true => Ok(()),
            false => Err(format!("tolerance: {} is not 1.05 to 3: 1.3 lets runs take 30% longer", self.tolerance)),
        }
    }
}

/// A run that has ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    pub took: Duration,
    /// The mean number of tasks of its integration over its life, itself among them.
    pub beside: f64,
    /// Whether it succeeded; what failed for another reason than the bank's health is no sample.
    pub is_ok: bool,
}

/// The limit of one integration.
#[derive(Debug)]
pub(super) struct Adaptive {
    config: Config,
    limit: f64,
    baseline: Option<Duration>,
    /// The share that failed when the baseline was measured.
    failing_then: f64,
    /// The limit when the baseline was last measured, and the windows since.
    limit_then: f64,
    windows_since: u32,
    measuring: bool,
    window: Window,
}

#[derive(Debug)]
struct Window {
    since: Instant,
    durations: Durations,
    beside: f64,
    most: f64,
    failed: u32,
}

impl Adaptive {
    pub(super) fn new(config: Config, now: Instant) -> Self {
        let limit = f64::from(config.initial);
        let window = Window { since: now, durations: Durations::new(u32::MAX), beside: 0.0, most: 0.0, failed: 0 };
        Adaptive {
            config,
            limit,
            baseline: None,
            failing_then: 0.0,
            limit_then: limit,
            windows_since: 0,
            measuring: false,
            window,
        }
    }

    pub(super) fn mode(&self) -> Mode {
        self.config.mode
    }

    /// How long a run takes on a bank that is not pressed.
    pub(super) fn baseline(&self) -> Option<Duration> {
        self.baseline
    }

    /// How many tasks may run now: the limit, or half of it while the baseline is measured.
    pub(super) fn limit(&self) -> u32 {
        let limit = if self.measuring { self.limit / 2.0 } else { self.limit };
        (limit.round() as u32).clamp(self.config.min, self.config.max)
    }

    /// Takes in a run that has ended, and judges the window when it is complete.
    pub(super) fn add(&mut self, sample: Sample, now: Instant) {
        let window = &mut self.window;
        match sample.is_ok {
            true => {
                window.durations.add(sample.took);
                window.beside += sample.beside;
                window.most = window.most.max(sample.beside);
            }
            false => window.failed += 1,
        }
        let age = now.saturating_duration_since(window.since);
        let length = self.config.window.max(self.baseline.unwrap_or_default());
        if age < length {
            return;
        }
        let runs = window.durations.count();
        if runs >= MIN_RUNS {
            let (median, beside) = (window.durations.at_least(0.5), window.beside / f64::from(runs));
            let failing = f64::from(window.failed) / (f64::from(runs) + f64::from(window.failed));
            let most = window.most;
            self.judge(median.max(Duration::from_micros(100)), beside, most, failing);
            self.window.restart(now);
        } else if window.failed as f32 >= MIN_RUNS {
            self.scale(0.9);
            self.window.restart(now);
        } else if age > length * STALE_AFTER {
            self.window.restart(now);
        }
    }

    fn judge(&mut self, median: Duration, beside: f64, most: f64, failing: f64) {
        self.windows_since += 1;
        // While it is measured, half of the limit and what a clamp adds is all that may run.
        let quiet = if self.measuring { f64::from(self.limit()) } else { self.limit / 2.0 };
        let Some(baseline) = self.baseline.filter(|_| beside > quiet + 0.5) else {
            return self.measured(median, failing);
        };
        let gradient = self.config.tolerance * baseline.as_secs_f64() / median.as_secs_f64();
        if self.measuring {
            // Runs from before the limit was halved still end.
            return;
        }
        if gradient < 1.0 {
            let most = if self.config.mode == Mode::Shadow { 1.5 } else { 1.0 };
            self.scale(((beside * gradient + self.limit) / 2.0 / self.limit).clamp(0.5, most));
        } else if failing > self.failing_then + FAILING {
            self.scale(0.9);
        } else if most >= self.limit.floor() * 0.9 {
            self.limit = (self.limit + (self.limit / 20.0).max(1.0)).min(f64::from(self.config.max));
        }
        let has_halved = self.limit < self.limit_then / 2.0;
        // At the least limit there is no half to measure at, and a shadow holds nothing back.
        let can_measure = self.config.mode == Mode::On && self.limit > f64::from(self.config.min);
        self.measuring = can_measure && (has_halved || self.windows_since >= REMEASURE_AFTER);
    }

    fn measured(&mut self, median: Duration, failing: f64) {
        self.baseline = Some(match self.baseline {
            // A difference within the tolerance may be chance: it counts by a third.
            Some(before) if near(before, median, self.config.tolerance) => (before * 2 + median) / 3,
            _ => median,
        });
        self.failing_then = failing;
        (self.limit_then, self.windows_since, self.measuring) = (self.limit, 0, false);
    }

    fn scale(&mut self, factor: f64) {
        self.limit = (self.limit * factor).clamp(f64::from(self.config.min), f64::from(self.config.max));
    }
}

impl Window {
    fn restart(&mut self, now: Instant) {
        self.durations.clear();
        (self.since, self.beside, self.most, self.failed) = (now, 0.0, 0.0, 0);
    }
}

fn near(one: Duration, other: Duration, factor: f64) -> bool {
    one <= other.mul_f64(factor) && other <= one.mul_f64(factor)
}

#[cfg(test)]
mod tests;
