//! What a router knows of its pool: pure, with the time passed in.
//!
//! The load of a worker is an estimate: `others + own`, where `own` are the calls that this router has out, and
//! `others` is what the worker last reported less what was our own at that moment. Each reply corrects it. A report
//! that is old and says "full" is not believed for ever: a worker that is open in the registry may be tried again after
//! [`REPORT_TRUSTED`], since the worst that can come of it is a refusal.
//!
//! "Stale" and "full" are different things. While the registry cannot be reached the view is stale: nothing in it
//! expires, and even workers that were full in the last word of the registry may be tried again.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

use super::pick::pick;
use crate::registry::{Change, Incarnation, Presence, State, TTL};
use crate::task::{IntegrationName, Priority, WorkerId};
use crate::wire::Reason;
use crate::wire::metadata::LoadReport;

/// How long a report that says "full" keeps a worker from being tried, while the registry has it as open.
const REPORT_TRUSTED: Duration = Duration::from_millis(250);

/// The same for a worker that the registry had as full, while the registry is away.
const STALE_REPORT_TRUSTED: Duration = Duration::from_secs(1);

/// How long a refusal that says "overloaded" keeps a worker from being tried. Its presence has the last word: of a short
/// overload the registry may never have heard, and then nothing else would take the refusal back.
const SHEDS: Duration = Duration::from_secs(1);

/// How long a worker that could not be reached is left alone at first; doubled with each failure in a row.
const SUSPECTED: Duration = Duration::from_millis(500);

/// The longest that a worker is left alone.
const SUSPECTED_MAX: Duration = Duration::from_secs(8);

/// The workers of the pool.
#[derive(Debug, Default)]
pub(super) struct View {
    workers: HashMap<WorkerId, Known>,
    serving: BTreeMap<IntegrationName, Vec<WorkerId>>,
    stale: bool,
}

#[derive(Debug)]
struct Known {
    presence: Presence,
    own: u32,
    others: u32,
    target: u32,
    reserved: u32,
    /// Integrations that it takes no more of, by its replies, and when it said so.
    kept_out: BTreeMap<IntegrationName, Instant>,
    reported_at: Instant,
    failures: u32,
    suspected_until: Option<Instant>,
    sheds_until: Option<Instant>,
    missing_since: Option<Instant>,
}

/// Where a call goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Placement {
    pub(super) worker: WorkerId,
    pub(super) incarnation: Incarnation,
    pub(super) address: String,
}

/// How a call that had a placement ended, as far as the view can learn from it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Learned {
    /// The worker answered.
    Answered,
    /// It refused for this reason.
    Refused(Reason),
    /// It could not be reached.
    Unreachable,
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
    pub(super) slots: u64,
    pub(super) in_flight: u64,
}

impl View {
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
                self.remove(&worker)
            }
        }
    }

    fn present(&mut self, presence: Presence, now: Instant) -> Option<Placement> {
        let known = self.workers.get(&presence.worker);
        let same_life = known.is_some_and(|known| known.presence.incarnation == presence.incarnation);
        if !same_life {
            let ended = self.remove(&presence.worker);
            self.insert(presence, now);
            return ended;
        }
        if known.is_some_and(|known| known.presence.integrations != presence.integrations) {
            self.unlist(&presence.worker);
            self.list(&presence);
        }
        if let Some(known) = self.workers.get_mut(&presence.worker) {
            let Presence { in_flight, target, reserved, .. } = presence;
            known.report(in_flight, target, reserved, now);
            known.presence = presence;
            known.missing_since = None;
        }
        None
    }

    fn insert(&mut self, presence: Presence, now: Instant) {
        self.list(&presence);
        let known = Known {
            own: 0,
            others: presence.in_flight,
            target: presence.target,
            reserved: presence.reserved,
            kept_out: BTreeMap::new(),
            reported_at: now,
            failures: 0,
            suspected_until: None,
            sheds_until: None,
            missing_since: None,
            presence,
        };
        self.workers.insert(known.presence.worker.clone(), known);
    }

    fn remove(&mut self, worker: &WorkerId) -> Option<Placement> {
        let known = self.workers.remove(worker)?;
        self.unlist(worker);
        Some(known.placement())
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
        expired.iter().filter_map(|worker| self.remove(worker)).collect()
    }

    /// Finds a worker for a task and counts the call that will follow.
    pub(super) fn reserve(
        &mut self,
        integration: &IntegrationName,
        priority: Priority,
        random: &mut impl Rng,
        now: Instant,
    ) -> Option<Placement> {
        let serving = self.serving.get(integration)?;
        let load = |index: usize| {
            let known = self.workers.get(&serving[index])?;
            if known.keeps_out(integration, self.stale, now) { None } else { known.load(priority, self.stale, now) }
        };
        let picked = pick(serving.len(), random, load)?;
        let known = self.workers.get_mut(&serving[picked])?;
        known.own += 1;
        Some(known.placement())
    }

    /// A call has ended: it no longer counts, and what it taught is kept.
    pub(super) fn release(
        &mut self,
        placement: &Placement,
        integration: &IntegrationName,
        learned: Learned,
        load: Option<LoadReport>,
        now: Instant,
    ) {
        let Some(known) = self.workers.get_mut(&placement.worker) else { return };
        if known.presence.incarnation != placement.incarnation {
            return;
        }
        known.own = known.own.saturating_sub(1);
        if let Some(load) = load {
            known.report(load.in_flight, load.target, load.reserved, now);
            known.report_of(integration, load.keeps_out, now);
        }
        known.learn(learned, now);
    }

    /// Whether nobody is known.
    pub(super) fn is_empty(&self) -> bool {
        self.workers.is_empty()
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
            census.suspected += usize::from(known.suspected_until.is_some_and(|until| now < until));
            census.slots += u64::from(known.target);
            census.in_flight += u64::from(known.estimate());
            census
        })
    }
}

impl Known {
    fn placement(&self) -> Placement {
        Placement {
            worker: self.presence.worker.clone(),
            incarnation: self.presence.incarnation,
            address: self.presence.address.clone(),
        }
    }

    fn estimate(&self) -> u32 {
        self.others.saturating_add(self.own)
    }

    fn report(&mut self, in_flight: u32, target: u32, reserved: u32, now: Instant) {
        self.others = in_flight.saturating_sub(self.own);
        (self.target, self.reserved) = (target, reserved);
        self.reported_at = now;
    }

    /// What a reply says of its own integration is newer than what the registry said.
    fn report_of(&mut self, integration: &IntegrationName, keeps_out: bool, now: Instant) {
        if keeps_out {
            self.kept_out.insert(integration.clone(), now);
        } else {
            self.kept_out.remove(integration);
            self.presence.full.retain(|full| full != integration);
        }
    }

    /// Whether the worker spares the integration, because it fails.
    fn spares(&self, integration: &IntegrationName) -> bool {
        self.presence.broken.binary_search(integration).is_ok()
    }

    /// Whether a call for this integration would be in vain, though there may be room for others.
    fn keeps_out(&self, integration: &IntegrationName, stale: bool, now: Instant) -> bool {
        let said = self.kept_out.get(integration);
        let is_full = || self.presence.full.binary_search(integration).is_ok();
        // What was said last, and is no longer kept up to date, must not keep an integration out for ever.
        (!stale && (self.spares(integration) || is_full()))
            || said.is_some_and(|at| now.duration_since(*at) < REPORT_TRUSTED)
    }

    fn learn(&mut self, learned: Learned, now: Instant) {
        match learned {
            Learned::Answered => (self.failures, self.suspected_until) = (0, None),
            Learned::Refused(Reason::Draining) => self.presence.state = State::Draining,
            Learned::Refused(Reason::Overloaded) => self.sheds_until = Some(now + SHEDS),
            // Another life of the worker answers at its address; the registry will say which.
            Learned::Refused(Reason::StaleIncarnation) | Learned::Unreachable => {
                let pause = SUSPECTED * 2u32.saturating_pow(self.failures.min(16));
                self.failures += 1;
                self.suspected_until = Some(now + pause.min(SUSPECTED_MAX));
            }
            Learned::Refused(_) | Learned::Nothing => {}
        }
    }

    /// The share of places taken, or `None` when a call would be in vain.
    fn load(&self, priority: Priority, stale: bool, now: Instant) -> Option<f64> {
        let trusted = match (self.presence.state, stale) {
            (State::Draining, _) | (State::Overloaded, false) => return None,
            (State::Full, false) => None,
            (State::Full | State::Overloaded, true) => Some(STALE_REPORT_TRUSTED),
            (State::Open, _) => Some(REPORT_TRUSTED),
        };
        if [self.suspected_until, self.sheds_until].into_iter().flatten().any(|until| now < until) {
            return None;
        }
        let report_is_old = || trusted.is_some_and(|trusted| now.duration_since(self.reported_at) >= trusted);
        let reserved = if priority == Priority::Batch { self.reserved } else { 0 };
        let target = self.target.saturating_sub(reserved);
        if self.estimate() < target {
            Some(f64::from(self.estimate()) / f64::from(self.target))
        } else if self.own < target && report_is_old() {
            Some(1.0)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests;
