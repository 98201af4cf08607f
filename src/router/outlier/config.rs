//! When a worker is ejected, and for how long.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// `[router.outlier]`: which workers are left alone because they fail.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether any are.
    pub enabled: bool,
    /// Calls in a row that broke after they were sent, 1 to 1000.
    pub consecutive_errors: u32,
    /// After this time an outcome counts half. 1 s to 1 h.
    #[serde(with = "humantime_serde")]
    pub window: Duration,
    /// The fewest outcomes by which a worker is judged, 5 to 100000.
    pub min_tasks: u32,
    /// The share of them that an outlier fails, more than 0.5 and at most 1.
    pub failing: f64,
    /// The fewest workers whose success rates are compared, 3 to 100000.
    pub success_rate_workers: u32,
    /// The fewest outcomes of each of them, 5 to 100000.
    pub success_rate_tasks: u32,
    /// How many standard deviations beyond the mean, 1 to 10.
    pub success_rate_stdev: f64,
    /// For how long, the first time; the second time for twice as long, and so on. 1 s to max_time.
    #[serde(with = "humantime_serde")]
    pub base_time: Duration,
    /// The longest, at most 1 h.
    #[serde(with = "humantime_serde")]
    pub max_time: Duration,
    /// The largest share of the pool that may be ejected at once, more than 0 and at most 1; one worker always may, but
    /// never the last that an integration can rely on.
    pub max_ejected: f64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            enabled: true,
            consecutive_errors: 5,
            window: Duration::from_secs(60),
            min_tasks: 20,
            failing: 0.85,
            success_rate_workers: 5,
            success_rate_tasks: 100,
            success_rate_stdev: 1.9,
            base_time: Duration::from_secs(30),
            max_time: Duration::from_secs(300),
            max_ejected: 0.1,
        }
    }
}

impl Config {
    /// What is wrong with it, by key.
    pub fn check(&self) -> Result<(), String> {
        let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3600));
        let tasks = 5..=100_000;
        for (key, value, range) in [
            ("consecutive_errors", self.consecutive_errors, 1..=1_000),
            ("min_tasks", self.min_tasks, tasks.clone()),
            ("success_rate_workers", self.success_rate_workers, 3..=100_000),
            ("success_rate_tasks", self.success_rate_tasks, tasks),
        ] {
            if !range.contains(&value) {
                return Err(format!("{key}: {value} is not {} to {}", range.start(), range.end()));
            }
        }
        for (key, value, least, most) in [
            ("window", self.window, second, hour),
            ("max_time", self.max_time, second, hour),
            ("base_time", self.base_time, second, self.max_time),
        ] {
            if value < least || value > most {
                let [value, least, most] = [value, least, most].map(humantime::format_duration);
                return Err(format!("{key}: {value} is not {least} to {most}"));
            }
        }
        match () {
            () if !(self.failing > 0.5 && self.failing <= 1.0) => {
                Err(format!("failing: {} is not more than 0.5 and at most 1.0", self.failing))
            }
            () if !(1.0..=10.0).contains(&self.success_rate_stdev) => {
                Err(format!("success_rate_stdev: {} is not 1.0 to 10.0", self.success_rate_stdev))
            }
            () if !(self.max_ejected > 0.0 && self.max_ejected <= 1.0) => {
                Err(format!("max_ejected: {} is not more than 0.0 and at most 1.0", self.max_ejected))
            }
            () => Ok(()),
        }
    }

    /// How many of so many workers may be ejected at once.
    pub(in crate::router) fn most_of(&self, workers: usize) -> usize {
        let share = (workers as f64 * self.max_ejected) as usize;
        share.max(1).min(workers.saturating_sub(1))
    }
}
