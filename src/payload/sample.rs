//! What a payload is worth: those of failures and of the slowest runs are kept first, and given up last.
//!
//! Which runs are the slowest is told per integration, for each has a speed of its own: a run is slow when it took
//! longer than the set quantile of those before it, of which the last 2,000 or so count. Within the first 100 runs none
//! is slow.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::quantile::Durations;
use crate::task::{IntegrationName, Outcome};

/// Runs of an integration before the first of them can be called slow.
const LEARNED_RUNS: f32 = 100.0;

/// Counts are halved when they add up to this.
const WINDOW: u32 = 2_000;

/// Integrations whose durations are known; the runs of any more are never slow. A worker has at most as many.
const MAX_INTEGRATIONS: usize = 1_000;

/// How much a payload is wanted, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// One like many: kept as a sample, and the first to give way.
    Ordinary,
    /// One of the slowest of its integration.
    Slow,
    /// Of a task that failed.
    Failure,
}

impl Value {
    /// Whether a payload of this value is kept: each when it is of a failure or slow, and a `share` of the rest, by
    /// `random` from 0 to 1. A share of 0 keeps none of any value.
    pub fn is_kept(self, share: f64, random: f64) -> bool {
        share > 0.0 && (self > Value::Ordinary || random < share)
    }

    /// Whether it gives way to those that are more wanted.
    pub(super) fn is_ordinary(self) -> bool {
        self == Value::Ordinary
    }
}

/// Tells what payloads are worth.
#[derive(Default)]
pub struct Sampler {
    by_integration: Mutex<HashMap<IntegrationName, Durations>>,
}

impl Sampler {
    /// The value of a run's payload, which is slow when the run took longer than that quantile (0 to 1) of its integration's.
    /// Learns from each run that ends well: how long failures take says little.
    pub fn value(&self, integration: &IntegrationName, outcome: &Outcome, slow_quantile: f64) -> Value {
        if outcome.result.is_err() {
            return Value::Failure;
        }
        let mut known = self.by_integration.lock();
        if !known.contains_key(integration) {
            if known.len() >= MAX_INTEGRATIONS {
                return Value::Ordinary;
            }
            known.insert(integration.clone(), Durations::new(WINDOW));
        }
        let Some(durations) = known.get_mut(integration) else { return Value::Ordinary };
        let ran = outcome.timings.ran;
        let is_slow = durations.count() >= LEARNED_RUNS && durations.is_beyond(ran, slow_quantile);
        durations.add(ran);
        if is_slow { Value::Slow } else { Value::Ordinary }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::tests::outcome;
    use super::*;
    use crate::task::{Failure, FailureCode, Remedy};

    fn ran(milliseconds: u64) -> Outcome {
        let mut outcome = outcome("t-1");
        outcome.timings.ran = Duration::from_millis(milliseconds);
        outcome
    }

    fn bank() -> IntegrationName {
        "bank".parse().expect("a name")
    }

    fn with(slow_quantile: f64) -> impl Fn(&IntegrationName, &Outcome) -> Value {
        let sampler = Sampler::default();
        move |integration, outcome| sampler.value(integration, outcome, slow_quantile)
    }

    #[test]
    fn the_slowest_of_each_integration_are_told_from_the_rest() {
        let value = with(0.99);
        for n in 0..5_000 {
            value(&bank(), &ran(1_000 + n % 100));
            value(&"fast".parse().expect("a name"), &ran(10));
        }
        assert_eq!(value(&bank(), &ran(1_000)), Value::Ordinary);
        assert_eq!(value(&bank(), &ran(1_500)), Value::Slow);
        assert_eq!(value(&"fast".parse().expect("a name"), &ran(500)), Value::Slow);
        assert_eq!(value(&"new".parse().expect("a name"), &ran(60_000)), Value::Ordinary, "nothing is known");
    }

    #[test]
    fn another_quantile_counts_at_once_for_what_was_learned() {
        let sampler = Sampler::default();
        (1..=1_000).for_each(|n| _ = sampler.value(&bank(), &ran(n), 0.99));
        assert_eq!(sampler.value(&bank(), &ran(800), 0.99), Value::Ordinary);
        assert_eq!(sampler.value(&bank(), &ran(800), 0.5), Value::Slow);
    }

    #[test]
    fn runs_that_all_take_as_long_are_all_ordinary() {
        let value = with(0.5);
        let values = (0..500).map(|_| value(&bank(), &ran(1_000)));
        assert!(values.collect::<Vec<_>>().into_iter().all(Value::is_ordinary));
    }

    #[test]
    fn the_quantile_follows_an_integration_that_becomes_slower() {
        let value = with(0.9);
        (0..3_000).for_each(|_| _ = value(&bank(), &ran(100)));
        assert_eq!(value(&bank(), &ran(1_000)), Value::Slow);
        let slow = (0..3_000).filter(|_| value(&bank(), &ran(1_000)) == Value::Slow).count();
        assert!(slow < 400, "{slow}");
        assert_eq!(value(&bank(), &ran(1_000)), Value::Ordinary);
    }

    #[test]
    fn a_failure_is_a_failure_and_does_not_change_the_quantile() {
        let value = with(0.9);
        let mut failed = ran(60_000);
        failed.result = Err(Failure::new(FailureCode::Deadline, "late", Remedy::Retry));
        (0..200).for_each(|_| assert_eq!(value(&bank(), &failed), Value::Failure));
        (0..200).for_each(|_| _ = value(&bank(), &ran(100)));
        assert_eq!(value(&bank(), &ran(200)), Value::Slow);
    }

    #[test]
    fn a_share_of_the_ordinary_and_all_others_are_kept_unless_none_is() {
        assert!(Value::Ordinary.is_kept(0.5, 0.4) && !Value::Ordinary.is_kept(0.5, 0.6));
        assert!(Value::Slow.is_kept(1e-9, 0.9) && Value::Failure.is_kept(1e-9, 0.9));
        assert!(![Value::Ordinary, Value::Slow, Value::Failure].iter().any(|value| value.is_kept(0.0, 0.0)));
    }

    proptest! {
        #[test]
        fn about_the_set_share_is_slow_whatever_the_durations(
            durations in proptest::collection::vec(1u64..10_000_000, 1_000..2_000), quantile in 0.5f64..0.99,
        ) {
            let value = with(quantile);
            let slow = durations.iter().filter(|ran_for| value(&bank(), &ran(**ran_for)) == Value::Slow).count();
            let share = slow as f64 / durations.len() as f64;
            prop_assert!(share <= 1.0 - quantile + 0.05, "{share} of quantile {quantile}");
        }
    }
}
