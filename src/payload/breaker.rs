//! Whether it is worth asking the store at all. Pure: the time comes in from outside.
//!
//! Closed, all uploads pass. After [`FAILURES`] in a row it opens: no upload passes for a while, 1 s at first and twice
//! as long each time, up to 15 s. Then one upload passes as a probe: when it succeeds the breaker closes, and when it
//! fails it opens again. So a store that is away costs one attempt now and then instead of a slot and its time-outs for
//! each payload. One that hangs fails late: whoever sees that no upload ends says so ([`Breaker::stalled`]), and it opens
//! before that.

use std::time::Duration;

use tokio::time::Instant;

/// Failures in a row that open the breaker.
const FAILURES: u32 = 5;

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// The breaker of one store.
#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    /// Failures in a row while it is closed.
    failures: u32,
    next_pause: Duration,
    /// Since when it is not closed.
    open_since: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Open { until: Instant },
    Probing,
}

/// What the breaker says to an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Go on.
    Pass,
    /// Go on, alone; the result decides.
    Probe,
    /// Not before then. A probe that is under way may end earlier.
    Wait { until: Instant },
}

impl Default for Breaker {
    fn default() -> Self {
        Breaker { state: State::Closed, failures: 0, next_pause: FIRST_PAUSE, open_since: None }
    }
}

impl Breaker {
    /// Asks for one upload; whoever gets [`Verdict::Probe`] must say what came of it, or [`Breaker::released`].
    pub fn ask(&mut self, now: Instant) -> Verdict {
        match self.state {
            State::Closed => Verdict::Pass,
            State::Open { until } if now < until => Verdict::Wait { until },
            State::Open { .. } => {
                self.state = State::Probing;
                Verdict::Probe
            }
            State::Probing => Verdict::Wait { until: now + FIRST_PAUSE },
        }
    }

    /// As [`Breaker::ask`], without asking: when an upload could pass; none when it could now.
    pub fn waits_until(&self, now: Instant) -> Option<Instant> {
        match self.state {
            State::Closed => None,
            State::Open { until } => Some(until).filter(|until| now < *until),
            State::Probing => Some(now + FIRST_PAUSE),
        }
    }

    /// An upload succeeded, so the store is there. Returns since when it had been away, if it had.
    pub fn succeeded(&mut self) -> Option<Instant> {
        std::mem::take(self).open_since
    }

    /// None of the uploads under way ends, for so long that the store counts as away. True when this opened the breaker.
    pub fn stalled(&mut self, now: Instant) -> bool {
        let is_closed = self.state == State::Closed;
        if is_closed {
            self.open(now);
        }
        is_closed
    }

    /// An upload failed. True when this opened the breaker. One that had passed before it opened changes nothing.
    pub fn failed(&mut self, now: Instant, is_probe: bool) -> bool {
        match self.state {
            State::Closed => {
                self.failures += 1;
                (self.failures >= FAILURES).then(|| self.open(now)).is_some()
            }
            State::Probing if is_probe => {
                self.open(now);
                true
            }
            State::Probing | State::Open { .. } => false,
        }
    }

    /// A probe was given up before it came to a result: the next upload may be the probe.
    pub fn released(&mut self, now: Instant) {
        if self.state == State::Probing {
            self.state = State::Open { until: now };
        }
    }

    /// If it is open, the next upload may be a probe at once.
    pub fn hasten(&mut self, now: Instant) {
        if let State::Open { until } = &mut self.state {
            *until = (*until).min(now);
        }
    }

    /// Whether uploads are held back.
    pub fn is_open(&self) -> bool {
        self.open_since().is_some()
    }

    /// Since when uploads are held back, if they are.
    pub fn open_since(&self) -> Option<Instant> {
        self.open_since
    }

    fn open(&mut self, now: Instant) {
        self.state = State::Open { until: now + self.next_pause };
        self.failures = 0;
        self.open_since.get_or_insert(now);
        self.next_pause = (self.next_pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::default();
        for failure in 1..=FAILURES {
            assert_eq!(breaker.failed(now, false), failure == FAILURES);
        }
        breaker
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_success_starts_anew() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..20 {
            (1..FAILURES).for_each(|_| assert!(!breaker.failed(now, false)));
            breaker.succeeded();
        }
        assert_eq!(breaker.ask(now), Verdict::Pass);
        assert_eq!(opened(now).ask(now), Verdict::Wait { until: now + FIRST_PAUSE });
    }

    #[test]
    fn one_probe_passes_and_decides() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let later = now + FIRST_PAUSE;
        assert_eq!(breaker.ask(later), Verdict::Probe);
        assert!(matches!(breaker.ask(later), Verdict::Wait { .. }));
        assert!(!breaker.failed(later, false), "one that had passed before");
        assert!(breaker.failed(later, true));
        assert_eq!(breaker.ask(later), Verdict::Wait { until: later + FIRST_PAUSE * 2 });
        assert_eq!(breaker.ask(later + FIRST_PAUSE * 2), Verdict::Probe);
        breaker.succeeded();
        assert_eq!((breaker.ask(later), breaker.is_open()), (Verdict::Pass, false));
    }

    #[test]
    fn a_store_that_hangs_opens_it_and_those_that_were_under_way_change_nothing_when_they_fail() {
        let now = Instant::now();
        let (mut breaker, later) = (Breaker::default(), now + FIRST_PAUSE);
        assert!(breaker.stalled(now) && !breaker.stalled(now));
        assert_eq!(breaker.ask(now), Verdict::Wait { until: later });
        (0..2 * FAILURES).for_each(|_| assert!(!breaker.failed(now, false)));
        assert_eq!(breaker.ask(later), Verdict::Probe);
        assert!(!breaker.stalled(later) && breaker.failed(later, true));
        assert_eq!(breaker.open_since(), Some(now), "all the time");
        assert_eq!((breaker.succeeded(), breaker.succeeded()), (Some(now), None));
    }

    #[test]
    fn a_probe_that_is_given_up_leaves_room_for_the_next() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert_eq!(breaker.ask(now + FIRST_PAUSE), Verdict::Probe);
        breaker.released(now + FIRST_PAUSE);
        assert_eq!(breaker.waits_until(now + FIRST_PAUSE), None);
        let mut other = opened(now);
        other.hasten(now);
        assert_eq!((other.waits_until(now), other.is_open()), (None, true));
        assert_eq!(breaker.ask(now + FIRST_PAUSE), Verdict::Probe);
    }

    #[test]
    fn pauses_grow_to_a_limit() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        for _ in 0..20 {
            now += LONGEST_PAUSE;
            assert_eq!(breaker.ask(now), Verdict::Probe);
            breaker.failed(now, true);
        }
        assert_eq!(breaker.waits_until(now), Some(now + LONGEST_PAUSE));
    }

    proptest! {
        #[test]
        fn a_store_that_works_again_is_always_found(steps in proptest::collection::vec(0u8..5, 0..200)) {
            let (mut now, mut breaker, mut probing) = (Instant::now(), Breaker::default(), false);
            for step in steps {
                match step {
                    0 => now += Duration::from_millis(700),
                    1 => probing |= breaker.ask(now) == Verdict::Probe,
                    2 => { breaker.failed(now, std::mem::take(&mut probing)); }
                    3 if probing => { breaker.released(now); probing = false; }
                    4 => { breaker.succeeded(); probing = false; }
                    _ => {}
                }
            }
            if probing {
                breaker.released(now);
            }
            now += LONGEST_PAUSE;
            prop_assert!(matches!(breaker.ask(now), Verdict::Pass | Verdict::Probe));
            breaker.succeeded();
            prop_assert_eq!(breaker.ask(now), Verdict::Pass);
        }
    }
}
