//! The share of throttled periods over the last seconds. Pure, with the time passed in.
//!
//! Under a CPU quota the kernel counts the periods (100 ms each, as a rule) in which the cgroup wanted to run, and those
//! in which it used up its quota and stood still for the rest: `nr_periods` and `nr_throttled` in `cpu.stat` (Linux,
//! Documentation/admin-guide/cgroup-v2.rst and scheduler/sched-bwc.rst).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How far back it looks.
const OVER: Duration = Duration::from_secs(5);

/// Fewer periods than this say nothing: a cgroup that slept has hardly any.
const LEAST_PERIODS: u64 = 10;

/// The kernel's counters at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Periods {
    pub(super) all: u64,
    pub(super) throttled: u64,
}

/// The counters of the last seconds.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    samples: VecDeque<(Instant, Periods)>,
}

impl Throttle {
    /// Takes the counters in; returns the share of throttled periods, 0 when there were too few to say.
    pub(super) fn feed(&mut self, periods: Periods, now: Instant) -> f64 {
        self.samples.push_back((now, periods));
        // The oldest that is kept is the last one that is as old as the window, so that it spans all of it.
        while self.samples.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= OVER) {
            self.samples.pop_front();
        }
        let first = self.samples.front().map_or(periods, |(_, first)| *first);
        // Counters that go back are those of another cgroup.
        let all = periods.all.saturating_sub(first.all);
        let throttled = periods.throttled.saturating_sub(first.throttled).min(all);
        if all < LEAST_PERIODS { 0.0 } else { throttled as f64 / all as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_share_of_the_last_seconds() {
        let (mut throttle, start) = (Throttle::default(), Instant::now());
        let mut shares = Vec::new();
        // 10 s with every second period throttled, and then 10 s without one; 10 periods a second.
        for second in 0..=20u64 {
            let periods = Periods { all: second * 10, throttled: second.min(10) * 5 };
            shares.push(throttle.feed(periods, start + Duration::from_secs(second)));
        }
        assert_eq!(shares[0], 0.0);
        assert_eq!(shares[1..=10], [0.5; 10]);
        assert_eq!(shares[11..=15], [0.4, 0.3, 0.2, 0.1, 0.0]);
        assert!(throttle.samples.len() <= 7, "{}", throttle.samples.len());
    }

    #[test]
    fn a_few_periods_say_nothing() {
        let (mut throttle, start) = (Throttle::default(), Instant::now());
        throttle.feed(Periods { all: 0, throttled: 0 }, start);
        assert_eq!(throttle.feed(Periods { all: 9, throttled: 9 }, start + Duration::from_secs(1)), 0.0);
        assert_eq!(throttle.feed(Periods { all: 10, throttled: 10 }, start + Duration::from_secs(2)), 1.0);
        assert_eq!(throttle.feed(Periods { all: 1, throttled: 1 }, start + Duration::from_secs(3)), 0.0);
    }
}
