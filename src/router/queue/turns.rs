//! Whose turn it is: interactive before batch, but batch has at least its share while it waits. Pure.
//!
//! With each call that starts while batch waits, batch is owed its share of what the call is charged with, and pays for
//! its own. When it is owed as much as its next call takes beyond its own share, that one comes first. So over any time in
//! which batch waits and could be served, it has its share of the slot-seconds that were started, less one call.

use super::fair::Usage;
use crate::task::Priority;

/// What is owed at the most, in calls as large as the largest lately: batch that could not be served for long (no worker
/// had room for it) must not keep people waiting for as long.
const OWED_CALLS: f64 = 4.0;

/// What batch is owed.
#[derive(Debug)]
pub(super) struct Turns {
    share: f64,
    owed: f64,
    largest: f64,
}

impl Turns {
    /// Batch has that share, 0 to 1.
    pub(super) fn new(share: f64) -> Self {
        Turns { share, owed: 0.0, largest: 0.0 }
    }

    /// Batch has that share from now on; what it is owed stays.
    pub(super) fn set_share(&mut self, share: f64) {
        self.share = share;
    }

    /// Of batch.
    pub(super) fn share(&self) -> f64 {
        self.share
    }

    /// Whether a batch call that is charged with so much comes before interactive ones.
    pub(super) fn is_batch_first(&self, charge: Usage) -> bool {
        self.share > 0.0 && self.owed >= (1.0 - self.share) * charge as f64
    }

    /// Whether batch could come first at all: cheaper to ask.
    pub(super) fn owes(&self) -> bool {
        self.owed > 0.0 || self.share >= 1.0
    }

    /// A call has started. Nothing is owed while no batch task waits.
    pub(super) fn started(&mut self, priority: Priority, charge: Usage, batch_waits: bool) {
        if !batch_waits {
            (self.owed, self.largest) = (0.0, 0.0);
            return;
        }
        let charge = charge as f64;
        self.largest = self.largest.max(charge);
        self.owed += match priority {
            Priority::Interactive => self.share * charge,
            Priority::Batch => (self.share - 1.0) * charge,
        };
        // More than its share, while nobody else waited, is not held against it.
        self.owed = self.owed.clamp(0.0, OWED_CALLS * self.largest);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn batch_has_its_share_less_one_call_whatever_calls_take(
            share in 0.0f64..=1.0, charges in proptest::collection::vec((1u64..1_000, 1u64..1_000), 1..500),
        ) {
            let mut turns = Turns::new(share);
            let (mut batch, mut all, mut largest) = (0.0, 0.0, 0.0f64);
            for (interactive_charge, batch_charge) in charges {
                let batch_first = turns.is_batch_first(batch_charge);
                let (priority, charge) =
                    if batch_first { (Priority::Batch, batch_charge) } else { (Priority::Interactive, interactive_charge) };
                turns.started(priority, charge, true);
                all += charge as f64;
                batch += if batch_first { charge as f64 } else { 0.0 };
                largest = largest.max(batch_charge as f64).max(charge as f64);
                prop_assert!(batch >= share * all - 2.0 * largest, "{batch} of {all}");
                prop_assert!(batch <= share * all + largest, "people first: {batch} of {all}");
            }
        }
    }

    #[test]
    fn nothing_is_owed_for_the_time_in_which_no_batch_task_waited() {
        let mut turns = Turns::new(0.5);
        (0..100).for_each(|_| turns.started(Priority::Interactive, 10, false));
        assert!(!turns.is_batch_first(10));
        turns.started(Priority::Interactive, 10, true);
        assert!(turns.is_batch_first(10));
        assert!(!Turns::new(0.0).is_batch_first(0));
    }
}
