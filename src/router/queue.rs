//! The bounded, fair wait for a worker with room: pure, with the time passed in.
//!
//! - **Which class** is next is a matter of turns (`turns`): interactive before batch, which has a share all the same.
//! - **Which tenant** of it: the one that has used the least, in busy slot-seconds, what runs included (`fair`).
//! - **Which task** of the tenant: the one with the earliest deadline. A task that was refused keeps its place.
//! - What no worker has room for (an integration at its cap everywhere, a tenant at its own) holds up nobody else
//!   (`class`).
//! - What may wait is bounded by number, bytes and the estimated wait, of each class and of each tenant (`bounds`).
//!
//! To serve one task takes O(i + log n): i integrations that somebody waits for, n tasks and tenants. Where a worker is
//! at the cap of some tenants but not all workers are, serving it also passes those by that hold something there: never
//! more than it has slots.

mod bounds;
mod class;
mod drain;
mod fair;
mod line;
mod pace;
mod standing;
mod turns;

use std::collections::HashMap;
use std::iter;
use std::time::Duration;

use tokio::time::Instant;

pub use bounds::Config;
pub(super) use bounds::{Bound, Full};
pub(super) use class::TenantNumbers;
pub(super) use fair::Call;
pub(super) use standing::Standing;

use super::split::Keys;
use crate::task::{IntegrationName, Priority, Task, Tenant};
use bounds::retry_after;
use class::Class;
use fair::{Calls, Charge, Usage, usage};
use line::Passed;
use pace::Pace;
use turns::Turns;

/// A task is turned away when so many times its estimated wait, and then a run, are more than it has. What is let in beyond
/// that waits until hardly any time is left, and then takes slots for runs that end too late: under twice the load that
/// can be carried, most of them.
const WAIT_MARGIN: f64 = 1.25;

/// A place in the queue: kept by the task until it ends, over all of its attempts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) priority: Priority,
    pub(super) integration: IntegrationName,
    pub(super) tenant: Tenant,
    pub(super) deadline: Instant,
    /// Of the input.
    pub(super) bytes: usize,
    /// What its pool follows from.
    pub(super) keys: Keys,
    /// When the task arrived.
    since: Instant,
    ticket: u64,
}

impl Place {
    /// For a task that arrives now, not yet taken. No two have the same ticket, in whichever queue; the lower came first.
    pub(super) fn new(task: &Task, ticket: u64, now: Instant) -> Self {
        Place {
            priority: task.priority,
            integration: task.integration.clone(),
            tenant: task.tenant.clone(),
            deadline: task.deadline,
            bytes: task.input.as_str().len(),
            keys: Keys::of(task),
            since: now,
            ticket,
        }
    }

    /// Among those of the same tenant.
    fn order(&self) -> (Instant, u64) {
        (self.deadline, self.ticket)
    }
}

/// What a worker was found for.
#[derive(Debug)]
pub(super) struct Served<T, R> {
    pub(super) place: Place,
    pub(super) waiter: T,
    pub(super) found: R,
    pub(super) call: Call,
}

/// Whether there is room for a task, and if not, for whom else there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room<R> {
    /// There is.
    Found(R),
    /// Not for any task of the class: no slot is free.
    NotForClass,
    /// Not for any task of the class and the integration, though a slot is free.
    NotForIntegration,
    /// Not for the tenant's task; others may have it. `again` says when to ask again, unless one of the tenant's calls
    /// ends before: nobody takes more of the tenant. None where another worker may, but has no room just now.
    NotForTenant { again: Option<Instant> },
}

/// What a call came to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ran {
    pub(super) run: Run,
    /// How many, where the worker said so.
    pub(super) slots: Option<u32>,
    /// How long the integration took, where it succeeded.
    pub(super) succeeded_in: Option<Duration>,
}

/// How far the run of a call came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Run {
    /// It held no slot.
    #[default]
    NotBegun,
    /// It may have held slots, and has no outcome: its caller left, or its worker did.
    Aborted,
    /// It ended by itself.
    Ended,
}

/// A class in numbers.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ClassNumbers {
    pub(super) priority: Priority,
    pub(super) waiting: usize,
    pub(super) bytes: usize,
    pub(super) oldest: Option<Duration>,
    pub(super) per_second: Option<f64>,
}

/// Those who wait, each with a `T`.
#[derive(Debug)]
pub(super) struct Queue<T> {
    config: Config,
    classes: [Class<T>; 2],
    calls: Calls,
    turns: Turns,
    paces: HashMap<IntegrationName, Pace>,
    /// Whether some tenant was passed over since time last passed, so that there may be room for another.
    passed_over: bool,
}

impl<T> Queue<T> {
    pub(super) fn new(config: Config, now: Instant) -> Self {
        Queue {
            classes: [Class::new(now), Class::new(now)],
            calls: Calls::default(),
            turns: Turns::new(config.batch_share),
            paces: HashMap::new(),
            passed_over: false,
            config,
        }
    }

    /// Batch has that share of the slot-seconds started from now on, 0 to 1.
    pub(super) fn set_batch_share(&mut self, share: f64) {
        self.turns.set_share(share);
    }

    /// Waits at a place for the first time.
    pub(super) fn push(&mut self, place: Place, waiter: T, now: Instant) -> Result<(), Full> {
        self.check(&place, now)?;
        self.resume(place, waiter, now);
        Ok(())
    }

    /// Waits at a place again, after a refusal. Always taken: the task was let in before, so those who resume are
    /// bounded by the calls that were in flight.
    pub(super) fn resume(&mut self, place: Place, waiter: T, now: Instant) {
        self.class_mut(place.priority).insert(place, waiter, now);
    }

    /// Whether nobody waits for the same integration, other than in vain, who would be served before this place.
    pub(super) fn is_first(&self, place: &Place) -> bool {
        let mut ahead = Priority::ALL.iter().filter(|priority| **priority <= place.priority);
        !ahead.any(|priority| self.class(*priority).has_ready(&place.integration))
            && !self.class(place.priority).has_lane(place)
    }

    /// Leaves a place, if it is still taken.
    pub(super) fn remove(&mut self, place: &Place, now: Instant) -> Option<T> {
        let class = self.class_mut(place.priority);
        let waiter = class.remove(place, now)?;
        class.measure(now);
        Some(waiter.value)
    }

    /// A call begins for a place that was not waited at.
    pub(super) fn start(&mut self, place: &Place, now: Instant) -> Call {
        let charge = self.charge_of(&place.integration);
        let slots = self.paces.get(&place.integration).map_or(1, Pace::slots);
        self.class_mut(place.priority).start(&place.tenant, charge, now);
        let batch_waits = self.class(Priority::Batch).has_any_ready();
        self.turns.started(place.priority, charge, batch_waits);
        let (priority, tenant) = (place.priority, place.tenant.clone());
        self.calls.start(Charge { priority, tenant, slots, since: now, charged: charge })
    }

    /// A call has ended: it gives way to what it did use, and the tenant's parked lanes are looked at again. Returns how
    /// long it took, for the queue of the pool whose worker it was at ([`Queue::learn`]).
    pub(super) fn end(&mut self, call: Call, ran: Ran, now: Instant) -> Option<Duration> {
        let Charge { priority, tenant, slots, since, charged } = self.calls.end(call)?;
        let took = now.saturating_duration_since(since);
        let used = if ran.run == Run::NotBegun { 0 } else { usage(ran.slots.unwrap_or(slots), took) };
        self.class_mut(priority).end(&tenant, charged, used, now);
        self.classes.iter_mut().for_each(|class| class.unpark(&tenant));
        Some(took)
    }

    /// A call to one of the pool's workers took so long: others of the integration may, too.
    pub(super) fn learn(&mut self, integration: &IntegrationName, took: Duration, ran: Ran, now: Instant) {
        if ran.run == Run::NotBegun {
            return;
        }
        let pace = self.paces.entry(integration.clone()).or_insert_with(|| Pace::new(now));
        if ran.run == Run::Aborted {
            pace.aborted(took);
            return;
        }
        pace.ran(took, ran.slots);
        if let Some(time) = ran.succeeded_in {
            pace.succeeded(time, self.config.run_quantile, now);
        }
    }

    /// A call for the place took so long at one of this pool's own workers: its slot is another's now.
    pub(super) fn departed(&mut self, place: &Place, took: Duration, ran: Ran) {
        if ran.run != Run::NotBegun {
            self.class_mut(place.priority).departed(place, took, ran.run == Run::Aborted);
        }
    }

    /// Time has passed: what runs for longer than it was charged with is charged with more, and parked lanes whose time
    /// has come are asked again.
    pub(super) fn pass(&mut self, now: Instant) {
        while let Some((priority, tenant, more)) = self.calls.overrun(now) {
            self.class_mut(priority).charge(&tenant, more, now);
        }
        self.passed_over = false;
        self.classes.iter_mut().for_each(|class| class.unpark_due(Some(now)));
    }

    /// The workers are others than before: no lane stays parked for those.
    pub(super) fn unpark_all(&mut self) {
        self.classes.iter_mut().for_each(|class| class.unpark_due(None));
    }

    /// Takes out, in the order of service, each waiter for which `room` finds a worker.
    pub(super) fn serve<R>(&mut self, now: Instant, mut room: impl FnMut(&Place) -> Room<R>) -> Vec<Served<T, R>> {
        let mut passed = [Passed::default(), Passed::default()];
        let served = iter::from_fn(|| self.serve_one(true, now, &mut passed, &mut room)).collect();
        for (class, passed) in self.classes.iter_mut().zip(&passed) {
            class.set_short(passed.all, now);
        }
        served
    }

    /// As [`Queue::serve`], at another pool's workers: what is found there says nothing of what holds this one.
    pub(super) fn serve_elsewhere<R>(
        &mut self,
        now: Instant,
        mut room: impl FnMut(&Place) -> Room<R>,
    ) -> Vec<Served<T, R>> {
        let mut passed = [Passed::default(), Passed::default()];
        let served = iter::from_fn(|| self.serve_one(false, now, &mut passed, &mut room)).collect();
        self.classes.iter_mut().for_each(|class| class.measure(now));
        served
    }

    /// The place has just been taken, and such was the room for it.
    pub(super) fn found<R>(&mut self, place: &Place, room: Room<R>, now: Instant) {
        let class = self.class_mut(place.priority);
        match room {
            Room::Found(_) => {}
            Room::NotForClass => class.set_short(true, now),
            Room::NotForIntegration => class.hold(&place.integration),
            Room::NotForTenant { again: Some(until) } => class.park(&place.integration, &place.tenant, until),
            Room::NotForTenant { again: None } => self.passed_over = true,
        }
    }

    /// The workers have so many slots from now on.
    pub(super) fn set_slots(&mut self, slots: u64, now: Instant) {
        self.classes.iter_mut().for_each(|class| class.set_slots(slots, now));
    }

    /// Whether there may be room for one who has just come, although others wait before it.
    pub(super) fn has_passed_over(&self) -> bool {
        self.passed_over
    }

    fn serve_one<R>(
        &mut self,
        at_home: bool,
        now: Instant,
        passed: &mut [Passed; 2],
        room: &mut impl FnMut(&Place) -> Room<R>,
    ) -> Option<Served<T, R>> {
        for priority in self.order(passed) {
            let passed = &mut passed[index(priority)];
            while let Some(candidate) = self.class(priority).next(passed) {
                match room(self.class(priority).head(&candidate)?) {
                    Room::Found(found) => {
                        let place = self.class(priority).head(&candidate)?.clone();
                        let call = self.start(&place, now);
                        if at_home {
                            self.class_mut(priority).serves(&place);
                        }
                        // Measured when all are served.
                        let waiter = self.class_mut(priority).remove(&place, now)?.value;
                        return Some(Served { place, waiter, found, call });
                    }
                    Room::NotForClass => passed.all = true,
                    Room::NotForIntegration => {
                        if at_home {
                            self.class_mut(priority).hold(&candidate.integration);
                        }
                        passed.line(candidate.integration);
                    }
                    Room::NotForTenant { again: None } => {
                        passed.tenant(candidate);
                        self.passed_over = true;
                    }
                    Room::NotForTenant { again: Some(until) } => {
                        self.class_mut(priority).park(&candidate.integration, &candidate.tenant, until);
                    }
                }
            }
        }
        None
    }

    /// Which class is asked first.
    fn order(&self, passed: &[Passed; 2]) -> [Priority; 2] {
        let batch = self.class(Priority::Batch);
        let is_batch_first = self.turns.owes()
            && batch
                .next(&passed[index(Priority::Batch)])
                .is_some_and(|next| self.turns.is_batch_first(self.charge_of(&next.integration)));
        if is_batch_first { [Priority::Batch, Priority::Interactive] } else { Priority::ALL }
    }

    /// Takes out all who wait for an integration for which `hopeless` gives a reason, and who `agree`.
    pub(super) fn give_up<R: Clone>(
        &mut self,
        hopeless: impl Fn(&IntegrationName) -> Option<R>,
        agree: impl Fn(&T) -> bool,
        now: Instant,
    ) -> Vec<(T, R)> {
        let mut places = Vec::new();
        for class in &self.classes {
            for (integration, waiters) in class.lines() {
                if let Some(reason) = hopeless(integration) {
                    let agreed = waiters.filter(|waiter| agree(&waiter.value));
                    places.extend(agreed.map(|waiter| (waiter.place.clone(), reason.clone())));
                }
            }
        }
        places.into_iter().filter_map(|(place, reason)| Some((self.remove(&place, now)?, reason))).collect()
    }

    /// Takes out all whose place `leaves`.
    pub(super) fn take_out(&mut self, leaves: impl Fn(&Place) -> bool, now: Instant) -> Vec<(Place, T)> {
        let waiters = self.classes.iter().flat_map(Class::lines).flat_map(|(_, waiters)| waiters);
        let leaving = waiters.map(|waiter| &waiter.place).filter(|place| leaves(place));
        let places: Vec<_> = leaving.cloned().collect();
        places.into_iter().filter_map(|place| self.remove(&place, now).map(|waiter| (place, waiter))).collect()
    }

    /// How long a run of the integration takes, by the configured quantile; none while too little is known.
    pub(super) fn needs(&mut self, integration: &IntegrationName, now: Instant) -> Option<Duration> {
        self.paces.get_mut(integration)?.needs(self.config.run_quantile, now)
    }

    /// Whether nobody waits, and no call is out.
    pub(super) fn is_idle(&self) -> bool {
        self.is_empty() && self.calls.is_empty()
    }

    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.classes.iter().all(|class| class.total().tasks == 0)
    }

    /// Each class in numbers.
    pub(super) fn numbers(&self, now: Instant) -> [ClassNumbers; 2] {
        Priority::ALL.map(|priority| {
            let class = self.class(priority);
            ClassNumbers {
                priority,
                waiting: class.total().tasks,
                bytes: class.total().bytes,
                oldest: class.oldest().map(|since| now.saturating_duration_since(since)),
                per_second: class.rate(now),
            }
        })
    }

    /// The tenants of a class that have the most waiting, up to a number.
    pub(super) fn top_tenants(&self, priority: Priority, at_most: usize) -> Vec<TenantNumbers> {
        self.class(priority).top(at_most)
    }

    fn check(&self, place: &Place, now: Instant) -> Result<(), Full> {
        let class = self.class(place.priority);
        let (all, own) = (class.total(), class.total_of(&place.tenant));
        let estimate = class.estimate(place, own.tasks, now);
        let full = |bound, excess: f64| {
            let retry_after = retry_after(excess, class.rate_for(place, now));
            Full { bound, retry_after, message: self.config.describe(bound, place.priority) }
        };
        self.config.check_room(all, own, place.bytes).map_err(|bound| {
            let tasks = match bound {
                Bound::TenantTasks | Bound::TenantBytes => class.ahead(place, own.tasks),
                _ => all.tasks,
            };
            // Once a tenth of them is gone: who comes at the first free place finds all the others there.
            full(bound, (tasks as f64 / 10.0).max(1.0))
        })?;
        let too_long = |bound, estimate: Duration, excess: Duration, most: Duration| Full {
            bound,
            retry_after: retry_after(excess.as_secs_f64(), Some(1.0)),
            message: self.config.describe_wait(bound, place.priority, estimate, most),
        };
        if let Some(estimate) = estimate.filter(|estimate| *estimate > self.config.wait) {
            return Err(too_long(Bound::Wait, estimate, estimate - self.config.wait, self.config.wait));
        }
        let remaining = place.deadline.saturating_duration_since(now);
        let run = self.paces.get(&place.integration).map(Pace::mean).unwrap_or_default();
        let needed = |estimate: Duration| {
            let wait = Duration::try_from_secs_f64(estimate.as_secs_f64() * WAIT_MARGIN).unwrap_or(Duration::MAX);
            wait.saturating_add(run)
        };
        let is_hopeless = |estimate: &Duration| needed(*estimate) > remaining;
        if estimate.as_ref().is_some_and(is_hopeless) {
            // Not all of its tenant's own come first: those with a later deadline do not, which only now is worth a count.
            let own_ahead = class.stands(place).map_or(0, |(own_ahead, _)| own_ahead);
            if let Some(estimate) = class.estimate(place, own_ahead, now).filter(is_hopeless) {
                return Err(too_long(Bound::WaitOverDeadline, estimate, needed(estimate) - remaining, remaining));
            }
        }
        Ok(())
    }

    fn charge_of(&self, integration: &IntegrationName) -> Usage {
        self.paces.get(integration).map_or(usage(1, Duration::from_secs(1)), Pace::charge)
    }

    fn class(&self, priority: Priority) -> &Class<T> {
        &self.classes[index(priority)]
    }

    fn class_mut(&mut self, priority: Priority) -> &mut Class<T> {
        &mut self.classes[index(priority)]
    }
}

fn index(priority: Priority) -> usize {
    match priority {
        Priority::Interactive => 0,
        Priority::Batch => 1,
    }
}

#[cfg(test)]
mod tests;
