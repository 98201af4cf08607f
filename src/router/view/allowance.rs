//! What one worker takes of one integration, or of one tenant, as its replies say: pure.
//!
//! The worker's caps are not known here, only what it holds of them, which each reply about the integration or the tenant
//! tells. So the router keeps to them by itself: as many calls out as are left beside what others have there. What is
//! known grows old where others hold something too, since their calls end unseen: then one call beyond it is tried after a
//! pause, and when that is refused, the next after twice as long.

use std::time::Duration;

use tokio::time::Instant;

use super::openings::Opens;
use crate::wire::metadata::Share;

/// How long a word of "no more" is believed at first.
const PAUSE: Duration = super::REPORT_TRUSTED;

/// The longest, after refusals in a row.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// How long it is believed where all that is held is ours: nobody else's calls end unseen, and of other caps the worker's
/// presence tells.
const PAUSE_OURS: Duration = Duration::from_secs(30);

/// How long what is known is kept while no call is out.
const KEPT: Duration = Duration::from_secs(60);

/// What a worker said of it when a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    Nothing,
    /// It takes no more.
    NoMore,
    /// It did not take this one.
    Refused,
}

#[derive(Debug)]
pub(super) struct Allowance {
    own: u32,
    /// How many of our own calls may be out; none where no cap is known.
    most: Option<u32>,
    is_shut: bool,
    /// Whether others hold something of it, as far as we know.
    has_others: bool,
    /// When it was last told, or tried out.
    at: Instant,
    pause: Duration,
}

impl Allowance {
    pub(super) fn new(now: Instant) -> Self {
        Allowance { own: 0, most: None, is_shut: false, has_others: true, at: now, pause: PAUSE }
    }

    /// When another call is worth while.
    pub(super) fn opens(&self) -> Opens {
        if self.has_room() { Opens::Now } else { Opens::At(self.again_at()) }
    }

    /// Whether one is.
    pub(super) fn is_open(&self, now: Instant) -> bool {
        self.opens().by(now)
    }

    /// When another call may be tried, unless one ends before.
    pub(super) fn again_at(&self) -> Instant {
        self.at + if self.has_others { self.pause } else { PAUSE_OURS }
    }

    /// A call goes out.
    pub(super) fn take(&mut self, now: Instant) {
        if !self.has_room() {
            // It tries out whether there is more: one at a time.
            self.at = now;
        }
        self.own += 1;
    }

    /// A call has ended, of which the worker said that, or said nothing.
    pub(super) fn give_back(&mut self, share: Option<Share>, word: Word, now: Instant) {
        self.own = self.own.saturating_sub(1);
        if let Some(Share { held, most }) = share {
            // What of it is not ours is others'.
            let others = held.saturating_sub(self.own);
            self.most = most.map(|most| most.saturating_sub(others));
            self.is_shut = most == Some(0);
            self.has_others = others > 0;
            self.at = now;
        }
        if word != Word::Nothing {
            self.most = Some(self.most.map_or(self.own, |most| most.min(self.own)));
            self.at = now;
        }
        if word == Word::Refused {
            self.pause = (self.pause * 2).min(PAUSE_MAX);
        } else if self.has_room() {
            self.pause = PAUSE;
        }
    }

    /// Nothing is known any more of how many may be out.
    pub(super) fn forget(&mut self) {
        (self.most, self.is_shut, self.has_others, self.pause) = (None, false, true, PAUSE);
    }

    /// Whether nothing is lost when this is forgotten.
    pub(super) fn is_worthless(&self, now: Instant) -> bool {
        self.own == 0 && (self.most.is_none() || now.saturating_duration_since(self.at) >= KEPT)
    }

    /// Whether nothing at all is taken.
    pub(super) fn is_shut(&self) -> bool {
        self.is_shut
    }

    pub(super) fn has_room(&self) -> bool {
        self.most.is_none_or(|most| self.own < most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cap(held: u32, most: u32) -> Option<Share> {
        Some(Share { held, most: Some(most) })
    }

    #[test]
    fn what_is_left_beside_others_is_kept_to() {
        let now = Instant::now();
        let mut allowance = Allowance::new(now);
        (0..3).for_each(|_| allowance.take(now));
        assert!(allowance.is_open(now), "nothing is known");
        allowance.give_back(cap(4, 5), Word::Nothing, now);
        assert!(allowance.is_open(now), "two of the four are others', and one is left");
        allowance.take(now);
        assert!(!allowance.is_open(now));
        allowance.give_back(Some(Share { held: 4, most: None }), Word::Nothing, now);
        assert!(allowance.is_open(now), "the cap was lifted");
    }

    #[test]
    fn calls_on_their_way_are_not_counted_twice() {
        let now = Instant::now();
        let mut allowance = Allowance::new(now);
        (0..20).for_each(|_| allowance.take(now));
        (0..15).for_each(|_| allowance.give_back(cap(5, 5), Word::Refused, now));
        assert!(!allowance.is_open(now));
        allowance.give_back(cap(4, 5), Word::Nothing, now);
        assert!(allowance.is_open(now));
        allowance.take(now);
        assert!(!allowance.is_open(now + PAUSE_MAX), "five are out, as many as may, and all of them are ours");
        assert!(allowance.is_open(now + PAUSE_OURS));
    }

    #[test]
    fn beyond_what_is_known_one_call_at_a_time_is_tried_and_less_often_when_that_is_refused() {
        let mut now = Instant::now();
        let mut allowance = Allowance::new(now);
        allowance.take(now);
        allowance.give_back(None, Word::Refused, now);
        for pause in [2, 4, 8, 8, 8].map(|times| PAUSE * times) {
            assert!(!allowance.is_open(now + pause - Duration::from_millis(1)));
            now += pause;
            assert!(allowance.is_open(now));
            allowance.take(now);
            assert!(!allowance.is_open(now), "one at a time");
            allowance.give_back(cap(2, 2), Word::Refused, now);
        }
        now += PAUSE_MAX;
        allowance.take(now);
        allowance.give_back(cap(1, 2), Word::Nothing, now);
        assert!(allowance.is_open(now), "others' calls have ended");
        assert!(!allowance.is_worthless(now) && allowance.is_worthless(now + KEPT));
    }
}
