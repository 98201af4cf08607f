//! One pool: who has room, and who waits. Pure.

use std::collections::HashMap;

use rand::Rng;
use tokio::time::Instant;

use super::{Condition, Grant, Lack, NO_WORKERS_PATIENCE, News, Ready};
use crate::router::queue::{self, Queue, Room};
use crate::router::split::Origin;
use crate::router::view::{Served, View, Wanted};
use crate::task::{IntegrationName, PoolName, Priority, WorkerId};

pub(super) struct Pool<T> {
    pub(super) name: PoolName,
    pub(super) view: View,
    pub(super) queue: Queue<T>,
    /// Whether its registry is listened to, so that it may be heard again.
    pub(super) is_followed: bool,
    /// When its registry was last heard.
    pub(super) heard_at: Option<Instant>,
    /// Whether it ever had a worker, as far as this router knows.
    was_seen: bool,
    /// Since when it is known to have none.
    empty_since: Option<Instant>,
    is_missed: bool,
}

impl<T> Pool<T> {
    pub(super) fn new(name: PoolName, view: View, queue: Queue<T>) -> Self {
        Pool {
            name,
            view,
            queue,
            is_followed: false,
            heard_at: None,
            was_seen: false,
            empty_since: None,
            is_missed: false,
        }
    }

    pub(super) fn heard(&mut self, now: Instant) {
        self.heard_at = Some(now);
        self.was_seen |= self.view.len() > 0;
    }

    pub(super) fn condition(&self) -> Condition {
        match (self.view.len(), self.heard_at) {
            (0, None) => Condition::Unheard,
            (0, Some(_)) if self.was_seen => Condition::NoWorkers,
            (0, Some(_)) => Condition::NeverSeen,
            _ => Condition::Serving,
        }
    }

    /// What it lacks for a task.
    pub(super) fn lack(&self, wanted: &Wanted<'_>, now: Instant) -> Option<Lack> {
        self.heard_at.and_then(|_| lack(&self.view, wanted, now))
    }

    /// Serves those who are at home here. What the workers have is noted first, for any change may be one of that.
    pub(super) fn serve(
        &mut self,
        at: Option<&WorkerId>,
        random: &mut impl Rng,
        now: Instant,
        ready: &mut Vec<Ready<T>>,
    ) {
        let Pool { name, view, queue, .. } = self;
        queue.set_slots(view.slots(), now);
        if queue.is_empty() {
            return;
        }
        let served = queue.serve(now, |place| match at {
            Some(worker) => view.reserve_at(worker, &place.into(), now),
            None => view.reserve(&place.into(), random, now),
        });
        ready.extend(served.into_iter().map(|queue::Served { place, waiter, found: placement, call }| {
            let grant = Grant { home: name.clone(), pool: name.clone(), placement, call, lack: None };
            Ready { place, waiter, grant }
        }));
    }

    /// Serves those who are at home here, and for whom there is no room here, at another pool.
    pub(super) fn serve_elsewhere(
        &mut self,
        other: &mut Self,
        at: Option<&WorkerId>,
        random: &mut impl Rng,
        now: Instant,
        ready: &mut Vec<Ready<T>>,
    ) {
        let Pool { name, view, queue, heard_at: Some(_), .. } = self else { return };
        if queue.is_empty() || at.is_some_and(|worker| !other.view.has_slot_at(worker, now)) {
            return;
        }
        // It is the same for all of a class and an integration.
        let mut lacks: HashMap<(Priority, IntegrationName), Option<Lack>> = HashMap::new();
        let served = queue.serve_elsewhere(now, |place| {
            let wanted = Wanted::from(place);
            let of = (place.priority, place.integration.clone());
            let Some(lack) = *lacks.entry(of).or_insert_with(|| lack(view, &wanted, now)) else {
                return Room::NotForIntegration;
            };
            let room = match at {
                Some(worker) => other.view.reserve_at(worker, &wanted, now),
                None => other.view.reserve(&wanted, random, now),
            };
            match room {
                Room::Found(placement) => Room::Found((placement, lack)),
                // Not parked: at home there may be room for the tenant before that.
                Room::NotForTenant { .. } => Room::NotForTenant { again: None },
                Room::NotForClass => Room::NotForClass,
                Room::NotForIntegration => Room::NotForIntegration,
            }
        });
        ready.extend(served.into_iter().map(|queue::Served { place, waiter, found: (placement, lack), call }| {
            let grant = Grant { home: name.clone(), pool: other.name.clone(), placement, call, lack: Some(lack) };
            Ready { place, waiter, grant }
        }));
    }

    /// Notices that there have been no workers for a while, and that there are some again.
    pub(super) fn look(&mut self, has_weight: bool, origin: Origin, now: Instant) -> Option<News> {
        if self.view.len() > 0 || self.heard_at.is_none() || !has_weight {
            self.empty_since = None;
            let is_back = std::mem::take(&mut self.is_missed) && self.view.len() > 0;
            return is_back.then(|| News::Back(self.name.clone()));
        }
        let since = *self.empty_since.get_or_insert(now);
        if self.is_missed || now.duration_since(since) < NO_WORKERS_PATIENCE {
            return None;
        }
        self.is_missed = true;
        Some(News::Missed(self.name.clone(), self.condition(), origin))
    }
}

/// What a pool lacks for a task, where it is not a limit that keeps the task out.
fn lack(view: &View, wanted: &Wanted<'_>, now: Instant) -> Option<Lack> {
    match view.serves(wanted.integration) {
        Served::NoWorkers => Some(Lack::NoWorkers),
        Served::Yes if !view.has_slot_for(wanted, now) => Some(Lack::Full),
        Served::Yes | Served::ByNobody | Served::Broken => None,
    }
}
