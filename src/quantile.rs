//! How long something takes: quantiles of its durations, of which the newer count more.
//!
//! A histogram whose buckets grow by a twelfth of an octave, which is 6% each, from 1 ms to about an hour and ten minutes: 1 KiB,
//! and within 6% of the true quantile. It forgets in two ways: counts are halved when they add up to its window, so that
//! it follows what becomes slower or faster, and its owner may halve them as time goes by.

use std::time::Duration;

const BUCKETS_PER_OCTAVE: f64 = 12.0;

const BUCKETS: usize = 22 * 12;

/// The durations of one thing.
#[derive(Debug, Clone)]
pub struct Durations {
    counts: Box<[f32; BUCKETS]>,
    total: f32,
    window: f32,
}

impl Durations {
    /// None yet; counts are halved when they add up to `window`.
    pub fn new(window: u32) -> Self {
        Durations { counts: Box::new([0.0; BUCKETS]), total: 0.0, window: window as f32 }
    }

    /// One more.
    pub fn add(&mut self, duration: Duration) {
        if self.total >= self.window {
            self.halve();
        }
        self.counts[bucket(duration)] += 1.0;
        self.total += 1.0;
    }

    /// Makes all that is known count half as much as what comes.
    pub fn halve(&mut self) {
        self.counts.iter_mut().for_each(|count| *count /= 2.0);
        self.total /= 2.0;
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.counts.fill(0.0);
        self.total = 0.0;
    }

    /// What the counts add up to: the number of durations, less what was forgotten.
    pub fn count(&self) -> f32 {
        self.total
    }

    /// Whether a duration is longer than a quantile (0 to 1), by more than the histogram's grain.
    pub fn is_beyond(&self, duration: Duration, quantile: f64) -> bool {
        bucket(duration) > self.bucket_of(quantile)
    }

    /// A duration that at most that share (0 to 1) was shorter than: the quantile, or up to 6% less. Zero below 1 ms, and
    /// when nothing is known.
    pub fn at_least(&self, quantile: f64) -> Duration {
        match self.bucket_of(quantile) {
            0 => Duration::ZERO,
            _ if self.total <= 0.0 => Duration::ZERO,
            bucket => Duration::from_secs_f64((bucket as f64 / BUCKETS_PER_OCTAVE).exp2() / 1e3),
        }
    }

    /// The lowest bucket that, with those below it, holds that share.
    fn bucket_of(&self, quantile: f64) -> usize {
        let wanted = quantile as f32 * self.total;
        let mut seen = 0.0;
        let reached = |count: &f32| {
            seen += count;
            seen >= wanted
        };
        self.counts.iter().position(reached).unwrap_or(BUCKETS - 1)
    }
}

fn bucket(duration: Duration) -> usize {
    let octaves = (duration.as_secs_f64() * 1e3).max(1.0).log2();
    ((octaves * BUCKETS_PER_OCTAVE) as usize).min(BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn all_of(milliseconds: impl Iterator<Item = u32>) -> Durations {
        let mut durations = Durations::new(100_000);
        milliseconds.for_each(|n| durations.add(MS * n));
        durations
    }

    #[test]
    fn what_is_unknown_or_too_short_to_measure_takes_no_time() {
        assert_eq!(Durations::new(10).at_least(0.5), Duration::ZERO);
        assert_eq!(all_of(std::iter::repeat_n(0, 9)).at_least(0.5), Duration::ZERO);
        let mut known = all_of(std::iter::repeat_n(500, 9));
        known.clear();
        assert_eq!((known.at_least(0.5), known.count()), (Duration::ZERO, 0.0));
    }

    #[test]
    fn old_durations_give_way() {
        let mut durations = Durations::new(100);
        (0..500).for_each(|_| durations.add(MS * 100));
        (0..200).for_each(|_| durations.add(MS * 1_000));
        assert!(durations.at_least(0.5) > MS * 900, "{:?}", durations.at_least(0.5));
        durations.halve();
        assert!(durations.count() <= 50.0);
    }

    proptest! {
        #[test]
        fn a_quantile_is_within_its_grain_and_never_too_long(
            mut milliseconds in proptest::collection::vec(1u32..3_000_000, 1..500), quantile in 0.01f64..1.0,
        ) {
            let found = all_of(milliseconds.iter().copied()).at_least(quantile);
            milliseconds.sort_unstable();
            let rank = (quantile * milliseconds.len() as f64).ceil() as usize;
            // A share of a count is a float: its neighbour may be meant.
            let near = [rank.saturating_sub(2), rank - 1].map(|rank| MS * milliseconds[rank]);
            prop_assert!(found <= near[1] + MS / 100 && found.mul_f64(1.07) >= near[0].saturating_sub(MS), "{found:?} {near:?}");
        }
    }
}
