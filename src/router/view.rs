//! What a router knows of its pool: pure, with the time passed in.
//!
//! The load of a worker is an estimate: `others + own`, where `own` are the calls that this router has out, and
//! `others` is what the worker last reported less what was our own at that moment. Each reply corrects it. A report
//! that is old and says "full" is not believed for ever: a worker that is open in the registry may be tried again after
//! [`REPORT_TRUSTED`], since the worst that can come of it is a refusal.
//!
//! "Stale" and "full" are different things. While the registry cannot be reached the view is stale: nothing in it
//! expires, and even workers that were full in the last word of the registry may be tried again.

mod allowance;
mod ejection;
mod held;
mod known;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

use super::outlier;
use super::pick::pick;
use super::queue::{Place, Room};
use crate::registry::{Change, Incarnation, Presence, State, TTL};
use crate::task::{IntegrationName, Priority, Tenant, WorkerId};
use crate::wire::Reason;
use crate::wire::metadata::LoadReport;
use ejection::Ejections;
pub(super) use ejection::News;
pub(super) use held::{Held, Hold};
use known::Known;

/// How long a report that says "full" keeps a worker from being tried, while the registry has it as open.
const REPORT_TRUSTED: Duration = Duration::from_millis(250);

/// Workers that are looked at to say what holds a task: many may be told so at the same time.
const LOOKED_AT: usize = 500;

/// The workers of the pool.
#[derive(Debug, Default)]
pub(super) struct View {
    workers: HashMap<WorkerId, Known>,
    serving: BTreeMap<IntegrationName, Vec<WorkerId>>,
    /// Of all of them together: see [`Known::slots`].
    slots: u64,
    stale: bool,
    has_other_limits: bool,
    ejections: Ejections,
}

/// Where a call goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Placement {
    pub(super) worker: WorkerId,
    pub(super) incarnation: Incarnation,
    pub(super) address: String,
    /// When it was found.
    pub(super) at: Instant,
    /// Whether the call tries a worker that could not be reached: until its connection stands it is the only one.
    pub(super) tries: bool,
}

/// What a call would be for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) integration: &'a IntegrationName,
    pub(super) tenant: &'a Tenant,
    pub(super) priority: Priority,
}

impl<'a> From<&'a Place> for Wanted<'a> {
    fn from(place: &'a Place) -> Self {
        Wanted { integration: &place.integration, tenant: &place.tenant, priority: place.priority }
    }
}

/// How a call that had a placement ended, as far as the view can learn from it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Learned {
    /// The worker answered, and that says nothing of how well it does: an error of the task's own, or a cancelled task.
    Answered,
    /// With an outcome as it should be.
    Succeeded,
    /// With a failure.
    Failed,
    /// It did not answer in time.
    Silent,
    /// It refused for this reason.
    Refused(Reason),
    /// It could not be reached: nothing was sent.
    Unreachable,
    /// The call broke after it was sent.
    Broke,
    /// Nothing: the call was given up.
    Nothing,
}

/// Whether an integration can be had at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Served {
    Yes,
    ByNobody,
    NoWorkers,
    /// By workers that spare it, all of them.
    Broken,
}

/// Counts for the metrics.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Census {
    pub(super) workers: usize,
    pub(super) full: usize,
    pub(super) draining: usize,
    pub(super) suspected: usize,
    pub(super) ejected: usize,
    /// Those that are expected to have room for an interactive task of some integration.
    pub(super) with_room: usize,
    pub(super) slots: u64,
    pub(super) in_flight: u64,
}

impl View {
    /// Nobody yet.
    pub(super) fn new(config: outlier::Config) -> Self {
        View { ejections: Ejections::new(config), ..View::default() }
    }

    /// Takes over a snapshot's workers. Who is missing from it stays for one more TTL: the registry may have lost its memory, and
    /// then the next heartbeat of each worker that lives brings it back.
    pub(super) fn replace(&mut self, workers: Vec<Presence>, now: Instant) {
        for known in self.workers.values_mut() {
            known.missing_since.get_or_insert(now);
        }
        for presence in workers {
            self.present(presence, now);
        }
        self.set_fresh();
    }

    /// Applies one change. Returns the placement that is no more, if the change ended one.
    pub(super) fn apply(&mut self, change: Change, now: Instant) -> Option<Placement> {
        match change {
            Change::Present(presence) => self.present(presence, now),
            Change::Gone(worker, incarnation) => {
                self.workers.get(&worker).filter(|known| known.presence.incarnation == incarnation)?;
                self.remove(&worker, now)
            }
        }
    }

    fn present(&mut self, presence: Presence, now: Instant) -> Option<Placement> {
        let known = self.workers.get(&presence.worker);
        let same_life = known.is_some_and(|known| known.presence.incarnation == presence.incarnation);
        if !same_life {
            let ended = self.remove(&presence.worker, now);
            self.insert(presence, now);
            return ended;
        }
        if known.is_some_and(|known| known.presence.integrations != presence.integrations) {
            self.unlist(&presence.worker);
            self.list(&presence);
        }
        if let Some(known) = self.workers.get_mut(&presence.worker)
            && known.presence.settings_version != presence.settings_version
        {
            known.forget_caps();
            self.has_other_limits = true;
        }
        self.with_slots(&presence.worker.clone(), |known| {
            let Presence { in_flight, target, reserved, .. } = presence;
            known.report(in_flight, target, reserved, now);
            known.presence = presence;
            known.missing_since = None;
            known.is_heard_of();
        });
        None
    }

    fn insert(&mut self, presence: Presence, now: Instant) {
        self.list(&presence);
        self.has_other_limits = true;
        let known = Known::new(presence, now);
        self.slots += known.slots();
        self.workers.insert(known.presence.worker.clone(), known);
    }

    fn remove(&mut self, worker: &WorkerId, now: Instant) -> Option<Placement> {
        let known = self.workers.remove(worker)?;
        self.slots -= known.slots();
        self.unlist(worker);
        self.is_no_more(worker);
        Some(known.placement(now))
    }

    /// Changes what is known of a worker, and counts its slots anew.
    fn with_slots(&mut self, worker: &WorkerId, change: impl FnOnce(&mut Known)) {
        if let Some(known) = self.workers.get_mut(worker) {
            self.slots -= known.slots();
            change(known);
            self.slots += known.slots();
        }
    }

    fn list(&mut self, presence: &Presence) {
        for integration in &presence.integrations {
            self.serving.entry(integration.clone()).or_default().push(presence.worker.clone());
        }
    }

    fn unlist(&mut self, worker: &WorkerId) {
        self.serving.retain(|_, workers| {
            workers.retain(|listed| listed != worker);
            !workers.is_empty()
        });
    }

    /// The registry cannot be reached.
    pub(super) fn set_stale(&mut self) {
        self.stale = true;
    }

    /// The registry answers again, and nothing that it said in between was missed.
    pub(super) fn set_fresh(&mut self) {
        self.stale = false;
    }

    /// Whether the registry cannot be reached.
    pub(super) fn is_stale(&self) -> bool {
        self.stale
    }

    /// Removes workers that a snapshot missed a TTL ago and that have not been heard of since.
    pub(super) fn expire_missing(&mut self, now: Instant) -> Vec<Placement> {
        if self.stale {
            return Vec::new();
        }
        let over = |known: &Known| known.missing_since.is_some_and(|since| now.duration_since(since) >= TTL);
        let expired: Vec<WorkerId> =
            self.workers.values().filter(|known| over(known)).map(|known| known.presence.worker.clone()).collect();
        expired.iter().filter_map(|worker| self.remove(worker, now)).collect()
    }

    /// Finds a worker for a task and counts the call that will follow.
    pub(super) fn reserve(&mut self, wanted: &Wanted<'_>, random: &mut impl Rng, now: Instant) -> Room<Placement> {
        let Some(serving) = self.serving.get(wanted.integration) else { return Room::NotForIntegration };
        let load = |index: usize| {
            let known = self.workers.get(&serving[index])?;
            // Mostly it is full, which is told without a look at names.
            known.load_for(wanted, self.stale, now).filter(|_| known.takes_of_tenant(wanted.tenant, now))
        };
        if let Some(picked) = pick(serving.len(), random, load) {
            let worker = serving[picked].clone();
            return self.take(&worker, wanted, now).map_or(Room::NotForIntegration, Room::Found);
        }
        if !self.workers.values().any(|known| known.load(wanted.priority, self.stale, now).is_some()) {
            return Room::NotForClass;
        }
        // Somebody has room for the integration, and not for this tenant alone?
        let has_room = |known: &Known| known.load_for(wanted, self.stale, now).is_some();
        if serving.iter().filter_map(|worker| self.workers.get(worker)).any(has_room) {
            Room::NotForTenant { again: self.again_for(wanted, now) }
        } else {
            Room::NotForIntegration
        }
    }

    /// As [`View::reserve`], at one worker: the one where room may have appeared.
    pub(super) fn reserve_at(&mut self, worker: &WorkerId, wanted: &Wanted<'_>, now: Instant) -> Room<Placement> {
        let Some(known) = self.workers.get(worker) else { return Room::NotForClass };
        if known.load(wanted.priority, self.stale, now).is_none() {
            return Room::NotForClass;
        }
        if !known.presence.integrations.contains(wanted.integration)
            || known.load_for(wanted, self.stale, now).is_none()
        {
            return Room::NotForIntegration;
        }
        if !known.takes_of_tenant(wanted.tenant, now) {
            return Room::NotForTenant { again: self.again_for(wanted, now) };
        }
        self.take(worker, wanted, now).map_or(Room::NotForClass, Room::Found)
    }

    /// Whether a worker that runs the integration has a slot for the class, whatever its caps and its breaker say.
    pub(super) fn has_slot_for(&self, wanted: &Wanted<'_>, now: Instant) -> bool {
        let serving = self.serving.get(wanted.integration).map(Vec::as_slice).unwrap_or_default();
        let mut known = serving.iter().filter_map(|worker| self.workers.get(worker));
        known.any(|known| known.load(wanted.priority, self.stale, now).is_some())
    }

    /// Whether that worker has a slot for anyone.
    pub(super) fn has_slot_at(&self, worker: &WorkerId, now: Instant) -> bool {
        self.workers.get(worker).is_some_and(|known| known.load(Priority::Interactive, self.stale, now).is_some())
    }

    fn take(&mut self, worker: &WorkerId, wanted: &Wanted<'_>, now: Instant) -> Option<Placement> {
        let known = self.workers.get_mut(worker)?;
        known.take(wanted, now);
        let placement = known.placement(now);
        self.is_sent(worker, wanted, now);
        Some(placement)
    }

    /// When some worker may take more of the tenant, where none does that runs the integration.
    fn again_for(&self, wanted: &Wanted<'_>, now: Instant) -> Option<Instant> {
        let serving = self.serving.get(wanted.integration)?;
        let again = |worker: &WorkerId| self.workers.get(worker)?.again_for_tenant(wanted.tenant, now);
        serving.iter().map(again).collect::<Option<Vec<_>>>()?.into_iter().min()
    }

    /// What keeps a task from the workers that run its integration.
    pub(super) fn held(&self, wanted: &Wanted<'_>, now: Instant) -> Held {
        let serving = self.serving.get(wanted.integration).map(Vec::as_slice).unwrap_or_default();
        let known = serving.iter().take(LOOKED_AT).filter_map(|worker| self.workers.get(worker));
        let holds = known.map(|known| known.holds(wanted, self.stale, now));
        Held::new(wanted.integration.clone(), serving.len(), holds).stale(self.stale)
    }

    /// The call that tries a worker has a connection: others may follow.
    pub(super) fn connected(&mut self, placement: &Placement) {
        if let Some(known) = self.workers.get_mut(&placement.worker)
            && known.presence.incarnation == placement.incarnation
        {
            known.connected();
        }
    }

    /// A call has ended: it no longer counts, and what it taught is kept. `chance`, anything from 0 to 1, is how much of the
    /// longest pause a worker is left alone for that could not be reached.
    pub(super) fn release(
        &mut self,
        placement: &Placement,
        wanted: &Wanted<'_>,
        learned: Learned,
        load: Option<LoadReport>,
        chance: f64,
        now: Instant,
    ) {
        let known = self.workers.get(&placement.worker);
        if let Some(known) = known.filter(|known| known.presence.incarnation == placement.incarnation) {
            let was_suspected = known.is_suspected(now);
            self.with_slots(&placement.worker, |known| {
                if placement.tries {
                    known.is_tried();
                }
                known.give_back(wanted, learned, load, chance, now);
            });
            self.judge_call(placement, wanted, learned, was_suspected, now);
        }
    }

    /// Forgets what is too old to be of use.
    pub(super) fn forget(&mut self, now: Instant) {
        self.workers.values_mut().for_each(|known| known.forget(now));
    }

    /// Whether a worker has come, or has other settings, since this was last asked.
    pub(super) fn has_other_limits(&mut self) -> bool {
        std::mem::take(&mut self.has_other_limits)
    }

    /// How many slots the workers have that take tasks, by their last word.
    pub(super) fn slots(&self) -> u64 {
        self.slots
    }

    /// Where each of them is.
    pub(super) fn placements(&self, now: Instant) -> Vec<Placement> {
        self.workers.values().map(|known| known.placement(now)).collect()
    }

    /// How many are known.
    pub(super) fn len(&self) -> usize {
        self.workers.len()
    }

    /// Whether anyone runs an integration.
    pub(super) fn serves(&self, integration: &IntegrationName) -> Served {
        let Some(serving) = self.serving.get(integration) else {
            return if self.workers.is_empty() { Served::NoWorkers } else { Served::ByNobody };
        };
        let spares = |worker: &WorkerId| self.workers.get(worker).is_some_and(|known| known.spares(integration));
        if !self.stale && serving.iter().all(spares) { Served::Broken } else { Served::Yes }
    }

    /// The view in numbers.
    pub(super) fn census(&self, now: Instant) -> Census {
        self.workers.values().fold(Census { workers: self.workers.len(), ..Census::default() }, |mut census, known| {
            census.full += usize::from(known.presence.state == State::Full);
            census.draining += usize::from(known.presence.state == State::Draining);
            census.suspected += usize::from(known.is_in_doubt(now));
            census.ejected += usize::from(known.conduct.ejection().is_some());
            census.with_room += usize::from(known.load(Priority::Interactive, self.stale, now).is_some());
            census.slots += u64::from(known.target);
            census.in_flight += u64::from(known.estimate());
            census
        })
    }
}

#[cfg(test)]
mod tests;
