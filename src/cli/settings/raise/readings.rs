//! What a worker's metrics say at two moments, and what it did between them.

use std::collections::BTreeMap;

use crate::cli::scrape::Sample;
use crate::settings::raise::{Group, Tasks};

/// The metrics that are read: counters and gauges, and histograms by their sums and counts.
const PLAIN: [&str; 5] = [
    "weir_tasks_total",
    "weir_gate_task_seconds",
    "weir_gate_in_flight",
    "weir_gate_slots_held",
    "process_resident_memory_bytes",
];
const HISTOGRAMS: [&str; 2] = ["weir_task_duration_seconds", "weir_runtime_lag_seconds"];
const PARTS: [&str; 2] = ["_sum", "_count"];

/// The names of all series that are read.
pub(super) fn names() -> Vec<String> {
    let of_histogram = |name: &'static str| PARTS.into_iter().map(move |part| format!("{name}{part}"));
    PLAIN.into_iter().map(str::to_owned).chain(HISTOGRAMS.into_iter().flat_map(of_histogram)).collect()
}

/// Whether it is one of them.
pub(super) fn is_read(series: &str) -> bool {
    parts_of(series).is_some()
}

/// A series' metric, and which part of a histogram it is; none where it is not read.
fn parts_of(series: &str) -> Option<(&str, &str)> {
    let of_histogram = |part: &&'static str| Some((series.strip_suffix(*part)?, *part));
    let histogram = PARTS.iter().find_map(of_histogram).filter(|(name, _)| HISTOGRAMS.contains(name));
    histogram.or_else(|| PLAIN.contains(&series).then_some((series, "")))
}

/// Outcomes that say nothing about the integration: its caller went away, or its worker was stopped.
const CANCELLED: &str = "cancelled";

/// A worker's numbers at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Reading {
    /// On a clock that is the same for all readings of a worker.
    at_seconds: f64,
    tasks: BTreeMap<String, Tasks>,
    task_seconds: f64,
    in_flight: f64,
    held: f64,
    memory_bytes: Option<f64>,
    lag_seconds: f64,
    lag_count: f64,
}

impl Reading {
    pub(super) fn of(samples: &[Sample], at_seconds: f64) -> Self {
        let mut reading = Reading { at_seconds, ..Reading::default() };
        for Sample { name, labels, value } in samples {
            let value = *value;
            match parts_of(name).unwrap_or_default() {
                ("weir_task_duration_seconds", "_sum") => of_integration(&mut reading.tasks, labels).seconds += value,
                ("weir_task_duration_seconds", _) => of_integration(&mut reading.tasks, labels).timed += value as u64,
                ("weir_tasks_total", _) => {
                    let outcome = labels.get("outcome").map(String::as_str).unwrap_or_default();
                    let count = if outcome == CANCELLED { 0 } else { value as u64 };
                    let tasks = of_integration(&mut reading.tasks, labels);
                    tasks.ended += count;
                    tasks.failed += if outcome == "ok" { 0 } else { count };
                }
                ("weir_gate_task_seconds", _) => reading.task_seconds = value,
                ("weir_gate_in_flight", _) => reading.in_flight = value,
                ("weir_gate_slots_held", _) => reading.held += value,
                ("process_resident_memory_bytes", _) => reading.memory_bytes = Some(value),
                ("weir_runtime_lag_seconds", "_sum") => reading.lag_seconds = value,
                ("weir_runtime_lag_seconds", _) => reading.lag_count = value,
                _ => {}
            }
        }
        reading
    }

    /// What the worker did since; none when it was started anew meanwhile, or nothing was read anew.
    pub(super) fn since(&self, before: &Reading) -> Option<Done> {
        let seconds = self.at_seconds - before.at_seconds;
        let mut tasks = BTreeMap::new();
        for (integration, now) in &self.tasks {
            let then = before.tasks.get(integration).copied().unwrap_or_default();
            let done = Tasks {
                ended: now.ended.checked_sub(then.ended)?,
                failed: now.failed.checked_sub(then.failed)?,
                timed: now.timed.checked_sub(then.timed)?,
                seconds: now.seconds - then.seconds,
            };
            tasks.insert(integration.clone(), done);
        }
        let in_flight = (self.task_seconds - before.task_seconds) / seconds;
        if seconds <= 0.0 || in_flight < 0.0 {
            return None;
        }
        // A task holds one slot, or as many as it weighs.
        let (held, counted) = (self.held + before.held, self.in_flight + before.in_flight);
        let slots = if counted > 0.0 { in_flight * held / counted } else { in_flight };
        let lag = (self.lag_seconds - before.lag_seconds, self.lag_count - before.lag_count);
        Some(Done { tasks, slots, memory_bytes: self.memory_bytes, lag })
    }
}

fn of_integration<'a>(tasks: &'a mut BTreeMap<String, Tasks>, labels: &BTreeMap<String, String>) -> &'a mut Tasks {
    tasks.entry(labels.get("integration").cloned().unwrap_or_default()).or_default()
}

/// What a worker did between two readings.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Done {
    tasks: BTreeMap<String, Tasks>,
    slots: f64,
    memory_bytes: Option<f64>,
    /// Summed up, and how many times.
    lag: (f64, f64),
}

/// What they did together.
pub(super) fn group(workers: &[Done]) -> Group {
    let count = workers.len().max(1) as f64;
    let mut tasks: BTreeMap<String, Tasks> = BTreeMap::new();
    for (integration, done) in workers.iter().flat_map(|worker| &worker.tasks) {
        tasks.entry(integration.clone()).or_default().add(done);
    }
    let memory: Vec<_> = workers.iter().filter_map(|worker| worker.memory_bytes).collect();
    let lag = workers.iter().fold((0.0, 0.0), |sum, worker| (sum.0 + worker.lag.0, sum.1 + worker.lag.1));
    Group {
        workers: workers.len(),
        slots: workers.iter().fold(0.0, |sum, worker| sum + worker.slots) / count,
        tasks,
        memory_bytes: (!memory.is_empty()).then(|| memory.iter().sum::<f64>() / memory.len() as f64),
        lag_seconds: (lag.1 > 0.0).then(|| lag.0 / lag.1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::scrape::parse;

    const TEXT: &str = r#"# HELP weir_tasks_total Tasks that ended in an outcome.
# TYPE weir_tasks_total counter
weir_tasks_total{integration="bank",outcome="ok"} 90
weir_tasks_total{integration="bank",outcome="deadline"} 10
weir_tasks_total{integration="bank",outcome="cancelled"} 7
weir_task_duration_seconds_bucket{pool="p",integration="bank",parallelism="1",le="0.1"} 3
weir_task_duration_seconds_sum{pool="p",integration="bank",parallelism="1"} 20.5
weir_task_duration_seconds_sum{pool="p",integration="bank",parallelism="2-15"} 129.5
weir_task_duration_seconds_count{pool="p",integration="bank",parallelism="1"} 7
weir_task_duration_seconds_count{pool="p",integration="bank",parallelism="2-15"} 100
weir_gate_task_seconds 150
weir_gate_in_flight 10
weir_gate_slots_held{priority="batch"} 12
weir_gate_slots_held{priority="interactive"} 8
process_resident_memory_bytes 5e7
weir_runtime_lag_seconds_sum 0.5
weir_runtime_lag_seconds_count 1000
"#;

    #[test]
    fn what_a_worker_did_lies_between_two_readings() {
        let now = Reading::of(&parse(TEXT, is_read), 30.0);
        let done = now.since(&Reading { at_seconds: 15.0, ..Reading::default() }).expect("time has passed");
        let both = group(&[done.clone(), done]);
        let tasks = both.tasks["bank"];
        assert_eq!((tasks.ended, tasks.failed, tasks.timed, tasks.seconds), (200, 20, 214, 300.0));
        assert_eq!((both.workers, both.slots), (2, 20.0), "ten tasks on average, of two slots each");
        assert_eq!((both.memory_bytes, both.lag_seconds), (Some(5e7), Some(0.0005)));
    }

    #[test]
    fn a_worker_that_was_started_anew_or_not_read_anew_did_nothing() {
        let now = Reading::of(&parse(TEXT, is_read), 30.0);
        assert_eq!(now.since(&now), None);
        assert_eq!(
            Reading { at_seconds: 45.0, ..now.clone() }.since(&Reading::default()).map(|done| done.slots),
            Some(20.0 / 3.0)
        );
        let young = "weir_tasks_total{integration=\"bank\",outcome=\"ok\"} 1";
        let young = Reading::of(&parse(young, is_read), 45.0);
        assert_eq!(young.since(&now), None);
        let nothing = group(&[]);
        assert_eq!((nothing.workers, nothing.slots, nothing.memory_bytes, nothing.lag_seconds), (0, 0.0, None, None));
    }
}
