//! How fast a queue drains, measured: pure, with the time passed in.
//!
//! Only the time in which somebody waits counts, and only those who were served from the queue: what an idle fleet gets
//! to do says nothing of what it could. A queue whose tasks take a minute drains in bursts a minute apart, so nothing is
//! said before two runs' time has been seen, and what is older than four fades.

use std::time::Duration;

use tokio::time::Instant;

/// Departures that say something, and after which older ones count half.
const ENOUGH: f64 = 20.0;

/// A queue that was empty for so long begins anew.
const FORGET: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Drain {
    departures: f64,
    busy: f64,
    waiting: bool,
    seen_at: Instant,
}

impl Drain {
    pub(super) fn new(now: Instant) -> Self {
        Drain { departures: 0.0, busy: 0.0, waiting: false, seen_at: now }
    }

    /// Somebody waits from now on, or nobody does. To be told after each change.
    pub(super) fn waits(&mut self, waiting: bool, now: Instant) {
        let passed = now.saturating_duration_since(self.seen_at);
        if self.waiting {
            self.busy += passed.as_secs_f64();
        } else if passed >= FORGET {
            (self.departures, self.busy) = (0.0, 0.0);
        }
        (self.waiting, self.seen_at) = (waiting, self.seen_at.max(now));
    }

    /// One was served that waited; a run takes `mean`.
    pub(super) fn departed(&mut self, mean: Duration) {
        self.departures += 1.0;
        if self.departures >= 2.0 * ENOUGH && self.busy >= 4.0 * mean.as_secs_f64() {
            self.departures /= 2.0;
            self.busy /= 2.0;
        }
    }

    /// Departures per second; none while too little was seen.
    pub(super) fn rate(&self, mean: Duration, now: Instant) -> Option<f64> {
        let since = if self.waiting { now.saturating_duration_since(self.seen_at) } else { Duration::ZERO };
        let busy = self.busy + since.as_secs_f64();
        let enough = self.departures >= ENOUGH && busy >= 2.0 * mean.as_secs_f64() && busy > 0.0;
        enough.then(|| self.departures / busy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_queue_that_drains_in_bursts_has_the_rate_of_its_mean() {
        let mut now = Instant::now();
        let mut drain = Drain::new(now);
        drain.waits(true, now);
        for round in 0..50 {
            now += SECOND * 60;
            drain.waits(true, now);
            (0..30).for_each(|_| drain.departed(SECOND * 60));
            let rate = drain.rate(SECOND * 60, now);
            assert_eq!(rate.is_some(), round > 0);
            let late = drain.rate(SECOND * 60, now + SECOND * 59);
            for rate in [rate, late].into_iter().flatten() {
                assert!((0.25..=1.0).contains(&rate), "half a task per second: {rate}");
            }
        }
    }

    #[test]
    fn idle_time_does_not_count_and_an_old_rate_is_forgotten() {
        let mut now = Instant::now();
        let mut drain = Drain::new(now);
        for _ in 0..100 {
            drain.waits(true, now);
            now += SECOND;
            drain.departed(SECOND);
            drain.waits(false, now);
            now += SECOND * 30;
        }
        let rate = drain.rate(SECOND, now).expect("a hundred departures");
        assert!((rate - 1.0).abs() < 0.05, "{rate}");
        drain.waits(true, now + FORGET);
        assert_eq!(drain.rate(SECOND, now + FORGET), None);
    }
}
