//! From readings to what they say: which of a worker's metrics become which number of an [`Observation`].

use std::collections::BTreeMap;

use anyhow::bail;

use super::lives::{Lives, START};
use super::observation::{
    Allocator, Descriptors, Gate, Integration, Level, Line, Logs, Mean, Memory, Observation, Payloads, Runs, Runtime,
    Spread,
};
use super::profiled;
use super::track::{Time, Track, When, With};
use crate::cli::scrape::Sample;
use crate::overload::Signal;

/// Gauges and counters.
const PLAIN: [&str; 57] = [
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
    "weir_last_exit",
    "weir_log_lines_dropped_total",
    "weir_log_lines_left_out_total",
    "weir_log_lines_total",
    "weir_overload_descriptors",
    "weir_overload_descriptors_limit",
    "weir_overload_lag_seconds",
    "weir_overload_memory_bytes",
    "weir_overload_memory_limit_bytes",
    "weir_overload_sheds_total",
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
    "weir_profile_sampling",
    "weir_profiles_total",
    "weir_runtime_busy_seconds",
    "weir_runtime_threads",
    FAILED,
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
    TASKS,
];

/// How long runs took. Watching a worker, its buckets are read, too.
const TASKS: &str = "weir_task_duration_seconds";

const FAILED: &str = "weir_task_failed_seconds";

const PARTS: [&str; 2] = ["_count", "_sum"];

/// The metric that each process of weir shows, with its role and pool.
pub(super) const ROLE: &str = "weir_pool_info";

/// What a worker always shows, and so when it was read.
pub(super) const READ: &str = "weir_gate_in_flight";

/// The breaker's state in which it is open.
const OPEN: f64 = 2.0;

/// The signal for which a worker sheds load because its runtime is late, and the binding constraint meanwhile.
const LAG: &str = Signal::Lag.as_str();

/// The binding constraint of a worker that ends.
pub(super) const DRAINING: &str = "draining";

/// The names of all series that are read from a Prometheus.
pub(super) fn names() -> impl Iterator<Item = String> {
    let parts = TIMES.into_iter().flat_map(|name| PARTS.map(|part| format!("{name}{part}")));
    PLAIN.into_iter().map(str::to_owned).chain(parts)
}

/// Whether it is one of them.
pub(super) fn is_read(series: &str) -> bool {
    let is_part = |part: &&str| series.strip_suffix(*part).is_some_and(|name| TIMES.contains(&name));
    PLAIN.contains(&series) || PARTS.iter().any(is_part) || series.strip_suffix("_bucket") == Some(TASKS)
}

/// Whose metrics these are: role and pool. None where they are of no process of weir.
pub(super) fn role(samples: &[Sample]) -> Option<(&str, &str)> {
    let info = samples.iter().find(|sample| sample.name == ROLE)?;
    Some((info.labels.get("role")?, info.labels.get("pool")?))
}

impl Observation {
    /// What the readings of a worker say of its longest life. `began` is the Unix time of the first one, where a restart after
    /// it would have been seen.
    pub fn of_process(track: Track, began: Option<f64>, instance: &str, pool: &str) -> anyhow::Result<Self> {
        let (restarts, longest) = match Lives::of(&track, began) {
            Lives::Of { restarts, longest } => (restarts, longest),
            Lives::Several(count) => bail!(
                "{instance} leads to {count} processes in turn, as behind a load balancer: give the address of one worker"
            ),
        };
        let is_last = |how: &&str| track.level("weir_last_exit", Some(("how", how))).is_some_and(|is| is.last == 1.0);
        let last_exit = track.values("weir_last_exit", "how").into_iter().find(is_last).map(str::to_owned);
        let track = match longest {
            Some(time) => track.within(time),
            None => track,
        };
        let last_exit = last_exit.filter(|_| restarts > 0);
        let first = track.points(START, None).first().copied();
        let age_seconds = first.map(|(at, start)| (began.unwrap_or_default() + at - start).max(0.0));
        Ok(Observation { restarts, last_exit, age_seconds, ..Observation::of(&track, instance, pool) })
    }

    /// What the readings of a worker say.
    pub fn of(track: &Track, instance: &str, pool: &str) -> Self {
        let (readings, seconds) = track.readings(READ);
        let profiled = profiled::times(track);
        let shown = |name: &str| track.level(name, None).unwrap_or_default();
        Observation {
            instance: instance.to_owned(),
            pool: pool.to_owned(),
            seconds,
            readings,
            unanswered: 0,
            restarts: 0,
            last_exit: None,
            age_seconds: None,
            gone_seconds: 0.0,
            unread_seconds: 0.0,
            profiles: track.rise(profiled::ENDED, Some(("outcome", "taken"))),
            gate: gate(track),
            runtime: runtime(track, seconds, &profiled),
            memory: memory(track, &profiled),
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
            logs: Logs {
                said: track.rises("weir_log_lines_total", "level", None),
                left_out: track.rise("weir_log_lines_left_out_total", None),
                lost: track.rises("weir_log_lines_dropped_total", "reason", None),
            },
            log_level: None,
            shedding: None,
            blocked_by: None,
        }
    }
}

fn gate(track: &Track) -> Gate {
    let constraints = track.values("weir_binding_constraint", "constraint").into_iter();
    let shares = constraints
        .map(|name| (name.to_owned(), track.share("weir_binding_constraint", Some(("constraint", name)), 1.0)));
    Gate {
        target: track.last("weir_gate_target"),
        closed: track.share("weir_gate_target", None, 0.0),
        drains: track.level("weir_binding_constraint", Some(("constraint", DRAINING))).is_some_and(|is| is.last == 1.0),
        held: track.level("weir_gate_slots_held", None).unwrap_or_default(),
        in_flight: track.level("weir_gate_in_flight", None).unwrap_or_default(),
        limited_by: shares.filter(|(_, share)| *share > 0.0).collect(),
        refused: track.rises("weir_gate_refused_total", "reason", None),
        overdue: track.average("weir_tasks_overdue", None),
        overdue_oldest_seconds: track.last("weir_tasks_overdue_oldest_seconds"),
    }
}

fn runtime(track: &Track, seconds: f64, profiled: &[Time]) -> Runtime {
    let per_second = |name: &str| if seconds > 0.0 { track.rise(name, None) / seconds } else { 0.0 };
    Runtime {
        threads: track.last("weir_runtime_threads"),
        busy_threads: per_second("weir_runtime_busy_seconds"),
        blocked_threads: track.average("weir_blocked_threads", None),
        lag_seconds: track.level_outside("weir_overload_lag_seconds", None, profiled).unwrap_or_default(),
        lag_sheds: track.rise_outside("weir_overload_sheds_total", Some(("signal", LAG)), profiled),
        lag_shedding: track
            .level_outside("weir_binding_constraint", Some(("constraint", LAG)), profiled)
            .map_or(0.0, |level| level.mean),
        processors: track.per_second_outside("process_cpu_seconds_total", profiled),
    }
}

fn memory(track: &Track, profiled: &[Time]) -> Memory {
    let level = |name: &str| track.level_without(name, profiled);
    let allocator = level("weir_allocator_allocated_bytes").map(|allocated| Allocator {
        allocated,
        resident: level("weir_allocator_resident_bytes").unwrap_or_default(),
        retained: level("weir_allocator_retained_bytes").unwrap_or_default(),
    });
    Memory {
        resident: level("process_resident_memory_bytes").unwrap_or_default(),
        used: level("weir_overload_memory_bytes").unwrap_or_default(),
        limit: track.last("weir_overload_memory_limit_bytes"),
        limit_of: None,
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
        took: runs(track, with, When::Window),
        before: runs(track, with, When::Before),
        peers: Default::default(),
        spread: spread(track, with),
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

/// Its runs, then.
fn runs(track: &Track, with: With, when: When) -> Runs {
    let [count, seconds] = PARTS.map(|part| track.rise_in(when, &format!("{TASKS}{part}"), with));
    // A worker of an earlier version does not show for how long those ran that failed.
    let shows_failed = !track.points(FAILED, with).is_empty();
    let failed = Mean { count: failures(track, with, when), seconds: track.rise_in(when, FAILED, with) };
    Runs { count, seconds, failed: if shows_failed { failed } else { Mean::default() } }
}

/// Its tasks that did not end in ok.
fn failures(track: &Track, with: With, when: When) -> f64 {
    let outcomes = track.rises_in(when, "weir_tasks_total", "outcome", with);
    outcomes.iter().filter(|(outcome, _)| *outcome != "ok").map(|(_, count)| count).sum()
}

/// How the times before were spread; none where no buckets were read, as from a Prometheus.
fn spread(track: &Track, with: With) -> Option<Spread> {
    let (before, now) = (track.buckets(When::Before, TASKS, with), track.buckets(When::Window, TASKS, with));
    let count = |buckets: &[(f64, f64)]| buckets.last().map_or(0.0, |(_, count)| *count);
    // Those that failed may all have done so at once: then they are the fastest.
    let failed = failures(track, with, When::Before);
    let within = |share: f64| {
        let least = failed + share * (count(&before) - failed);
        before.iter().find(|(_, count)| *count >= least && *count > 0.0).map(|(bound, _)| *bound)
    };
    let (half_within, most_within) = (within(0.5)?, within(0.95)?);
    let below = now.iter().find(|(bound, _)| *bound == half_within).map_or(0.0, |(_, count)| *count);
    let above_half = if count(&now) > 0.0 { 1.0 - below / count(&now) } else { 0.0 };
    Some(Spread { half_within, most_within, above_half })
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
        assert!(names().all(|name| is_read(&name)) && !is_read("weir_http_socket_wait_seconds_bucket"));
        assert!(is_read("weir_task_duration_seconds_bucket") && !names().any(|name| name.ends_with("_bucket")));
    }
}
