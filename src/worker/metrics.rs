//! What a worker counts of its tasks: names and help texts in one place.

use std::collections::BTreeMap;
use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use tokio::time::Instant;

use super::outcomes;
use crate::task::{FailureCode, IntegrationName, Outcome, PoolName};
use crate::telemetry::{Counted, Telemetry};

/// The label `parallelism`: the time-weighted number of tasks in flight over a task's life, in six levels. The bounds
/// sit between the parallelisms that one compares (1, 10, 30, 100, 300, more), so that a worker that is held at one of
/// them stays on one level.
const LEVELS: [(f64, &str); 6] =
    [(1.5, "1"), (15.0, "2-15"), (50.0, "16-50"), (150.0, "51-150"), (500.0, "151-500"), (f64::INFINITY, "501+")];

/// The metrics of tasks, per integration that the worker serves.
pub(super) struct Metrics {
    by_integration: BTreeMap<IntegrationName, OfIntegration>,
    overdue: Gauge,
}

struct OfIntegration {
    durations: [Histogram; LEVELS.len()],
    failed_seconds: Gauge,
    ok: Counter,
    failures: [Counter; FailureCode::ALL.len()],
}

impl Metrics {
    pub(super) fn new<'a>(
        telemetry: &Telemetry,
        pool: &PoolName,
        integrations: impl Iterator<Item = &'a IntegrationName>,
    ) -> Self {
        telemetry.register(|| {
            describe_histogram!(
                "weir_task_duration_seconds",
                "How long integrations ran, by the time-weighted number of tasks that were in flight beside each."
            );
            describe_gauge!(
                "weir_task_failed_seconds",
                "How long integrations ran for tasks that did not end in ok, since the start and all together."
            );
            describe_counter!("weir_tasks_total", "Tasks that ended in an outcome, by integration and outcome.");
            describe_gauge!("weir_tasks_overdue", "Tasks answered for that have not stopped and keep their place.");
            let of = |name: &IntegrationName| (name.clone(), OfIntegration::new(pool, name));
            Metrics { by_integration: integrations.map(of).collect(), overdue: gauge!("weir_tasks_overdue") }
        })
    }

    /// Counts an outcome, and logs it.
    pub(super) fn ended(&self, integration: &IntegrationName, outcome: &Outcome, mean_in_flight: f64) {
        outcomes::log(outcome);
        let Some(metrics) = self.by_integration.get(integration) else { return };
        let ran_seconds = outcome.timings.ran.as_secs_f64();
        metrics.durations[level(mean_in_flight)].record(ran_seconds);
        match &outcome.result {
            Ok(_) => metrics.ok.increment(1),
            Err(failure) => {
                metrics.failed_seconds.increment(ran_seconds);
                metrics.failures[failure_index(failure.code)].increment(1);
            }
        }
    }

    /// Counts a run as overdue while the guard lives.
    pub(super) fn overdue(&self) -> Overdue {
        Overdue { _counted: Counted::new(&self.overdue), since: Instant::now() }
    }
}

impl OfIntegration {
    fn new(pool: &PoolName, integration: &IntegrationName) -> Self {
        let name = || integration.to_string();
        let duration = |(_, parallelism)| {
            let pool = pool.to_string();
            histogram!("weir_task_duration_seconds",
                "pool" => pool, "integration" => name(), "parallelism" => parallelism)
        };
        let ended = |outcome| counter!("weir_tasks_total", "integration" => name(), "outcome" => outcome);
        OfIntegration {
            durations: LEVELS.map(duration),
            // A gauge that only grows: a counter of the crate `metrics` has whole numbers.
            failed_seconds: gauge!("weir_task_failed_seconds", "integration" => name()),
            ok: ended("ok"),
            failures: FailureCode::ALL.map(|code| ended(code.as_str())),
        }
    }
}

/// A run that has been answered for and has not stopped.
pub(super) struct Overdue {
    _counted: Counted,
    since: Instant,
}

impl Overdue {
    pub(super) fn lasted(&self) -> Duration {
        self.since.elapsed()
    }
}

fn level(mean_in_flight: f64) -> usize {
    LEVELS.iter().position(|(most, _)| mean_in_flight <= *most).unwrap_or(LEVELS.len() - 1)
}

fn failure_index(code: FailureCode) -> usize {
    FailureCode::ALL.iter().position(|known| *known == code).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parallelisms_that_one_compares_are_on_levels_of_their_own() {
        let levels: Vec<_> = [1.0, 9.7, 29.5, 98.0, 299.0, 1000.0].map(level).into();
        assert_eq!(levels, [0, 1, 2, 3, 4, 5]);
        assert_eq!(level(f64::NAN), 5);
    }
}
