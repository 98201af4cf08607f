//! Those of one class who wait: pure.
//!
//! Each integration has its own line (`line`), so that one that no worker has room for holds up no other. A lane whose
//! tenant no worker takes more of is *parked*: out of the line until one of the tenant's own calls ends or a time has
//! passed. Whatever changes a virtual time moves the tenant's lanes, and only those.
//!
//! What a task waits for decides whose rate of departures says how long: the class's where slots are short, the line's
//! where that is held, the tenant's where that is parked. Only time in which somebody waits for a slot, and for nothing
//! else, counts as time in which the class drains.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use super::Place;
use super::bounds::Waiting;
use super::drain::Drain;
use super::fair::{Account, Lag, Usage};
use super::line::{Candidate, Lane, Line, Passed, Waiter};
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
    /// What the others have settled: nobody is served as if it had used much less.
    floor: Usage,
    lag: Lag,
    total: Waiting,
    /// Tenants with a lane that is ready.
    ready_tenants: usize,
    ready_lanes: usize,
    /// What the workers have.
    slots: u64,
    /// No worker was found to have a slot for the class.
    is_short: bool,
    drain: Drain,
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

impl<T> Class<T> {
    pub(super) fn new(now: Instant) -> Self {
        Class {
            lines: HashMap::new(),
            members: HashMap::new(),
            parked: BTreeSet::new(),
            debtors: BTreeSet::new(),
            arrivals: BTreeMap::new(),
            floor: 0,
            lag: Lag::new(now),
            total: Waiting::default(),
            ready_tenants: 0,
            ready_lanes: 0,
            slots: 0,
            is_short: false,
            drain: Drain::new(now),
        }
    }

    // ── who waits

    pub(super) fn insert(&mut self, place: Place, value: T, now: Instant) {
        self.wake_up(&place.tenant, now);
        let Some(member) = self.members.get_mut(&place.tenant) else { return };
        for total in [&mut self.total, &mut member.total] {
            total.tasks += 1;
            total.bytes += place.bytes;
        }
        member.drain.waits(true, self.slots, now);
        self.arrivals.insert(place.ticket, place.since);
        let line = self.lines.entry(place.integration.clone()).or_insert_with(|| Line::new(now));
        let lane = line.lanes.entry(place.tenant.clone()).or_insert_with(|| {
            self.ready_tenants += usize::from(!member.is_ready());
            self.ready_lanes += 1;
            member.lanes.push(place.integration.clone());
            line.ready.insert((member.account.virtual_time(), place.tenant.clone()));
            Lane::new()
        });
        line.ready_tasks += usize::from(lane.is_ready());
        lane.waiting.insert(place.order(), Waiter { place, value });
        self.measure(now);
    }

    /// [`Class::measure`] is to follow, once for all that are removed at the same time.
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
        line.ready_tasks -= usize::from(lane.is_ready());
        self.arrivals.remove(&place.ticket);
        member.drain.waits(member.total.tasks > 0, self.slots, now);
        if lane.waiting.is_empty() {
            let was_ready = member.is_ready();
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
            self.ready_tenants -= usize::from(was_ready && !member.is_ready());
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
        let firsts = self.lines.iter().filter_map(|(integration, line)| {
            let (at, head, tenant) = passed.first_of(integration, line)?;
            Some((at, head, integration, tenant))
        });
        let (at, _, integration, tenant) = firsts.min_by_key(|(at, head, _, _)| (*at, *head))?;
        Some(Candidate { at, integration: integration.clone(), tenant: tenant.clone() })
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
        if lane.is_ready() {
            lane.parked_until = Some(until);
            line.ready.remove(&(member.account.virtual_time(), tenant.clone()));
            line.ready_tasks -= lane.waiting.len();
            self.ready_lanes -= 1;
            member.parked += 1;
            self.ready_tenants -= usize::from(!member.is_ready());
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
        let floor = self.floor;
        self.settle(tenant, |account| account.lift(floor));
        let Some(line) = self.lines.get_mut(integration) else { return };
        let (Some(lane), Some(member)) = (line.lanes.get_mut(tenant), self.members.get_mut(tenant)) else { return };
        let Some(until) = lane.parked_until.take() else { return };
        self.parked.remove(&(until, integration.clone(), tenant.clone()));
        line.ready.insert((member.account.virtual_time(), tenant.clone()));
        line.ready_tasks += lane.waiting.len();
        self.ready_lanes += 1;
        self.ready_tenants += usize::from(!member.is_ready());
        member.parked -= 1;
    }

    // ── accounts

    /// A call of the tenant starts.
    pub(super) fn start(&mut self, tenant: &Tenant, charge: Usage, now: Instant) {
        self.wake_up(tenant, now);
        let floor = self.floor.saturating_sub(self.lag.at_most());
        self.lag.start(charge, now);
        self.settle(tenant, |account| {
            account.lift(floor);
            account.start(charge);
        });
        let settled = self.members.get(tenant).map_or(0, |member| member.account.settled());
        self.raise_floor(settled);
    }

    /// A call of the tenant takes longer than it was charged with.
    pub(super) fn charge(&mut self, tenant: &Tenant, more: Usage, now: Instant) {
        self.lag.note(more, now);
        self.settle(tenant, |account| account.charge(more));
    }

    pub(super) fn end(&mut self, tenant: &Tenant, charged: Usage, used: Usage, now: Instant) {
        self.lag.end(used, now);
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

    // ── how fast it drains

    /// The workers have so many slots from now on.
    pub(super) fn set_slots(&mut self, slots: u64, now: Instant) {
        if slots != self.slots {
            self.slots = slots;
            self.measure(now);
        }
    }

    /// It was found that no worker has a slot for the class, or that one has.
    pub(super) fn set_short(&mut self, is_short: bool, now: Instant) {
        self.is_short = is_short;
        self.measure(now);
    }

    /// Workers were found to have room for others, and none for the integration.
    pub(super) fn hold(&mut self, integration: &IntegrationName) {
        if let Some(line) = self.lines.get_mut(integration) {
            line.hold();
        }
    }

    /// The place is served. To be told before it is removed.
    pub(super) fn serves(&mut self, place: &Place) {
        if let Some(line) = self.lines.get_mut(&place.integration) {
            line.served();
        }
    }

    /// A run for the place took so long, and ended by itself or was aborted.
    pub(super) fn departed(&mut self, place: &Place, took: Duration, is_aborted: bool) {
        let line = self.lines.get_mut(&place.integration).map(|line| &mut line.drain);
        let member = self.members.get_mut(&place.tenant).map(|member| &mut member.drain);
        for drain in [Some(&mut self.drain), line, member].into_iter().flatten() {
            if is_aborted {
                drain.aborted(took);
            } else {
                drain.departed(took);
            }
        }
    }

    /// The time since the last look belongs to what was so until now; what is so from now on is noted. To be told after
    /// each change, and once for those that come at the same time.
    pub(super) fn measure(&mut self, now: Instant) {
        let mut waits_for_slots = false;
        for line in self.lines.values_mut() {
            let is_ready = !line.ready.is_empty();
            line.drain.waits(is_ready, self.slots, now);
            waits_for_slots |= is_ready && !line.is_held();
        }
        self.is_short &= waits_for_slots;
        self.drain.waits(self.is_short, self.slots, now);
    }

    /// Departures per second of the class.
    pub(super) fn rate(&self, now: Instant) -> Option<f64> {
        self.drain.rate(self.slots, now)
    }

    /// Departures per second of those with whom the place takes turns.
    pub(super) fn rate_for(&self, place: &Place, now: Instant) -> Option<f64> {
        let held = self.lines.get(&place.integration).filter(|line| line.is_held());
        held.map_or_else(|| self.rate(now), |line| line.drain.rate(self.slots, now))
    }

    /// The wait of a place that has so many of its tenant's own before it: those that come first, at the most, over
    /// departures per second. Where the tenant is parked, not less than its own before it over its own departures.
    pub(super) fn estimate(&self, place: &Place, own_ahead: usize, now: Instant) -> Option<Duration> {
        let wait = |ahead: usize, rate: f64| (ahead + 1) as f64 / rate;
        let of_all = self.rate_for(place, now).map(|rate| wait(self.ahead(place, own_ahead), rate));
        let parked = self.members.get(&place.tenant).filter(|member| member.parked > 0);
        let of_own = parked.and_then(|member| member.drain.rate(self.slots, now)).map(|rate| wait(own_ahead, rate));
        let seconds = [of_all, of_own].into_iter().flatten().reduce(f64::max)?;
        Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }

    /// The tasks that are served before a place that has so many of its tenant's own before it, at the most: tenants take
    /// turns. Who is parked, or waits in a line that is held, comes before nobody else.
    pub(super) fn ahead(&self, place: &Place, own: usize) -> usize {
        let (lanes, tasks) = self.contenders(place);
        let is_ready = self.members.get(&place.tenant).is_some_and(Member::is_ready);
        let others = lanes.min(self.ready_tenants).saturating_sub(usize::from(is_ready));
        let own_and_it = own + usize::from(self.is_in_line(place));
        let theirs = if is_ready { tasks.saturating_sub(own_and_it) } else { tasks };
        own + ((own + 1) * others).min(theirs)
    }

    /// Those who may be served before a place of a class that comes after this one.
    pub(super) fn may_precede(&self, place: &Place) -> usize {
        self.contenders(place).1
    }

    /// The lanes, and the tasks in them, that wait for what a place waits for.
    fn contenders(&self, place: &Place) -> (usize, usize) {
        let count = |(lanes, tasks), line: &Line<T>| (lanes + line.ready.len(), tasks + line.ready_tasks);
        match self.lines.get(&place.integration) {
            Some(line) if line.is_held() => count((0, 0), line),
            _ => self.lines.values().filter(|line| !line.is_held()).fold((0, 0), count),
        }
    }

    /// Whether the place is taken, in a lane that is ready.
    fn is_in_line(&self, place: &Place) -> bool {
        let lane = self.lines.get(&place.integration).and_then(|line| line.lanes.get(&place.tenant));
        lane.is_some_and(|lane| lane.is_ready() && lane.waiting.contains_key(&place.order()))
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

    /// How many of the tenant's own wait before a place in its lane, and whether the lane is parked. Looks at each.
    pub(super) fn stands(&self, place: &Place) -> Option<(usize, bool)> {
        let lane = self.lines.get(&place.integration)?.lanes.get(&place.tenant)?;
        Some((lane.waiting.range(..place.order()).count(), lane.parked_until.is_some()))
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
            && (self.ready_tenants, self.ready_lanes) == (0, 0)
            && self.members.len() == self.debtors.len()
    }
}

impl Member {
    fn is_idle(&self) -> bool {
        self.total.tasks == 0 && self.account.running() == 0
    }

    /// Whether some lane of it is not parked.
    fn is_ready(&self) -> bool {
        self.lanes.len() > self.parked
    }
}
