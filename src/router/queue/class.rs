//! Those of one class who wait: pure.
//!
//! A *lane* holds what one tenant has waiting for one integration, earliest deadline first. A *line* holds the lanes of
//! one integration, the tenant with the lowest virtual time first, so that an integration that no worker has room for
//! holds up no other. A lane whose tenant no worker takes more of is *parked*: out of the line until one of the tenant's
//! own calls ends or a time has passed. Whatever changes a virtual time moves the tenant's lanes, and only those.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound::{Excluded, Unbounded};

use tokio::time::Instant;

use super::Place;
use super::bounds::Waiting;
use super::drain::Drain;
use super::fair::{Account, Usage};
use crate::task::{IntegrationName, Tenant};

/// Tenants that are remembered although they have nothing here, because they used more than their part.
const MAX_DEBTORS: usize = 10_000;

#[derive(Debug)]
pub(super) struct Class<T> {
    lines: HashMap<IntegrationName, Line<T>>,
    members: HashMap<Tenant, Member>,
    parked: BTreeSet<(Instant, IntegrationName, Tenant)>,
    /// Idle tenants whose usage is above the floor.
    debtors: BTreeSet<(Usage, Tenant)>,
    /// By ticket, which is the order of arrival.
    arrivals: BTreeMap<u64, Instant>,
    /// What the others have settled: nobody is served as if it had used less.
    floor: Usage,
    total: Waiting,
    waiting_tenants: usize,
    ready_lanes: usize,
    pub(super) drain: Drain,
}

#[derive(Debug)]
struct Line<T> {
    ready: BTreeSet<(Usage, Tenant)>,
    lanes: HashMap<Tenant, Lane<T>>,
}

#[derive(Debug)]
struct Lane<T> {
    waiting: BTreeMap<(Instant, u64), Waiter<T>>,
    parked_until: Option<Instant>,
}

/// One who waits.
#[derive(Debug)]
pub(super) struct Waiter<T> {
    pub(super) place: Place,
    pub(super) value: T,
}

/// A tenant that waits, runs something, or owes.
#[derive(Debug)]
struct Member {
    account: Account,
    total: Waiting,
    lanes: Vec<IntegrationName>,
    parked: usize,
    drain: Drain,
}

/// A tenant in numbers.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::router) struct TenantNumbers {
    pub(in crate::router) tenant: Tenant,
    pub(in crate::router) waiting: usize,
    pub(in crate::router) running: u32,
    pub(in crate::router) is_parked: bool,
}

/// Who is next in a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    at: Usage,
    pub(super) integration: IntegrationName,
    pub(super) tenant: Tenant,
}

/// Who was passed over while the queue is served, because there was no room for them.
#[derive(Debug, Default)]
pub(super) struct Passed {
    pub(super) all: bool,
    lines: HashMap<IntegrationName, Option<(Usage, Tenant)>>,
}

impl Passed {
    pub(super) fn line(&mut self, integration: IntegrationName) {
        self.lines.insert(integration, None);
    }

    /// The tenant alone: all before it in the line were passed over already.
    pub(super) fn tenant(&mut self, candidate: Candidate) {
        self.lines.insert(candidate.integration, Some((candidate.at, candidate.tenant)));
    }
}

impl<T> Class<T> {
    pub(super) fn new(now: Instant) -> Self {
        Class {
            lines: HashMap::new(),
            members: HashMap::new(),
            parked: BTreeSet::new(),
            debtors: BTreeSet::new(),
            arrivals: BTreeMap::new(),
            floor: 0,
            total: Waiting::default(),
            waiting_tenants: 0,
            ready_lanes: 0,
            drain: Drain::new(now),
        }
    }

    // ── who waits

    pub(super) fn insert(&mut self, place: Place, value: T, now: Instant) {
        let Place { integration, tenant, bytes, since, ticket, .. } = place.clone();
        self.wake_up(&tenant, now);
        let Some(member) = self.members.get_mut(&tenant) else { return };
        self.waiting_tenants += usize::from(member.total.tasks == 0);
        for total in [&mut self.total, &mut member.total] {
            total.tasks += 1;
            total.bytes += bytes;
        }
        member.drain.waits(true, now);
        self.drain.waits(true, now);
        self.arrivals.insert(ticket, since);
        let line = self.lines.entry(integration.clone()).or_insert_with(Line::new);
        let lane = line.lanes.entry(tenant.clone()).or_insert_with(|| {
            member.lanes.push(integration);
            line.ready.insert((member.account.virtual_time(), tenant));
            self.ready_lanes += 1;
            Lane { waiting: BTreeMap::new(), parked_until: None }
        });
        lane.waiting.insert(place.order(), Waiter { place, value });
    }

    pub(super) fn remove(&mut self, place: &Place, now: Instant) -> Option<Waiter<T>> {
        let Place { integration, tenant, bytes, .. } = place;
        let line = self.lines.get_mut(integration)?;
        let lane = line.lanes.get_mut(tenant)?;
        let waiter = lane.waiting.remove(&place.order())?;
        let member = self.members.get_mut(tenant)?;
        for total in [&mut self.total, &mut member.total] {
            total.tasks -= 1;
            total.bytes -= bytes;
        }
        self.arrivals.remove(&place.ticket);
        self.waiting_tenants -= usize::from(member.total.tasks == 0);
        member.drain.waits(member.total.tasks > 0, now);
        self.drain.waits(self.total.tasks > 0, now);
        if lane.waiting.is_empty() {
            match lane.parked_until {
                Some(until) => {
                    self.parked.remove(&(until, integration.clone(), tenant.clone()));
                    member.parked -= 1;
                }
                None => {
                    line.ready.remove(&(member.account.virtual_time(), tenant.clone()));
                    self.ready_lanes -= 1;
                }
            }
            line.lanes.remove(tenant);
            member.lanes.retain(|lane| lane != integration);
            if line.lanes.is_empty() {
                self.lines.remove(integration);
            }
        }
        self.rest(tenant);
        Some(waiter)
    }

    // ── who is next

    /// The first in the order of service, but for those who were passed over: the lowest virtual time; of lanes of the
    /// same tenant, the earliest deadline.
    pub(super) fn next(&self, passed: &Passed) -> Option<Candidate> {
        if passed.all {
            return None;
        }
        let first = |(integration, line): (&IntegrationName, &Line<T>)| {
            let (at, tenant) = match passed.lines.get(integration) {
                None => line.ready.first()?,
                Some(None) => return None,
                Some(Some(last)) => line.ready.range((Excluded(last), Unbounded)).next()?,
            };
            let head = *line.lanes.get(tenant)?.waiting.first_key_value()?.0;
            Some(((*at, head), Candidate { at: *at, integration: integration.clone(), tenant: tenant.clone() }))
        };
        self.lines.iter().filter_map(first).min_by_key(|(order, _)| *order).map(|(_, candidate)| candidate)
    }

    /// The place of the first in a candidate's lane.
    pub(super) fn head(&self, candidate: &Candidate) -> Option<&Place> {
        let lane = self.lines.get(&candidate.integration)?.lanes.get(&candidate.tenant)?;
        lane.waiting.first_key_value().map(|(_, waiter)| &waiter.place)
    }

    /// Whether anyone waits for the integration who is not parked.
    pub(super) fn has_ready(&self, integration: &IntegrationName) -> bool {
        self.lines.get(integration).is_some_and(|line| !line.ready.is_empty())
    }

    /// Whether anyone waits at all who is not parked.
    pub(super) fn has_any_ready(&self) -> bool {
        self.ready_lanes > 0
    }

    /// Whether something of the place's tenant waits for the same integration.
    pub(super) fn has_lane(&self, place: &Place) -> bool {
        self.lines.get(&place.integration).is_some_and(|line| line.lanes.contains_key(&place.tenant))
    }

    // ── parked lanes

    pub(super) fn park(&mut self, integration: &IntegrationName, tenant: &Tenant, until: Instant) {
        let Some(line) = self.lines.get_mut(integration) else { return };
        let (Some(lane), Some(member)) = (line.lanes.get_mut(tenant), self.members.get_mut(tenant)) else { return };
        if lane.parked_until.is_none() {
            lane.parked_until = Some(until);
            line.ready.remove(&(member.account.virtual_time(), tenant.clone()));
            self.ready_lanes -= 1;
            member.parked += 1;
            self.parked.insert((until, integration.clone(), tenant.clone()));
        }
    }

    /// Puts back the tenant's parked lanes: one of its calls has ended.
    pub(super) fn unpark(&mut self, tenant: &Tenant) {
        let Some(member) = self.members.get(tenant).filter(|member| member.parked > 0) else { return };
        for integration in member.lanes.clone() {
            self.unpark_lane(&integration, tenant);
        }
    }

    /// Puts back the lanes whose time has come; all of them where none is given.
    pub(super) fn unpark_due(&mut self, by: Option<Instant>) {
        while let Some((_, integration, tenant)) =
            self.parked.first().filter(|(until, _, _)| by.is_none_or(|by| *until <= by)).cloned()
        {
            self.unpark_lane(&integration, &tenant);
        }
    }

    fn unpark_lane(&mut self, integration: &IntegrationName, tenant: &Tenant) {
        let lane = self.lines.get_mut(integration).and_then(|line| line.lanes.get_mut(tenant));
        let Some(until) = lane.and_then(|lane| lane.parked_until.take()) else { return };
        self.parked.remove(&(until, integration.clone(), tenant.clone()));
        let floor = self.floor;
        self.settle(tenant, |account| account.lift(floor));
        let Some(member) = self.members.get_mut(tenant) else { return };
        member.parked -= 1;
        if let Some(line) = self.lines.get_mut(integration) {
            line.ready.insert((member.account.virtual_time(), tenant.clone()));
            self.ready_lanes += 1;
        }
    }

    // ── accounts

    /// A call of the tenant starts.
    pub(super) fn start(&mut self, tenant: &Tenant, charge: Usage, now: Instant) {
        self.wake_up(tenant, now);
        let floor = self.floor;
        self.settle(tenant, |account| {
            account.lift(floor);
            account.start(charge);
        });
        let settled = self.members.get(tenant).map_or(0, |member| member.account.settled());
        self.raise_floor(settled);
    }

    /// One that was served from the queue.
    pub(super) fn departed(&mut self, tenant: &Tenant, mean: std::time::Duration) {
        self.drain.departed(mean);
        if let Some(member) = self.members.get_mut(tenant) {
            member.drain.departed(mean);
        }
    }

    /// A call of the tenant takes longer than it was charged with.
    pub(super) fn charge(&mut self, tenant: &Tenant, more: Usage) {
        self.settle(tenant, |account| account.charge(more));
    }

    pub(super) fn end(&mut self, tenant: &Tenant, charged: Usage, used: Usage) {
        self.settle(tenant, |account| account.end(charged, used));
        self.rest(tenant);
    }

    /// Changes an account, and moves the tenant's lanes to where they belong then.
    fn settle(&mut self, tenant: &Tenant, change: impl FnOnce(&mut Account)) {
        let Some(member) = self.members.get_mut(tenant) else { return };
        let before = member.account.virtual_time();
        change(&mut member.account);
        let after = member.account.virtual_time();
        if before == after {
            return;
        }
        for name in &member.lanes {
            let Some(line) = self.lines.get_mut(name) else { continue };
            // A parked lane is not there, and stays out.
            let mut key = (before, tenant.clone());
            if line.ready.remove(&key) {
                key.0 = after;
                line.ready.insert(key);
            }
        }
    }

    /// The tenant has something here from now on.
    fn wake_up(&mut self, tenant: &Tenant, now: Instant) {
        let floor = self.floor;
        let member = self.members.entry(tenant.clone()).or_insert_with(|| Member {
            account: Account::default(),
            total: Waiting::default(),
            lanes: Vec::new(),
            parked: 0,
            drain: Drain::new(now),
        });
        if member.is_idle() {
            self.debtors.remove(&(member.account.settled(), tenant.clone()));
            member.account.lift(floor);
        }
    }

    /// Forgets the tenant, if it has nothing here and owes nothing.
    fn rest(&mut self, tenant: &Tenant) {
        let Some(member) = self.members.get(tenant).filter(|member| member.is_idle()) else { return };
        let settled = member.account.settled();
        if settled <= self.floor {
            self.members.remove(tenant);
            return;
        }
        self.debtors.insert((settled, tenant.clone()));
        if self.debtors.len() > MAX_DEBTORS
            && let Some((_, smallest)) = self.debtors.pop_first()
        {
            self.members.remove(&smallest);
        }
    }

    fn raise_floor(&mut self, floor: Usage) {
        self.floor = self.floor.max(floor);
        while self.debtors.first().is_some_and(|(settled, _)| *settled <= self.floor) {
            if let Some((_, tenant)) = self.debtors.pop_first() {
                self.members.remove(&tenant);
            }
        }
    }

    // ── numbers

    pub(super) fn total(&self) -> Waiting {
        self.total
    }

    pub(super) fn total_of(&self, tenant: &Tenant) -> Waiting {
        self.members.get(tenant).map(|member| member.total).unwrap_or_default()
    }

    /// When the one arrived that waits for the longest.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.arrivals.first_key_value().map(|(_, since)| *since)
    }

    pub(super) fn lines(&self) -> impl Iterator<Item = (&IntegrationName, impl Iterator<Item = &Waiter<T>>)> {
        self.lines.iter().map(|(name, line)| (name, line.lanes.values().flat_map(|lane| lane.waiting.values())))
    }

    /// The tasks that are served before one of the tenant that has so many of its own before it, at the most: while
    /// others wait, tenants take turns.
    pub(super) fn ahead(&self, tenant: &Tenant, own: usize) -> usize {
        let others = self.waiting_tenants - usize::from(self.total_of(tenant).tasks > 0);
        (own + (own + 1) * others).min(self.total.tasks)
    }

    /// How many of the tenant's own wait before a place in its lane, and whether the lane is parked. Looks at each.
    pub(super) fn stands(&self, place: &Place) -> Option<(usize, bool)> {
        let lane = self.lines.get(&place.integration)?.lanes.get(&place.tenant)?;
        Some((lane.waiting.range(..place.order()).count(), lane.parked_until.is_some()))
    }

    /// Whether some lane of the tenant is parked.
    pub(super) fn is_parked(&self, tenant: &Tenant) -> bool {
        self.members.get(tenant).is_some_and(|member| member.parked > 0)
    }

    /// The tenant's own departures per second.
    pub(super) fn rate_of(&self, tenant: &Tenant, mean: std::time::Duration, now: Instant) -> Option<f64> {
        self.members.get(tenant)?.drain.rate(mean, now)
    }

    /// Those who have the most waiting, up to a number. Looks at all.
    pub(super) fn top(&self, at_most: usize) -> Vec<TenantNumbers> {
        let numbers = |(tenant, member): (&Tenant, &Member)| TenantNumbers {
            tenant: tenant.clone(),
            waiting: member.total.tasks,
            running: member.account.running(),
            is_parked: member.parked > 0,
        };
        let mut all: Vec<_> = self.members.iter().filter(|(_, member)| !member.is_idle()).map(numbers).collect();
        all.sort_unstable_by(|one, other| {
            (other.waiting, other.running).cmp(&(one.waiting, one.running)).then_with(|| one.tenant.cmp(&other.tenant))
        });
        all.truncate(at_most);
        all
    }

    /// Whether nothing is left: no member but debtors.
    #[cfg(test)]
    pub(super) fn holds_nothing(&self) -> bool {
        let empty = self.lines.is_empty() && self.parked.is_empty() && self.arrivals.is_empty();
        empty
            && self.total == Waiting::default()
            && (self.waiting_tenants, self.ready_lanes) == (0, 0)
            && self.members.len() == self.debtors.len()
    }
}

impl<T> Line<T> {
    fn new() -> Self {
        Line { ready: BTreeSet::new(), lanes: HashMap::new() }
    }
}

impl Member {
    fn is_idle(&self) -> bool {
        self.total.tasks == 0 && self.account.running() == 0
    }
}
