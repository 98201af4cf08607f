//! The gate's arithmetic: pure, with the time passed in.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::time::Instant;

use super::bulkheads::{Bulkhead, Bulkheads};
use super::{IntegrationLoad, Load, Refused, Share, Shares, Standing, State, TenantLoad, Want};
use crate::limits::Limits;
use crate::task::{IntegrationName, Priority, Tenant};

/// What a gate knows. More may be held than the limits allow, after they were lowered.
#[derive(Debug)]
pub(super) struct Slots {
    limits: Limits,
    /// The slots that batch may not hold.
    reserve: u32,
    bulkheads: Bulkheads,
    /// Only those that hold something, so that there are never more than tasks in flight.
    tenants: HashMap<Tenant, u32>,
    interactive: u32,
    batch: u32,
    in_flight: u32,
    peak: Peak,
    draining: bool,
    overloaded: bool,
    /// Where the followers were last told that they stand.
    told: Standing,
    task_seconds: f64,
    integrated_until: Instant,
}

/// The most that there ever was at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Peak {
    pub(super) in_flight: u32,
    pub(super) held: u32,
}

/// What one task holds.
#[derive(Debug)]
pub(super) struct Place {
    integration: Option<usize>,
    tenant: Tenant,
    priority: Priority,
    weight: u32,
    /// The task-seconds spent before it.
    pub(super) task_seconds_before: f64,
}

#[cfg(test)]
impl Place {
    pub(super) fn weight(&self) -> u32 {
        self.weight
    }
}

impl Slots {
    pub(super) fn new(limits: Limits, integrations: impl IntoIterator<Item = IntegrationName>, now: Instant) -> Self {
        let mut slots = Slots {
            reserve: 0,
            bulkheads: Bulkheads::new(integrations),
            tenants: HashMap::new(),
            interactive: 0,
            batch: 0,
            in_flight: 0,
            peak: Peak::default(),
            draining: false,
            overloaded: false,
            told: Standing { state: State::Full, takes_batch: false, full: [].into() },
            task_seconds: 0.0,
            integrated_until: now,
            limits: Limits::of(0),
        };
        slots.set_limits(limits);
        slots.news();
        slots
    }

    /// Takes a place.
    pub(super) fn admit(&mut self, want: &Want<'_>, now: Instant) -> Result<Place, Refused> {
        if self.draining {
            return Err(Refused::Draining);
        }
        if self.overloaded {
            return Err(Refused::Overloaded);
        }
        let integration = self.bulkheads.find(want.integration);
        let tenant_most = self.tenant_most(want.tenant);
        let weight = self.weight(integration, tenant_most, want.priority);
        self.check_room(weight, want)?;
        if let Err(refused) = self.check_caps(weight, want, integration, tenant_most) {
            if let (Some(index), Refused::IntegrationFull { .. }) = (integration, &refused) {
                self.bulkheads.refuse(index, now);
            }
            return Err(refused);
        }

        let task_seconds_before = self.task_seconds(now);
        if let Some(index) = integration {
            self.bulkheads.take(index, weight);
        }
        match self.tenants.get_mut(want.tenant) {
            Some(held) => *held += weight,
            None => drop(self.tenants.insert(want.tenant.clone(), weight)),
        }
        *self.held_by(want.priority) += weight;
        self.in_flight += 1;
        let Peak { in_flight, held } = self.peak;
        self.peak = Peak { in_flight: in_flight.max(self.in_flight), held: held.max(self.held()) };
        self.bulkheads.settle(integration, self.room());
        let (tenant, priority) = (want.tenant.clone(), want.priority);
        Ok(Place { integration, tenant, priority, weight, task_seconds_before })
    }

    pub(super) fn release(&mut self, place: &Place, now: Instant) {
        self.task_seconds(now);
        if let Some(index) = place.integration {
            self.bulkheads.give_back(index, place.weight);
        }
        if let Some(held) = self.tenants.get_mut(&place.tenant) {
            *held -= place.weight;
            if *held == 0 {
                self.tenants.remove(&place.tenant);
            }
        }
        *self.held_by(place.priority) -= place.weight;
        self.in_flight -= 1;
        self.bulkheads.settle(place.integration, self.room());
    }

    /// Returns the limits that held before.
    pub(super) fn set_limits(&mut self, limits: Limits) -> Limits {
        let before = std::mem::replace(&mut self.limits, limits);
        self.reserve = self.limits.reserve();
        let room = self.room();
        self.bulkheads.set(&self.limits, room);
        before
    }

    pub(super) fn narrow(&mut self, integration: &IntegrationName, limit: Option<u32>) {
        let room = self.room();
        if let Some(index) = self.bulkheads.find(integration) {
            self.bulkheads.narrow(index, limit, &self.limits, room);
        }
    }

    pub(super) fn set_overloaded(&mut self, overloaded: bool) {
        self.overloaded = overloaded;
    }

    pub(super) fn drain(&mut self) {
        self.draining = true;
    }

    /// Where the followers stand, when that is no longer where they were last told. To be asked after each change.
    pub(super) fn news(&mut self) -> Option<Standing> {
        let (state, full) = (self.state(), self.bulkheads.full());
        let takes_batch = state == State::Open && self.room_for_batch() > 0;
        // The list is another one only when it has other names.
        let is_told =
            self.told.state == state && self.told.takes_batch == takes_batch && Arc::ptr_eq(&self.told.full, full);
        if is_told {
            return None;
        }
        self.told = Standing { state, takes_batch, full: full.clone() };
        Some(self.told.clone())
    }

    pub(super) fn told(&self) -> &Standing {
        &self.told
    }

    pub(super) fn load(&self) -> Load {
        Load {
            state: self.state(),
            target: self.limits.target,
            reserve: self.reserve,
            in_flight: self.in_flight,
            held_by_interactive: self.interactive,
            held_by_batch: self.batch,
        }
    }

    pub(super) fn peak(&self) -> Peak {
        self.peak
    }

    pub(super) fn by_integration(&self) -> Vec<IntegrationLoad> {
        let load = |bulkhead: &Bulkhead| IntegrationLoad {
            integration: bulkhead.name.clone(),
            in_flight: bulkhead.in_flight,
            held: bulkhead.held,
            most: bulkhead.most,
            cap: bulkhead.cap,
            limit: bulkhead.limit,
            weight: bulkhead.weight,
            refused_at: bulkhead.refused_at,
        };
        self.bulkheads.iter().map(load).collect()
    }

    pub(super) fn shares(&self, want: &Want<'_>) -> Shares {
        let (integration, tenant_most) = (self.bulkheads.find(want.integration), self.tenant_most(want.tenant));
        let weight = self.weight(integration, tenant_most, want.priority);
        let in_tasks =
            |held: u32, most: Option<u32>| Share { held: held.div_ceil(weight), most: most.map(|it| it / weight) };
        let bulkhead = integration.map(|index| self.bulkheads.at(index));
        let limit = bulkhead.filter(|it| it.cap.is_some() || it.limit.is_some()).map(|it| it.most);
        Shares {
            weight,
            integration: in_tasks(bulkhead.map_or(0, |bulkhead| bulkhead.held), limit),
            tenant: in_tasks(self.tenants.get(want.tenant).copied().unwrap_or_default(), tenant_most),
        }
    }

    /// The tenants that hold all that they may, those that hold the most first.
    pub(super) fn full_tenants(&self, at_most: usize) -> Vec<TenantLoad> {
        let mut full: Vec<_> = self
            .tenants
            .iter()
            .filter_map(|(tenant, held)| Some((tenant, *held, self.tenant_most(tenant)?)))
            .filter(|(_, held, most)| held >= most)
            .collect();
        full.sort_unstable_by(|(one, one_held, _), (other, other_held, _)| {
            other_held.cmp(one_held).then_with(|| one.cmp(other))
        });
        full.truncate(at_most);
        full.into_iter().map(|(tenant, held, most)| TenantLoad { tenant: tenant.clone(), held, most }).collect()
    }

    /// The integral of the tasks in flight over time, until `now`. Tasks and not slots: what it is for is how tasks fare
    /// beside so many others, and a weight says what a task costs, not how many there are.
    pub(super) fn task_seconds(&mut self, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.integrated_until).as_secs_f64();
        self.task_seconds += elapsed * f64::from(self.in_flight);
        self.integrated_until = self.integrated_until.max(now);
        self.task_seconds
    }

    fn state(&self) -> State {
        if self.draining {
            State::Draining
        } else if self.overloaded {
            State::Overloaded
        } else if self.room() == 0 {
            State::Full
        } else {
            State::Open
        }
    }

    /// What a task holds: what its integration says, but at most what it may hold at all.
    fn weight(&self, integration: Option<usize>, tenant_most: Option<u32>, priority: Priority) -> u32 {
        let weight = integration.map_or(1, |index| self.bulkheads.at(index).weight);
        let by_priority = match priority {
            Priority::Interactive => self.limits.target,
            Priority::Batch => self.limits.target - self.reserve,
        };
        weight.min(by_priority).min(tenant_most.unwrap_or(u32::MAX)).max(1)
    }

    fn check_room(&self, weight: u32, want: &Want<'_>) -> Result<(), Refused> {
        let target = self.limits.target;
        if self.room() < weight {
            return Err(Refused::Full { held: self.held(), target, weight });
        }
        if want.priority == Priority::Batch && self.room_for_batch() < weight {
            return Err(Refused::Reserve { held: self.batch, target, reserve: self.reserve, weight });
        }
        Ok(())
    }

    fn check_caps(
        &self,
        weight: u32,
        want: &Want<'_>,
        integration: Option<usize>,
        tenant_most: Option<u32>,
    ) -> Result<(), Refused> {
        if let Some(bulkhead) = integration.map(|index| self.bulkheads.at(index))
            && !bulkhead.has_room(weight)
        {
            let (held, most) = (bulkhead.held, bulkhead.most);
            return Err(Refused::IntegrationFull { integration: bulkhead.name.clone(), held, most, weight });
        }
        if let Some(most) = tenant_most {
            let held = self.tenants.get(want.tenant).copied().unwrap_or_default();
            if most.saturating_sub(held) < weight {
                return Err(Refused::TenantFull { tenant: want.tenant.clone(), held, most, weight });
            }
        }
        Ok(())
    }

    fn tenant_most(&self, tenant: &Tenant) -> Option<u32> {
        self.limits.tenant_caps.get(tenant).map(|cap| cap.of(self.limits.target))
    }

    fn held(&self) -> u32 {
        self.interactive + self.batch
    }

    fn held_by(&mut self, priority: Priority) -> &mut u32 {
        match priority {
            Priority::Interactive => &mut self.interactive,
            Priority::Batch => &mut self.batch,
        }
    }

    fn room(&self) -> u32 {
        self.limits.target.saturating_sub(self.held())
    }

    fn room_for_batch(&self) -> u32 {
        self.load().room_for(Priority::Batch)
    }

    /// Whether every number that is kept is back at its start.
    #[cfg(test)]
    pub(super) fn holds_nothing(&self) -> bool {
        let free = self.bulkheads.iter().all(|bulkhead| bulkhead.held == 0 && bulkhead.in_flight == 0);
        free && self.tenants.is_empty() && self.held() == 0 && self.in_flight == 0
    }
}
