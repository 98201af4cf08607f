//! Whether it is worth asking the store at all. Pure: the time comes in from outside.
//!
//! Closed, all uploads pass. After [`FAILURES`] in a row it opens: nothing passes for a while, 1 s at first and twice as
//! long each time, up to 15 s. Then a probe does, which is no payload, for that may be one that the store never takes: when
//! it succeeds the breaker closes, and when it fails the next pause begins. So a store that is away costs one attempt now
//! and then instead of a slot and its time-outs for each payload. One that hangs fails late: whoever sees that no upload ends says so ([`Breaker::stalled`]), and it opens
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

impl Default for Breaker {
    fn default() -> Self {
        Breaker { state: State::Closed, failures: 0, next_pause: FIRST_PAUSE, open_since: None }
    }
}

impl Breaker {
    /// Whether payloads may be uploaded.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Whether it is time to look whether the store is back; whoever does so must say what came of it, or
    /// [`Breaker::released`].
    pub fn probe(&mut self, now: Instant) -> bool {
        let is_time = matches!(self.state, State::Open { until } if now >= until);
        if is_time {
            self.state = State::Probing;
        }
        is_time
    }

    /// An upload succeeded, so the store is there. Returns since when it had been away, if it had. Where that says nothing of
    /// payloads, the next pause is as long as it would have been.
    pub fn succeeded(&mut self, says_nothing_of_payloads: bool) -> Option<Instant> {
        let next_pause = if says_nothing_of_payloads { self.next_pause } else { FIRST_PAUSE };
        std::mem::replace(self, Breaker { next_pause, ..Breaker::default() }).open_since
    }

    /// None of the uploads under way ends, for so long that the store counts as away. True when this opened the breaker.
    pub fn stalled(&mut self, now: Instant) -> bool {
        let is_closed = self.state == State::Closed;
        if is_closed {
            self.open(now);
        }
        is_closed
    }

    /// An upload failed. True when this opened the breaker, which was closed. One that had passed before it opened changes
    /// nothing.
    pub fn failed(&mut self, now: Instant, is_probe: bool) -> bool {
        match self.state {
            State::Closed => {
                self.failures += 1;
                (self.failures >= FAILURES).then(|| self.open(now)).is_some()
            }
            State::Probing if is_probe => {
                self.open(now);
                false
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
            breaker.succeeded(false);
        }
        assert!(breaker.is_closed() && !breaker.probe(now));
        let mut breaker = opened(now);
        assert!(!breaker.is_closed() && !breaker.probe(now) && breaker.probe(now + FIRST_PAUSE));
    }

    #[test]
    fn one_probe_passes_and_decides() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let later = now + FIRST_PAUSE;
        assert!(breaker.probe(later) && !breaker.probe(later));
        assert!(!breaker.failed(later, false), "one that had passed before");
        assert!(!breaker.failed(later, true), "it was open before");
        assert!(!breaker.probe(later + FIRST_PAUSE) && breaker.probe(later + FIRST_PAUSE * 2));
        breaker.succeeded(false);
        assert!(breaker.is_closed());
    }

    #[test]
    fn a_probe_that_fails_after_others_have_closed_it_counts_as_any_other() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert!(breaker.probe(now + FIRST_PAUSE));
        breaker.succeeded(false);
        (1..FAILURES).for_each(|_| assert!(!breaker.failed(now, false)));
        assert!(breaker.failed(now, true), "whoever is the last of them");
    }

    #[test]
    fn pauses_grow_to_a_limit() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        for pause in [1_000, 2_000, 4_000, 8_000, 15_000, 15_000] {
            now += Duration::from_millis(pause);
            assert!(!breaker.probe(now - Duration::from_millis(1)) && breaker.probe(now));
            breaker.failed(now, true);
        }
    }

    #[test]
    fn a_store_that_takes_probes_and_no_payloads_is_asked_less_and_less() {
        let (mut now, mut breaker) = (Instant::now(), Breaker::default());
        let fail = |breaker: &mut Breaker, now| (0..FAILURES).for_each(|_| _ = breaker.failed(now, false));
        for pause in [1, 2, 4, 8, 15, 15] {
            fail(&mut breaker, now);
            now += Duration::from_secs(pause);
            assert!(!breaker.probe(now - Duration::from_millis(1)) && breaker.probe(now));
            breaker.succeeded(true);
        }
        breaker.succeeded(false);
        fail(&mut breaker, now);
        assert!(breaker.probe(now + FIRST_PAUSE));
    }

    #[test]
    fn a_store_that_hangs_opens_it_and_those_that_were_under_way_change_nothing_when_they_fail() {
        let now = Instant::now();
        let (mut breaker, later) = (Breaker::default(), now + FIRST_PAUSE);
        assert!(breaker.stalled(now) && !breaker.stalled(now));
        (0..2 * FAILURES).for_each(|_| assert!(!breaker.failed(now, false)));
        assert!(!breaker.probe(now) && breaker.probe(later));
        assert!(!breaker.stalled(later) && !breaker.failed(later, true));
        assert_eq!(breaker.open_since(), Some(now), "all the time");
        assert_eq!((breaker.succeeded(false), breaker.succeeded(false)), (Some(now), None));
    }

    #[test]
    fn a_probe_that_is_given_up_leaves_room_for_the_next() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert!(breaker.probe(now + FIRST_PAUSE));
        breaker.released(now + FIRST_PAUSE);
        assert!(!breaker.is_closed() && breaker.probe(now + FIRST_PAUSE));
        let mut other = opened(now);
        other.hasten(now);
        assert!(!other.is_closed() && other.probe(now));
    }

    proptest! {
        #[test]
        fn a_store_that_works_again_is_always_found(steps in proptest::collection::vec(0u8..6, 0..200)) {
            let (mut now, mut breaker, mut probing) = (Instant::now(), Breaker::default(), false);
            for step in steps {
                match step {
                    0 => now += Duration::from_millis(700),
                    1 => probing |= breaker.probe(now),
                    2 => { breaker.failed(now, std::mem::take(&mut probing)); }
                    3 if probing => { breaker.released(now); probing = false; }
                    4 => { breaker.succeeded(false); probing = false; }
                    5 => { breaker.failed(now, false); }
                    _ => {}
                }
            }
            if probing {
                breaker.released(now);
            }
            now += LONGEST_PAUSE;
            prop_assert!(breaker.is_closed() || breaker.probe(now));
            breaker.succeeded(false);
            prop_assert!(breaker.is_closed());
        }
    }
}
