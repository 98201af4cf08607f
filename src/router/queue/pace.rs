//! How long runs of an integration take, as the router sees them: what a call is charged with when it starts, and how
//! little time is too little.

use std::time::Duration;

use tokio::time::Instant;

use super::fair::{Usage, usage};
use crate::quantile::Durations;

/// What a call is charged with while nothing is known.
const UNKNOWN: Duration = Duration::from_secs(1);

/// The least that a call is charged with, so that a charge can double.
const LEAST: Duration = Duration::from_millis(1);

/// How much a run counts in the mean.
const NEWEST: f64 = 0.05;

/// Successful runs that are remembered: their counts are halved when they add up to this.
const WINDOW: u32 = 400;

/// Fewer than this say nothing of how fast a run can be.
const MIN_RUNS: f32 = 20.0;

/// What is known counts half as much after each of these, so that a bank that has become fast is found out although
/// tasks with little time are no longer tried.
const HALF_LIFE: Duration = Duration::from_secs(120);

/// One integration.
#[derive(Debug)]
pub(super) struct Pace {
    mean: Option<f64>,
    slots: u32,
    successes: Durations,
    halved_at: Instant,
    needs: Option<Duration>,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Pace { mean: None, slots: 1, successes: Durations::new(WINDOW), halved_at: now, needs: None }
    }

    /// A call was out for so long, and held so many slots, where the worker says so.
    pub(super) fn ran(&mut self, time: Duration, slots: Option<u32>) {
        let seconds = time.as_secs_f64();
        self.mean = Some(self.mean.map_or(seconds, |mean| mean + (seconds - mean) * NEWEST));
        self.slots = slots.unwrap_or(self.slots).max(1);
    }

    /// A call was given up after so long: others take no less.
    pub(super) fn aborted(&mut self, time: Duration) {
        if time > self.mean() {
            self.ran(time, None);
        }
    }

    /// A run has succeeded in that time.
    pub(super) fn succeeded(&mut self, time: Duration, quantile: f64, now: Instant) {
        self.age(quantile, now);
        self.successes.add(time);
        self.needs = self.estimate(quantile);
    }

    /// How long a run takes, by that quantile; none while too little is known.
    pub(super) fn needs(&mut self, quantile: f64, now: Instant) -> Option<Duration> {
        self.age(quantile, now);
        self.needs
    }

    pub(super) fn mean(&self) -> Duration {
        self.mean.map_or(UNKNOWN, |mean| Duration::try_from_secs_f64(mean).unwrap_or(UNKNOWN)).max(LEAST)
    }

    pub(super) fn slots(&self) -> u32 {
        self.slots
    }

    /// What a call is charged with when it starts.
    pub(super) fn charge(&self) -> Usage {
        usage(self.slots, self.mean())
    }

    fn age(&mut self, quantile: f64, now: Instant) {
        let halves = now.saturating_duration_since(self.halved_at).as_nanos() / HALF_LIFE.as_nanos();
        if halves == 0 {
            return;
        }
        match halves {
            1..20 => (0..halves).for_each(|_| self.successes.halve()),
            _ => self.successes.clear(),
        }
        self.halved_at = now;
        self.needs = self.estimate(quantile);
    }

    fn estimate(&self, quantile: f64) -> Option<Duration> {
        let known = quantile > 0.0 && self.successes.count() >= MIN_RUNS;
        known.then(|| self.successes.at_least(quantile)).filter(|needs| !needs.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_was_aborted_can_only_make_the_mean_longer() {
        let second = Duration::from_secs(1);
        let mut pace = Pace::new(Instant::now());
        (0..100).for_each(|_| pace.aborted(second / 20));
        assert_eq!(pace.mean(), UNKNOWN);
        pace.ran(second * 3, None);
        (0..100).for_each(|_| pace.aborted(second / 20));
        assert_eq!(pace.mean(), second * 3);
        (0..100).for_each(|_| pace.aborted(second * 20));
        assert!(pace.mean() > second * 19, "{:?}", pace.mean());
    }

    #[test]
    fn little_is_known_at_first_and_what_is_known_ages() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        assert_eq!((pace.charge(), pace.needs(0.05, now)), (usage(1, UNKNOWN), None));
        for _ in 0..100 {
            pace.ran(Duration::from_secs(10), Some(3));
            pace.succeeded(Duration::from_secs(10), 0.05, now);
        }
        assert_eq!(pace.charge(), usage(3, Duration::from_secs(10)));
        let needs = pace.needs(0.05, now).expect("100 runs");
        assert!(needs <= Duration::from_secs(10) && needs > Duration::from_secs(9), "{needs:?}");
        assert!(pace.needs(0.05, now + HALF_LIFE * 2).is_some());
        assert_eq!(pace.needs(0.05, now + HALF_LIFE * 5), None, "too few are left");
        assert_eq!(pace.needs(0.05, now + HALF_LIFE * 5_000_000), None);
    }
}
