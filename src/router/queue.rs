//! The bounded wait for a worker with room: pure.
//!
//! Interactive before batch; within a class in the order of arrival; a task that was refused keeps its old place. Each
//! integration has a lane of its own, so that a head that no worker has room for does not hold up the others. Each
//! class has its own bound, so that a backlog of batch work never keeps a person out.

use std::collections::BTreeMap;

use crate::task::{IntegrationName, Priority};

/// A place in the queue: kept by the task until it ends, over all of its attempts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) priority: Priority,
    pub(super) integration: IntegrationName,
    ticket: u64,
}

/// The class has as many waiting as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full {
    pub(super) capacity: usize,
}

/// Those who wait, each with a `T`.
#[derive(Debug)]
pub(super) struct Queue<T> {
    lanes: BTreeMap<(Priority, IntegrationName), BTreeMap<u64, T>>,
    waiting: [usize; 2],
    capacity: usize,
    next_ticket: u64,
}

impl<T> Queue<T> {
    /// At most `capacity` may wait per class.
    pub(super) fn new(capacity: usize) -> Self {
        Queue { lanes: BTreeMap::new(), waiting: [0; 2], capacity, next_ticket: 0 }
    }

    /// A new place behind all others of its class, not yet taken.
    pub(super) fn place(&mut self, priority: Priority, integration: IntegrationName) -> Place {
        self.next_ticket += 1;
        Place { priority, integration, ticket: self.next_ticket }
    }

    /// Waits at a place for the first time.
    pub(super) fn push(&mut self, place: Place, waiter: T) -> Result<(), Full> {
        if self.waiting[class(place.priority)] >= self.capacity {
            return Err(Full { capacity: self.capacity });
        }
        self.resume(place, waiter);
        Ok(())
    }

    /// Waits at a place again, after a refusal. Always taken: the task was let in before, so those who resume are
    /// bounded by the calls that were in flight.
    pub(super) fn resume(&mut self, place: Place, waiter: T) {
        self.waiting[class(place.priority)] += 1;
        self.lanes.entry((place.priority, place.integration)).or_default().insert(place.ticket, waiter);
    }

    /// Whether nobody waits for the same integration who would be served before this place.
    pub(super) fn is_first(&self, place: &Place) -> bool {
        let lane = |priority| self.lanes.get(&(priority, place.integration.clone()));
        let ahead = |priority: &Priority| match lane(*priority) {
            None => false,
            Some(_) if *priority < place.priority => true,
            Some(lane) => lane.first_key_value().is_some_and(|(ticket, _)| *ticket < place.ticket),
        };
        !Priority::ALL.iter().filter(|priority| **priority <= place.priority).any(ahead)
    }

    /// Leaves a place, if it is still taken.
    pub(super) fn remove(&mut self, place: &Place) -> Option<T> {
        let key = (place.priority, place.integration.clone());
        let lane = self.lanes.get_mut(&key)?;
        let waiter = lane.remove(&place.ticket)?;
        if lane.is_empty() {
            self.lanes.remove(&key);
        }
        self.waiting[class(place.priority)] -= 1;
        Some(waiter)
    }

    /// Takes out, in the order of service, each waiter for whose integration and class `room` finds a worker.
    pub(super) fn serve<R>(&mut self, mut room: impl FnMut(&IntegrationName, Priority) -> Option<R>) -> Vec<(T, R)> {
        let mut served = Vec::new();
        for priority in Priority::ALL {
            let mut blocked: Vec<IntegrationName> = Vec::new();
            while let Some(head) = self.head(priority, &blocked) {
                match room(&head.integration, priority) {
                    Some(found) => served.extend(self.remove(&head).map(|waiter| (waiter, found))),
                    None => blocked.push(head.integration),
                }
            }
        }
        served
    }

    /// Takes out all who wait for an integration for which `hopeless` gives a reason, and who `agree`.
    pub(super) fn give_up<R: Clone>(
        &mut self,
        hopeless: impl Fn(&IntegrationName) -> Option<R>,
        agree: impl Fn(&T) -> bool,
    ) -> Vec<(T, R)> {
        let mut places = Vec::new();
        for ((priority, integration), lane) in &self.lanes {
            if let Some(reason) = hopeless(integration) {
                let agreed = lane.iter().filter(|(_, waiter)| agree(waiter));
                let place =
                    |ticket: &u64| Place { priority: *priority, integration: integration.clone(), ticket: *ticket };
                places.extend(agreed.map(|(ticket, _)| (place(ticket), reason.clone())));
            }
        }
        places.into_iter().filter_map(|(place, reason)| self.remove(&place).map(|waiter| (waiter, reason))).collect()
    }

    /// How many of a class wait.
    pub(super) fn waiting(&self, priority: Priority) -> usize {
        self.waiting[class(priority)]
    }

    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting == [0; 2]
    }

    /// The first in the order of service, but for blocked integrations.
    fn head(&self, priority: Priority, blocked: &[IntegrationName]) -> Option<Place> {
        let heads = self.lanes.iter().filter(|((lane, name), _)| *lane == priority && !blocked.contains(name));
        let (ticket, integration) =
            heads.filter_map(|((_, name), lane)| Some((*lane.first_key_value()?.0, name))).min()?;
        Some(Place { priority, integration: integration.clone(), ticket })
    }
}

fn class(priority: Priority) -> usize {
    match priority {
        Priority::Interactive => 0,
        Priority::Batch => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> IntegrationName {
        name.parse().expect("a name")
    }

    fn push(queue: &mut Queue<&'static str>, priority: Priority, integration: &str, waiter: &'static str) -> Place {
        let place = queue.place(priority, name(integration));
        queue.push(place.clone(), waiter).expect("room");
        place
    }

    fn served(queue: &mut Queue<&'static str>, mut places: usize, only: Option<&str>) -> Vec<&'static str> {
        let room = |integration: &IntegrationName, _| {
            let fits = only.is_none_or(|only| only == integration.as_str()) && places > 0;
            fits.then(|| places -= 1)
        };
        queue.serve(room).into_iter().map(|(waiter, ())| waiter).collect()
    }

    #[test]
    fn people_first_then_in_the_order_of_arrival_over_all_integrations() {
        let mut queue = Queue::new(10);
        push(&mut queue, Priority::Batch, "a", "batch 1");
        push(&mut queue, Priority::Batch, "b", "batch 2");
        push(&mut queue, Priority::Interactive, "b", "person 1");
        push(&mut queue, Priority::Interactive, "a", "person 2");
        assert_eq!(served(&mut queue, 3, None), ["person 1", "person 2", "batch 1"]);
        assert_eq!(served(&mut queue, 3, None), ["batch 2"]);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_blocked_head_holds_up_only_its_own_integration() {
        let mut queue = Queue::new(10);
        push(&mut queue, Priority::Interactive, "full", "stays");
        push(&mut queue, Priority::Batch, "free", "goes");
        assert_eq!(served(&mut queue, 9, Some("free")), ["goes"]);
        assert_eq!(queue.waiting(Priority::Interactive), 1);
    }

    #[test]
    fn a_refused_task_keeps_its_old_place() {
        let mut queue = Queue::new(10);
        let first = push(&mut queue, Priority::Batch, "a", "first");
        push(&mut queue, Priority::Batch, "a", "second");
        assert_eq!(served(&mut queue, 1, None), ["first"]);
        assert!(queue.is_first(&first));
        queue.resume(first, "first again");
        assert_eq!(served(&mut queue, 2, None), ["first again", "second"]);
    }

    #[test]
    fn each_class_has_its_own_bound() {
        let mut queue = Queue::new(1);
        push(&mut queue, Priority::Batch, "a", "batch");
        let refused = queue.place(Priority::Batch, name("a"));
        assert!(!queue.is_first(&refused));
        assert_eq!(queue.push(refused, "too many"), Err(Full { capacity: 1 }));
        push(&mut queue, Priority::Interactive, "a", "a person");
        assert_eq!(queue.waiting(Priority::Batch), 1);
    }

    #[test]
    fn who_left_is_not_served_and_who_waits_in_vain_is_told() {
        let mut queue = Queue::new(10);
        let left = push(&mut queue, Priority::Batch, "a", "left");
        push(&mut queue, Priority::Batch, "a", "in vain");
        push(&mut queue, Priority::Batch, "b", "patient");
        assert_eq!(queue.remove(&left), Some("left"));
        assert_eq!(queue.remove(&left), None);
        let told = queue.give_up(|integration| (integration.as_str() == "a").then_some("unknown"), |_| true);
        assert_eq!(told, [("in vain", "unknown")]);
        assert_eq!(queue.waiting(Priority::Batch), 1);
    }
}
