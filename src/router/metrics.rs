//! The router's metrics: names and help texts in one place.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use super::channels::{Channels, Closed};
use super::dispatch::Dispatcher;
use super::outlier;
use super::queue::Bound;
use crate::task::Priority;
use crate::telemetry::Telemetry;
use crate::wire::{Reason, TaskError};

/// How a call to a worker can end: the label `result`.
const ATTEMPT_RESULTS: [&str; 6] = ["answered", "refused", "unsent", "unknown", "rejected", "given_up"];

/// Tasks whose deadline passed while they waited: a label `reason` beside the queue's bounds.
pub(super) const DEADLINE: &str = "deadline";

/// Tasks that were dropped because too little time was left: another.
pub(super) const TOO_LATE: &str = "too_late";

pub(super) struct Metrics {
    attempts: HashMap<&'static str, Counter>,
    errors: HashMap<Reason, Counter>,
    outcomes: [Counter; 2],
    queued: [Histogram; 2],
    dropped: HashMap<(Priority, &'static str), Counter>,
    retries_delayed: Counter,
}

impl Metrics {
    pub(super) fn new(telemetry: &Telemetry) -> Self {
        telemetry.register(|| {
            describe();
            let attempt = |result| (result, counter!("weir_router_attempts_total", "result" => result));
            let error = |reason: &Reason| (*reason, counter!("weir_router_errors_total", "reason" => reason.as_str()));
            let class = |priority: Priority| priority.as_str();
            let reasons = || Bound::ALL.map(Bound::as_str).into_iter().chain([DEADLINE, TOO_LATE]);
            let dropped = |it: Priority, reason: &'static str| {
                counter!("weir_router_queue_dropped_total", "priority" => class(it), "reason" => reason)
            };
            let all_dropped = Priority::ALL.into_iter().flat_map(|it| reasons().map(move |reason| (it, reason)));
            Metrics {
                dropped: all_dropped.map(|(it, reason)| ((it, reason), dropped(it, reason))).collect(),
                retries_delayed: counter!("weir_router_retries_delayed_total"),
                attempts: ATTEMPT_RESULTS.into_iter().map(attempt).collect(),
                errors: Reason::ALL.iter().map(error).collect(),
                outcomes: Priority::ALL.map(|it| counter!("weir_router_outcomes_total", "priority" => class(it))),
                queued: Priority::ALL.map(|it| histogram!("weir_router_queued_seconds", "priority" => class(it))),
            }
        })
    }

    /// Reads the dispatcher's and the channels' numbers at each scrape.
    pub(super) fn follow(telemetry: &Telemetry, dispatcher: Dispatcher, channels: Arc<Channels>) {
        telemetry.before_scrape(move || {
            let numbers = dispatcher.numbers();
            for class in numbers.classes {
                let (priority, oldest) = (class.priority.as_str(), class.oldest.unwrap_or_default());
                gauge!("weir_router_queue_tasks", "priority" => priority).set(class.waiting as f64);
                gauge!("weir_router_queue_bytes", "priority" => priority).set(class.bytes as f64);
                gauge!("weir_router_queue_oldest_seconds", "priority" => priority).set(oldest.as_secs_f64());
            }
            let census = numbers.census;
            gauge!("weir_router_workers", "state" => "known").set(census.workers as f64);
            gauge!("weir_router_workers", "state" => "full").set(census.full as f64);
            gauge!("weir_router_workers", "state" => "draining").set(census.draining as f64);
            gauge!("weir_router_workers", "state" => "suspected").set(census.suspected as f64);
            gauge!("weir_router_workers", "state" => "ejected").set(census.ejected as f64);
            gauge!("weir_router_workers", "state" => "with_room").set(census.with_room as f64);
            gauge!("weir_router_slots").set(census.slots as f64);
            gauge!("weir_router_slots_held").set(census.in_flight as f64);
            let (is_empty, has_room) = (census.workers == 0, census.with_room > 0);
            gauge!("weir_router_view_stale").set(f64::from(u8::from(numbers.stale)));
            gauge!("weir_router_view_empty").set(f64::from(u8::from(is_empty)));
            gauge!("weir_router_view_full").set(f64::from(u8::from(!is_empty && !has_room)));
            if let Some(age) = numbers.view_age {
                gauge!("weir_router_view_age_seconds").set(age.as_secs_f64());
            }
            for (reason, total) in outlier::Reason::ALL.into_iter().zip(numbers.ejections) {
                counter!("weir_router_ejections_total", "reason" => reason.as_str()).absolute(total);
            }
            let channels = channels.numbers();
            gauge!("weir_router_channels").set(channels.open as f64);
            for (reason, total) in Closed::ALL.into_iter().zip(channels.closed) {
                counter!("weir_router_channels_closed_total", "reason" => reason.as_str()).absolute(total);
            }
            counter!("weir_router_connect_failures_total").absolute(channels.connect_failures);
        });
    }

    pub(super) fn attempt(&self, result: &'static str) {
        if let Some(counter) = self.attempts.get(result) {
            counter.increment(1);
        }
    }

    pub(super) fn error(&self, error: &TaskError) {
        if let Some(counter) = self.errors.get(&error.reason) {
            counter.increment(1);
        }
    }

    /// A task that waited, or would have had to, was dropped.
    pub(super) fn dropped(&self, priority: Priority, reason: &'static str) {
        if let Some(counter) = self.dropped.get(&(priority, reason)) {
            counter.increment(1);
        }
    }

    /// A further attempt had to wait for the budget.
    pub(super) fn retry_delayed(&self) {
        self.retries_delayed.increment(1);
    }

    pub(super) fn outcome(&self, priority: Priority, queued: Duration) {
        let class = usize::from(priority == Priority::Batch);
        self.outcomes[class].increment(1);
        self.queued[class].record(queued.as_secs_f64());
    }
}

fn describe() {
    describe_counter!("weir_router_attempts_total", "Calls to workers, by how they ended.");
    describe_counter!("weir_router_errors_total", "Tasks answered with an error instead of an outcome, by reason.");
    describe_counter!("weir_router_outcomes_total", "Tasks answered with an outcome, by priority.");
    describe_histogram!("weir_router_queued_seconds", "How long a task with an outcome waited for a worker.");
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
    describe_counter!("weir_router_ejections_total", "Workers ejected because they fail and others do not, by reason.");
    describe_gauge!("weir_router_channels", "Channels to workers.");
    describe_counter!("weir_router_channels_closed_total", "Channels that were closed, by reason.");
    describe_counter!("weir_router_connect_failures_total", "Connections to workers that could not be made.");
}
