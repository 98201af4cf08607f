//! The upload slots, which new payloads and spooled ones share. Pure.
//!
//! Spooled ones take at most a quarter of the slots, at least one. Where only one slot is free and both want it, they
//! take turns: neither starves, even where there is one slot in all.

/// Where a payload that is to be uploaded comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Origin {
    /// From the queue.
    Fresh,
    /// From the spool.
    Spooled,
}

/// Who holds the slots, and who waits for one.
#[derive(Debug)]
pub(super) struct Slots {
    limit: usize,
    held: [usize; 2],
    waiting: [usize; 2],
    last: Origin,
}

impl Slots {
    pub fn new(limit: usize) -> Self {
        Slots { limit, held: [0; 2], waiting: [0; 2], last: Origin::Spooled }
    }

    /// Takes one, if it is this origin's turn.
    pub fn take(&mut self, origin: Origin) -> bool {
        let free = self.limit - self.held() as usize;
        let other = origin.other();
        let other_could = self.waiting[other as usize] > 0 && self.held[other as usize] < self.share(other);
        let is_its_turn = free > 1 || !other_could || self.last != origin;
        let takes = free > 0 && is_its_turn && self.held[origin as usize] < self.share(origin);
        if takes {
            self.held[origin as usize] += 1;
            self.last = origin;
        }
        takes
    }

    /// Gives one back.
    pub fn give_back(&mut self, origin: Origin) {
        self.held[origin as usize] -= 1;
    }

    /// Counts those that wait: what is free may be for them.
    pub fn wait(&mut self, origin: Origin) {
        self.waiting[origin as usize] += 1;
    }

    /// One that waited has its slot or has given up.
    pub fn waited(&mut self, origin: Origin) {
        self.waiting[origin as usize] -= 1;
    }

    pub fn held(&self) -> u64 {
        self.held.iter().sum::<usize>() as u64
    }

    pub fn waiting(&self) -> u64 {
        self.waiting.iter().sum::<usize>() as u64
    }

    fn share(&self, origin: Origin) -> usize {
        match origin {
            Origin::Fresh => self.limit,
            Origin::Spooled => (self.limit / 4).max(1),
        }
    }
}

impl Origin {
    fn other(self) -> Self {
        match self {
            Origin::Fresh => Origin::Spooled,
            Origin::Spooled => Origin::Fresh,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn spooled_ones_leave_three_quarters_of_the_slots() {
        let mut slots = Slots::new(8);
        assert!(slots.take(Origin::Spooled) && slots.take(Origin::Spooled) && !slots.take(Origin::Spooled));
        assert_eq!((0..10).filter(|_| slots.take(Origin::Fresh)).count(), 6);
    }

    #[test]
    fn one_slot_goes_from_hand_to_hand() {
        let mut slots = Slots::new(1);
        slots.wait(Origin::Fresh);
        slots.wait(Origin::Spooled);
        for _ in 0..10 {
            assert!(!slots.take(Origin::Spooled) && slots.take(Origin::Fresh));
            slots.give_back(Origin::Fresh);
            assert!(!slots.take(Origin::Fresh) && slots.take(Origin::Spooled));
            slots.give_back(Origin::Spooled);
        }
        slots.waited(Origin::Spooled);
        assert!(slots.take(Origin::Fresh), "nobody else wants it");
    }

    proptest! {
        #[test]
        fn never_too_many_and_whoever_waits_gets_one(limit in 1usize..10, steps in proptest::collection::vec(0u8..4, 0..300)) {
            let mut slots = Slots::new(limit);
            slots.wait(Origin::Fresh);
            slots.wait(Origin::Spooled);
            let mut held = Vec::new();
            for step in steps {
                match step {
                    0 => held.extend(slots.take(Origin::Fresh).then_some(Origin::Fresh)),
                    1 => held.extend(slots.take(Origin::Spooled).then_some(Origin::Spooled)),
                    _ => held.pop().into_iter().for_each(|origin| slots.give_back(origin)),
                }
                prop_assert!(slots.held() as usize == held.len() && held.len() <= limit);
            }
            held.into_iter().for_each(|origin| slots.give_back(origin));
            // With all of them free, both have one after two rounds at the most.
            let mut got = [false; 2];
            for _ in 0..2 {
                for origin in [Origin::Fresh, Origin::Spooled] {
                    if slots.take(origin) {
                        got[origin as usize] = true;
                        slots.give_back(origin);
                    }
                }
            }
            prop_assert_eq!(got, [true, true]);
        }
    }
}
