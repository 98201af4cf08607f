//! A worker's admission: at most N slots held at a time, refused early and never queued.
//!
//! The gate is its own limiter rather than a semaphore: several limits (N, the share reserved for interactive tasks, the
//! caps of integrations and tenants, what a task weighs) change as one while tasks run, and a semaphore can only forget
//! permits that nobody holds. Here shrinking ends nothing; while more is held than a limit allows, it is simply full.
//! All numbers sit in one pure struct behind one short mutex, so they always agree with each other.
//!
//! A [`Permit`] is a value: dropping it, on any path, is the release. The gate has never heard of Redis, gRPC or
//! settings; others follow its [`Standing`] on a watch channel.

mod bulkheads;
mod metrics;
mod slots;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::limits::Limits;
use crate::task::{IntegrationName, Priority, Task, Tenant};
use crate::telemetry::Telemetry;
use metrics::Metrics;
use slots::{Place, Slots};

/// Whether a gate takes tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// There is room.
    Open,
    /// As many slots are held as the target allows, or more after it was lowered.
    Full,
    /// There may be room, but the worker must not take more.
    Overloaded,
    /// The worker is ending and takes nothing more.
    Draining,
}

/// Who would be admitted now. Each part is told apart from the others: an integration may be full while the gate is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Whether the gate takes anything.
    pub state: State,
    /// Whether it takes batch tasks: it is open, and not all that is left is reserved for interactive ones.
    pub takes_batch: bool,
    /// The integrations that are kept out by a limit of their own, or by a weight that is more than what is left; sorted.
    pub full: Arc<[IntegrationName]>,
}

impl Standing {
    /// Whether this integration is kept out while others may be taken.
    pub fn keeps_out(&self, integration: &str) -> bool {
        self.state == State::Open && self.full.binary_search_by(|full| full.as_str().cmp(integration)).is_ok()
    }
}

/// A gate's numbers at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// What follows from the others.
    pub state: State,
    /// N: how many slots may be held.
    pub target: u32,
    /// The slots of N that batch tasks may not hold.
    pub reserve: u32,
    /// Tasks that hold a permit.
    pub in_flight: u32,
    /// The slots that interactive tasks hold.
    pub held_by_interactive: u32,
    /// The slots that batch tasks hold.
    pub held_by_batch: u32,
}

impl Load {
    /// The slots that are held.
    pub fn held(&self) -> u32 {
        self.held_by_interactive + self.held_by_batch
    }

    /// The slots that only interactive tasks may take now. They fill the reserve first: what they hold is not reserved a
    /// second time.
    pub fn reserved(&self) -> u32 {
        self.reserve.saturating_sub(self.held_by_interactive)
    }

    /// The slots that tasks of a priority may still take, whatever the state.
    pub fn room_for(&self, priority: Priority) -> u32 {
        let reserved = match priority {
            Priority::Interactive => 0,
            Priority::Batch => self.reserved(),
        };
        self.target.saturating_sub(self.held()).saturating_sub(reserved)
    }
}

/// What one integration holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntegrationLoad {
    /// Which.
    pub integration: IntegrationName,
    /// Its tasks that hold a permit.
    pub in_flight: u32,
    /// The slots that they hold.
    pub held: u32,
    /// The slots that they may hold: the smallest of N and the two below.
    pub most: u32,
    /// Its cap of N, in slots, where it has one.
    pub cap: Option<u32>,
    /// The limit that [`Gate::narrow`] set.
    pub limit: Option<u32>,
    /// The slots that another task of it would hold.
    pub weight: u32,
    /// When that kept a task of it out last.
    pub refused_at: Option<Instant>,
}

/// What a tenant that is at its cap holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantLoad {
    /// Who.
    pub tenant: Tenant,
    /// The slots that its tasks hold.
    pub held: u32,
    /// The slots that they may hold.
    pub most: u32,
}

/// What a task's integration and tenant hold, in tasks of its weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// The slots that such a task would hold.
    pub weight: u32,
    /// Its integration's.
    pub integration: Share,
    /// Its tenant's.
    pub tenant: Share,
}

/// What is held, and the most that may be, where there is a limit below N.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the struct says what they are")]
pub struct Share {
    pub held: u32,
    pub most: Option<u32>,
}

/// What a task would be admitted as.
#[derive(Debug, Clone, Copy)]
pub struct Want<'a> {
    /// The code that it runs.
    pub integration: &'a IntegrationName,
    /// On whose behalf.
    pub tenant: &'a Tenant,
    /// Who waits.
    pub priority: Priority,
}

impl<'a> From<&'a Task> for Want<'a> {
    fn from(task: &'a Task) -> Self {
        Want { integration: &task.integration, tenant: &task.tenant, priority: task.priority }
    }
}

/// Why a task was not admitted, with the numbers that say so: slots held, slots that may be, and, where it is more than
/// one, the slots that the task would have held.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// N is reached.
    #[error("{}", full(*.held, *.target, *.weight))]
    #[expect(missing_docs, reason = "the enum says what they are")]
    Full { held: u32, target: u32, weight: u32 },
    /// What is left is for interactive tasks.
    #[error(
        "batch holds {held} and may hold {} of {target} slots, {reserve} are reserved for interactive{}",
        .target - .reserve, needing(.weight)
    )]
    #[expect(missing_docs, reason = "the enum says what they are")]
    Reserve { held: u32, target: u32, reserve: u32, weight: u32 },
    /// The integration's own limit is reached.
    #[error("{integration} holds {held} of its {most} slots{}", needing(.weight))]
    #[expect(missing_docs, reason = "the enum says what they are")]
    IntegrationFull { integration: IntegrationName, held: u32, most: u32, weight: u32 },
    /// The tenant's cap is reached.
    #[error("tenant {tenant} holds {held} of its {most} slots{}", needing(.weight))]
    #[expect(missing_docs, reason = "the enum says what they are")]
    TenantFull { tenant: Tenant, held: u32, most: u32, weight: u32 },
    /// The worker must not take more.
    #[error("the worker is overloaded")]
    Overloaded,
    /// The worker is ending.
    #[error("the worker is draining")]
    Draining,
}

fn full(held: u32, target: u32, weight: u32) -> String {
    match (held, target) {
        (0, 0) => "the worker takes no tasks now (max_parallelism is 0)".into(),
        (_, 0) => "the worker takes no tasks now (max_parallelism is 0), and finishes those it has".into(),
        _ => format!("{held} of {target} slots are held{}", needing(&weight)),
    }
}

fn needing(weight: &u32) -> String {
    if *weight == 1 { String::new() } else { format!(", and the task needs {weight}") }
}

/// Admits tasks. Clones are the same gate.
#[derive(Clone)]
pub struct Gate {
    inner: Arc<Inner>,
}

struct Inner {
    slots: Mutex<Slots>,
    standing: watch::Sender<Standing>,
    metrics: Metrics,
}

/// Follows who would be admitted.
///
/// It hands out values, never a borrow of the channel's: whoever held one and asked the gate for anything else would stand
/// in the way of a change that has the gate's lock and waits for the borrow to end, and wait for that change itself.
pub struct Follower {
    standing: watch::Receiver<Standing>,
}

/// A task's slots in the gate; dropping it gives them back.
pub struct Permit {
    gate: Arc<Inner>,
    place: Place,
    admitted_at: Instant,
}

impl Gate {
    /// A gate with these limits, for these integrations. One that is not among them has no limit or weight of its own.
    pub fn new(limits: Limits, integrations: impl IntoIterator<Item = IntegrationName>, telemetry: &Telemetry) -> Self {
        let slots = Slots::new(limits, integrations, Instant::now());
        let inner = Inner {
            standing: watch::Sender::new(slots.told().clone()),
            metrics: Metrics::new(telemetry),
            slots: Mutex::new(slots),
        };
        let gate = Gate { inner: Arc::new(inner) };
        let read = gate.clone();
        telemetry.before_scrape(move || read.publish());
        gate
    }

    /// Takes the slots that the task weighs, or says why it may not. Never waits. The weight holds until the permit is
    /// dropped, whatever the limits become.
    pub fn admit(&self, want: &Want<'_>) -> Result<Permit, Refused> {
        let now = Instant::now();
        match self.inner.change(|slots| slots.admit(want, now)) {
            Ok(place) => {
                self.inner.metrics.admit();
                Ok(Permit { gate: self.inner.clone(), place, admitted_at: now })
            }
            Err(refused) => {
                self.inner.metrics.refuse(&refused);
                Err(refused)
            }
        }
    }

    /// Changes all limits from now on, as one. Ends nothing: a lower limit is reached as tasks end.
    pub fn set_limits(&self, limits: Limits) {
        // Freed here, and not under the lock.
        let _before = self.inner.change(|slots| slots.set_limits(limits));
    }

    /// Limits the slots that an integration may hold, beside its cap: the smaller of both counts. None lifts it.
    pub fn narrow(&self, integration: &IntegrationName, most: Option<u32>) {
        self.inner.change(|slots| slots.narrow(integration, most));
    }

    /// Takes nothing while that is so.
    pub fn set_overloaded(&self, overloaded: bool) {
        self.inner.change(|slots| slots.set_overloaded(overloaded));
    }

    /// Takes nothing more, for good.
    pub fn drain(&self) {
        self.inner.change(Slots::drain);
    }

    /// The numbers now.
    pub fn load(&self) -> Load {
        self.inner.slots.lock().load()
    }

    /// What a task's integration and tenant hold now.
    pub fn shares(&self, want: &Want<'_>) -> Shares {
        self.inner.slots.lock().shares(want)
    }

    /// The numbers of each integration now, by name.
    pub fn by_integration(&self) -> Vec<IntegrationLoad> {
        self.inner.slots.lock().by_integration()
    }

    /// The tenants that are at their cap, those that hold the most first. Looks at each tenant that holds something.
    pub fn full_tenants(&self, at_most: usize) -> Vec<TenantLoad> {
        self.inner.slots.lock().full_tenants(at_most)
    }

    /// Who would be admitted now.
    pub fn stands(&self) -> Standing {
        self.inner.standing.borrow().clone()
    }

    /// Follows who would be admitted.
    pub fn standing(&self) -> Follower {
        Follower { standing: self.inner.standing.subscribe() }
    }

    fn publish(&self) {
        let (load, peak, task_seconds, integrations) = {
            let mut slots = self.inner.slots.lock();
            (slots.load(), slots.peak(), slots.task_seconds(Instant::now()), slots.by_integration())
        };
        metrics::publish(load, peak, task_seconds, &integrations);
    }
}

impl Follower {
    /// Who would be admitted now. What this says is no longer news to [`Follower::changed`].
    pub fn now(&mut self) -> Standing {
        self.standing.borrow_and_update().clone()
    }

    /// Waits until it is otherwise than [`Follower::now`] said last. For good, where the gate is gone.
    pub async fn changed(&mut self) {
        if self.standing.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// Waits until the gate is in this state. For good, where it is gone before.
    pub async fn until(&mut self, state: State) {
        while self.now().state != state {
            self.changed().await;
        }
    }
}

impl Inner {
    /// Applies a change and, still under the lock so that they are published in their order, tells the followers where
    /// they stand now.
    fn change<T>(&self, change: impl FnOnce(&mut Slots) -> T) -> T {
        let mut slots = self.slots.lock();
        let result = change(&mut slots);
        if let Some(standing) = slots.news() {
            self.standing.send_replace(standing);
        }
        result
    }
}

impl Permit {
    /// The mean number of tasks in flight since this one was admitted, weighted by time: the parallelism that the task
    /// has lived through. The number at admission would misjudge long tasks.
    ///
    /// It counts tasks whatever they weigh. A weight says what a task costs the worker, so that fewer of its kind run at
    /// once; how a task fares beside so many others is what the number is for.
    pub fn mean_in_flight(&self) -> f64 {
        let now = Instant::now();
        let mut slots = self.gate.slots.lock();
        let lived = now.saturating_duration_since(self.admitted_at).as_secs_f64();
        if lived == 0.0 {
            return f64::from(slots.load().in_flight);
        }
        (slots.task_seconds(now) - self.place.task_seconds_before) / lived
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let now = Instant::now();
        self.gate.change(|slots| slots.release(&self.place, now));
    }
}
