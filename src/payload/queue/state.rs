//! What the queue decides, without locks or waiting: who comes in, who gives way, and the ledger of it.

use std::collections::VecDeque;

use super::Limits;
use super::slots::{Origin, Slots};
use crate::payload::ledger::{Ledger, Reason};
use crate::payload::sample::Value;

/// The most payloads that give way to one; one that would need more room than they leave does not come in.
const MAX_EVICTED: usize = 32;

/// Discarded payloads wait for an encoder to free them as long as they hold less than this part of the limit of bytes.
const DISCARDED_SHARE: u64 = 4;

/// Places that are there from the start, so that no offer up to then has to move the others: 16 bytes each.
const RESERVED: usize = 10_000;

/// The most discarded payloads that wait to be freed.
const MAX_DISCARDED: usize = 4_096;

/// What became of a pending payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::payload) enum End {
    /// The store has it.
    Stored,
    /// It lies in the spool.
    Spooled,
    /// It is lost.
    Dropped(Reason),
}

/// The queue's state.
pub(super) struct State<T> {
    limits: Limits,
    pub ledger: Ledger,
    /// Ordinary ones, and those that are wanted more.
    ordinary: VecDeque<(T, u64)>,
    wanted: VecDeque<(T, u64)>,
    discarded: Vec<T>,
    discarded_bytes: u64,
    /// Pending ones that still lie in the spool.
    from_spool: u64,
    pub slots: Slots,
    /// Nothing comes out of the spool any more, for the process is about to end.
    pub draining: bool,
    /// The encoders of the background take nothing more: others encode what is left.
    pub relieved: bool,
    /// What is not being uploaded goes to the spool, now.
    pub hurried: bool,
    /// The store is away: what waits for a slot may go to the spool.
    pub is_store_away: bool,
    pub closed: bool,
}

impl<T> State<T> {
    pub fn new(limits: Limits) -> Self {
        State {
            limits,
            ledger: Ledger::default(),
            ordinary: VecDeque::with_capacity(RESERVED.min(limits.items as usize)),
            wanted: VecDeque::with_capacity(RESERVED.min(limits.items as usize)),
            discarded: Vec::new(),
            discarded_bytes: 0,
            from_spool: 0,
            slots: Slots::new(limits.uploads),
            draining: false,
            relieved: false,
            hurried: false,
            is_store_away: false,
            closed: false,
        }
    }

    /// Takes the item in, or drops it; others may have to give way. Hands back what the caller must free, because too
    /// much is waiting to be freed already.
    pub fn offer(&mut self, item: T, bytes: u64, value: Value) -> Vec<T> {
        self.ledger.offered += 1;
        let mut refused = Vec::new();
        let room = if self.closed { Err(Reason::Shutdown) } else { self.make_room(1, bytes, value, &mut refused) };
        if let Err(reason) = room {
            self.ledger.drop_for(reason, 1);
            self.discard(item, bytes, &mut refused);
            return refused;
        }
        self.ledger.pending += 1;
        self.ledger.pending_bytes += bytes;
        match value.is_ordinary() {
            true => self.ordinary.push_back((item, bytes)),
            false => self.wanted.push_back((item, bytes)),
        }
        refused
    }

    /// The next to be encoded: the most wanted, and of those the oldest.
    pub fn next(&mut self) -> Option<(T, u64)> {
        self.wanted.pop_front().or_else(|| self.ordinary.pop_front())
    }

    /// What waits to be freed.
    pub fn take_discarded(&mut self) -> Vec<T> {
        self.discarded_bytes = 0;
        std::mem::take(&mut self.discarded)
    }

    /// Counts a payload's memory anew. An encoded one is smaller as a rule; where it is larger, others may have to give
    /// way. False when there is no room for it: it counts as before and must come to its end.
    pub fn resize(&mut self, from: u64, to: u64, value: Value, refused: &mut Vec<T>) -> bool {
        if self.closed {
            return true;
        }
        if to > from && self.make_room(0, to - from, value, refused).is_err() {
            return false;
        }
        self.ledger.pending_bytes = self.ledger.pending_bytes - from + to;
        true
    }

    /// One pending payload has come to its end. In a closed queue nothing is pending: it was idle when it was closed, or
    /// all of it has been counted by `abandon`.
    pub fn settle(&mut self, bytes: u64, origin: Origin, end: End) {
        if self.closed {
            return;
        }
        self.ledger.pending -= 1;
        self.ledger.pending_bytes -= bytes;
        if origin == Origin::Spooled {
            self.from_spool -= 1;
        }
        match end {
            End::Stored => self.ledger.stored += 1,
            End::Spooled => self.ledger.spooled += 1,
            End::Dropped(reason) => self.ledger.drop_for(reason, 1),
        }
    }

    /// Payloads were found in the spool at the start.
    pub fn recover(&mut self, count: u64) {
        self.ledger.recovered += count;
        self.ledger.spooled += count;
    }

    /// Takes one out of the spool to be uploaded, if there is room for it and a slot.
    pub fn unspool(&mut self, bytes: u64) -> bool {
        if self.closed || self.draining || !self.has_room_for_spooled(bytes) || !self.slots.take(Origin::Spooled) {
            return false;
        }
        self.ledger.spooled -= 1;
        self.ledger.pending += 1;
        self.ledger.pending_bytes += bytes;
        self.from_spool += 1;
        true
    }

    /// Whether so much may come out of the spool. What is larger than the queue itself, whose limit has been lowered since,
    /// may when nothing is pending.
    pub fn has_room_for_spooled(&self, bytes: u64) -> bool {
        let Ledger { pending, pending_bytes, .. } = self.ledger;
        pending == 0 || pending < self.limits.items && pending_bytes.saturating_add(bytes) <= self.limits.bytes
    }

    /// Spooled payloads are given up.
    pub fn forget_spooled(&mut self, count: u64, reason: Reason) {
        self.ledger.spooled -= count;
        self.ledger.drop_for(reason, count);
    }

    /// Whether the queue is so full that what can go to the spool should.
    pub fn is_pressed(&self) -> bool {
        self.ledger.pending >= self.limits.items.div_ceil(2) || self.ledger.pending_bytes >= self.limits.bytes / 2
    }

    /// Takes nothing more if nothing is pending.
    pub fn close_if_idle(&mut self) -> bool {
        self.closed |= self.ledger.pending == 0;
        self.closed
    }

    /// Takes nothing more and counts everything pending as lost, what still lies in the spool apart; hands back what was
    /// waiting.
    pub fn abandon(&mut self) -> Vec<T> {
        self.closed = true;
        self.ledger.drop_for(Reason::Shutdown, self.ledger.pending - self.from_spool);
        self.ledger.spooled += std::mem::take(&mut self.from_spool);
        self.ledger.pending = 0;
        self.ledger.pending_bytes = 0;
        let waiting = std::iter::from_fn(|| self.next()).map(|(item, _)| item);
        waiting.collect()
    }

    /// Room for so much more, if need be at the expense of less wanted ones; those are counted.
    fn make_room(&mut self, items: u64, bytes: u64, value: Value, refused: &mut Vec<T>) -> Result<(), Reason> {
        let items_over = (self.ledger.pending + items).saturating_sub(self.limits.items) as usize;
        let bytes_over = self.ledger.pending_bytes.saturating_add(bytes).saturating_sub(self.limits.bytes);
        if items_over == 0 && bytes_over == 0 {
            return Ok(());
        }
        let reason = if items_over > 0 { Reason::QueueItems } else { Reason::QueueBytes };
        let wanted = if value.is_ordinary() { 0 } else { self.wanted.len() };
        let candidates = self.ordinary.iter().chain(self.wanted.iter().take(wanted));
        let (mut count, mut freed) = (0, 0);
        for (_, bytes) in candidates.take(MAX_EVICTED) {
            if count >= items_over && freed >= bytes_over {
                break;
            }
            (count, freed) = (count + 1, freed + bytes);
        }
        if count < items_over || freed < bytes_over {
            return Err(reason);
        }
        for _ in 0..count {
            let Some((item, bytes)) = self.ordinary.pop_front().or_else(|| self.wanted.pop_front()) else { break };
            self.ledger.pending -= 1;
            self.ledger.pending_bytes -= bytes;
            self.ledger.drop_for(reason, 1);
            self.discard(item, bytes, refused);
        }
        Ok(())
    }

    /// Leaves an item to be freed by an encoder, or, where too much is left already, by whoever offers.
    fn discard(&mut self, item: T, bytes: u64, refused: &mut Vec<T>) {
        let is_within = self.discarded_bytes.saturating_add(bytes) <= self.limits.bytes / DISCARDED_SHARE;
        if !self.closed && is_within && self.discarded.len() < MAX_DISCARDED {
            self.discarded_bytes += bytes;
            self.discarded.push(item);
        } else {
            refused.push(item);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { items: 4, bytes: 100, uploads: 2 };

    fn state() -> State<&'static str> {
        State::new(LIMITS)
    }

    #[test]
    fn ordinary_ones_give_way_first_and_then_the_oldest() {
        let mut state = state();
        for (name, value) in [("a", Value::Ordinary), ("b", Value::Failure), ("c", Value::Ordinary), ("d", Value::Slow)]
        {
            assert!(state.offer(name, 10, value).is_empty());
        }
        state.offer("e", 10, Value::Failure);
        assert_eq!(state.take_discarded(), ["a"]);
        state.offer("f", 10, Value::Ordinary);
        assert_eq!(state.take_discarded(), ["c"]);
        state.offer("g", 10, Value::Slow);
        assert_eq!(state.take_discarded(), ["f"]);
        state.offer("h", 10, Value::Ordinary);
        assert_eq!(state.take_discarded(), ["h"], "an ordinary one does not displace a wanted one");
        state.offer("i", 10, Value::Failure);
        assert_eq!(state.take_discarded(), ["b"], "the oldest of the wanted ones");
        let order: Vec<_> = std::iter::from_fn(|| state.next()).map(|(name, _)| name).collect();
        assert_eq!(order, ["d", "e", "g", "i"]);
        assert_eq!(state.ledger.dropped(Reason::QueueItems), 5);
    }

    #[test]
    fn nobody_gives_way_to_one_that_would_not_fit_all_the_same() {
        let mut state = state();
        state.offer("a", 60, Value::Ordinary);
        state.offer("b", 30, Value::Failure);
        state.offer("too big", 101, Value::Failure);
        state.offer("too big beside b", 80, Value::Ordinary);
        assert_eq!(state.take_discarded().len(), 0, "each is more than a quarter of the limit");
        assert_eq!((state.ledger.pending, state.ledger.dropped(Reason::QueueBytes)), (2, 2));
        state.offer("fits without a", 70, Value::Ordinary);
        assert_eq!((state.ledger.pending_bytes, state.ledger.dropped(Reason::QueueBytes)), (100, 3));
    }

    #[test]
    fn what_is_left_to_be_freed_is_bounded() {
        let mut state = state();
        let freed_by_callers: usize = (0..100).map(|_| state.offer("it", 10, Value::Ordinary).len()).sum();
        assert_eq!(state.take_discarded().len(), 2, "a quarter of the limit of bytes");
        assert_eq!(freed_by_callers + 2 + 4, 100);
    }

    #[test]
    fn what_lies_in_the_spool_is_not_lost_at_the_end() {
        let mut state = state();
        state.recover(3);
        assert!(state.unspool(10));
        state.offer("a", 10, Value::Ordinary);
        state.abandon();
        let ledger = state.ledger;
        assert_eq!((ledger.spooled, ledger.dropped(Reason::Shutdown), ledger.pending), (3, 1, 0));
        assert!(ledger.balanced());
    }

    #[test]
    fn one_that_grows_displaces_others_and_goes_when_there_is_no_room() {
        let mut state = state();
        for name in ["grows", "waits"] {
            state.offer(name, 40, Value::Ordinary);
        }
        let mut refused = Vec::new();
        assert_eq!(state.next(), Some(("grows", 40)));
        assert!(state.resize(40, 70, Value::Ordinary, &mut refused));
        assert_eq!((state.ledger.pending_bytes, state.ledger.dropped(Reason::QueueBytes)), (70, 1));
        assert!(!state.resize(70, 101, Value::Failure, &mut refused));
        assert_eq!(state.ledger.pending_bytes, 70);
        assert_eq!(refused, ["waits"], "more than a quarter of the limit");
    }

    /// What has left the queue, or the spool, and has not come to its end.
    #[derive(Debug)]
    struct Out {
        /// None for one that came from the spool.
        item: Option<u64>,
        bytes: u64,
        has_slot: bool,
    }

    impl Out {
        fn origin(&self) -> Origin {
            if self.item.is_some() { Origin::Fresh } else { Origin::Spooled }
        }
    }

    /// A state, and where each item is, kept apart from the ledger.
    struct Model {
        state: State<u64>,
        offered: u64,
        out: Vec<Out>,
        /// Items that are nowhere any more: ended, or handed back to be freed.
        gone: Vec<u64>,
        /// How many lie in the spool.
        spooled: u64,
        is_closed: bool,
    }

    impl Model {
        fn offer(&mut self, bytes: u64, value: Value) {
            let refused = self.state.offer(self.offered, bytes, value);
            self.offered += 1;
            self.gone.extend(refused);
        }

        fn end(&mut self, index: usize, end: End) {
            let out = self.out.swap_remove(index % self.out.len());
            if out.has_slot {
                self.state.slots.give_back(out.origin());
            }
            self.state.settle(out.bytes, out.origin(), end);
            self.gone.extend(out.item);
            // In a closed queue it has been counted: as lost, or, what had come from there, as still in the spool.
            self.spooled += u64::from(!self.is_closed && end == End::Spooled);
        }

        fn step(&mut self, step: u8, bytes: u64) {
            match step {
                0 | 1 => self.offer(bytes, Value::Ordinary),
                2 => self.offer(bytes, Value::Slow),
                3 => self.offer(bytes, Value::Failure),
                4 | 5 => {
                    let next = self.state.next();
                    self.out.extend(next.map(|(item, bytes)| Out { item: Some(item), bytes, has_slot: false }));
                }
                // Encoded: smaller, or larger; one for which there is no room goes to the spool or is lost.
                6 | 7 if !self.out.is_empty() => {
                    let index = bytes as usize % self.out.len();
                    let value = if step == 6 { Value::Ordinary } else { Value::Failure };
                    let out = &mut self.out[index];
                    if self.state.resize(out.bytes, bytes, value, &mut self.gone) {
                        out.bytes = bytes;
                    } else {
                        self.end(index, if step == 6 { End::Spooled } else { End::Dropped(Reason::QueueBytes) });
                    }
                }
                8 => {
                    let waits = self.out.iter_mut().find(|out| out.item.is_some() && !out.has_slot);
                    waits.into_iter().for_each(|out| out.has_slot = self.state.slots.take(Origin::Fresh));
                }
                9 if self.spooled > 0 && self.state.unspool(bytes) => {
                    self.spooled -= 1;
                    self.out.push(Out { item: None, bytes, has_slot: true });
                }
                10 => {
                    self.state.recover(bytes % 3);
                    self.spooled += bytes % 3;
                }
                // Evicted, or too old.
                11 if self.spooled > 0 => {
                    self.state.forget_spooled(1, [Reason::SpoolFull, Reason::SpoolAge][bytes as usize % 2]);
                    self.spooled -= 1;
                }
                12 => self.gone.extend(self.state.take_discarded()),
                13 if bytes == 0 => self.abandon(),
                13 if bytes == 1 => self.is_closed = self.state.close_if_idle(),
                13 if bytes == 2 => self.state.draining = true,
                14.. if !self.out.is_empty() => {
                    let lost = |reason| End::Dropped(reason);
                    let ends = [End::Stored, End::Stored, End::Spooled, lost(Reason::Store), lost(Reason::Encode)];
                    self.end(bytes as usize, ends[usize::from(step - 14)]);
                }
                _ => {}
            }
        }

        fn abandon(&mut self) {
            if !self.is_closed {
                self.spooled += self.out.iter().filter(|out| out.item.is_none()).count() as u64;
            }
            self.is_closed = true;
            self.gone.extend(self.state.abandon());
        }

        fn check(&self) -> Result<(), TestCaseError> {
            let State { ledger, ordinary, wanted, discarded, discarded_bytes, .. } = &self.state;
            prop_assert!(ledger.balanced(), "{ledger:?}");
            prop_assert_eq!((ledger.offered, ledger.spooled), (self.offered, self.spooled));
            let waiting = || ordinary.iter().chain(wanted);
            let pending = if self.is_closed { 0 } else { waiting().count() + self.out.len() };
            prop_assert_eq!(ledger.pending, pending as u64);
            let bytes = waiting().map(|(_, bytes)| bytes).chain(self.out.iter().map(|out| &out.bytes)).sum::<u64>();
            prop_assert_eq!(ledger.pending_bytes, if self.is_closed { 0 } else { bytes });
            // One from the spool that is larger than the queue goes alone.
            let goes_alone = pending == 1 && self.out.iter().any(|out| out.item.is_none());
            prop_assert!(ledger.pending <= LIMITS.items, "{ledger:?}");
            prop_assert!(ledger.pending_bytes <= LIMITS.bytes || goes_alone, "{ledger:?}");
            prop_assert!(*discarded_bytes <= LIMITS.bytes / DISCARDED_SHARE && discarded.len() <= MAX_DISCARDED);
            // Each item is in one place.
            let out = self.out.iter().filter_map(|out| out.item);
            let places = waiting().map(|(item, _)| *item).chain(out).chain(discarded.iter().copied());
            let mut places: Vec<_> = places.chain(self.gone.iter().copied()).collect();
            places.sort_unstable();
            prop_assert!(places.into_iter().eq(0..self.offered), "one is lost, or there twice");
            Ok(())
        }
    }

    proptest! {
        #[test]
        fn the_ledger_balances_after_every_step_and_nothing_is_lost(
            steps in proptest::collection::vec((0u8..19, prop_oneof![12 => 0u64..60, 1 => 100u64..120]), 1..300),
        ) {
            let state = State::new(LIMITS);
            let mut model = Model { state, offered: 0, out: vec![], gone: vec![], spooled: 0, is_closed: false };
            for (step, bytes) in steps {
                model.step(step, bytes);
                model.check()?;
            }
            model.abandon();
            model.check()?;
            while !model.out.is_empty() {
                model.end(0, End::Stored);
                model.check()?;
            }
            prop_assert_eq!((model.state.ledger.pending, model.state.slots.held()), (0, 0));
        }
    }
}
