//! How fast a queue drains, measured: pure, with the time passed in.
//!
//! What is measured is departures per *slot-second*: over the time in which somebody waits for a slot and for nothing
//! else, how many runs ended, for each slot that the workers have. A run that was aborted counts as that part of a mean run
//! that it took: callers that come and go say nothing of how long the others will run. So the rate follows at once when a worker comes or goes, or N
//! changes; and neither an idle fleet nor one that waits for a cap says anything of what it could do. A queue whose tasks
//! take a minute drains in bursts a minute apart, so nothing is said before the time of two runs has been seen, and what is
//! older than four fades: of runs as they are on average among those that end.

use std::time::Duration;

use tokio::time::Instant;

/// Departures that say something, and after which older ones count half.
const ENOUGH: f64 = 20.0;

/// A queue that was empty for so long begins anew.
const FORGET: Duration = Duration::from_secs(60);

/// How much a run counts in the mean run.
const NEWEST: f64 = 0.05;

#[derive(Debug)]
pub(super) struct Drain {
    departures: f64,
    busy: f64,
    slot_seconds: f64,
    mean_run: f64,
    waiting: bool,
    slots: u64,
    seen_at: Instant,
}

impl Drain {
    pub(super) fn new(now: Instant) -> Self {
        let (departures, busy, slot_seconds, mean_run) = (0.0, 0.0, 0.0, 0.0);
        Drain { departures, busy, slot_seconds, mean_run, waiting: false, slots: 0, seen_at: now }
    }

    /// Somebody waits from now on, or nobody does, and the workers have so many slots. To be told after each change.
    pub(super) fn waits(&mut self, waiting: bool, slots: u64, now: Instant) {
        let passed = now.saturating_duration_since(self.seen_at);
        if self.waiting {
            self.busy += passed.as_secs_f64();
            self.slot_seconds += passed.as_secs_f64() * self.slots as f64;
        } else if passed >= FORGET {
            (self.departures, self.busy, self.slot_seconds) = (0.0, 0.0, 0.0);
        }
        (self.waiting, self.slots, self.seen_at) = (waiting, slots, self.seen_at.max(now));
    }

    /// A run has ended by itself, and took so long. It counts if somebody waits.
    pub(super) fn departed(&mut self, took: Duration) {
        if self.waiting {
            let weight = if self.departures == 0.0 { 1.0 } else { NEWEST };
            self.mean_run += (took.as_secs_f64() - self.mean_run) * weight;
            self.count(1.0);
        }
    }

    /// A run was aborted after so long.
    pub(super) fn aborted(&mut self, took: Duration) {
        if self.departures == 0.0 {
            // Of how long it would have run nothing is known, so the time says nothing either.
            (self.busy, self.slot_seconds) = (0.0, 0.0);
        } else if self.waiting {
            self.count((took.as_secs_f64() / self.mean_run).min(1.0));
        }
    }

    fn count(&mut self, departures: f64) {
        self.departures += departures;
        if self.departures >= 2.0 * ENOUGH && self.busy >= 4.0 * self.mean_run {
            for value in [&mut self.departures, &mut self.busy, &mut self.slot_seconds] {
                *value /= 2.0;
            }
        }
    }

    /// Departures per second from so many slots; none while too little was seen, or while there are no slots.
    pub(super) fn rate(&self, slots: u64, now: Instant) -> Option<f64> {
        let since = if self.waiting { now.saturating_duration_since(self.seen_at).as_secs_f64() } else { 0.0 };
        let busy = self.busy + since;
        let slot_seconds = self.slot_seconds + since * self.slots as f64;
        let enough = self.departures >= ENOUGH && busy >= 2.0 * self.mean_run && slot_seconds > 0.0 && slots > 0;
        enough.then(|| self.departures / slot_seconds * slots as f64)
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
        drain.waits(true, 30, now);
        for round in 0..50 {
            now += SECOND * 60;
            drain.waits(true, 30, now);
            (0..30).for_each(|_| drain.departed(SECOND * 60));
            let rate = drain.rate(30, now);
            assert_eq!(rate.is_some(), round > 0);
            let late = drain.rate(30, now + SECOND * 59);
            for rate in [rate, late].into_iter().flatten() {
                assert!((0.25..=1.0).contains(&rate), "half a task per second: {rate}");
            }
        }
    }

    #[test]
    fn short_runs_among_long_ones_do_not_make_a_burst_look_like_the_rule() {
        let mut now = Instant::now();
        let mut drain = Drain::new(now);
        drain.waits(true, 30, now);
        for round in 0..50 {
            now += SECOND * 60;
            drain.waits(true, 30, now);
            (0..100).for_each(|n| drain.departed(SECOND * [1, 60][n % 2]));
            let late = drain.rate(30, now + SECOND * 59);
            for rate in [drain.rate(30, now), late].into_iter().flatten().filter(|_| round > 0) {
                assert!((100.0 / 60.0 / 2.0..=100.0 / 60.0 * 2.0).contains(&rate), "{rate} in round {round}");
            }
        }
    }

    #[test]
    fn aborted_runs_leave_the_rate_as_it_was() {
        let mut now = Instant::now();
        let mut drain = Drain::new(now);
        drain.waits(true, 4, now);
        let pass = |drain: &mut Drain, now: &mut Instant, time: Duration| {
            *now += time;
            drain.waits(true, 4, *now);
        };
        // Before anything is known, and after.
        for _ in 0..2 {
            for _ in 0..2_000 {
                pass(&mut drain, &mut now, SECOND / 20);
                (0..4).for_each(|_| drain.aborted(SECOND / 20));
            }
            let rate = drain.rate(4, now);
            assert!(rate.is_none_or(|rate| (1.2..1.5).contains(&rate)), "{rate:?}");
            for _ in 0..10 {
                pass(&mut drain, &mut now, SECOND * 3);
                (0..4).for_each(|_| drain.departed(SECOND * 3));
            }
            let rate = drain.rate(4, now).expect("forty runs");
            assert!((1.2..1.5).contains(&rate), "{rate}");
        }
        // One that hangs is one departure, however long it held its slot.
        let before = drain.departures;
        drain.aborted(SECOND * 600);
        assert!(drain.departures <= before + 1.0);
    }

    #[test]
    fn idle_time_does_not_count_and_an_old_rate_is_forgotten() {
        let mut now = Instant::now();
        let mut drain = Drain::new(now);
        for _ in 0..100 {
            drain.waits(true, 30, now);
            now += SECOND;
            drain.departed(SECOND);
            drain.waits(false, 30, now);
            now += SECOND * 30;
        }
        let rate = drain.rate(30, now).expect("a hundred departures");
        assert!((rate - 1.0).abs() < 0.05, "{rate}");
        drain.waits(true, 30, now + FORGET);
        assert_eq!(drain.rate(30, now + FORGET), None);
    }

    #[test]
    fn the_rate_follows_the_slots_and_says_nothing_of_none() {
        let mut now = Instant::now();
        let mut drain = Drain::new(now);
        for slots in [10, 5] {
            for _ in 0..60 {
                drain.waits(true, slots, now);
                now += SECOND;
                drain.waits(true, slots, now);
                (0..slots).for_each(|_| drain.departed(SECOND));
            }
            for has in [4, 20] {
                let rate = drain.rate(has, now).expect("enough was seen");
                assert!((rate - has as f64).abs() < 0.01, "one per slot: {rate} of {has}");
            }
        }
        assert_eq!(drain.rate(0, now), None);
    }
}
