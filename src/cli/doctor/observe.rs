//! From readings to what they say: which of a worker's metrics become which number of an [`Observation`].

use std::collections::BTreeMap;

use super::observation::{
    Allocator, Descriptors, Gate, Integration, Level, Line, Memory, Observation, Payloads, Runtime,
};
use super::track::Track;
use crate::cli::scrape::Sample;

/// Gauges and counters.
const PLAIN: [&str; 50] = [
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "weir_allocator_allocated_bytes",
    "weir_allocator_resident_bytes",
    "weir_allocator_retained_bytes",
    "weir_binding_constraint",
    "weir_blocked_threads",
    "weir_blocking_limit",
    "weir_blocking_running",
    "weir_blocking_waiting",
    "weir_breaker_state",
    "weir_exec_busy",
    "weir_exec_places",
    "weir_exec_waiting",
    "weir_gate_in_flight",
    "weir_gate_integration_slots_held",
    "weir_gate_refused_total",
    "weir_gate_slots_held",
    "weir_gate_target",
    "weir_http_exchanges_total",
    "weir_http_sockets_busy",
    "weir_http_sockets_per_host_limit",
    "weir_http_sockets_waiting",
    "weir_integration_blocked_seconds",
    "weir_integration_blocked_total",
    "weir_log_lines_dropped_total",
    "weir_overload_descriptors",
    "weir_overload_descriptors_limit",
    "weir_overload_lag_seconds",
    "weir_overload_memory_bytes",
    "weir_overload_memory_limit_bytes",
    "weir_overload_throttled_ratio",
    "weir_payload_store_away",
    "weir_payload_store_sockets_busy",
    "weir_payload_store_sockets_limit",
    "weir_payload_store_sockets_waiting",
    "weir_payloads_dropped_total",
    "weir_payloads_offered_total",
    "weir_payloads_pending",
    "weir_payloads_pending_bytes",
    "weir_payloads_pending_limit",
    "weir_payloads_pending_limit_bytes",
    "weir_payloads_stored_total",
    "weir_pool_info",
    "weir_runtime_busy_seconds",
    "weir_runtime_threads",
    "weir_tasks_overdue",
    "weir_tasks_overdue_oldest_seconds",
    "weir_tasks_total",
];

/// Histograms, by their sums and counts.
const TIMES: [&str; 5] = [
    "weir_http_socket_wait_seconds",
    "weir_payload_encode_duration_seconds",
    "weir_payload_encode_pause_duration_seconds",
    "weir_payload_upload_duration_seconds",
    "weir_task_duration_seconds",
];
const PARTS: [&str; 2] = ["_count", "_sum"];

/// The metric that each process of weir shows, with its role and pool.
pub(super) const ROLE: &str = "weir_pool_info";

/// What a worker always shows, and so when it was read.
pub(super) const READ: &str = "weir_gate_in_flight";

/// The breaker's state in which it is open.
const OPEN: f64 = 2.0;

/// The names of all series that are read.
pub(super) fn names() -> impl Iterator<Item = String> {
    let parts = TIMES.into_iter().flat_map(|name| PARTS.map(|part| format!("{name}{part}")));
    PLAIN.into_iter().map(str::to_owned).chain(parts)
}

/// Whether it is one of them.
pub(super) fn is_read(series: &str) -> bool {
    let is_part = |part: &&str| series.strip_suffix(*part).is_some_and(|name| TIMES.contains(&name));
    PLAIN.contains(&series) || PARTS.iter().any(is_part)
}

/// Whose metrics these are: role and pool. None where they are of no process of weir.
pub(super) fn role(samples: &[Sample]) -> Option<(&str, &str)> {
    let info = samples.iter().find(|sample| sample.name == ROLE)?;
    Some((info.labels.get("role")?, info.labels.get("pool")?))
}

impl Observation {
    /// What the readings of a worker say.
    pub fn of(track: &Track, instance: &str, pool: &str) -> Self {
        let (readings, seconds) = track.readings(READ);
        let started = track.level("process_start_time_seconds", None).unwrap_or_default();
        let shown = |name: &str| track.level(name, None).unwrap_or_default();
        Observation {
            instance: instance.to_owned(),
            pool: pool.to_owned(),
            seconds,
            readings,
            unanswered: 0,
            // The clock is read anew at each start, to a hundredth of a second.
            restarted: started.last - started.first > 1.0,
            gate: gate(track),
            runtime: runtime(track, seconds),
            memory: memory(track),
            descriptors: Descriptors {
                open: shown("weir_overload_descriptors"),
                limit: track.last("weir_overload_descriptors_limit"),
            },
            throttled_ratio: track.average("weir_overload_throttled_ratio", None),
            payloads: payloads(track),
            integrations: integrations(track),
            socket_waits: track.mean("weir_http_socket_wait_seconds", None),
            blocking: Line {
                busy: track.average("weir_blocking_running", None),
                waiting: track.average("weir_blocking_waiting", None),
                places: track.last("weir_blocking_limit"),
            },
            log_lines_dropped: track.rise("weir_log_lines_dropped_total", None),
            log_level: None,
            shedding: None,
        }
    }
}

fn gate(track: &Track) -> Gate {
    let constraints = track.values("weir_binding_constraint", "constraint").into_iter();
    let shares = constraints
        .map(|name| (name.to_owned(), track.share("weir_binding_constraint", Some(("constraint", name)), 1.0)));
    Gate {
        target: track.last("weir_gate_target"),
        held: track.level("weir_gate_slots_held", None).unwrap_or_default(),
        in_flight: track.level("weir_gate_in_flight", None).unwrap_or_default(),
        limited_by: shares.filter(|(_, share)| *share > 0.0).collect(),
        refused: track.rises("weir_gate_refused_total", "reason", None),
        overdue: track.average("weir_tasks_overdue", None),
        overdue_oldest_seconds: track.last("weir_tasks_overdue_oldest_seconds"),
    }
}

fn runtime(track: &Track, seconds: f64) -> Runtime {
    let per_second = |name: &str| if seconds > 0.0 { track.rise(name, None) / seconds } else { 0.0 };
    Runtime {
        threads: track.last("weir_runtime_threads"),
        busy_threads: per_second("weir_runtime_busy_seconds"),
        blocked_threads: track.average("weir_blocked_threads", None),
        lag_seconds: track.level("weir_overload_lag_seconds", None).unwrap_or_default(),
        processors: per_second("process_cpu_seconds_total"),
    }
}

fn memory(track: &Track) -> Memory {
    let level = |name: &str| track.level(name, None);
    let allocator = level("weir_allocator_allocated_bytes").map(|allocated| Allocator {
        allocated,
        resident: level("weir_allocator_resident_bytes").unwrap_or_default(),
        retained: level("weir_allocator_retained_bytes").unwrap_or_default(),
    });
    Memory {
        resident: level("process_resident_memory_bytes").unwrap_or_default(),
        used: level("weir_overload_memory_bytes").unwrap_or_default(),
        limit: track.last("weir_overload_memory_limit_bytes"),
        allocator,
    }
}

fn payloads(track: &Track) -> Option<Payloads> {
    let pending = track.level("weir_payloads_pending", None)?;
    Some(Payloads {
        offered: track.rise("weir_payloads_offered_total", None),
        stored: track.rise("weir_payloads_stored_total", None),
        dropped: track.rises("weir_payloads_dropped_total", "reason", None),
        pending,
        pending_limit: track.last("weir_payloads_pending_limit"),
        pending_bytes: track.level("weir_payloads_pending_bytes", None).unwrap_or_default(),
        pending_bytes_limit: track.last("weir_payloads_pending_limit_bytes"),
        encoding: track.mean("weir_payload_encode_duration_seconds", None),
        pauses: track.mean("weir_payload_encode_pause_duration_seconds", None),
        uploading: track.mean("weir_payload_upload_duration_seconds", None),
        uploads: Line {
            busy: track.average("weir_payload_store_sockets_busy", None),
            waiting: track.average("weir_payload_store_sockets_waiting", None),
            places: track.last("weir_payload_store_sockets_limit"),
        },
        store_away: track.share("weir_payload_store_away", None, 1.0),
    })
}

fn integrations(track: &Track) -> BTreeMap<String, Integration> {
    let names = track.values("weir_tasks_total", "integration");
    names.into_iter().map(|name| (name.to_owned(), integration(track, name))).collect()
}

fn integration(track: &Track, name: &str) -> Integration {
    let with = Some(("integration", name));
    let mean = |level: Level| level.mean;
    let line = |busy: &str, waiting: &str, places: &str| {
        let places = track.level(places, with)?.last;
        Some(Line { busy: track.average(busy, with), waiting: track.average(waiting, with), places })
    };
    Integration {
        outcomes: track.rises("weir_tasks_total", "outcome", with),
        took: track.mean("weir_task_duration_seconds", with),
        before: track.mean_before("weir_task_duration_seconds", with),
        peers: Default::default(),
        running: Default::default(),
        held: track.level("weir_gate_integration_slots_held", with).map_or(0.0, mean),
        blocked_seconds: track.rise("weir_integration_blocked_seconds", with),
        blocked_times: track.rise("weir_integration_blocked_total", with),
        sockets: line("weir_http_sockets_busy", "weir_http_sockets_waiting", "weir_http_sockets_per_host_limit"),
        processes: line("weir_exec_busy", "weir_exec_waiting", "weir_exec_places"),
        exchanges: track.rises("weir_http_exchanges_total", "result", with),
        breaker_open: track.share("weir_breaker_state", with, OPEN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each is a metric that the page lists, which another test compares with what the roles show.
    #[test]
    fn what_is_read_is_shown_by_a_worker() {
        let page = include_str!("../../../docs/metrics.md");
        for name in PLAIN.iter().chain(&TIMES) {
            let row = page.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
            assert!(row.is_some_and(|row| row.contains("worker")), "{name}");
        }
        assert!(names().all(|name| is_read(&name)) && !is_read("weir_task_duration_seconds_bucket"));
    }
}
