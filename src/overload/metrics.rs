//! What is shown of overload: names and help texts in one place.

use metrics::{Counter, counter, describe_counter, describe_gauge, gauge};

use super::{Overload, Signal};
use crate::telemetry::Telemetry;

const SHEDS: &str = "weir_overload_sheds_total";

/// Counters that the watchdog holds.
pub(super) struct Metrics {
    sheds: [(Signal, Counter); Signal::ALL.len()],
}

impl Metrics {
    pub(super) fn new(telemetry: &Telemetry) -> Self {
        telemetry.register(|| {
            describe_counter!(SHEDS, "How often a signal has become so high that the worker takes no tasks.");
            describe_gauge!("weir_overload_pressure", "1 while a signal is so high that the worker takes no tasks.");
            describe_gauge!("weir_overload_lag_seconds", "How late the runtime's tasks are, smoothed: the signal lag.");
            describe_gauge!(
                "weir_overload_memory_bytes",
                "Memory in use, as it is measured against weir_overload_memory_limit_bytes; 0 where it is not known."
            );
            describe_gauge!(
                "weir_overload_memory_expected_bytes",
                "Memory that will be in use in 200 ms if it grows as in the last 100 ms: what the signal memory is judged by."
            );
            describe_gauge!(
                "weir_overload_memory_limit_bytes",
                "The limit that is nearest: the cgroup's, the configured one, or without both the machine's memory."
            );
            describe_gauge!(
                "weir_overload_throttled_ratio",
                "The share of the last periods in which the CPU quota was used up; 0 without a quota."
            );
            describe_gauge!("weir_overload_descriptors", "Open descriptors; 0 where they are not known.");
            describe_gauge!("weir_overload_descriptors_limit", "How many descriptors may be open; 0 without a limit.");
            describe_gauge!("weir_blocked_threads", "Async threads that integrations block now.");
            let sheds = |signal: Signal| (signal, counter!(SHEDS, "signal" => signal.as_str()));
            Metrics { sheds: Signal::ALL.map(sheds) }
        })
    }

    /// A signal has become high.
    pub(super) fn risen(&self, risen: Signal) {
        if let Some((_, counter)) = self.sheds.iter().find(|(signal, _)| *signal == risen) {
            counter.increment(1);
        }
    }

    /// Sets the gauges, before a scrape.
    pub(super) fn publish(overload: &Overload) {
        let (readings, high) = (overload.readings(), overload.high());
        for signal in Signal::ALL {
            let value = if high.contains(&signal) { 1.0 } else { 0.0 };
            gauge!("weir_overload_pressure", "signal" => signal.as_str()).set(value);
        }
        let (memory, descriptors) = (readings.memory.map(|(usage, _)| usage), readings.descriptors);
        gauge!("weir_overload_lag_seconds").set(readings.lag.as_secs_f64());
        gauge!("weir_overload_memory_bytes").set(memory.map_or(0.0, |usage| usage.used as f64));
        gauge!("weir_overload_memory_expected_bytes").set(readings.memory_expected.map_or(0.0, |bytes| bytes as f64));
        gauge!("weir_overload_memory_limit_bytes").set(memory.map_or(0.0, |usage| usage.limit as f64));
        gauge!("weir_overload_throttled_ratio").set(readings.throttled.unwrap_or_default());
        gauge!("weir_overload_descriptors").set(descriptors.map_or(0.0, |usage| usage.used as f64));
        gauge!("weir_overload_descriptors_limit").set(descriptors.map_or(0.0, |usage| usage.limit as f64));
        gauge!("weir_blocked_threads").set(readings.blocked_threads);
    }
}
