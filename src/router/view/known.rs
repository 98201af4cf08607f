//! One worker, as its presence and its replies say: pure, with the time passed in.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::allowance::{Allowance, Word};
use super::openings::Opens;
use super::{Hold, Learned, Placement, REPORT_TRUSTED, Wanted};
use crate::registry::{Presence, State};
use crate::router::outlier::Conduct;
use crate::task::{IntegrationName, Priority, Tenant};
use crate::wire::Reason;
use crate::wire::metadata::LoadReport;

/// The same for a worker that the registry had as full, while the registry is away.
const STALE_REPORT_TRUSTED: Duration = Duration::from_secs(1);

/// How long a refusal that says "overloaded" keeps a worker from being tried. Its presence has the last word: of a short
/// overload the registry may never have heard, and then nothing else would take the refusal back.
pub(super) const SHEDS: Duration = Duration::from_secs(1);

/// How long a worker that could not be reached is left alone at first, at the most; doubled with each failure in a row. By
/// "full jitter" (<https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>) it is any part of that, so
/// that many routers do not come back to it as one.
pub(super) const SUSPECTED: Duration = Duration::from_millis(500);

/// The longest that a worker is left alone, and the shortest.
const SUSPECTED_MAX: Duration = Duration::from_secs(8);
const SUSPECTED_MIN: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Known {
    pub(super) presence: Presence,
    own: u32,
    others: u32,
    pub(super) target: u32,
    reserved: u32,
    /// What it takes of an integration, and of a tenant, by its replies: those of which calls are out, or that have a cap.
    integrations: HashMap<IntegrationName, Allowance>,
    tenants: HashMap<Tenant, Allowance>,
    reported_at: Instant,
    failures: u32,
    suspected_until: Option<Instant>,
    /// When the one call was taken that tries it again; others follow when its connection stands.
    tried_at: Option<Instant>,
    /// Whether a connection has stood since it last could not be reached.
    is_connected: bool,
    /// Whether a fresh presence has taken back the suspicion since the worker was last reached.
    is_forgiven: bool,
    sheds_until: Option<Instant>,
    pub(super) conduct: Conduct,
    pub(super) missing_since: Option<Instant>,
}

impl Known {
    pub(super) fn new(presence: Presence, now: Instant) -> Self {
        Known {
            own: 0,
            others: presence.in_flight,
            target: presence.target,
            reserved: presence.reserved,
            integrations: HashMap::new(),
            tenants: HashMap::new(),
            reported_at: now,
            failures: 0,
            suspected_until: None,
            tried_at: None,
            is_connected: false,
            is_forgiven: false,
            sheds_until: None,
            conduct: Conduct::default(),
            missing_since: None,
            presence,
        }
    }

    pub(super) fn placement(&self, now: Instant) -> Placement {
        Placement {
            worker: self.presence.worker.clone(),
            incarnation: self.presence.incarnation,
            address: self.presence.address.clone(),
            at: now,
            tries: self.tried_at == Some(now),
        }
    }

    pub(super) fn estimate(&self) -> u32 {
        self.others.saturating_add(self.own)
    }

    pub(super) fn report(&mut self, in_flight: u32, target: u32, reserved: u32, now: Instant) {
        self.others = in_flight.saturating_sub(self.own);
        (self.target, self.reserved) = (target, reserved);
        self.reported_at = now;
    }

    /// The slots that tasks may wait for: its N, or 0 once it drains or while it is ejected.
    pub(super) fn slots(&self) -> u64 {
        let is_out = self.presence.state == State::Draining || self.conduct.ejection().is_some();
        if is_out { 0 } else { u64::from(self.target) }
    }

    /// Whether tasks for an integration may be left to it alone: it is in good standing, takes tasks, was reached by its
    /// last call, and does not spare that integration.
    pub(super) fn is_relied_on(&self, integration: &IntegrationName) -> bool {
        let takes_tasks = self.presence.state != State::Draining && self.target > 0;
        takes_tasks && self.failures == 0 && self.conduct.is_good() && !self.spares(integration)
    }

    /// A call goes out.
    pub(super) fn take(&mut self, wanted: &Wanted<'_>, now: Instant) {
        self.own += 1;
        if self.failures > 0 && !self.is_connected {
            self.tried_at = Some(now);
        }
        self.conduct.take(wanted.integration, now);
        allowance(&mut self.integrations, wanted.integration, now).take(now);
        allowance(&mut self.tenants, wanted.tenant, now).take(now);
    }

    /// The call that tries it has a connection.
    pub(super) fn connected(&mut self) {
        (self.tried_at, self.is_connected) = (None, true);
    }

    /// The call that tries it has ended.
    pub(super) fn is_tried(&mut self) {
        self.tried_at = None;
    }

    /// A call has ended. `chance` is anything from 0 to 1.
    pub(super) fn give_back(
        &mut self,
        wanted: &Wanted<'_>,
        learned: Learned,
        load: Option<LoadReport>,
        chance: f64,
        now: Instant,
    ) {
        self.own = self.own.saturating_sub(1);
        let shares = load.and_then(|load| load.shares);
        let refused = |reason| match learned {
            Learned::Refused(refused) if refused == reason => Word::Refused,
            _ => Word::Nothing,
        };
        let mut word = refused(Reason::IntegrationFull);
        if let Some(load) = load {
            self.report(load.in_flight, load.target, load.reserved, now);
            // Without a number, as of an older worker or of a task that weighs more than what is left, only the word counts.
            let is_capped = shares.is_some_and(|shares| shares.integration.most.is_some());
            if load.keeps_out && !is_capped && word == Word::Nothing {
                word = Word::NoMore;
            }
            if !load.keeps_out {
                // What a reply says of its own integration is newer than what the registry said.
                self.presence.full.retain(|full| full != wanted.integration);
            }
        }
        let of_integration = allowance(&mut self.integrations, wanted.integration, now);
        of_integration.give_back(shares.map(|shares| shares.integration), word, now);
        let of_tenant = allowance(&mut self.tenants, wanted.tenant, now);
        of_tenant.give_back(shares.map(|shares| shares.tenant), refused(Reason::TenantFull), now);
        if of_tenant.is_worthless(now) {
            self.tenants.remove(wanted.tenant);
        }
        self.learn(learned, chance, now);
    }

    /// The registry says something new of it: it lives. Once, until it was reached: a worker that lives and that this
    /// router cannot reach all the same would else be tried with each of its changes.
    pub(super) fn is_heard_of(&mut self) {
        if self.suspected_until.is_some() && !std::mem::replace(&mut self.is_forgiven, true) {
            self.suspected_until = None;
        }
    }

    pub(super) fn is_suspected(&self, now: Instant) -> bool {
        self.suspected_until.is_some_and(|until| now < until)
    }

    /// Whether it is left alone, or tried by one call, because it could not be reached.
    pub(super) fn is_in_doubt(&self, now: Instant) -> bool {
        self.is_suspected(now) || self.tried_at.is_some()
    }

    /// It has other settings: its caps may be others.
    pub(super) fn forget_caps(&mut self) {
        self.integrations.values_mut().chain(self.tenants.values_mut()).for_each(Allowance::forget);
    }

    /// Forgets what is too old to be of use.
    pub(super) fn forget(&mut self, now: Instant) {
        self.integrations.retain(|_, allowance| !allowance.is_worthless(now));
        self.tenants.retain(|_, allowance| !allowance.is_worthless(now));
    }

    /// Whether another call for this tenant is worth while, as far as its cap goes.
    pub(super) fn takes_of_tenant(&self, tenant: &Tenant, now: Instant) -> bool {
        self.tenants.get(tenant).is_none_or(|allowance| allowance.is_open(now))
    }

    /// When one may be, where it is not.
    pub(super) fn again_for_tenant(&self, tenant: &Tenant, now: Instant) -> Option<Instant> {
        self.tenants.get(tenant).filter(|allowance| !allowance.is_open(now)).map(Allowance::again_at)
    }

    /// As [`Known::load`], for an integration that it may keep out.
    pub(super) fn load_for(&self, wanted: &Wanted<'_>, stale: bool, now: Instant) -> Option<f64> {
        let load = self.load(wanted.priority, stale, now)?;
        if self.keeps_out(wanted.integration, stale, now) { None } else { Some(load) }
    }

    /// What keeps a task from it.
    pub(super) fn holds(&self, wanted: &Wanted<'_>, stale: bool, now: Instant) -> Hold {
        let is_before = |until: Option<Instant>| until.is_some_and(|until| now < until);
        let state = (self.presence.state, stale);
        let integration = self.integrations.get(wanted.integration);
        let tenant = self.tenants.get(wanted.tenant);
        let reserved = wanted.priority == Priority::Batch && self.reserved > 0;
        match () {
            () if state.0 == State::Draining => Hold::Draining,
            () if self.is_in_doubt(now) => Hold::Unreachable,
            () if !self.conduct.admits() => Hold::Ejected,
            () if state == (State::Overloaded, false) || is_before(self.sheds_until) => Hold::Overloaded,
            () if self.target == 0 => Hold::Closed,
            // What would not change if a slot became free is told first.
            () if integration.is_some_and(Allowance::is_shut) => Hold::IntegrationShut,
            () if tenant.is_some_and(Allowance::is_shut) => Hold::TenantShut,
            () if self.estimate() >= self.target || state == (State::Full, false) => Hold::Full,
            () if reserved && self.reserved >= self.target => Hold::AllReserved,
            () if reserved && self.load(wanted.priority, stale, now).is_none() => Hold::Reserved,
            () if !stale && self.spares(wanted.integration) => Hold::Breaker,
            () if self.keeps_out(wanted.integration, stale, now) => Hold::IntegrationCap,
            () if tenant.is_some_and(|tenant| !tenant.has_room()) => Hold::TenantCap,
            () => Hold::HasRoom,
        }
    }

    /// Whether the worker spares the integration, because it fails.
    pub(super) fn spares(&self, integration: &IntegrationName) -> bool {
        self.presence.broken.binary_search(integration).is_ok()
    }

    /// Whether a call for this integration would be in vain, though there may be room for others.
    fn keeps_out(&self, integration: &IntegrationName, stale: bool, now: Instant) -> bool {
        !self.opens_for(integration, stale).by(now)
    }

    /// When a call for this integration is worth while, as far as a slot is free.
    pub(super) fn opens_for(&self, integration: &IntegrationName, stale: bool) -> Opens {
        // What was said last, and is no longer kept up to date, must not keep an integration out for ever.
        let is_full = || self.presence.full.binary_search(integration).is_ok();
        if !stale && (self.spares(integration) || is_full()) {
            return Opens::Never;
        }
        self.integrations.get(integration).map_or(Opens::Now, Allowance::opens)
    }

    fn learn(&mut self, learned: Learned, chance: f64, now: Instant) {
        match learned {
            Learned::Nothing | Learned::Silent => {}
            // Another life of the worker answers at its address; the registry will say which.
            Learned::Unreachable | Learned::Broke | Learned::Refused(Reason::StaleIncarnation) => {
                self.suspect(chance, now);
            }
            Learned::Answered | Learned::Succeeded | Learned::Failed | Learned::Refused(_) => {
                (self.failures, self.suspected_until, self.tried_at) = (0, None, None);
                self.is_forgiven = false;
            }
        }
        match learned {
            Learned::Refused(Reason::Draining) => self.presence.state = State::Draining,
            Learned::Refused(Reason::Overloaded) => self.sheds_until = Some(now + SHEDS),
            _ => {}
        }
    }

    /// Calls that were out together fail together: what comes while it is suspected is no further failure.
    fn suspect(&mut self, chance: f64, now: Instant) {
        if self.is_suspected(now) {
            return;
        }
        let most = (SUSPECTED * 2u32.saturating_pow(self.failures.min(16))).min(SUSPECTED_MAX);
        self.failures += 1;
        self.suspected_until = Some(now + most.mul_f64(chance).max(SUSPECTED_MIN));
        (self.tried_at, self.is_connected) = (None, false);
    }

    /// The share of places taken, or `None` when a call would be in vain.
    pub(super) fn load(&self, priority: Priority, stale: bool, now: Instant) -> Option<f64> {
        let share = || match self.estimate() {
            estimate if estimate < self.target_for(priority) => f64::from(estimate) / f64::from(self.target),
            _ => 1.0,
        };
        self.opens(priority, stale).by(now).then(share)
    }

    /// When a call of a class is worth while.
    pub(super) fn opens(&self, priority: Priority, stale: bool) -> Opens {
        let is_overloaded = self.presence.state == State::Overloaded && !stale;
        let is_shut = self.presence.state == State::Draining || is_overloaded || !self.conduct.admits();
        if is_shut || self.tried_at.is_some() {
            return Opens::Never;
        }
        self.opens_slot(priority, stale).max(Opens::after(self.sheds_until)).max(Opens::after(self.suspected_until))
    }

    fn opens_slot(&self, priority: Priority, stale: bool) -> Opens {
        let trusted = match (self.presence.state, stale) {
            (State::Full, false) => None,
            (State::Full | State::Overloaded, true) => Some(STALE_REPORT_TRUSTED),
            _ => Some(REPORT_TRUSTED),
        };
        let target = self.target_for(priority);
        match trusted {
            _ if self.estimate() < target => Opens::Now,
            Some(trusted) if self.own < target => Opens::At(self.reported_at + trusted),
            _ => Opens::Never,
        }
    }

    /// The slots that a class may take.
    fn target_for(&self, priority: Priority) -> u32 {
        let reserved = if priority == Priority::Batch { self.reserved } else { 0 };
        self.target.saturating_sub(reserved)
    }
}

fn allowance<'a, N: Clone + Eq + std::hash::Hash>(
    allowances: &'a mut HashMap<N, Allowance>,
    name: &N,
    now: Instant,
) -> &'a mut Allowance {
    allowances.entry(name.clone()).or_insert_with(|| Allowance::new(now))
}
