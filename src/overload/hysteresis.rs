//! One signal's memory: when it becomes high and when it is low again. Pure, with the time passed in.
//!
//! It is high at once when its value reaches `enter`. It is low again when the value has stayed below `exit` for `hold`.
//! A value that settles between the two would never get there (memory that an allocator does not give back), so it is
//! also low when the value has stayed below `enter` for [`SETTLED`] times as long.

use std::time::{Duration, Instant};

/// How many times `hold` a value between the thresholds must last to be taken for the new normal.
const SETTLED: u32 = 5;

/// One signal.
#[derive(Debug)]
pub(super) struct Hysteresis {
    enter: f64,
    exit: f64,
    hold: Duration,
    high: Option<High>,
}

/// Since when the value has been below each threshold.
#[derive(Debug, Default)]
struct High {
    below_exit: Option<Instant>,
    below_enter: Option<Instant>,
}

impl Hysteresis {
    pub(super) fn new(enter: f64, exit: f64, hold: Duration) -> Self {
        Hysteresis { enter, exit, hold, high: None }
    }

    /// Whether the value alone makes the signal high.
    pub(super) fn reaches(&self, value: f64) -> bool {
        value >= self.enter
    }

    /// Takes the value in; returns whether the signal is high.
    pub(super) fn feed(&mut self, value: f64, now: Instant) -> bool {
        if self.reaches(value) {
            self.high = Some(High::default());
            return true;
        }
        let Some(high) = &mut self.high else { return false };
        let lasted = |below: bool, since: &mut Option<Instant>| {
            let since = if below { *since.get_or_insert(now) } else { return reset(since) };
            now.saturating_duration_since(since)
        };
        let below_exit = lasted(value < self.exit, &mut high.below_exit);
        let below_enter = lasted(true, &mut high.below_enter);
        let has_waited = high.below_exit.is_some() && below_exit >= self.hold;
        if has_waited || below_enter >= self.hold * SETTLED {
            self.high = None;
        }
        self.high.is_some()
    }
}

fn reset(since: &mut Option<Instant>) -> Duration {
    *since = None;
    Duration::ZERO
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOLD: Duration = Duration::from_millis(1000);

    /// Feeds values, one each 100 ms; returns when it was high.
    fn high(values: &[f64]) -> Vec<bool> {
        let (mut signal, mut now) = (Hysteresis::new(0.9, 0.8, HOLD), Instant::now());
        let step = |value: &f64| {
            now += Duration::from_millis(100);
            signal.feed(*value, now)
        };
        values.iter().map(step).collect()
    }

    #[test]
    fn it_is_high_at_once_and_low_after_a_time_below_the_lower_threshold() {
        let values = [vec![0.89], vec![0.9], vec![0.79; 12]].concat();
        let expected = [vec![false], vec![true; 11], vec![false; 2]].concat();
        assert_eq!(high(&values), expected);
    }

    #[test]
    fn the_time_begins_anew_when_it_rises_again() {
        let values = [vec![0.9], vec![0.7; 9], vec![0.85], vec![0.7; 10], vec![0.7]].concat();
        let expected = [vec![true; 21], vec![false]].concat();
        assert_eq!(high(&values), expected);
    }

    #[test]
    fn a_value_that_settles_between_the_thresholds_is_the_new_normal() {
        let values = [vec![0.9], vec![0.85; 51]].concat();
        let expected = [vec![true; 51], vec![false]].concat();
        assert_eq!(high(&values), expected);
    }

    proptest! {
        #[test]
        fn it_changes_at_most_twice_in_each_hold(values in proptest::collection::vec(0.5f64..1.0, 0..300)) {
            let high = high(&values);
            let falls: Vec<_> = (1..high.len()).filter(|at| high[at - 1] && !high[*at]).collect();
            let rises: Vec<_> = (1..high.len()).filter(|at| !high[at - 1] && high[*at]).collect();
            for fall in falls {
                let last_rise = rises.iter().rfind(|rise| **rise < fall);
                prop_assert!(last_rise.is_none_or(|rise| fall - rise >= 10), "{rise:?} {fall}", rise = last_rise);
            }
        }
    }
}
