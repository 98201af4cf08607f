//! The router's metrics: names and help texts in one place.
//!
//! What can differ between pools has the label `pool`: of a call, the worker's; of a task that waits, the one that it is to
//! go to. Pools come from the settings, so their metrics are made when they are first seen; their number is bounded there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use parking_lot::{Mutex, RwLock};

use super::channels::{Channels, Closed};
use super::dispatch::Dispatcher;
use super::outlier;
use super::pools::{Condition, Lack, PoolNumbers};
use super::queue::Bound;
use crate::task::{PoolName, Priority};
use crate::telemetry::Telemetry;
use crate::wire::{Reason, TaskError};

/// How a call to a worker can end: the label `result`.
const ATTEMPT_RESULTS: [&str; 6] = ["answered", "refused", "unsent", "unknown", "rejected", "given_up"];

/// Tasks whose deadline passed while they waited: a label `reason` beside the queue's bounds.
pub(super) const DEADLINE: &str = "deadline";

/// Tasks that were dropped because too little time was left: another.
pub(super) const TOO_LATE: &str = "too_late";

pub(super) struct Metrics {
    telemetry: Telemetry,
    errors: HashMap<Reason, Counter>,
    retries_delayed: Counter,
    pools: RwLock<BTreeMap<PoolName, Arc<OfPool>>>,
}

struct OfPool {
    attempts: HashMap<&'static str, Counter>,
    outcomes: [Counter; 2],
    queued: [Histogram; 2],
    dropped: HashMap<(Priority, &'static str), Counter>,
    overflowed: [Counter; Lack::ALL.len()],
}

impl Metrics {
    pub(super) fn new(telemetry: &Telemetry) -> Self {
        let error = |reason: &Reason| (*reason, counter!("weir_router_errors_total", "reason" => reason.as_str()));
        let (errors, retries_delayed) = telemetry.register(|| {
            describe();
            (Reason::ALL.iter().map(error).collect(), counter!("weir_router_retries_delayed_total"))
        });
        Metrics { telemetry: telemetry.clone(), errors, retries_delayed, pools: RwLock::default() }
    }

    /// Makes a pool's metrics, so that they begin at 0 and not with the first task.
    pub(super) fn open(&self, pool: &PoolName) {
        self.of(pool);
    }

    fn of(&self, pool: &PoolName) -> Arc<OfPool> {
        if let Some(known) = self.pools.read().get(pool) {
            return known.clone();
        }
        let made = || Arc::new(self.telemetry.register(|| OfPool::new(pool)));
        self.pools.write().entry(pool.clone()).or_insert_with(made).clone()
    }

    /// Reads the dispatcher's and the channels' numbers at each scrape.
    pub(super) fn follow(telemetry: &Telemetry, dispatcher: Dispatcher, channels: Arc<Channels>) {
        let shown = Mutex::new(BTreeSet::new());
        telemetry.before_scrape(move || {
            let numbers = dispatcher.numbers();
            let names: BTreeSet<_> = numbers.iter().map(|pool| pool.name.clone()).collect();
            let gone = std::mem::replace(&mut *shown.lock(), names.clone());
            gone.difference(&names).for_each(clear);
            numbers.iter().for_each(show);
            let channels = channels.numbers();
            gauge!("weir_router_channels").set(channels.open as f64);
            for (reason, total) in Closed::ALL.into_iter().zip(channels.closed) {
                counter!("weir_router_channels_closed_total", "reason" => reason.as_str()).absolute(total);
            }
            counter!("weir_router_connect_failures_total").absolute(channels.connect_failures);
        });
    }

    /// A call to a worker of a pool has ended.
    pub(super) fn attempt(&self, pool: &PoolName, result: &'static str) {
        if let Some(counter) = self.of(pool).attempts.get(result) {
            counter.increment(1);
        }
    }

    /// A call goes to another pool than the task's own.
    pub(super) fn overflowed(&self, from: &PoolName, lack: Lack) {
        self.of(from).overflowed[usize::from(lack == Lack::NoWorkers)].increment(1);
    }

    pub(super) fn error(&self, error: &TaskError) {
        if let Some(counter) = self.errors.get(&error.reason) {
            counter.increment(1);
        }
    }

    /// A task that waited for a pool, or would have had to, was dropped.
    pub(super) fn dropped(&self, pool: &PoolName, priority: Priority, reason: &'static str) {
        if let Some(counter) = self.of(pool).dropped.get(&(priority, reason)) {
            counter.increment(1);
        }
    }

    /// A further attempt had to wait for the budget.
    pub(super) fn retry_delayed(&self) {
        self.retries_delayed.increment(1);
    }

    /// A task that ran in a pool has an outcome.
    pub(super) fn outcome(&self, pool: &PoolName, priority: Priority, queued: Duration) {
        let (of_pool, class) = (self.of(pool), usize::from(priority == Priority::Batch));
        of_pool.outcomes[class].increment(1);
        of_pool.queued[class].record(queued.as_secs_f64());
    }
}

impl OfPool {
    fn new(pool: &PoolName) -> Self {
        let pool = || pool.to_string();
        let attempt = |result| (result, counter!("weir_router_attempts_total", "pool" => pool(), "result" => result));
        let class = |priority: Priority| priority.as_str();
        let reasons = || Bound::ALL.map(Bound::as_str).into_iter().chain([DEADLINE, TOO_LATE]);
        let dropped = |it: Priority, reason: &'static str| counter!("weir_router_queue_dropped_total", "pool" => pool(), "priority" => class(it), "reason" => reason);
        let all_dropped = Priority::ALL.into_iter().flat_map(|it| reasons().map(move |reason| (it, reason)));
        let outcomes = |it| counter!("weir_router_outcomes_total", "pool" => pool(), "priority" => class(it));
        let queued = |it| histogram!("weir_router_queued_seconds", "pool" => pool(), "priority" => class(it));
        let overflowed =
            |lack: Lack| counter!("weir_router_overflowed_total", "pool" => pool(), "reason" => lack.as_str());
        OfPool {
            attempts: ATTEMPT_RESULTS.into_iter().map(attempt).collect(),
            outcomes: Priority::ALL.map(outcomes),
            queued: Priority::ALL.map(queued),
            dropped: all_dropped.map(|(it, reason)| ((it, reason), dropped(it, reason))).collect(),
            overflowed: Lack::ALL.map(overflowed),
        }
    }
}

fn show(numbers: &PoolNumbers) {
    let PoolNumbers { name, share, condition, census, stale, view_age, classes, ejections, .. } = numbers;
    let pool = || name.to_string();
    for class in classes {
        let (priority, oldest) = (class.priority.as_str(), class.oldest.unwrap_or_default());
        gauge!("weir_router_queue_tasks", "pool" => pool(), "priority" => priority).set(class.waiting as f64);
        gauge!("weir_router_queue_bytes", "pool" => pool(), "priority" => priority).set(class.bytes as f64);
        gauge!("weir_router_queue_oldest_seconds", "pool" => pool(), "priority" => priority).set(oldest.as_secs_f64());
    }
    for (state, workers) in [
        ("known", census.workers),
        ("full", census.full),
        ("draining", census.draining),
        ("suspected", census.suspected),
        ("ejected", census.ejected),
        ("with_room", census.with_room),
    ] {
        gauge!("weir_router_workers", "pool" => pool(), "state" => state).set(workers as f64);
    }
    gauge!("weir_router_slots", "pool" => pool()).set(census.slots as f64);
    gauge!("weir_router_slots_held", "pool" => pool()).set(census.in_flight as f64);
    let (is_empty, has_room) = (census.workers == 0, census.with_room > 0);
    let flag = |is: bool| f64::from(u8::from(is));
    gauge!("weir_router_view_stale", "pool" => pool()).set(flag(*stale));
    gauge!("weir_router_view_empty", "pool" => pool()).set(flag(is_empty));
    gauge!("weir_router_view_full", "pool" => pool()).set(flag(!is_empty && !has_room));
    if let Some(age) = view_age {
        gauge!("weir_router_view_age_seconds", "pool" => pool()).set(age.as_secs_f64());
    }
    gauge!("weir_router_pool_share_ratio", "pool" => pool()).set(*share);
    for state in Condition::ALL {
        gauge!("weir_router_pool_state", "pool" => pool(), "state" => state.as_str()).set(flag(state == *condition));
    }
    for (reason, total) in outlier::Reason::ALL.into_iter().zip(*ejections) {
        counter!("weir_router_ejections_total", "pool" => pool(), "reason" => reason.as_str()).absolute(total);
    }
}

/// A pool that no setting names any more: its gauges must not stand still at what they were.
fn clear(name: &PoolName) {
    let pool = || name.to_string();
    for priority in Priority::ALL.map(Priority::as_str) {
        gauge!("weir_router_queue_tasks", "pool" => pool(), "priority" => priority).set(0.0);
        gauge!("weir_router_queue_bytes", "pool" => pool(), "priority" => priority).set(0.0);
        gauge!("weir_router_queue_oldest_seconds", "pool" => pool(), "priority" => priority).set(0.0);
    }
    for state in ["known", "full", "draining", "suspected", "ejected", "with_room"] {
        gauge!("weir_router_workers", "pool" => pool(), "state" => state).set(0.0);
    }
    for state in Condition::ALL {
        gauge!("weir_router_pool_state", "pool" => pool(), "state" => state.as_str()).set(0.0);
    }
    for name in [
        "weir_router_slots",
        "weir_router_slots_held",
        "weir_router_view_stale",
        "weir_router_view_empty",
        "weir_router_view_full",
        "weir_router_view_age_seconds",
        "weir_router_pool_share_ratio",
    ] {
        gauge!(name, "pool" => pool()).set(0.0);
    }
}

fn describe() {
    describe_counter!("weir_router_attempts_total", "Calls to workers, by how they ended.");
    describe_counter!("weir_router_errors_total", "Tasks answered with an error instead of an outcome, by reason.");
    describe_counter!("weir_router_outcomes_total", "Tasks answered with an outcome, by priority.");
    describe_histogram!("weir_router_queued_seconds", "How long a task with an outcome waited for a worker.");
    describe_counter!("weir_router_overflowed_total", "Calls to another pool than the task's own, which is the label.");
    describe_gauge!("weir_router_queue_tasks", "Tasks that wait for a worker, by priority.");
    describe_gauge!("weir_router_queue_bytes", "Bytes of the inputs of tasks that wait, by priority.");
    describe_gauge!("weir_router_queue_oldest_seconds", "For how long the first of them has waited; 0 when none does.");
    describe_counter!("weir_router_queue_dropped_total", "Tasks that were not let in, or were dropped, by reason.");
    describe_counter!("weir_router_retries_delayed_total", "Further attempts that had to wait for their budget.");
    describe_gauge!("weir_router_workers", "Workers in the router's view: all that are known, and those in a state.");
    describe_gauge!("weir_router_slots", "Places of all known workers.");
    describe_gauge!("weir_router_slots_held", "Places estimated to be taken.");
    describe_gauge!("weir_router_view_stale", "1 while the registry cannot be reached, otherwise 0.");
    describe_gauge!("weir_router_view_empty", "1 while no worker is known, otherwise 0.");
    describe_gauge!(
        "weir_router_view_full",
        "1 while workers are known and none is expected to have room, otherwise 0."
    );
    describe_gauge!("weir_router_view_age_seconds", "Time since the registry was last heard.");
    describe_gauge!("weir_router_pool_share_ratio", "The part of the tasks that a pool gets, by its weight.");
    describe_gauge!("weir_router_pool_state", "1 for the state that a pool is in, otherwise 0.");
    describe_counter!("weir_router_ejections_total", "Workers ejected because they fail and others do not, by reason.");
    describe_gauge!("weir_router_channels", "Channels to workers.");
    describe_counter!("weir_router_channels_closed_total", "Channels that were closed, by reason.");
    describe_counter!("weir_router_connect_failures_total", "Connections to workers that could not be made.");
}
