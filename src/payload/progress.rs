//! Whether the store gets on with what it was given. Pure: the time comes in from outside.
//!
//! A store that refuses says so at once, and the breaker hears of it. One that hangs says nothing until its time-outs are
//! over, half a minute and more; that nothing ends is all there is to go by meanwhile.

use std::time::Duration;

use tokio::time::Instant;

/// How long a rate is measured before anything is concluded from it.
const MEASURED_FOR: Duration = Duration::from_secs(1);

/// The uploads under way, and when the store took one last.
#[derive(Debug, Default)]
pub(super) struct Progress {
    under_way: usize,
    /// When it took one, or, where none was under way then, when the first of these began.
    since: Option<Instant>,
}

impl Progress {
    /// An upload begins.
    pub fn begins(&mut self, now: Instant) {
        if self.under_way == 0 {
            self.since = Some(now);
        }
        self.under_way += 1;
    }

    /// An upload is over: the store answered, or it did not.
    pub fn ends(&mut self, now: Instant, was_answered: bool) {
        self.under_way -= 1;
        if was_answered {
            self.since = Some(now);
        }
    }

    /// For how long the store has answered none of those under way; nothing where none is.
    pub fn silent_for(&self, now: Instant) -> Duration {
        match self.since {
            Some(since) if self.under_way > 0 => now.saturating_duration_since(since),
            _ => Duration::ZERO,
        }
    }
}

/// Whether what is `left` will be done in the time that is left, at the rate at which `ended` were in `elapsed`. Yes, as
/// long as the rate has not been measured for long enough.
pub(super) fn keeps_up(ended: u64, elapsed: Duration, left: u64, time_left: Duration) -> bool {
    elapsed < MEASURED_FOR || left as f64 * elapsed.as_secs_f64() <= ended as f64 * time_left.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_store_is_silent_only_while_something_is_under_way() {
        let (start, mut progress) = (Instant::now(), Progress::default());
        assert_eq!(progress.silent_for(start), Duration::ZERO);
        progress.begins(start);
        progress.begins(start + SECOND);
        assert_eq!(progress.silent_for(start + SECOND * 3), SECOND * 3, "since the first of them");
        progress.ends(start + SECOND * 3, true);
        assert_eq!(progress.silent_for(start + SECOND * 5), SECOND * 2, "since it took one");
        progress.ends(start + SECOND * 6, false);
        assert_eq!(progress.silent_for(start + SECOND * 9), Duration::ZERO, "nothing is under way");
        progress.begins(start + SECOND * 9);
        progress.begins(start + SECOND * 9);
        progress.ends(start + SECOND * 10, false);
        assert_eq!(progress.silent_for(start + SECOND * 10), SECOND, "one that was given up says nothing");
    }

    #[test]
    fn a_rate_is_measured_for_a_second_and_then_decides() {
        assert!(keeps_up(0, SECOND / 2, 1_000, SECOND));
        assert!(!keeps_up(0, SECOND, 1, SECOND));
        assert!(keeps_up(100, SECOND, 400, SECOND * 4));
        assert!(!keeps_up(100, SECOND, 401, SECOND * 4));
    }
}
