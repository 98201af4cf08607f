//! How long the bank takes.
//!
//! Log-normal from its median and its 99th percentile: `exp(ln(median) + sigma z)`, `sigma = ln(p99 / median) / 2.326`,
//! 2.326 being the 99th percentile of the standard normal distribution, and `z` standard normal by Box and Muller. The
//! draw depends on the seed and on what is asked, not on the order of requests.

use std::f64::consts::TAU;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::bank::Random;

/// No answer takes longer.
pub(super) const MAX_LATENCY: Duration = Duration::from_secs(600);

/// The 99th percentile of the standard normal distribution.
const NORMAL_P99: f64 = 2.326;

/// How long an answer takes: `{ fixed = "200ms" }` or `{ log_normal = { median = "1s", p99 = "10s" } }`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Latency {
    /// Always the same.
    Fixed(#[serde(with = "humantime_serde")] Duration),
    /// Mostly about the median, now and then much longer.
    LogNormal {
        /// Half of the answers take longer.
        #[serde(with = "humantime_serde")]
        median: Duration,
        /// One in a hundred takes longer.
        #[serde(with = "humantime_serde")]
        p99: Duration,
    },
}

impl Default for Latency {
    fn default() -> Self {
        Latency::Fixed(Duration::from_millis(200))
    }
}

impl Latency {
    pub(super) fn check(&self) -> Result<(), String> {
        match *self {
            Latency::Fixed(fixed) if fixed > MAX_LATENCY => {
                Err(format!("fixed is {}: use at most 10m", humantime::format_duration(fixed)))
            }
            Latency::LogNormal { median, p99 } if median.is_zero() || p99 < median || p99 > MAX_LATENCY => {
                let (median, p99) = (humantime::format_duration(median), humantime::format_duration(p99));
                Err(format!("median {median} and p99 {p99} do not fit: use 0s < median <= p99 <= 10m"))
            }
            _ => Ok(()),
        }
    }

    /// The latency of the answer to what `random` was seeded with.
    pub(super) fn draw(&self, random: &mut Random) -> Duration {
        match *self {
            Latency::Fixed(fixed) => fixed,
            Latency::LogNormal { median, p99 } => {
                let sigma = (p99.as_secs_f64() / median.as_secs_f64()).ln() / NORMAL_P99;
                let normal = (-2.0 * random.unit().ln()).sqrt() * (TAU * random.unit()).cos();
                let seconds = median.as_secs_f64() * (sigma * normal).exp();
                Duration::from_secs_f64(seconds.min(MAX_LATENCY.as_secs_f64()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_normal_has_its_median_and_its_99th_percentile() {
        let (median, p99) = (Duration::from_secs(1), Duration::from_secs(10));
        let latency = Latency::LogNormal { median, p99 };
        let mut drawn: Vec<Duration> =
            (0..20_000).map(|request| latency.draw(&mut Random::new(7, &[&format!("{request}")]))).collect();
        drawn.sort();
        let (half, high) = (drawn[10_000].as_secs_f64(), drawn[19_800].as_secs_f64());
        assert!((0.95..1.05).contains(&half), "{half}");
        assert!((8.5..11.5).contains(&high), "{high}");
    }

    #[test]
    fn values_that_do_not_fit_are_refused() {
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        Latency::LogNormal { median: second, p99: second }.check().expect("no spread is fine");
        for wrong in [
            Latency::LogNormal { median: minute, p99: second },
            Latency::LogNormal { median: Duration::ZERO, p99: second },
            Latency::Fixed(minute * 11),
        ] {
            assert!(wrong.check().expect_err("wrong").contains("use "));
        }
    }
}
