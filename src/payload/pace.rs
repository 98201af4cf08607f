//! When an encoder steps aside. Pure: lag and time come in from outside.
//!
//! A low priority gives the tasks the processor first where there is a choice, but not under a CPU quota, which all
//! threads use up together. So encoders look at the runtime's lag, and pause while tasks are late. The pauses are
//! bounded: for each second of work an encoder may pause four, so that it keeps a fifth of its time and the queue
//! drains even where the runtime always lags; and no more than [`LONGEST_PAUSE`] at a time.

use std::time::Duration;

/// The runtime lags when a task that was due has waited for this long.
pub(super) const LAG: Duration = Duration::from_millis(5);

/// How long a pause lasts before the lag is looked at again.
const NAP: Duration = Duration::from_millis(5);

/// How much an encoder may pause for what it works.
const PAUSE_PER_WORK: u32 = 4;

/// The most pauses that an encoder can save up.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// One encoder's pauses.
#[derive(Debug, Default)]
pub(super) struct Pace {
    allowed: Duration,
}

impl Pace {
    /// It has worked for that long.
    pub fn worked(&mut self, work: Duration) {
        self.allowed = LONGEST_PAUSE.min(self.allowed + work * PAUSE_PER_WORK);
    }

    /// How long to pause now, before asking again; none when the runtime does not lag, or it is time to work.
    pub fn pause(&mut self, lag: Duration) -> Option<Duration> {
        if lag < LAG || self.allowed.is_zero() {
            return None;
        }
        let nap = NAP.min(self.allowed);
        self.allowed -= nap;
        Some(nap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_lag_nothing_pauses() {
        let mut pace = Pace::default();
        pace.worked(Duration::from_secs(10));
        assert_eq!(pace.pause(Duration::ZERO), None);
        assert_eq!(pace.pause(LAG), Some(NAP));
    }

    #[test]
    fn under_lasting_lag_a_fifth_of_the_time_is_work() {
        let (mut pace, mut worked, mut paused) = (Pace::default(), Duration::ZERO, Duration::ZERO);
        for _ in 0..10_000 {
            let work = Duration::from_micros(300);
            pace.worked(work);
            worked += work;
            let naps = std::iter::from_fn(|| pace.pause(LAG * 100));
            let pause: Duration = naps.sum();
            assert!(pause <= LONGEST_PAUSE);
            paused += pause;
        }
        assert_eq!(paused, worked * PAUSE_PER_WORK);
    }
}
