//! How often the store refused a payload while it took others: what tells a payload that is not to its liking, which a
//! proxy's limit of bytes or a permission may be the cause of, from a store that is away. Pure.

use std::time::Duration;

/// From so many on, the next failure says more of the payload than of the store.
const SUSPECT: u32 = 3;

const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(300);

/// What is held against one payload.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Refusals {
    count: u32,
    /// What the store had taken in all when it refused this one last.
    taken: u64,
    /// Failures that were no sign of an outage, and the one that made them so.
    rests: u32,
}

impl Refusals {
    /// The payload's upload failed; the store has `taken` so many objects so far.
    pub fn add(&mut self, taken: u64) {
        self.count += u32::from(taken > self.taken);
        self.taken = taken;
        self.rests += u32::from(self.is_suspect());
    }

    pub fn count(self) -> u32 {
        self.count
    }

    /// Whether its next failure is no sign of an outage.
    pub fn is_suspect(self) -> bool {
        self.count >= SUSPECT
    }

    /// How long it is to rest before it is tried again, if it is: twice as long each time, whatever the store takes.
    pub fn rest(self) -> Option<Duration> {
        let doublings = self.rests.checked_sub(1)?;
        Some(FIRST_REST.saturating_mul(2u32.saturating_pow(doublings)).min(LONGEST_REST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_count_where_the_store_took_something_in_between() {
        let mut refusals = Refusals::default();
        (0..9).for_each(|_| refusals.add(0));
        assert_eq!((refusals.count(), refusals.rest()), (0, None), "an outage");
        for (taken, count) in [(7, 1), (7, 1), (8, 2), (8, 2), (9, 3), (10, 4)] {
            refusals.add(taken);
            assert_eq!((refusals.count(), refusals.is_suspect()), (count, count >= SUSPECT));
        }
        assert_eq!(refusals.rest(), Some(FIRST_REST * 2));
        (0..3).for_each(|_| refusals.add(10));
        assert_eq!((refusals.count(), refusals.rest()), (4, Some(FIRST_REST * 16)));
        (0..99).for_each(|_| refusals.add(10));
        assert_eq!(refusals.rest(), Some(LONGEST_REST));
    }
}
