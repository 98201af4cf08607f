//! How fast a queue drains, measured: pure, with the time passed in.
//!
//! Only the time in which somebody waits counts, and only those who were served from the queue: what an idle fleet gets
//! to do says nothing of what it could. A queue whose tasks take a minute drains in bursts a minute apart, so nothing is
//! said before the time of two runs has been seen, and what is older than four fades: of runs as they are on average among
//! those that leave.

use std::time::Duration;

use tokio::time::Instant;

/// Departures that say something, and after which older ones count half.
const ENOUGH: f64 = 20.0;

/// A queue that was empty for so long begins anew.
const FORGET: Duration = Duration::from_secs(60);

/// How much one that leaves counts in the mean run.
const NEWEST: f64 = 0.05;

#[derive(Debug)]
pub(super) struct Drain {
    departures: f64,
    busy: f64,
    mean_run: f64,
    waiting: bool,
    seen_at: Instant,
}

impl Drain {
    pub(super) fn new(now: Instant) -> Self {
        Drain { departures: 0.0, busy: 0.0, mean_run: 0.0, waiting: false, seen_at: now }
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

    /// One was served that waited; a run of its kind takes so long.
    pub(super) fn departed(&mut self, run: Duration) {
        let weight = if self.departures == 0.0 { 1.0 } else { NEWEST };
        self.mean_run += (run.as_secs_f64() - self.mean_run) * weight;
        self.departures += 1.0;
        if self.departures >= 2.0 * ENOUGH && self.busy >= 4.0 * self.mean_run {
            self.departures /= 2.0;
            self.busy /= 2.0;
        }
    }

    /// Departures per second; none while too little was seen.
    pub(super) fn rate(&self, now: Instant) -> Option<f64> {
        let since = if self.waiting { now.saturating_duration_since(self.seen_at) } else { Duration::ZERO };
        let busy = self.busy + since.as_secs_f64();
        let enough = self.departures >= ENOUGH && busy >= 2.0 * self.mean_run && busy > 0.0;
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
            let rate = drain.rate(now);
            assert_eq!(rate.is_some(), round > 0);
            let late = drain.rate(now + SECOND * 59);
            for rate in [rate, late].into_iter().flatten() {
                assert!((0.25..=1.0).contains(&rate), "half a task per second: {rate}");
            }
        }
    }

    #[test]
    fn short_runs_among_long_ones_do_not_make_a_burst_look_like_the_rule() {
        let mut now = Instant::now();
        let mut drain = Drain::new(now);
        drain.waits(true, now);
        for round in 0..50 {
            now += SECOND * 60;
            drain.waits(true, now);
            (0..100).for_each(|n| drain.departed(SECOND * [1, 60][n % 2]));
            let late = drain.rate(now + SECOND * 59);
            for rate in [drain.rate(now), late].into_iter().flatten().filter(|_| round > 0) {
                assert!((100.0 / 60.0 / 2.0..=100.0 / 60.0 * 2.0).contains(&rate), "{rate} in round {round}");
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
        let rate = drain.rate(now).expect("a hundred departures");
        assert!((rate - 1.0).abs() < 0.05, "{rate}");
        drain.waits(true, now + FORGET);
        assert_eq!(drain.rate(now + FORGET), None);
    }
}
