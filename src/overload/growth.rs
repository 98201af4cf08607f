//! Where memory will soon be if it goes on growing as it does. Pure, with the time passed in.
//!
//! Tasks that were admitted a moment ago go on allocating after the next one is refused, so a threshold on what is used
//! now is crossed too late by a burst. What is judged is
//!
//! expected = used + growth per second over [`OVER`] × [`AHEAD`],
//!
//! and growth below zero counts as none. A burst from b bytes at a steady rate reaches a threshold t, by what is expected,
//! when it has come a third of the way from b to t, where all of it takes less than 3 × [`OVER`]; one that takes longer,
//! when [`AHEAD`] remains to the threshold.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Usage;

/// Growth is the mean over this time: long enough that one large allocation is no trend.
const OVER: Duration = Duration::from_millis(100);

/// How far it looks ahead.
pub(super) const AHEAD: Duration = Duration::from_millis(200);

/// What was used over the last moments, against one limit.
#[derive(Debug, Default)]
pub(super) struct Growth {
    samples: VecDeque<(Instant, Usage)>,
}

impl Growth {
    /// Takes in what is used now; returns what is expected.
    pub(super) fn feed(&mut self, usage: Usage, now: Instant) -> u64 {
        // Another limit is that of something else, such as of another cgroup.
        if self.samples.back().is_some_and(|(_, last)| last.limit != usage.limit) {
            self.samples.clear();
        }
        self.samples.push_back((now, usage));
        // The oldest that is kept is the last one that is as old as the window, so that it spans all of it.
        while self.samples.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= OVER) {
            self.samples.pop_front();
        }
        let (since, before) = self.samples.front().map_or((now, usage), |(at, usage)| (*at, *usage));
        // At the beginning there is less than the window, and a rate over a few milliseconds says nothing.
        let passed = now.saturating_duration_since(since).max(OVER);
        let grown = usage.used.saturating_sub(before.used) as f64;
        usage.used + (grown * AHEAD.as_secs_f64() / passed.as_secs_f64()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(20);
    const LIMIT: u64 = 1_000;

    /// Feeds what is used, one in each tick; returns what is expected each time.
    fn expected(used: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let (mut growth, mut now) = (Growth::default(), Instant::now());
        let step = |used| {
            now += TICK;
            growth.feed(Usage { used, limit: LIMIT }, now)
        };
        used.into_iter().map(step).collect()
    }

    #[test]
    fn what_stays_or_shrinks_is_expected_to_stay() {
        assert_eq!(expected([500; 10]), [500; 10]);
        assert_eq!(expected([500, 400, 300, 200, 100]), [500, 400, 300, 200, 100]);
    }

    #[test]
    fn steady_growth_is_expected_to_go_on_for_the_time_ahead() {
        // 1 in each tick is 10 in the time ahead.
        assert_eq!(expected(0..20)[5..], (5..20).map(|used| used + 10).collect::<Vec<_>>());
    }

    #[test]
    fn a_burst_is_seen_when_it_has_come_a_third_of_the_way() {
        // All of the limit within 250 ms.
        let burst = expected([vec![0; 10], (0..12).map(|tick| tick * 80).collect()].concat());
        let seen = burst[10..].iter().position(|expected| *expected >= 900).expect("it is seen");
        assert_eq!(seen * 80, 320);
    }

    #[test]
    fn a_single_allocation_is_forgotten_after_the_window() {
        let expected = expected([vec![100; 5], vec![200; 8]].concat());
        assert_eq!(expected[5..], [400, 400, 400, 400, 400, 200, 200, 200]);
    }

    #[test]
    fn a_pause_of_the_watchdog_is_no_burst_and_another_limit_is_another_thing() {
        let (mut growth, start) = (Growth::default(), Instant::now());
        growth.feed(Usage { used: 100, limit: LIMIT }, start);
        let later = start + Duration::from_secs(10);
        assert_eq!(growth.feed(Usage { used: 600, limit: LIMIT }, later), 610);
        assert_eq!(growth.feed(Usage { used: 9_000, limit: 10_000 }, later + TICK), 9_000);
    }
}
