//! What a worker fails, and whether others did the same well meanwhile: without that a failure proves nothing against it.
//!
//! Rates alone would eject the wrong ones. When a bank goes down just as a worker has come, that worker has failures only,
//! and the others look back at better times. And when one caller submits nonsense while one worker alone has room, only that
//! worker fails. So a failure is held against a worker
//!
//! - if, since it last did a task of that integration well, others were sent [`WELL`] that went well, or that are still out
//!   and have outlived all of its failures twice, for slow tasks cannot have ended yet; and
//! - beyond [`OF_A_TENANT`] failures of one tenant, if the same holds for what that tenant submits.
//!
//! Calls that were sent earlier do not count, however late they end.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::Sent;
use crate::task::{IntegrationName, Tenant, WorkerId};

/// So many times others must have done well what a worker fails.
const WELL: usize = 3;

/// So many failures of one tenant's tasks are held against a worker, though nobody else did that tenant's well.
const OF_A_TENANT: f64 = 5.0;

/// The last calls that went well and are remembered: some may be the failing worker's own.
const REMEMBERED: usize = 8;

/// The calls that are out and are remembered, the first ones; of each worker and of all together.
const OUT_OF_EACH: usize = 4;
const OUT: usize = 32;

/// For how long a call must be out at the least to be taken for one that goes well.
const OUTLIVES: Duration = Duration::from_millis(500);

/// The most pairs of a worker and a tenant that are remembered of an integration. What is beyond is held against nobody.
const PAIRS: usize = 10_000;

/// After so many half-lives a failure is forgotten.
const KEPT: u32 = 3;

/// Of each integration that fails somewhere.
#[derive(Debug, Default)]
pub(super) struct Alibis(HashMap<IntegrationName, Kind>);

#[derive(Debug, Default)]
struct Kind {
    any: Alike,
    tenants: HashMap<Tenant, Alike>,
    /// Of a worker and a tenant; counted anew by [`Alibis::age`].
    pairs: usize,
}

/// Tasks alike: who fails them, who last did one well, and who has one out, with the moment at which it was sent.
#[derive(Debug, Default)]
struct Alike {
    failing: HashMap<WorkerId, Failing>,
    well: VecDeque<(WorkerId, Instant)>,
    out: Vec<(WorkerId, Instant)>,
}

#[derive(Debug)]
struct Failing {
    failed: f64,
    at: Instant,
    /// When the first call was sent that failed, or the last one that did not.
    since: Instant,
    /// How long the longest call was out that failed.
    longest: Duration,
}

impl Alibis {
    pub(super) fn sent(&mut self, worker: &WorkerId, sent: &Sent<'_>) {
        self.alike(sent, |alike| alike.sent(worker, sent.at));
    }

    /// However it ended.
    pub(super) fn ended(&mut self, worker: &WorkerId, sent: &Sent<'_>) {
        self.alike(sent, |alike| alike.ended(worker, sent.at));
    }

    pub(super) fn did_well(&mut self, worker: &WorkerId, sent: &Sent<'_>) {
        self.alike(sent, |alike| alike.did_well(worker, sent.at));
    }

    /// Those that fail somewhere.
    fn alike(&mut self, sent: &Sent<'_>, mut change: impl FnMut(&mut Alike)) {
        let Some(kind) = self.0.get_mut(sent.integration) else { return };
        change(&mut kind.any);
        kind.tenants.get_mut(sent.tenant).map(change);
    }

    pub(super) fn failed(&mut self, worker: &WorkerId, sent: &Sent<'_>, half_life: Duration, now: Instant) {
        let kind = of(&mut self.0, sent.integration);
        kind.any.failed(worker, sent.at, half_life, now);
        let is_known = kind.tenants.get(sent.tenant).is_some_and(|alike| alike.failing.contains_key(worker));
        if is_known || kind.pairs < PAIRS {
            kind.pairs += usize::from(!is_known);
            of(&mut kind.tenants, sent.tenant).failed(worker, sent.at, half_life, now);
        }
    }

    /// How many failures of an integration are held against a worker.
    pub(super) fn held_against(
        &self,
        worker: &WorkerId,
        integration: &IntegrationName,
        half_life: Duration,
        now: Instant,
    ) -> f64 {
        let Some(kind) = self.0.get(integration).filter(|kind| kind.any.goes_well_elsewhere(worker, now)) else {
            return 0.0;
        };
        let of_tenant = |alike: &Alike| {
            let failed = alike.failing.get(worker).map_or(0.0, |failing| failing.left(half_life, now));
            if alike.goes_well_elsewhere(worker, now) { failed } else { failed.min(OF_A_TENANT) }
        };
        kind.tenants.values().map(of_tenant).sum()
    }

    /// A worker begins anew.
    pub(super) fn forget(&mut self, worker: &WorkerId) {
        for kind in self.0.values_mut() {
            kind.each(|alike| {
                alike.failing.remove(worker);
                alike.out.retain(|(other, _)| other != worker);
            });
        }
    }

    /// Forgets what is old.
    pub(super) fn age(&mut self, half_life: Duration, now: Instant) {
        let is_new = |failing: &Failing| now.saturating_duration_since(failing.at) < half_life * KEPT;
        self.0.retain(|_, kind| {
            kind.each(|alike| alike.failing.retain(|_, failing| is_new(failing)));
            kind.tenants.retain(|_, alike| !alike.failing.is_empty());
            kind.pairs = kind.tenants.values().map(|alike| alike.failing.len()).sum();
            !kind.any.failing.is_empty()
        });
    }
}

impl Kind {
    fn each(&mut self, mut change: impl FnMut(&mut Alike)) {
        change(&mut self.any);
        self.tenants.values_mut().for_each(change);
    }
}

impl Alike {
    fn failed(&mut self, worker: &WorkerId, sent_at: Instant, half_life: Duration, now: Instant) {
        let new = || Failing { failed: 0.0, at: now, since: sent_at, longest: Duration::ZERO };
        let failing = match self.failing.get_mut(worker) {
            Some(failing) => failing,
            None => self.failing.entry(worker.clone()).or_insert_with(new),
        };
        (failing.failed, failing.at) = (failing.left(half_life, now) + 1.0, now);
        failing.longest = failing.longest.max(now.saturating_duration_since(sent_at));
    }

    fn did_well(&mut self, worker: &WorkerId, sent_at: Instant) {
        if let Some(failing) = self.failing.get_mut(worker) {
            failing.since = failing.since.max(sent_at);
        }
        if self.well.len() >= REMEMBERED {
            self.well.pop_front();
        }
        self.well.push_back((worker.clone(), sent_at));
    }

    fn sent(&mut self, worker: &WorkerId, at: Instant) {
        let own = || self.out.iter().filter(|(other, _)| other == worker).count();
        if self.out.len() < OUT && own() < OUT_OF_EACH {
            self.out.push((worker.clone(), at));
        }
    }

    fn ended(&mut self, worker: &WorkerId, sent_at: Instant) {
        if let Some(index) = self.out.iter().position(|(other, at)| *at == sent_at && other == worker) {
            self.out.swap_remove(index);
        }
    }

    fn goes_well_elsewhere(&self, worker: &WorkerId, now: Instant) -> bool {
        let Some(Failing { since, longest, .. }) = self.failing.get(worker) else { return false };
        let outlives = (*longest * 2).max(OUTLIVES);
        let elsewhere = |(other, sent_at): &&(WorkerId, Instant)| other != worker && sent_at >= since;
        let well = self.well.iter().filter(elsewhere).count();
        let out = self.out.iter().filter(elsewhere);
        well + out.filter(|(_, sent_at)| now.saturating_duration_since(*sent_at) >= outlives).count() >= WELL
    }
}

impl Failing {
    fn left(&self, half_life: Duration, now: Instant) -> f64 {
        let age = now.saturating_duration_since(self.at).as_secs_f64() / half_life.as_secs_f64();
        self.failed * (-age).exp2()
    }
}

/// A name is cloned only where it is new.
fn of<'a, N: Clone + Eq + std::hash::Hash, V: Default>(map: &'a mut HashMap<N, V>, name: &N) -> &'a mut V {
    if !map.contains_key(name) {
        map.insert(name.clone(), V::default());
    }
    map.get_mut(name).expect("it was there, or was just put there")
}
