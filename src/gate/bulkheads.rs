//! The walls between integrations: how much each may hold, what a task of it weighs, and which are kept out now.
//!
//! Which are kept out is told after each change without looking at all of them: a change touches one integration, and
//! moves the room, which only those feel that weigh more than one slot.

use std::sync::Arc;

use tokio::time::Instant;

use crate::limits::Limits;
use crate::task::IntegrationName;

/// What a gate knows of each integration.
#[derive(Debug)]
pub(super) struct Bulkheads {
    /// Sorted by name; the order never changes, so that permits can keep their index.
    list: Vec<Bulkhead>,
    /// The weights above one slot, heaviest first.
    heavy: Vec<u32>,
    /// How many of them are heavier than the room.
    too_heavy: usize,
    full: Arc<[IntegrationName]>,
}

/// One integration.
#[derive(Debug)]
pub(super) struct Bulkhead {
    pub(super) name: IntegrationName,
    /// The configured cap in slots, where there is one.
    pub(super) cap: Option<u32>,
    /// The limit from outside.
    pub(super) limit: Option<u32>,
    /// The slots that it may hold, by the smallest of these and N.
    pub(super) most: u32,
    /// The slots that a task of it holds: at most what it may hold at all, so that a low limit does not mean never.
    pub(super) weight: u32,
    pub(super) held: u32,
    pub(super) in_flight: u32,
    /// When its own limit kept a task out last.
    pub(super) refused_at: Option<Instant>,
    /// Whether its own limit keeps it out.
    is_full: bool,
}

impl Bulkhead {
    /// Whether another task of that weight stays within its own limit.
    pub(super) fn has_room(&self, weight: u32) -> bool {
        self.most.saturating_sub(self.held) >= weight
    }

    fn adjust(&mut self, limits: &Limits) {
        let target = limits.target;
        self.cap = limits.integration_caps.get(&self.name).map(|cap| cap.of(target));
        self.most = [self.cap, self.limit].into_iter().flatten().fold(target, u32::min);
        self.weight = limits.weights.get(&self.name).unwrap_or_default().slots().min(self.most).max(1);
        self.is_full = !self.has_room(self.weight);
    }
}

impl Bulkheads {
    pub(super) fn new(names: impl IntoIterator<Item = IntegrationName>) -> Self {
        let mut names: Vec<_> = names.into_iter().collect();
        names.sort();
        names.dedup();
        let bulkhead = |name| Bulkhead {
            name,
            cap: None,
            limit: None,
            most: 0,
            weight: 1,
            held: 0,
            in_flight: 0,
            refused_at: None,
            is_full: true,
        };
        let list = names.into_iter().map(bulkhead).collect();
        Bulkheads { list, heavy: Vec::new(), too_heavy: 0, full: [].into() }
    }

    pub(super) fn find(&self, name: &IntegrationName) -> Option<usize> {
        self.list.binary_search_by(|bulkhead| bulkhead.name.cmp(name)).ok()
    }

    pub(super) fn at(&self, index: usize) -> &Bulkhead {
        &self.list[index]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Bulkhead> {
        self.list.iter()
    }

    /// Those that are kept out by their own limit, or by a weight that is more than the room; sorted.
    pub(super) fn full(&self) -> &Arc<[IntegrationName]> {
        &self.full
    }

    /// Applies other limits.
    pub(super) fn set(&mut self, limits: &Limits, room: u32) {
        self.list.iter_mut().for_each(|bulkhead| bulkhead.adjust(limits));
        self.weigh(room);
    }

    /// Applies another limit from outside to one integration.
    pub(super) fn narrow(&mut self, index: usize, limit: Option<u32>, limits: &Limits, room: u32) {
        self.list[index].limit = limit;
        self.list[index].adjust(limits);
        self.weigh(room);
    }

    /// A task of that weight has begun.
    pub(super) fn take(&mut self, index: usize, weight: u32) {
        self.list[index].held += weight;
        self.list[index].in_flight += 1;
    }

    /// A task was kept out by the integration's own limit.
    pub(super) fn refuse(&mut self, index: usize, now: Instant) {
        self.list[index].refused_at = Some(now);
    }

    /// A task of that weight has stopped.
    pub(super) fn give_back(&mut self, index: usize, weight: u32) {
        self.list[index].held -= weight;
        self.list[index].in_flight -= 1;
    }

    /// Brings the list of those kept out up to date after an integration took or gave back slots.
    pub(super) fn settle(&mut self, touched: Option<usize>, room: u32) {
        let mut changed = false;
        if let Some(bulkhead) = touched.and_then(|index| self.list.get_mut(index)) {
            let is_full = !bulkhead.has_room(bulkhead.weight);
            changed = std::mem::replace(&mut bulkhead.is_full, is_full) != is_full;
        }
        let too_heavy = self.heavier_than(room);
        changed |= std::mem::replace(&mut self.too_heavy, too_heavy) != too_heavy;
        if changed {
            self.list_full(room);
        }
    }

    fn weigh(&mut self, room: u32) {
        self.heavy = self.list.iter().map(|bulkhead| bulkhead.weight).filter(|weight| *weight > 1).collect();
        self.heavy.sort_unstable_by(|one, other| other.cmp(one));
        self.too_heavy = self.heavier_than(room);
        self.list_full(room);
    }

    /// The weights are sorted and do not change between two calls of `weigh`: the number tells which they are.
    fn heavier_than(&self, room: u32) -> usize {
        self.heavy.partition_point(|weight| *weight > room)
    }

    fn list_full(&mut self, room: u32) {
        // Without any room the state says that nothing is taken; one slot would then be as little as ten.
        let is_kept_out = |bulkhead: &&Bulkhead| bulkhead.is_full || bulkhead.weight > room.max(1);
        let full: Arc<[_]> = self.list.iter().filter(is_kept_out).map(|bulkhead| bulkhead.name.clone()).collect();
        if full != self.full {
            self.full = full;
        }
    }
}
