//! What a router knows of its pool: pure, with the time passed in.
//!
//! The load of a worker is an estimate: `others + own`, where `own` are the calls that this router has out, and
//! `others` is what the worker last reported less what was our own at that moment. Each reply corrects it. A report
//! that is old and says "full" is not believed for ever: a worker that is open in the registry may be tried again after
//! [`REPORT_TRUSTED`], since the worst that can come of it is a refusal.
//!
//! "Stale" and "full" are different things. While the registry cannot be reached the view is stale: nothing in it
//! expires, and even workers that were full in the last word of the registry may be tried again. And when it answers again, the
//! workers may not have reached it yet: who is said to be gone then has one more TTL to be heard of.

mod allowance;
mod ejection;
mod held;
mod known;
mod openings;
mod workers;

use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

use super::outlier;
use super::queue::{Place, Room};
use crate::registry::{Absence, Change, Incarnation, Presence, State, is_gone};
use crate::task::{IntegrationName, Priority, Tenant, WorkerId};
use crate::wire::Reason;
use crate::wire::metadata::LoadReport;
use ejection::Ejections;
pub(super) use ejection::News;
pub(super) use held::{Held, Hold};
use known::Known;
use workers::{Touches, Workers};

/// How long a report that says "full" keeps a worker from being tried, while the registry has it as open.
const REPORT_TRUSTED: Duration = Duration::from_millis(250);

/// Workers that are looked at to say what holds a task: many may be told so at the same time.
const LOOKED_AT: usize = 500;

/// The workers of the pool.
#[derive(Debug, Default)]
pub(super) struct View {
    workers: Workers,
    has_other_limits: bool,
    ejections: Ejections,
    absence: Absence,
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
        self.set_fresh(now);
    }

    /// Applies one change. Returns the placement that is no more, if the change ended one.
    pub(super) fn apply(&mut self, change: Change, now: Instant) -> Option<Placement> {
        match change {
            Change::Present(presence) => self.present(presence, now),
            Change::Gone(worker, incarnation) => {
                let known = self.workers.get(&worker).filter(|known| known.presence.incarnation == incarnation)?;
                if !self.absence.excuses(&known.presence, now) {
                    return self.remove(&worker, now);
                }
                self.workers.change(&worker, Touches::Slots, |known| known.missing_since = Some(now));
                None
            }
        }
    }

    fn present(&mut self, presence: Presence, now: Instant) -> Option<Placement> {
        let worker = presence.worker.clone();
        let known = self.workers.get(&worker).filter(|known| known.presence.incarnation == presence.incarnation);
        let Some(known) = known else {
            let ended = self.remove(&worker, now);
            self.has_other_limits = true;
            self.workers.insert(Known::new(presence, now));
            return ended;
        };
        let has_other_settings = known.presence.settings_version != presence.settings_version;
        self.has_other_limits |= has_other_settings;
        if known.presence.integrations != presence.integrations {
            self.workers.relist(&worker, &presence.integrations);
        }
        self.workers.change(&worker, Touches::All, |known| {
            if has_other_settings {
                known.forget_caps();
            }
            let Presence { in_flight, target, reserved, .. } = presence;
            known.report(in_flight, target, reserved, now);
            known.presence = presence;
            known.missing_since = None;
            known.is_heard_of();
        });
        None
    }

    fn remove(&mut self, worker: &WorkerId, now: Instant) -> Option<Placement> {
        let known = self.workers.remove(worker)?;
        self.is_no_more(worker);
        Some(known.placement(now))
    }

    /// The registry cannot be reached.
    pub(super) fn set_stale(&mut self) {
        self.workers.set_stale(true);
    }

    /// The registry answers again, and nothing that it said in between was missed.
    pub(super) fn set_fresh(&mut self, now: Instant) {
        if self.is_stale() {
            self.absence.ends(now);
            self.workers.values_mut().filter_map(|known| known.missing_since.as_mut()).for_each(|since| *since = now);
        }
        self.workers.set_stale(false);
    }

    /// Whether the registry cannot be reached.
    pub(super) fn is_stale(&self) -> bool {
        self.workers.is_stale()
    }

    /// Removes workers that a snapshot missed a TTL ago, or that were said to be gone then, and that have not been heard of since.
    pub(super) fn expire_missing(&mut self, now: Instant) -> Vec<Placement> {
        if self.is_stale() {
            return Vec::new();
        }
        let over = |known: &Known| known.missing_since.is_some_and(|since| is_gone(since, now));
        let expired: Vec<WorkerId> =
            self.workers.values().filter(|known| over(known)).map(|known| known.presence.worker.clone()).collect();
        expired.iter().filter_map(|worker| self.remove(worker, now)).collect()
    }

    /// Finds a worker for a task and counts the call that will follow.
    pub(super) fn reserve(&mut self, wanted: &Wanted<'_>, random: &mut impl Rng, now: Instant) -> Room<Placement> {
        if let Some(worker) = self.workers.pick(wanted, random, now) {
            return self.take(&worker, wanted, now).map_or(Room::NotForIntegration, Room::Found);
        }
        match () {
            () if self.workers.serving(wanted.integration).is_none() => Room::NotForIntegration,
            () if !self.workers.any_has_slot(wanted.priority, now) => Room::NotForClass,
            // Somebody takes the integration, and not of this tenant alone?
            () if self.workers.any_takes(wanted, now) => Room::NotForTenant { again: self.again_for(wanted, now) },
            () => Room::NotForIntegration,
        }
    }

    /// As [`View::reserve`], at one worker: the one where room may have appeared.
    pub(super) fn reserve_at(&mut self, worker: &WorkerId, wanted: &Wanted<'_>, now: Instant) -> Room<Placement> {
        let Some(known) = self.workers.get(worker) else { return Room::NotForClass };
        if known.load(wanted.priority, self.is_stale(), now).is_none() {
            return Room::NotForClass;
        }
        if !known.presence.integrations.contains(wanted.integration)
            || known.load_for(wanted, self.is_stale(), now).is_none()
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
        self.workers.any_has_slot_for(wanted, now)
    }

    /// Whether that worker has a slot for anyone.
    pub(super) fn has_slot_at(&self, worker: &WorkerId, now: Instant) -> bool {
        self.workers.get(worker).is_some_and(|known| known.load(Priority::Interactive, self.is_stale(), now).is_some())
    }

    fn take(&mut self, worker: &WorkerId, wanted: &Wanted<'_>, now: Instant) -> Option<Placement> {
        let placement = self.workers.change(worker, Touches::Integration(wanted.integration), |known| {
            known.take(wanted, now);
            known.placement(now)
        })?;
        self.is_sent(worker, wanted, now);
        Some(placement)
    }

    /// When some worker may take more of the tenant, where none does that runs the integration.
    fn again_for(&self, wanted: &Wanted<'_>, now: Instant) -> Option<Instant> {
        let mut serving = self.workers.serving(wanted.integration)?;
        serving.try_fold(None, |earliest: Option<Instant>, known| {
            let again = known.again_for_tenant(wanted.tenant, now)?;
            Some(Some(earliest.map_or(again, |earliest| earliest.min(again))))
        })?
    }

    /// What keeps a task from the workers that run its integration.
    pub(super) fn held(&self, wanted: &Wanted<'_>, now: Instant) -> Held {
        let stale = self.is_stale();
        let serving = self.workers.serving(wanted.integration);
        let workers = serving.as_ref().map(ExactSizeIterator::len).unwrap_or_default();
        let holds = serving.into_iter().flatten().take(LOOKED_AT).map(|known| known.holds(wanted, stale, now));
        Held::new(wanted.integration.clone(), workers, holds).stale(stale)
    }

    /// The call that tries a worker has a connection: others may follow.
    pub(super) fn connected(&mut self, placement: &Placement) {
        if self.is_alive(placement) {
            self.workers.change(&placement.worker, Touches::Slots, Known::connected);
        }
    }

    /// Whether a placement is at a worker that is known, and in the life that it was found in.
    fn is_alive(&self, placement: &Placement) -> bool {
        let known = self.workers.get(&placement.worker);
        known.is_some_and(|known| known.presence.incarnation == placement.incarnation)
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
            self.workers.change(&placement.worker, Touches::Integration(wanted.integration), |known| {
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
        // It has no say in who takes calls: what kept anyone out would have been worth keeping.
        self.workers.values_mut().for_each(|known| known.forget(now));
    }

    /// Whether a worker has come, or has other settings, since this was last asked.
    pub(super) fn has_other_limits(&mut self) -> bool {
        std::mem::take(&mut self.has_other_limits)
    }

    /// How many slots the workers have that take tasks, by their last word.
    pub(super) fn slots(&self) -> u64 {
        self.workers.slots()
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
        let Some(mut serving) = self.workers.serving(integration) else {
            return if self.workers.len() == 0 { Served::NoWorkers } else { Served::ByNobody };
        };
        if !self.is_stale() && serving.all(|known| known.spares(integration)) { Served::Broken } else { Served::Yes }
    }

    /// The view in numbers.
    pub(super) fn census(&self, now: Instant) -> Census {
        self.workers.values().fold(Census { workers: self.workers.len(), ..Census::default() }, |mut census, known| {
            census.full += usize::from(known.presence.state == State::Full);
            census.draining += usize::from(known.presence.state == State::Draining);
            census.suspected += usize::from(known.is_in_doubt(now));
            census.ejected += usize::from(known.conduct.ejection().is_some());
            census.with_room += usize::from(known.load(Priority::Interactive, self.is_stale(), now).is_some());
            census.slots += u64::from(known.target);
            census.in_flight += u64::from(known.estimate());
            census
        })
    }
}

#[cfg(test)]
mod tests;
